"""The target folder: its record, resuming after a stop, and what is refused before anything is written."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bundle
import nibabel
import numpy as np
import pytest
from bundle.data import list_scans
from bundle.prepare import dataset
from tests.prepare.downloads import (
    centers,
    grid,
    run,
    said,
    tree,
    write_btcv,
    write_chaos_mr,
    write_mscmr,
    write_plain,
    write_volume,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for number in (1, 2, 10):
        write_plain(tmp_path / "source", f"scan_{number}", f"label_{number}", seed=number)
    return tmp_path / "source"


def record_of(target: Path) -> dict[str, Any]:
    return json.loads((target / "dataset.json").read_text())


def times(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_the_record_states_the_source_of_every_file(tmp_path: Path) -> None:
    write_btcv(tmp_path / "RawData" / "Training", 4)
    assert run("btcv", source=tmp_path / "RawData", target=tmp_path / "target") == 0
    record = record_of(tmp_path / "target")
    assert record["name"] == "btcv"
    assert record["modality"] == "ct"
    assert record["organs"]["pancreas"] == 11
    assert len(record["organs"]) == 13
    assert record["recipe"] == {
        "arithmetic": "clean",
        "window_hu": [-125, 275],
        "field_of_view": 0.875,
        "size": [256, 256],
    }
    assert "syn3193805" in record["origin"]
    assert record["licence"] == "terms of Synapse"
    assert record["bundle_version"] == bundle.__version__
    (scan,) = record["scans"]
    hashes = tree(tmp_path / "target")
    label = nibabel.load(tmp_path / "target" / scan["label"])
    assert scan["name"] == "btcv_0004"
    assert scan["image"] == "images/btcv_0004.nii.gz"
    assert scan["source_files"] == ["Training/img/img0004.nii.gz", "Training/label/label0004.nii.gz"]
    assert len(scan["source_sha256"]) == 64
    assert (scan["image_sha256"], scan["label_sha256"]) == (hashes[scan["image"]], hashes[scan["label"]])
    assert scan["shape"] == [256, 256, 5]
    np.testing.assert_allclose(scan["spacing_mm"], label.header.get_zooms(), atol=1e-5)
    assert scan["voxels"]["liver"] == (np.asarray(label.dataobj) == 6).sum() > 0
    assert scan["absent"] == [name for name, organ in record["organs"].items() if organ not in (1, 2, 3, 6)]
    assert label.get_data_dtype() == np.uint8


def test_scans_are_listed_by_their_id_and_open_as_a_study(tmp_path: Path, source: Path) -> None:
    run("nifti", source=source, target=tmp_path / "target")
    names = ["scan_1", "scan_2", "scan_10"]
    assert [scan["name"] for scan in record_of(tmp_path / "target")["scans"]] == names
    assert [Path(scan["image"]).name for scan in list_scans(tmp_path / "target")] == [
        f"{name}.nii.gz" for name in names
    ]


def test_an_organ_that_one_scan_lacks_is_told_and_recorded(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    label = nibabel.load(source / "labels" / "label_2.nii.gz")
    values = np.asarray(label.dataobj)
    write_volume(source / "labels" / "label_2.nii.gz", np.where(values == 3, 0, values), label.affine)
    assert run("nifti", source=source, target=tmp_path / "target") == 0
    assert "scan_2 does not show: organ_3\n" in capsys.readouterr().out
    record = record_of(tmp_path / "target")
    assert record["organs"] == {"organ_1": 1, "organ_2": 2, "organ_3": 3, "organ_4": 4}
    assert [scan["absent"] for scan in record["scans"]] == [[], ["organ_3"], []]


def test_the_source_is_never_changed(tmp_path: Path, source: Path) -> None:
    before, before_times = tree(source), times(source)
    run("nifti", source=source, target=tmp_path / "target", size=32)
    assert (tree(source), times(source)) == (before, before_times)


def test_a_second_run_touches_nothing(tmp_path: Path, source: Path) -> None:
    run("nifti", source=source, target=tmp_path / "target")
    before = times(tmp_path / "target")
    assert run("nifti", source=source, target=tmp_path / "target") == 0
    assert times(tmp_path / "target") == before


def test_only_what_changed_is_made_again(tmp_path: Path, source: Path) -> None:
    target = tmp_path / "target"
    run("nifti", source=source, target=target)
    before = times(target / "images")
    (target / "labels" / "scan_1.nii.gz").unlink()
    write_plain(source, "scan_10", "label_10", seed=5)
    run("nifti", source=source, target=target)
    changed = {Path(path).name for path, time in times(target / "images").items() if time != before[path]}
    assert changed - {"images"} == {"scan_1.nii.gz", "scan_10.nii.gz"}
    assert tree(target) == tree_of_a_new_run(source, tmp_path / "new")


def tree_of_a_new_run(source: Path, target: Path, **options: str) -> dict[str, str]:
    run("nifti", source=source, target=target, **options)
    return tree(target)


def test_a_stop_leaves_whole_files_and_the_next_run_resumes(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, save = tmp_path / "target", nibabel.save

    def stop_in_the_middle(image: Any, path: Path) -> None:
        if path.parent.name == "labels" and "scan_2" in path.name:
            path.write_bytes(b"half")
            raise KeyboardInterrupt
        save(image, path)

    with monkeypatch.context() as patch:
        patch.setattr(nibabel, "save", stop_in_the_middle)
        assert run("nifti", source=source, target=target) == 130
    assert [scan["name"] for scan in record_of(target)["scans"]] == ["scan_1"]
    assert set(tree(target)) == {"dataset.json", "images/scan_1.nii.gz", "images/scan_2.nii.gz", "labels/scan_1.nii.gz"}
    first = times(target / "labels")
    assert run("nifti", source=source, target=target) == 0
    assert first[str(target / "labels" / "scan_1.nii.gz")] == times(target)[str(target / "labels" / "scan_1.nii.gz")]
    assert tree(target) == tree_of_a_new_run(source, tmp_path / "new")


KILLED = """
import os, signal, sys, nibabel
save = nibabel.save
def die(image, path):
    if "scan_2" in path.name:
        path.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    save(image, path)
nibabel.save = die
from bundle.__main__ import main
main(["prepare", *sys.argv[1:]])
"""


def test_a_killed_process_leaves_whole_files_and_the_next_run_resumes(tmp_path: Path, source: Path) -> None:
    target = tmp_path / "target"
    command = [sys.executable, "-c", KILLED, "nifti", f"--source={source}", f"--target={target}"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    (left,) = [path for path in tree(target) if ".tmp-" in path]
    assert left.endswith("-scan_2.nii.gz")
    assert [scan["name"] for scan in record_of(target)["scans"]] == ["scan_1"]
    assert run("nifti", source=source, target=target) == 0
    assert tree(target) == tree_of_a_new_run(source, tmp_path / "new")


def test_a_stop_before_the_first_record_is_no_other_content(tmp_path: Path, source: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / ".tmp-dataset.json").write_text("{")
    assert run("nifti", source=source, target=target) == 0
    assert ".tmp-dataset.json" not in tree(target)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 32}, "prepared differently: .*recipe::size was not set, is .*32"),
        ({"modality": "ct"}, "modality was 'mr', is 'ct'"),
        ({"organs": "{a: 1, b: 2, c: 3, d: 4}"}, "organs_as_found was true, is false"),
    ],
)
def test_a_target_made_otherwise_is_refused_and_left_alone(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any], words: str
) -> None:
    target = tmp_path / "target"
    run("nifti", source=source, target=target)
    before = times(target)
    capsys.readouterr()
    assert run("nifti", source=source, target=target, **options) == 1
    assert_says(said(capsys), f"error: .*{words}.*Choose another --target")
    assert times(target) == before


def assert_says(text: str, pattern: str) -> None:
    assert re.search(pattern, text), text


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("notes.txt", "mine", "must be empty or a prepared data set, got other files"),
        ("dataset.json", '{"phantom": {}, "organs": {}}', "dataset.json must be the record of a prepared data set"),
        ("dataset.json", "[]", "record of a prepared data set, but cannot be read"),
        ("dataset.json", "{", "record of a prepared data set, but cannot be read"),
    ],
)
def test_a_target_that_holds_something_else_is_refused(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str], name: str, content: str, words: str
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / name).write_text(content)
    assert run("nifti", source=source, target=target) == 1
    assert_says(said(capsys), words)
    assert list(tree(target)) == [name]


def test_a_target_that_is_a_file_is_refused(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "target").write_text("mine")
    assert run("nifti", source=source, target=tmp_path / "target") == 1
    assert "is a file. Give a folder." in said(capsys)


@pytest.mark.parametrize("place", ["source", "source/prepared", "source/images/x", ".", "away/labels/x", "away"])
def test_a_target_that_overlaps_the_source_is_refused(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    (source / "labels").rename(source.parent / "labels")
    (tmp_path / "away").mkdir()
    (source.parent / "labels").rename(tmp_path / "away" / "labels")
    before = tree(tmp_path)
    assert run("nifti", source=source, labels=tmp_path / "away" / "labels", target=tmp_path / place) == 1
    assert_says(said(capsys), "error: the prepared data and the source must not overlap")
    assert tree(tmp_path) == before


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def spoil_header(path: Path) -> None:
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[70:72] = b"\xff\x7f"  # the code of the voxels' type
    path.write_bytes(gzip.compress(bytes(content)))


def rewrite(path: Path, change: Callable[[np.ndarray], np.ndarray], shift: float = 0.0) -> None:
    file = nibabel.load(path)
    affine = file.affine.copy()
    affine[0, 3] += shift
    write_volume(path, change(np.asarray(file.dataobj)), affine)


def test_an_annotated_scan_without_an_organ_is_prepared_and_said(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(source / "labels" / "label_2.nii.gz", np.zeros_like)
    assert run("nifti", source=source, target=tmp_path / "target", organs="{liver: 1, spleen: 2, a: 3, b: 4}") == 0
    assert_says(capsys.readouterr().out, "scan_2 does not show: liver, spleen, a, b")
    assert not np.asarray(nibabel.load(tmp_path / "target" / "labels" / "scan_2.nii.gz").dataobj).any()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda s: truncate(s / "images" / "scan_2.nii.gz"), "the file cannot be read .*truncated"),
        (lambda s: truncate(s / "labels" / "label_2.nii.gz"), "the file cannot be read .*truncated"),
        (lambda s: (s / "images" / "scan_2.nii.gz").write_bytes(b"no image"), "the file cannot be read"),
        (lambda s: spoil_header(s / "images" / "scan_2.nii.gz"), "the file cannot be read .*HeaderDataError"),
        (lambda s: (s / "labels" / "label_2.nii.gz").unlink(), "must have a label, got none. Use --unlabeled keep"),
        (lambda s: rewrite(s / "labels" / "label_2.nii.gz", lambda v: v[:-1]), r"its image's shape \(20, 24, 6\)"),
        (lambda s: rewrite(s / "labels" / "label_2.nii.gz", np.asarray, shift=3.0), "corners 3.0 mm apart"),
        (lambda s: rewrite(s / "labels" / "label_2.nii.gz", lambda v: v + 5), r"ids of .*got \[5, 6, 7, 8, 9\]"),
        (lambda s: rewrite(s / "images" / "scan_2.nii.gz", np.zeros_like), "an image must not be constant"),
    ],
)
def test_a_scan_that_cannot_be_used_is_named_and_the_others_are_done(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], Any], words: str
) -> None:
    damage(source)
    organs = "{liver: 1, right_kidney: 2, left_kidney: 3, spleen: 4}"
    assert run("nifti", source=source, target=tmp_path / "target", organs=organs) == 1
    text = said(capsys)
    assert_says(
        text, r"error: 1 scan could not be used; all others are finished:\n  scan_2 \(from images/scan_2.nii.gz\)"
    )
    assert_says(text, words)
    assert "Traceback" not in text
    assert [scan["name"] for scan in record_of(tmp_path / "target")["scans"]] == ["scan_1", "scan_10"]


def test_a_label_that_the_crop_leaves_nothing_of_is_refused(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corner = lambda v: np.pad(v[:1, :1, :1] * 0 + 1, [(0, n - 1) for n in v.shape])  # noqa: E731
    rewrite(source / "labels" / "label_2.nii.gz", corner)
    assert run("nifti", source=source, target=tmp_path / "target", size=16, spacing="2,2,-1") == 1
    assert "scan_2 (from images/scan_2.nii.gz): the label must lie in the prepared field of view" in said(capsys)


def test_a_damaged_slice_and_a_missing_folder_name_their_scans(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (1, 2, 3, 4):
        write_chaos_mr(tmp_path / "source", number)
    scans = tmp_path / "source" / "MR"
    truncate(scans / "1" / "T2SPIR" / "DICOM_anon" / "IMG-0004-3.dcm")
    (scans / "2" / "T2SPIR").rename(scans / "2" / "T1DUAL")
    (scans / "4" / "T2SPIR" / "Ground" / "IMG-0004-3.png").unlink()
    assert run("chaos", source=tmp_path / "source", target=tmp_path / "target") == 1
    text = said(capsys)
    assert_says(text, r"chaos_mr_01 \(from MR/1\): IMG-0004-3.dcm cannot be read")
    assert_says(text, r"chaos_mr_02 \(from MR/2\): the scan must have a label")
    assert_says(text, r"chaos_mr_04 \(from MR/4\): every slice needs its label, got 8 DICOM files and 7 PNG")
    assert [scan["name"] for scan in record_of(tmp_path / "target")["scans"]] == ["chaos_mr_03"]


def test_scans_without_a_label_can_be_kept_or_skipped(tmp_path: Path) -> None:
    write_mscmr(tmp_path / "source", 1)
    write_mscmr(tmp_path / "source", 2, labeled=False)
    for choice, names in {"keep": ["mscmr_01", "mscmr_02"], "skip": ["mscmr_01"]}.items():
        target = tmp_path / choice
        assert run("mscmr", source=tmp_path / "source", target=target, unlabeled=choice) == 0
        assert [scan["name"] for scan in record_of(target)["scans"]] == names
        assert [path.name for path in (target / "labels").iterdir()] == ["mscmr_01.nii.gz"]
    kept = record_of(tmp_path / "keep")["scans"][1]
    assert (kept["label"], kept["voxels"], kept["absent"]) == (None, {}, [])


def test_a_label_that_is_gone_from_the_source_goes_from_the_target(tmp_path: Path, source: Path) -> None:
    run("nifti", source=source, target=tmp_path / "target")
    (source / "labels" / "label_2.nii.gz").unlink()
    assert run("nifti", source=source, target=tmp_path / "target", unlabeled="keep") == 0
    assert tree(tmp_path / "target") == tree_of_a_new_run(source, tmp_path / "new", unlabeled="keep")


def test_a_disk_that_is_full_ends_the_run_in_one_sentence(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dataset, "save_nifti", fail)
    assert run("nifti", source=source, target=tmp_path / "target") == 1
    assert said(capsys).startswith("error: a file cannot be written ([Errno 28] No space left on device). Free space")


def test_an_id_above_255_is_kept(tmp_path: Path) -> None:
    write_plain(tmp_path / "source", "scan_1", "scan_1")
    rewrite(tmp_path / "source" / "labels" / "scan_1.nii.gz", lambda v: v.astype(np.int16) * 150)
    assert run("nifti", source=tmp_path / "source", target=tmp_path / "target") == 0
    label = nibabel.load(tmp_path / "target" / "labels" / "scan_1.nii.gz")
    assert label.get_data_dtype() == np.int16
    assert record_of(tmp_path / "target")["organs"] == {f"organ_{n}": n for n in (150, 300, 450, 600)}
    assert set(centers(label, {600: None})) == {600}


def test_a_volume_of_fractions_is_kept_in_floating_point(tmp_path: Path) -> None:
    affine, _ = grid((20, 24, 6), (6.0, 5.0, 10.0))
    values = np.linspace(0, 1, 20 * 24 * 6, dtype=np.float32).reshape(20, 24, 6)
    write_volume(tmp_path / "source" / "a_1.nii.gz", values, affine)
    assert run("nifti", source=tmp_path / "source", target=tmp_path / "target", unlabeled="keep") == 0
    np.testing.assert_array_equal(nibabel.load(tmp_path / "target" / "images" / "a_1.nii.gz").get_fdata(), values)
