"""What is said of a folder before the work: from headers alone, and nothing of it is guessed wrong."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import bundle.networks
import numpy as np
import pytest
from bundle.__main__ import VERBS
from bundle.data import ScanDataset
from bundle.data import reader as reading
from bundle.data.scans import Split
from bundle.data.survey import check_support, survey
from tests.data.scans import noise_volume, write_nifti


def scan(path: Path, shape: tuple[int, int, int] = (10, 14, 5), z: float = 4.0, lowest: int = 0) -> dict[str, Any]:
    volume = noise_volume(shape=shape)
    volume[0, 0, 0] = lowest
    return {"image": str(write_nifti(path, volume, np.diag([1.5, -2.0, z, 1.0])))}


def test_sizes_and_spacings_of_the_folder_are_told(tmp_path: Path) -> None:
    scans = [scan(tmp_path / "a.nii.gz"), scan(tmp_path / "b.nii", (10, 12, 7), 6.5)]
    support = [scan(tmp_path / "support/c.nii.gz", lowest=-3)]
    assert survey(scans, scans[1:], support).lines == [
        "2 scans: 1 to segment, 1 with a finished mask, 0 unusable",
        "scans: 10 x 12 x 7 voxels, spacing 1.5 x 2 x 6.5 mm",
        "1 annotated scan (no CT in HU): 10 x 14 x 5 voxels, spacing 1.5 x 2 x 4 mm",
    ]
    assert survey(scans, scans).lines[1] == "scans: 10 x 12 to 14 x 5 to 7 voxels, spacing 1.5 x 2 x 4 to 6.5 mm"


def test_an_annotated_ct_is_told_from_its_values(tmp_path: Path) -> None:
    support = [scan(tmp_path / "a.nii.gz", lowest=-1024)]
    assert survey(support, support, support).lines[2].startswith("1 annotated scan (CT, values from -1024): 10 x 14")


def test_what_is_no_scan_is_told(tmp_path: Path) -> None:
    only = scan(tmp_path / "images/a.nii.gz")
    for name in ("notes.txt", "b.txt", "c.pdf", ".hidden"):
        (tmp_path / "images" / name).touch()
    found = survey([only], [only], dataset_dir=tmp_path)
    assert found.lines[-1] == f"left alone in {tmp_path / 'images'}: 2 .txt, 1 .pdf"
    assert len(found.lines) <= 5


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (b"no scan, but more than four bytes", "it does not begin with a NIfTI header"),
        (None, "there is no such image file"),
    ],
)
def test_a_header_that_is_none_is_named_and_the_others_stay(content: bytes | None, words: str, tmp_path: Path) -> None:
    good, bad = scan(tmp_path / "good.nii.gz"), {"image": str(tmp_path / "bad.nii.gz")}
    if content is not None:
        (tmp_path / "bad.nii.gz").write_bytes(content)
    found = survey([bad, good], [bad, good])
    assert found.usable == [good]
    assert words in found.problems[0]
    assert found.problems[0].startswith(str(tmp_path / "bad.nii.gz"))


def test_voxels_that_are_cut_off_are_noticed_in_the_header_of_a_file_that_is_not_compressed(tmp_path: Path) -> None:
    cut = scan(tmp_path / "cut.nii")
    path = Path(cut["image"])
    path.write_bytes(path.read_bytes()[:-1])
    assert "it declares 10 x 14 x 5 voxels of int16" in survey([cut], [cut]).problems[0]


def test_no_voxel_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scans = [scan(tmp_path / f"{number}.nii.gz") for number in range(3)]
    monkeypatch.setattr(reading, "read_nifti", lambda _: pytest.fail("voxels are read"))
    assert survey(scans, scans).usable == scans


def test_a_dry_run_builds_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("ALPNet", "load_network"):
        monkeypatch.setattr(bundle.networks, part, lambda *_, **__: pytest.fail("the network is built"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    scan(tmp_path / "a.nii.gz")
    support = [scan(tmp_path / "support/b.nii.gz")["image"]] * 2
    files = ["--support_image", support[0], "--support_label", support[1], "--dataset_dir", str(tmp_path / "a.nii.gz")]
    words = [*files, "--output_dir", str(tmp_path / "out"), "--dry_run", "true"]
    VERBS["inference"].run("inference", words)
    assert "1 scan: 1 to segment, 0 with a finished mask, 0 unusable" in capsys.readouterr().out


def test_a_data_set_that_keeps_going_gives_the_problem_in_the_place_of_a_broken_scan(tmp_path: Path) -> None:
    broken = {"image": str(tmp_path / "gone.nii.gz")}
    (given,) = [ScanDataset([broken], dict, keep_going=True)[0]]
    assert given == {"problem": f"{tmp_path / 'gone.nii.gz'}: there is no such image file. Check the path."}


def split_of(folder: Path, *labels: np.ndarray, queries: int = 1) -> Split:
    """Annotated scans with these label maps, and queries of which nothing is read."""
    support = [{"image": "x", "label": str(write_nifti(folder / f"{n}.nii.gz", a))} for n, a in enumerate(labels)]
    return Split([], support, [{"image": "q", "label": "q"}] * queries)


def test_organs_that_the_annotated_scan_lacks_are_named_with_the_ids_that_it_has(tmp_path: Path) -> None:
    label = np.zeros((6, 5, 4))
    label[1, :3, 1] = [2, 6.9999999, np.nan]
    split = split_of(tmp_path, label)
    words = r"liver \(id 6\), spleen \(id 1\) has no voxel in \S*0\.nii\.gz, which holds the ids \[2, 7\]\. Correct org"
    with pytest.raises(ValueError, match=words):
        check_support(split, {"liver": 6, "kidney": 7, "spleen": 1})
    check_support(split, {"kidney": 7, "tail": 2})


def test_one_of_the_annotated_scans_may_show_an_organ(tmp_path: Path) -> None:
    check_support(split_of(tmp_path, np.full((6, 5, 4), 2.0), np.full((6, 5, 4), 3.0)), {"a": 2, "b": 3})


@pytest.mark.parametrize(("queries", "organs", "used"), [(0, {"a": 9}, True), (1, None, True), (1, {"a": 9}, False)])
def test_without_an_evaluation_of_named_organs_nothing_is_asked(
    queries: int, organs: dict[str, int] | None, used: bool, tmp_path: Path
) -> None:
    check_support(split_of(tmp_path, np.ones((6, 5, 4)), queries=queries), organs, used)


def test_one_scan_is_one_scan(tmp_path: Path) -> None:
    only = [scan(tmp_path / "a.nii.gz")]
    assert survey(only, only).lines[0].startswith("1 scan: 1 to segment")
