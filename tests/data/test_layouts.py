"""Folders as other programs leave them: each scan is found once, by its name, with its label map."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from bundle.data import find_scans, find_support, list_scans, name_of_scan
from bundle.data.loading import read_scan
from bundle.data.nifti import name_of
from bundle.data.organ_masks import organ_ids
from bundle.data.reader import FileError, ScanReader
from bundle.data.survey import survey
from monai.data import MetaTensor
from monai.transforms import LoadImage, LoadImaged
from pydicom.uid import generate_uid
from tests.data.dicom import write_segmentation, write_series
from tests.data.scans import noise_volume, write_nifti
from tests.prepare.downloads import Acquisition, label_at, run

SMALL = Acquisition(size=(40, 48, 8))


def names(scans: list[dict[str, str]]) -> list[str]:
    return [name_of_scan(scan) for scan in scans]


def test_the_folder_of_a_series_is_a_scan(tmp_path: Path) -> None:
    write_series(tmp_path / "p1", SMALL)
    assert find_scans(tmp_path / "p1", []) == [{"image": str(tmp_path / "p1"), "name": "p1"}]


def test_series_at_any_depth_are_scans_with_names_of_their_own(tmp_path: Path) -> None:
    for place in ("p1/ct", "p2/study/ct", ".hidden/ct"):
        write_series(tmp_path / place, SMALL)
    scans = find_scans(tmp_path, [])
    assert names(scans) == ["p1_ct", "p2_study_ct"]
    volume = read_scan(scans[1], LoadImaged("image", reader=ScanReader(), image_only=True))["image"]
    assert name_of(volume) == "p2_study_ct"


def test_series_in_images_are_scans_with_their_label_maps(tmp_path: Path) -> None:
    write_series(tmp_path / "images/a", SMALL)
    write_series(tmp_path / "images/b", SMALL)
    write_segmentation(tmp_path / "labels/b.seg.dcm", SMALL, {1: "Liver"})
    assert list_scans(tmp_path) == [
        {"image": str(tmp_path / "images/a")},
        {"image": str(tmp_path / "images/b"), "label": str(tmp_path / "labels/b.seg.dcm")},
    ]


def test_a_segmentation_belongs_to_the_series_that_it_refers_to(tmp_path: Path) -> None:
    uids = [generate_uid(), generate_uid()]
    for name, uid in zip(("a", "b"), uids, strict=True):
        write_series(tmp_path / name, SMALL, uid=uid)
    write_segmentation(tmp_path / "a/made.dcm", SMALL, {1: "Liver"}, series=uids[1])
    support = find_support(dataset_dir=tmp_path)
    assert [(name_of_scan(scan), scan["label"]) for scan in support] == [("b", str(tmp_path / "a/made.dcm"))]
    assert names(find_scans(tmp_path, support)) == ["a"]
    write_segmentation(tmp_path / "second.dcm", SMALL, {1: "Liver"}, series=uids[1])
    with pytest.raises(ValueError, match="a series must have one segmentation, got"):
        list_scans(tmp_path)


@pytest.mark.parametrize("chosen", ["portal", 4, "4", "PORTAL"])
def test_one_of_several_series_is_chosen_by_number_or_name(chosen: str | int, tmp_path: Path) -> None:
    for number, name in ((3, "arterial"), (4, "portal")):
        write_series(tmp_path / "p1", SMALL, SeriesNumber=number, SeriesDescription=name)
    write_series(tmp_path / "p2", SMALL, SeriesNumber=3, SeriesDescription="arterial")
    (scan,) = find_scans(tmp_path, [], series=chosen)
    assert scan["name"] == "p1"
    assert len(LoadImage(reader=ScanReader(), image_only=True)(scan["image"]).meta["series"]) == 8
    assert Path(scan["image"]).name.startswith("4slice")


def test_several_series_without_a_choice_and_a_wrong_choice_name_what_there_is(tmp_path: Path) -> None:
    for number, name in ((3, "arterial"), (4, "portal")):
        write_series(tmp_path / "p1", SMALL, SeriesNumber=number, SeriesDescription=name)
    with pytest.raises(
        ValueError, match=r"must hold one series to segment, got 2: 3 'arterial' \(8 files\), 4 'portal'"
    ):
        find_scans(tmp_path, [])
    with pytest.raises(ValueError, match=r"got 'venous'\. .* holds 3 'arterial' \(8 files\), 4 'portal' \(8 files\)"):
        find_scans(tmp_path, [], series="venous")


def test_the_series_of_a_scan_in_images_is_chosen(tmp_path: Path) -> None:
    for number in (3, 4):
        write_series(tmp_path / "images/a", SMALL, SeriesNumber=number)
    write_nifti(tmp_path / "images/b.nii.gz", noise_volume())
    assert [Path(scan["image"]).name[:2] for scan in list_scans(tmp_path, series=4)] == ["4s", "b."]


def write_masks(folder: Path, **organs: np.ndarray) -> None:
    for name, mask in organs.items():
        write_nifti(folder / f"{name}.nii.gz", mask.astype(np.uint8))


def box(start: int, value: int = 1) -> np.ndarray:
    mask = np.zeros((10, 14, 5), np.uint8)
    mask[start : start + 2] = value
    return mask


def write_total_segmentator(folder: Path) -> None:
    for name in ("s0001", "s0002", "s0003"):
        write_nifti(folder / name / "ct.nii.gz", noise_volume())
    write_masks(folder / "s0001/segmentations", spleen=box(0), liver=box(4, 255))
    write_masks(folder / "s0002/segmentations", liver=box(2), aorta=box(6))


def test_a_folder_for_each_scan_with_a_mask_for_each_organ_is_read(tmp_path: Path) -> None:
    write_total_segmentator(tmp_path)
    support = find_support(dataset_dir=tmp_path)
    assert names(support) == ["s0001", "s0002"]
    assert names(find_scans(tmp_path, support)) == ["s0003"]
    first, second = (LoadImage(reader=ScanReader(), image_only=True)(scan["label"]) for scan in support)
    ids = {1: "aorta", 2: "liver", 3: "spleen"}
    assert first.meta["organ_names"] == second.meta["organ_names"] == ids
    np.testing.assert_array_equal(np.asarray(first), 3 * box(0) + 2 * box(4))
    np.testing.assert_array_equal(np.asarray(second), 2 * box(2) + 1 * box(6))


def test_masks_in_labels_belong_to_the_image_of_their_folder(tmp_path: Path) -> None:
    write_nifti(tmp_path / "images/a.nii.gz", noise_volume())
    write_masks(tmp_path / "labels/a", kidney=box(0), liver=box(4))
    write_masks(tmp_path / "labels/b", spleen=box(0))
    (tmp_path / "labels/b").rename(tmp_path / "labels/.b")
    (scan,) = list_scans(tmp_path)
    assert scan["label"] == str(tmp_path / "labels/a")
    assert organ_ids(tmp_path / "labels/a") == {"kidney": 1, "liver": 2}


@pytest.mark.parametrize(
    ("organs", "words"),
    [
        ({"liver": box(0), "tumor": box(1)}, "but liver and tumor share 70 voxels. Move one of the two masks away"),
        ({"liver": box(0) + box(4, 2)}, r"must hold 0 and one value above, but liver.nii.gz holds \[0.0, 1.0, 2.0\]"),
        ({"liver": box(0), "spleen": box(4)[:9]}, "must lie on one grid, but liver.nii.gz and spleen.nii.gz do not"),
    ],
)
def test_masks_that_make_no_label_map_are_refused(organs: dict[str, np.ndarray], words: str, tmp_path: Path) -> None:
    write_masks(tmp_path / "a/segmentations", **organs)
    with pytest.raises(FileError, match=words):
        LoadImage(reader=ScanReader(), image_only=True)(tmp_path / "a/segmentations")


@pytest.mark.parametrize(
    "labels",
    [{"0": "background", "1": "liver", "2": "spleen"}, {"background": 0, "liver": 1, "spleen": "2", "both": [1, 2]}],
    ids=["Decathlon", "nnU-Net"],
)
def test_the_record_beside_label_maps_names_their_organs(labels: dict[str, object], tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "labelsTr/a.nii.gz", box(0))
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    read: MetaTensor = LoadImage(reader=ScanReader(), image_only=True)(path)
    assert read.meta["organ_names"] == {1: "liver", 2: "spleen"}
    image = write_nifti(tmp_path / "imagesTr/a.nii.gz", noise_volume())
    assert "organ_names" not in LoadImage(reader=ScanReader(), image_only=True)(image).meta


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "labelsTr/a.nii.gz", box(0))
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(FileError, match=r"dataset.json cannot be read as JSON .*Repair it, or move it away"):
        LoadImage(reader=ScanReader(), image_only=True)(path)


def test_one_channel_of_each_scan_is_taken_and_the_others_are_told(tmp_path: Path) -> None:
    for name in ("a_0000", "a_0001", "b_0000", "b_0001"):
        write_nifti(tmp_path / f"imagesTr/{name}.nii.gz", noise_volume())
    write_nifti(tmp_path / "labelsTr/a.nii.gz", box(0))
    support = find_support(dataset_dir=tmp_path, channel=1)
    scans = find_scans(tmp_path, support, channel=1)
    assert [Path(scan["image"]).name for scan in (*support, *scans)] == ["a_0001.nii.gz", "b_0001.nii.gz"]
    assert Path(list_scans(tmp_path)[0]["image"]).name == "a_0000.nii.gz"
    told = survey(scans, scans, support, tmp_path).lines[-1]
    assert told == f"left alone in {tmp_path / 'imagesTr'}: 2 other images (channels; see the key channel)"


def test_channels_of_a_plain_folder_are_chosen_too(tmp_path: Path) -> None:
    for name in ("a_0000", "a_0001"):
        write_nifti(tmp_path / f"{name}.nii.gz", noise_volume())
    assert [Path(scan["image"]).name for scan in find_scans(tmp_path, [], channel=1)] == ["a_0001.nii.gz"]


def test_a_channel_that_a_scan_lacks_is_named(tmp_path: Path) -> None:
    for name in ("a_0000", "a_0001", "b_0000"):
        write_nifti(tmp_path / f"imagesTr/{name}.nii.gz", noise_volume())
    with pytest.raises(ValueError, match=r"but b of .* has no channel 1, only 0. Set channel to one of these"):
        list_scans(tmp_path, channel=1)


def test_nothing_of_a_series_is_left_alone(tmp_path: Path) -> None:
    write_series(tmp_path / "a", SMALL)
    scans = find_scans(tmp_path, [])
    assert survey(scans, scans, dataset_dir=tmp_path).lines == [
        "1 scan: 1 to segment, 0 with a finished mask, 0 unusable",
        "scans: 48 x 40 x 8 voxels, spacing 2.5 x 3 x 8 mm",
    ]


def test_prepare_reads_series_with_their_segmentations(tmp_path: Path) -> None:
    uid = generate_uid()
    write_series(tmp_path / "in/p1/ct", SMALL, uid=uid)
    write_segmentation(tmp_path / "in/p1/seg.dcm", SMALL, {1: "Liver", 2: "Right kidney"}, series=uid)
    assert run("nifti", source=tmp_path / "in", target=tmp_path / "out", modality="ct") == 0
    label = LoadImage(reader=ScanReader(), image_only=True)(tmp_path / "out/labels/p1_ct.nii.gz")
    index = np.stack(np.meshgrid(*map(np.arange, label.shape), indexing="ij"), axis=-1)
    places = (index @ np.asarray(label.affine)[:3, :3].T + np.asarray(label.affine)[:3, 3]).round(4)
    expected = label_at(places)
    np.testing.assert_array_equal(np.asarray(label), np.where(expected < 3, expected, 0))


def test_prepare_names_organs_by_their_masks(tmp_path: Path) -> None:
    write_total_segmentator(tmp_path / "in")
    assert run("nifti", source=tmp_path / "in", target=tmp_path / "out", unlabeled="keep") == 0
    record = json.loads((tmp_path / "out/dataset.json").read_text())
    assert record["organs"] == {"aorta": 1, "liver": 2, "spleen": 3}
    assert [scan["name"] for scan in record["scans"]] == ["s0001", "s0002", "s0003"]
