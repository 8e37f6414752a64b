"""DICOM series as scans: every voxel where it was acquired, and what is no regular volume is refused."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from bundle.data import reader as reading
from bundle.data.reader import FileError, ScanReader, look_at
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.transforms import Compose, EnsureChannelFirstd, LoadImage, LoadImaged
from pydicom.uid import JPEG2000Lossless, generate_uid
from tests.data.dicom import ACQUISITIONS, write_enhanced, write_series
from tests.prepare.downloads import Acquisition, image_at, numbers, write_dicom

SMALL = Acquisition(size=(24, 20, 6), spacing=(5.0, 6.0, 9.0))


@pytest.fixture(params=ACQUISITIONS.values(), ids=ACQUISITIONS.keys())
def taken(request: pytest.FixtureRequest) -> Acquisition:
    return request.param


def load(path: Path) -> MetaTensor:
    return LoadImage(reader=ScanReader(), image_only=True)(path)


def places_of(volume: Any) -> np.ndarray:
    """RAS coordinates of all voxels by the volume's affine."""
    affine = np.asarray(volume.affine)
    index = np.stack(np.meshgrid(*map(np.arange, volume.shape[-3:]), indexing="ij"), axis=-1)
    return (index @ affine[:3, :3].T + affine[:3, 3]).round(9)


def test_a_series_is_read_true_to_the_voxel_in_hu(tmp_path: Path, taken: Acquisition) -> None:
    write_series(tmp_path, taken)
    volume = load(tmp_path)
    np.testing.assert_array_equal(np.asarray(volume), 2.0 * image_at(places_of(volume)) - 1024)


def test_frames_of_one_file_are_read_true_to_the_voxel(tmp_path: Path, taken: Acquisition) -> None:
    order = np.random.default_rng(0).permutation(taken.size[2]).tolist()
    path = write_enhanced(tmp_path / "frames.dcm", taken, order)
    volume = load(tmp_path)
    np.testing.assert_array_equal(np.asarray(volume), 2.0 * image_at(places_of(volume)) - 1024)
    assert volume.meta["series"] == [str(path)]


def test_headers_alone_tell_shape_and_affine(tmp_path: Path, taken: Acquisition) -> None:
    write_series(tmp_path, taken)
    grid = look_at(tmp_path)
    assert grid is not None
    assert grid[0] == load(tmp_path).shape
    np.testing.assert_array_equal(grid[1], np.asarray(load(tmp_path).affine))


def test_the_files_stay_known_in_the_order_of_the_slices_through_a_batch(tmp_path: Path) -> None:
    files = write_series(tmp_path, Acquisition(backward=True, size=(24, 20, 6)))
    steps = Compose([LoadImaged("image", reader=ScanReader(), image_only=True), EnsureChannelFirstd("image")])
    (batch,) = DataLoader(Dataset([{"image": str(tmp_path)}], steps), batch_size=1)
    assert decollate_batch(batch)[0]["image"].meta["series"] == [str(path) for path in reversed(files)]


def test_a_file_stands_for_its_series_among_others(tmp_path: Path) -> None:
    write_series(tmp_path, SMALL, SeriesNumber=2)
    files = write_series(tmp_path, SMALL, SeriesNumber=3, RescaleIntercept=0)
    volume = load(files[2])
    np.testing.assert_array_equal(np.asarray(volume), 2.0 * image_at(places_of(volume)))
    assert sorted(volume.meta["series"]) == sorted(map(str, files))


def test_several_series_in_a_folder_are_named(tmp_path: Path) -> None:
    write_series(tmp_path, SMALL, SeriesNumber=2, SeriesDescription="arterial")
    write_series(tmp_path, SMALL, SeriesNumber=3)
    words = r"one series of DICOM images, got 2: 2 'arterial' \(6 files\), 3 '' \(6 files\). Give a file of the one"
    with pytest.raises(FileError, match=words):
        load(tmp_path)


def test_files_with_a_series_of_their_own_each_are_one_scan(tmp_path: Path) -> None:
    for k in range(6):
        write_series(tmp_path, SMALL, kept=[k])
    assert load(tmp_path).shape == (20, 24, 6)


@pytest.mark.parametrize(
    ("positions", "words"),
    [
        ([[0, 0, 0], [0, 0, 9], [0, 0, 27], [0, 0, 36]], "are 18.00 mm apart, and most 9.00 mm. Look for a slice that"),
        ([[0, 0, 0], [0, 0, 9], [0, 0, 0], [0, 0, 9]], "4 slices lie at 2 places. Keep one phase or echo"),
        ([[0, 4 * k, 9 * k] for k in range(4)], "If the gantry was tilted, resample the scan first"),
    ],
)
def test_slices_that_are_no_volume_are_refused(positions: list[list[float]], words: str, tmp_path: Path) -> None:
    uid = generate_uid()
    for k, place in enumerate(positions):
        write_series(tmp_path, SMALL, uid=uid, kept=[k], ImagePositionPatient=numbers(np.array(place, float)))
    with pytest.raises(FileError, match=words) as caught:
        load(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: ")
    with pytest.raises(FileError, match=words):
        look_at(tmp_path)


def test_slices_of_another_direction_are_refused(tmp_path: Path) -> None:
    uid = generate_uid()
    write_series(tmp_path, SMALL, uid=uid)
    write_series(
        tmp_path / "a", SMALL, uid=uid, kept=[0], ImageOrientationPatient=numbers(np.array([0, 1, 0, 0, 0, -1]))
    )
    (tmp_path / "a" / "slice1.dcm").rename(tmp_path / "scout.dcm")
    with pytest.raises(FileError, match=r"the same orientation and pixel size, but scout\.dcm and slice1\.dcm differ"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"SamplesPerPixel": 3}, "a DICOM file must hold gray slices, got colors"),
        ({"PixelSpacing": None}, "has no PixelSpacing of 2 numbers"),
        ({"PixelData": b"ab"}, "slice1.dcm cannot be read"),
    ],
)
def test_a_file_that_holds_no_slice_is_named(tags: dict[str, Any], words: str, tmp_path: Path) -> None:
    write_series(tmp_path, SMALL, **tags)
    with pytest.raises(FileError, match=words):
        load(tmp_path)


def test_compressed_pixels_need_a_package_that_is_named(tmp_path: Path) -> None:
    for path in write_series(tmp_path, SMALL):
        data = pydicom.dcmread(path)
        data.file_meta.TransferSyntaxUID = JPEG2000Lossless
        data.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f\xff\x51 no code"])
        data.save_as(path)
    with pytest.raises(FileError, match=r"compressed as JPEG 2000 .*, which needs another package: pip install pylib"):
        load(tmp_path)


def test_a_file_that_does_not_place_each_frame_is_refused(tmp_path: Path) -> None:
    write_enhanced(tmp_path / "a.dcm", SMALL, range(6), placed=5)
    with pytest.raises(FileError, match="a file of 6 frames must place each of them, but places 5"):
        load(tmp_path)


def test_a_folder_without_an_image_is_named(tmp_path: Path) -> None:
    write_dicom(tmp_path / "report.dcm", np.ones((2, 2)))
    report = pydicom.dcmread(tmp_path / "report.dcm")
    del report.Rows
    report.save_as(tmp_path / "report.dcm")
    with pytest.raises(FileError, match=r"there is no DICOM image here\. Give a folder that holds a series"):
        load(tmp_path)


def test_without_pydicom_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_series(tmp_path, SMALL)
    monkeypatch.setattr(reading, "find_spec", lambda name: None)
    with pytest.raises(FileError, match="DICOM needs pydicom, which is not installed: pip install pydicom, or save it"):
        load(tmp_path)


def test_300_slices_are_read_within_seconds(tmp_path: Path) -> None:
    write_series(tmp_path, Acquisition(size=(256, 256, 300), spacing=(0.5, 0.5, 1.0)))
    start = time.perf_counter()
    assert load(tmp_path).shape == (256, 256, 300)
    assert time.perf_counter() - start < 20


def test_the_geometry_is_that_of_simple_itk(tmp_path: Path, taken: Acquisition) -> None:
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK, the independent reader, is not installed")
    write_series(tmp_path, taken)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    image = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    volume = load(tmp_path)
    np.testing.assert_allclose(np.asarray(volume.affine), np.diag([-1, -1, 1, 1]) @ affine, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(volume), sitk.GetArrayFromImage(image).T)


def test_reading_a_nifti_file_does_not_import_pydicom() -> None:
    code = "import sys, bundle.data.reader; print('bundle.data.dicom' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
