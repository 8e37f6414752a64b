"""Settings 1 and 2: which training slices are excluded, by the paper's rule and by that of later papers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from bundle.data import EpisodeDataset, SliceExclusion, list_scans, open_split
from bundle.data.loading import ScanError
from monai.bundle import ConfigParser
from tests.data.scans import StoredScan, write_arrays
from tests.test_real_data import CHAOS

ROOT = Path(__file__).parents[2]
ORGANS = {"liver": 1, "kidneys": 2, "spleen": 3}


class Label:
    """Reads the label of a scan that ``scan`` wrote."""

    def __call__(self, files: dict[str, Any]) -> dict[str, Any]:
        return {"label": torch.as_tensor(np.load(files["label"]))}


def scan(folder: Path, *slices: tuple[int, ...]) -> dict[str, str]:
    """A scan of 8 x 8 pixels whose slices show these organs; the label lies in a file of its own."""
    label = np.zeros((1, 8, 8, len(slices)), dtype=np.uint8)
    for z, organs in enumerate(slices):
        for organ in organs:
            label[0, organ, :, z] = organ
    name = f"scan_{len(list(folder.glob('*.npy')))}"
    np.save(folder / f"{name}.npy", label)
    (folder / name).touch()
    return {"image": str(folder / name), "label": str(folder / f"{name}.npy")}


def exclusion(scans: list[dict[str, str]], setting: Any = 2, organs: Any = ("liver", "spleen")) -> SliceExclusion:
    return SliceExclusion(setting, organs, ORGANS, {s["image"]: s["label"] for s in scans}, Label())


def test_the_papers_rule_removes_a_slice_with_any_test_organ(tmp_path: Path) -> None:
    scans = [scan(tmp_path, (), (1,), (2,), (1, 3), (1, 2, 3)), scan(tmp_path, (3,), (2,))]
    removed = exclusion(scans).of(scans)
    assert [list(slices) for slices in removed] == [[False, True, False, True, True], [True, False]]


def test_the_later_papers_rule_removes_a_slice_with_all_test_organs(tmp_path: Path) -> None:
    scans = [scan(tmp_path, (), (1,), (2,), (1, 3), (1, 2, 3)), scan(tmp_path, (3,), (2,))]
    removed = exclusion(scans, "legacy_all").of(scans)
    assert [list(slices) for slices in removed] == [[False, False, False, True, True], [False, False]]


def test_both_counts_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scans = [scan(tmp_path, (), (1,), (2,), (1, 3), (1, 2, 3))]
    exclusion(scans).of(scans)
    assert (
        "setting 2, test organs liver, spleen: 3 of 5 training slices are excluded (slices with any of the organs: 3, "
        "with all of them: 2)" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("setting", "organs", "message"),
    [
        (3, ["liver"], "setting must be 1, 2 or 'legacy_all', got 3"),
        (True, [], "got True"),
        ("legacy", ["liver"], "got 'legacy'"),
        (1, ["liver"], "setting 1 excludes no slice and takes no test_organs, got liver"),
        (2, [], "Name them in test_organs"),
        ("legacy_all", None, "Name them in test_organs"),
        (2, ["liver", "lung"], r"test_organs must be among organs \(liver, kidneys, spleen\), got lung"),
    ],
)
def test_a_wrong_setting_is_refused(tmp_path: Path, setting: Any, organs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        exclusion([], setting, organs)


def test_one_name_needs_no_list(tmp_path: Path) -> None:
    assert exclusion([], 2, "spleen").organs == [3]


def test_a_training_scan_without_a_label_is_refused_in_setting_2(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"scan_9 has none\..*setting 1"):
        exclusion([]).of([{"image": "scan_9"}])


def test_a_missing_label_file_is_named(tmp_path: Path) -> None:
    scans = [scan(tmp_path, (1,))]
    Path(scans[0]["label"]).unlink()
    with pytest.raises(ScanError, match="scan_0"):
        exclusion(scans).of(scans)


def test_no_episode_comes_from_a_slice_that_is_left_out(tmp_path: Path) -> None:
    depth, organ_slice = 3, 1
    ids = np.zeros((40, 40, depth), dtype=np.int16)
    ids[8:32, 8:32] = 1
    stored = write_arrays(tmp_path / "scan.npz", np.random.default_rng(0).normal(size=(40, 40, depth)), ids)
    label = np.zeros((1, 40, 40, depth), dtype=np.uint8)
    label[0, 5, 5, organ_slice] = 1
    np.save(tmp_path / "label.npy", label)
    rule = SliceExclusion(2, ["liver"], ORGANS, {stored["image"]: str(tmp_path / "label.npy")}, Label())
    dataset = EpisodeDataset([stored], StoredScan(), tmp_path / "cache", num_workers=0, exclusion=rule)
    assert [z for _, z, _ in dataset.slices] == [0, 2]
    everything = SliceExclusion(1, None, ORGANS, {}, Label())
    dataset = EpisodeDataset([stored], StoredScan(), tmp_path / "cache", num_workers=0, exclusion=everything)
    assert [z for _, z, _ in dataset.slices] == [0, 1, 2]


def test_a_fold_knows_the_labels_of_its_training_scans_only(tmp_path: Path) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        for number in range(6):
            (tmp_path / folder / f"scan_{number}.nii.gz").touch()
    (tmp_path / "labels" / "scan_4.nii.gz").unlink()
    study = open_split(tmp_path, tmp_path, fold=0)
    names = {Path(image).name: Path(label).parent.name for image, label in study.training_labels.items()}
    # Fold 0 of the annotated 0, 1, 2, 3, 5 holds out scan 0; scan 1 is the support.
    assert names == {f"scan_{number}.nii.gz": "labels" for number in (2, 3, 5)}
    assert all(set(files) == {"image"} for files in study.training)


@pytest.mark.real_data
@pytest.mark.slow
@pytest.mark.skipif(not CHAOS.is_dir(), reason=f"no real volumes at {CHAOS}; set ALPNET_DATA to their folder")
def test_chaos_loses_as_many_slices_as_its_labels_show(capsys: pytest.CaptureFixture[str]) -> None:
    names = {"liver": 1, "right_kidney": 2, "left_kidney": 3, "spleen": 4}
    parser = ConfigParser()
    parser.read_config([str(ROOT / "configs" / name) for name in ("train.yaml", "data_chaos_t2.yaml")])
    parser["dataset_dir"] = str(CHAOS)
    scans = list_scans(CHAOS)
    labels = {files["image"]: files["label"] for files in scans}
    # Counted without any of our code: axis 2 of these files counts slices.
    shown = [
        np.stack([(np.asarray(nibabel.load(path).dataobj) == organ).any(axis=(0, 1)) for organ in names.values()])
        for path in labels.values()
    ]
    assert sum(organs.shape[1] for organs in shown) == 718
    for group, expected in (
        (["right_kidney", "left_kidney"], (324, 261)),
        (["liver", "spleen"], (463, 272)),
        (list(names), (558, 88)),
    ):
        rows = [names[name] - 1 for name in group]
        counted = (
            sum(int(o[rows].any(axis=0).sum()) for o in shown),
            sum(int(o[rows].all(axis=0).sum()) for o in shown),
        )
        assert counted == expected
        for setting, count in zip((2, "legacy_all"), expected, strict=True):
            rule = SliceExclusion(setting, group, names, labels, parser.get_parsed_content("loading"))
            assert sum(int(slices.sum()) for slices in rule.of(scans)) == count
            assert f"{count} of 718" in capsys.readouterr().out
