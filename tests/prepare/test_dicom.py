"""Positions of voxels: known shapes in the patient's space, acquired in many ways, keep their place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from bundle.prepare.dicom import read_stack
from bundle.prepare.sources import CHAOS_MR_GRAYS, open_chaos
from bundle.transforms import SliceLayoutd
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged
from tests.prepare.downloads import (
    ORGANS,
    Acquisition,
    centers,
    image_at,
    label_at,
    numbers,
    run,
    write_chaos_ct,
    write_chaos_mr,
    write_dicom,
    write_png,
)

TILT = float(np.cos(0.3)), float(np.sin(0.3))

ACQUISITIONS = {
    "axial, feet first": Acquisition(),
    "axial, head first": Acquisition(backward=True),
    "axial, InstanceNumber against the files": Acquisition(instance="down"),
    "axial, InstanceNumber shuffled": Acquisition(backward=True, instance="shuffled"),
    "axial, columns to the right": Acquisition(right=(-1, 0, 0)),
    "axial, rows to the front": Acquisition(down=(0, -1, 0), backward=True),
    "axial, turned by 180 degrees": Acquisition(right=(-1, 0, 0), down=(0, -1, 0)),
    "axial, rows and columns swapped": Acquisition(right=(0, 1, 0), down=(1, 0, 0), size=(48, 40, 8)),
    "coronal": Acquisition(down=(0, 0, -1), size=(32, 48, 14), instance="down"),
    "sagittal": Acquisition(right=(0, 1, 0), down=(0, 0, -1), size=(32, 40, 16)),
    "oblique": Acquisition(right=(TILT[0], 0, TILT[1]), backward=True, size=(40, 52, 12)),
}


@pytest.fixture(params=ACQUISITIONS.values(), ids=ACQUISITIONS.keys())
def taken(request: pytest.FixtureRequest) -> Acquisition:
    return request.param


def test_every_acquisition_is_read_true_to_the_voxel(tmp_path: Path, taken: Acquisition) -> None:
    write_chaos_mr(tmp_path, 1, taken)
    source = open_chaos(tmp_path, "mr")
    volumes = source.read(source.scans[0])
    affine = np.asarray(volumes["image"].affine)
    index = np.stack(np.meshgrid(*map(np.arange, volumes["image"].shape[1:]), indexing="ij"), axis=-1)
    places = index @ affine[:3, :3].T + affine[:3, 3]
    # The phantom at the places that the affine gives is the volume: image and label, each voxel.
    np.testing.assert_array_equal(np.asarray(volumes["image"])[0], image_at(places.round(9)))
    np.testing.assert_array_equal(np.asarray(volumes["label"])[0], label_at(places.round(9)))


def test_every_acquisition_is_prepared_with_organs_in_their_places(tmp_path: Path, taken: Acquisition) -> None:
    write_chaos_mr(tmp_path / "source", 1, taken)
    assert run("chaos", source=tmp_path / "source", target=tmp_path / "target") == 0
    image = nibabel.load(tmp_path / "target" / "images" / "chaos_mr_01.nii.gz")
    label = nibabel.load(tmp_path / "target" / "labels" / "chaos_mr_01.nii.gz")

    np.testing.assert_array_equal(image.affine, label.affine)
    bright, marked = image.get_fdata() > 250, np.asarray(label.dataobj) > 0
    assert (bright & marked).sum() > 0.85 * max(bright.sum(), marked.sum())
    for organ, place in centers(label).items():
        assert np.abs(place - ORGANS[organ][0]).max() < 4.1, organ  # half a slice of 8 mm

    files = {key: tmp_path / "target" / f"{key}s" / "chaos_mr_01.nii.gz" for key in ("image", "label")}
    load = Compose([LoadImaged([*files]), EnsureChannelFirstd([*files]), SliceLayoutd([*files], "PLS")])
    shown = np.asarray(load(files)["label"])[0]
    row, column, z = (
        dict(zip(ORGANS, values, strict=True)) for values in zip(*map(middle_of(shown), ORGANS), strict=True)
    )
    assert row[1] < row[2]  # the liver lies in front of the right kidney: above it in the picture
    assert row[1] < row[3]
    assert column[1] < column[4]  # the patient's right, the liver's side, is on the left of the picture
    assert column[2] < column[3]
    assert z[2] < z[1]  # the first slice is the lowest
    assert z[3] < z[4]


def middle_of(label: np.ndarray) -> Callable[[int], np.ndarray]:
    return lambda organ: np.argwhere(label == organ).mean(axis=0)


def test_ct_is_read_in_hu_from_files_that_run_downwards(tmp_path: Path) -> None:
    write_chaos_ct(tmp_path, 3, slices=6)
    source = open_chaos(tmp_path, "ct")
    volumes = source.read(source.scans[0])
    affine = np.asarray(volumes["image"].affine)
    assert affine[2, 2] == 10
    index = np.stack(np.meshgrid(*map(np.arange, volumes["image"].shape[1:]), indexing="ij"), axis=-1)
    places = (index @ affine[:3, :3].T + affine[:3, 3]).round(9)
    np.testing.assert_array_equal(np.asarray(volumes["image"])[0], image_at(places) - 300.0)
    np.testing.assert_array_equal(np.asarray(volumes["label"])[0], label_at(places) == 1)


@pytest.mark.parametrize(
    ("gray", "organ"),
    [(55, 1), (63, 1), (70, 1), (110, 2), (126, 2), (135, 2), (175, 3), (189, 3), (200, 3), (240, 4), (255, 4)],
)
def test_gray_values_mean_organs_by_their_range_and_not_by_rank(tmp_path: Path, gray: int, organ: int) -> None:
    volumes = read_stack(slice_files(tmp_path), label_files(tmp_path, gray=gray), CHAOS_MR_GRAYS)
    assert np.unique(volumes["label"]) == organ


def slice_files(folder: Path, **changes: object) -> list[Path]:
    """Four slices, 5 mm apart; a change is a list with a value for each."""
    right: dict[str, object] = {
        "SeriesInstanceUID": ["1.2.3"] * 4,
        "ImagePositionPatient": [[-10.0, -12.0, 5.0 * k] for k in range(4)],
        "ImageOrientationPatient": [[1.0, 0, 0, 0, 1, 0]] * 4,
        "PixelSpacing": [[2.0, 1.5]] * 4,
    }
    tags = right | changes
    for k in range(4):
        pixels = np.arange(30, dtype=np.uint16).reshape(6, 5) + k
        write_dicom(folder / f"s{k}.dcm", pixels, **{name: values[k] for name, values in tags.items()})  # type: ignore
    return [folder / f"s{k}.dcm" for k in range(4)]


def heights(*values: float) -> list[list[float]]:
    return [[-10.0, -12.0, value] for value in values]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ImagePositionPatient": heights(0, 5, 15, 20)}, r"s1.dcm at .*5.0\) and s2.dcm at .*15.0\).* 10.00 mm apart"),
        (
            {"ImagePositionPatient": heights(0, 5, 5, 10)},
            "0.00 mm apart, and most 5.00 mm. Look for a slice that is missing",
        ),
        ({"ImagePositionPatient": heights(0, 5, 5.6, 15)}, "equally spaced"),
        ({"ImagePositionPatient": heights(4, 4, 4, 4)}, "equally spaced"),
        ({"ImagePositionPatient": [[-10.0 + k, -12, 5 * k] for k in range(4)]}, "gantry was tilted"),
        ({"ImagePositionPatient": [None, *heights(5, 10, 15)]}, "s0.dcm cannot be read .*no ImagePositionPatient of 3"),
        ({"ImageOrientationPatient": [None] * 4}, "no ImageOrientationPatient of 6"),
        ({"PixelSpacing": [None] * 4}, "no PixelSpacing of 2"),
        ({"PixelSpacing": [[0, 1.5]] * 4}, "PixelSpacing above 0"),
        ({"ImageOrientationPatient": [[1, 0, 0, 1, 0, 0]] * 4}, "orthogonal directions"),
        (
            {"PixelSpacing": [[2, 1.5], [2, 1.5], [2, 1.6], [2, 1.5]]},
            "s0.dcm and s2.dcm differ. Keep one scan: two are mixed",
        ),
        ({"ImageOrientationPatient": [[1, 0, 0, 0, 1, 0]] * 3 + [[1, 0, 0, 0, 0, -1]]}, "two are mixed"),
        ({"SeriesInstanceUID": ["1.2", "1.3", "1.2", "1.2"]}, "of one series, got 2 series"),
    ],
)
def test_slices_that_are_no_regular_stack_are_refused(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_stack(slice_files(tmp_path, **changes), [], CHAOS_MR_GRAYS)


def test_positions_may_be_rounded_and_every_file_may_be_its_own_series(tmp_path: Path) -> None:
    files = slice_files(
        tmp_path,
        ImagePositionPatient=heights(0, 5.1, 9.9, 15),
        SeriesInstanceUID=["1.1", "1.2", "1.3", "1.4"],  # so do some anonymizers
    )
    volumes = read_stack(files, [], CHAOS_MR_GRAYS)
    assert set(volumes) == {"image"}
    np.testing.assert_allclose(volumes["image"].affine[:3, 2], [0, 0, 5], atol=1e-9)
    np.testing.assert_allclose(volumes["image"].affine[:3, 3], [10, 12, 0], atol=1e-9)


def test_slices_of_another_size_are_refused(tmp_path: Path) -> None:
    files = slice_files(tmp_path)
    header = pydicom.dcmread(files[1])
    tags = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SeriesInstanceUID")
    write_dicom(files[1], np.ones((7, 5)), **{tag: header[tag].value for tag in tags})
    with pytest.raises(ValueError, match=r"same size, got \(6, 5\) in s0.dcm and \(7, 5\) in s1.dcm"):
        read_stack(files, [], CHAOS_MR_GRAYS)


def test_one_slice_is_no_volume(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 2 slices"):
        read_stack(slice_files(tmp_path)[:1], [], CHAOS_MR_GRAYS)


def test_a_file_of_several_frames_is_refused(tmp_path: Path) -> None:
    header = {"ImagePositionPatient": numbers(np.zeros(3)), "ImageOrientationPatient": numbers(np.eye(3)[:2].ravel())}
    pixels = np.ones((6, 5, 3), dtype=np.uint16)
    write_dicom(tmp_path / "a.dcm", pixels, **header, PixelSpacing=numbers(np.ones(2)), NumberOfFrames=3)
    with pytest.raises(ValueError, match=r"a.dcm cannot be read \(a DICOM file must hold one gray slice"):
        read_stack([tmp_path / "a.dcm"], [], CHAOS_MR_GRAYS)


@pytest.mark.parametrize("kept", [0, 100, 300, -20])  # bytes; the length of a file varies with its random ids
def test_a_truncated_slice_is_named(tmp_path: Path, kept: int) -> None:
    files = slice_files(tmp_path)
    files[2].write_bytes(files[2].read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"s2.dcm cannot be read .*Copy or unzip it again"):
        read_stack(files, [], CHAOS_MR_GRAYS)


def label_files(folder: Path, count: int = 4, shape: tuple[int, int] = (6, 5), gray: int = 63) -> list[Path]:
    for k in range(count):
        write_png(folder / f"s{k}.png", np.full(shape, gray, dtype=np.uint8))
    return [folder / f"s{k}.png" for k in range(count)]


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ({"count": 3}, "4 DICOM files and 3 PNG files"),
        ({"shape": (5, 6)}, r"s0.png has \(5, 6\) pixels and s0.dcm \(6, 5\)"),
        ({"gray": 71}, r"must mean organs \(55 to 70 = 1, .*got \[71\]"),
        ({"gray": 1}, r"must mean organs .*got \[1\]"),
        ({"gray": 239}, r"must mean organs .*got \[239\]"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path: Path, label: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_stack(slice_files(tmp_path), label_files(tmp_path, **label), CHAOS_MR_GRAYS)  # type: ignore[arg-type]


def test_a_slice_and_a_label_without_partner_are_named(tmp_path: Path) -> None:
    labels = label_files(tmp_path)
    with pytest.raises(ValueError, match=r"but s2, s9 have no partner"):
        read_stack(slice_files(tmp_path), [*labels[:2], labels[2].rename(tmp_path / "s9.png"), labels[3]], {1: (1, 70)})


def test_a_truncated_label_is_named(tmp_path: Path) -> None:
    labels = label_files(tmp_path)
    labels[1].write_bytes(labels[1].read_bytes()[:50])
    with pytest.raises(ValueError, match=r"s1.png cannot be read"):
        read_stack(slice_files(tmp_path), labels, CHAOS_MR_GRAYS)


def test_a_scan_without_slices_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must have DICOM files, got none"):
        read_stack([], label_files(tmp_path), CHAOS_MR_GRAYS)
