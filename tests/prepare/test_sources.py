"""The files of each scan, whichever folder of the download the user gives."""

from __future__ import annotations

from pathlib import Path

import pytest
from bundle.prepare import sources
from bundle.prepare.sources import open_btcv, open_chaos, open_mscmr, open_nifti, read_files
from tests.prepare.downloads import write_btcv, write_chaos_ct, write_chaos_mr, write_mscmr, write_plain


@pytest.fixture
def chaos(tmp_path: Path) -> Path:
    train = tmp_path / "CHAOS" / "Train_Sets"
    for number in (2, 10):
        write_chaos_mr(train, number)
    write_chaos_ct(train, 5)
    write_chaos_mr(tmp_path / "CHAOS" / "Test_Sets", 4)
    (tmp_path / "CHAOS" / "__MACOSX" / "MR" / "2" / "T2SPIR").mkdir(parents=True)
    (train / "MR" / "2" / "T2SPIR" / "DICOM_anon" / "._IMG-0004-1.dcm").touch()
    return tmp_path / "CHAOS"


@pytest.mark.parametrize("place", [".", "Train_Sets", "Train_Sets/MR"])
def test_chaos_is_found_from_any_folder_above(chaos: Path, place: str) -> None:
    scans = open_chaos((chaos / place).resolve(), "mr").scans
    assert [scan.name for scan in scans] == ["chaos_mr_02", "chaos_mr_10"]
    assert [len(scan.image) for scan in scans] == [len(scan.label) for scan in scans] == [8, 8]


def test_chaos_without_pydicom_states_what_to_install(chaos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="Install it: pip install pydicom"):
        open_chaos(chaos, "mr")


def test_chaos_ct_is_its_own_part(chaos: Path) -> None:
    assert [scan.name for scan in open_chaos(chaos, "ct").scans] == ["chaos_ct_05"]
    assert [scan.name for scan in open_chaos(chaos / "Train_Sets" / "CT" / "5", "ct").scans] == ["chaos_ct_05"]


def test_slices_are_counted_and_not_spelled(tmp_path: Path) -> None:
    write_chaos_mr(tmp_path, 1)
    folder = tmp_path / "MR" / "1" / "T2SPIR" / "DICOM_anon"
    (folder / "IMG-0004-8.dcm").rename(folder / "IMG-0004-10.dcm")
    (scan,) = open_chaos(tmp_path, "mr").scans
    assert [path.stem.split("-")[-1] for path in scan.image] == ["1", "2", "3", "4", "5", "6", "7", "10"]


def test_a_scan_of_the_same_number_twice_is_refused(chaos: Path) -> None:
    write_chaos_mr(chaos / "copy", 10)
    with pytest.raises(ValueError, match=r"a scan must be there once, got .*Keep one, or give a narrower --source"):
        open_chaos(chaos, "mr")


@pytest.mark.parametrize("place", [".", "RawData", "RawData/Training"])
def test_btcv_is_found_from_any_folder_above_without_its_test_set(tmp_path: Path, place: str) -> None:
    for number in (40, 1):
        write_btcv(tmp_path / "RawData" / "Training", number)
    write_btcv(tmp_path / "RawData" / "Testing", 61)
    scans = open_btcv(tmp_path / place).scans
    assert [scan.name for scan in scans] == ["btcv_0001", "btcv_0040"]
    assert [(scan.image[0].name, scan.label[0].name) for scan in scans] == [
        ("img0001.nii.gz", "label0001.nii.gz"),
        ("img0040.nii.gz", "label0040.nii.gz"),
    ]


def test_mscmr_takes_the_bssfp_scans_only(tmp_path: Path) -> None:
    write_mscmr(tmp_path, 2)
    write_mscmr(tmp_path, 11, labeled=False)
    scans = open_mscmr(tmp_path).scans
    assert [(scan.name, scan.image[0].name, len(scan.label)) for scan in scans] == [
        ("mscmr_02", "patient2_C0.nii.gz", 1),
        ("mscmr_11", "patient11_C0.nii.gz", 0),
    ]


def test_a_label_without_an_image_is_a_scan_that_cannot_be_read(tmp_path: Path) -> None:
    for number in (1, 2):
        write_btcv(tmp_path, number)
    (tmp_path / "img" / "img0002.nii.gz").unlink()
    with pytest.raises(ValueError, match="a label must have an image"):
        read_files(open_btcv(tmp_path).scans[1])


def matches(folder: Path) -> dict[str, str | None]:
    scans = open_nifti(folder, None, None, "mr").scans
    return {scan.name: scan.label[0].name.removesuffix(".nii.gz") if scan.label else None for scan in scans}


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (["a", "b", "scan_10"], {"a": "a", "b": None, "scan_10": "scan_10"}),
        (["image_2", "image_10"], {"image_2": "label_2", "image_10": "label_10"}),
        (["v1_image_01", "v1_image_02"], {"v1_image_01": "mask_1", "v1_image_02": None}),
    ],
)
def test_labels_are_matched_by_name_or_else_by_number(
    tmp_path: Path, images: list[str], labels: dict[str, str | None]
) -> None:
    for name in images:
        write_plain(tmp_path, name, labels[name])
    assert matches(tmp_path) == labels


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (["image_1", "picture_1"], ["label_1"]),
        (["image_1"], ["label_1", "mask_1"]),
        (["image_1"], ["label_2"]),
        (["image_1"], ["label"]),
        (["image", "image_1"], ["label_1"]),
    ],
)
def test_a_label_that_could_be_of_no_or_of_several_images_is_refused(
    tmp_path: Path, images: list[str], labels: list[str]
) -> None:
    for part, names in {"images": images, "labels": labels}.items():
        (tmp_path / part).mkdir()
        for name in names:
            (tmp_path / part / f"{name}.nii.gz").touch()
    with pytest.raises(ValueError, match=r"label.* cannot be matched. Give labels the names of their images"):
        matches(tmp_path)


def test_an_image_in_two_formats_is_refused(tmp_path: Path) -> None:
    for name in ("scan_1.nii", "scan_1.nii.gz", "scan_2.nii"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match="a scan must be there once"):
        open_nifti(tmp_path, None, None, "mr")


def test_images_and_labels_may_lie_in_folders_of_any_name(tmp_path: Path) -> None:
    write_plain(tmp_path, "scan_1", "scan_1")
    source = open_nifti(tmp_path / "images", tmp_path / "labels", {"liver": 1}, "ct")
    assert source.name == tmp_path.name
    assert source.config == "data_sabs_ct"
    assert len(source.scans[0].label) == 1
