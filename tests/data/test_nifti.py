"""NIfTI files are read to the last byte, and a mask has exactly its scan's place, unit and codes."""

from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from bundle.data.nifti import read_header, read_nifti, save_nifti, voxel_milliliters
from bundle.data.reader import BROKEN_FILE, ScanReader
from monai.data import MetaTensor
from nibabel.filebasedimages import ImageFileError
from tests.data.headers import QFORM, SFORM, SHAPE, header_of, nifti_bytes, noise, with_sizes, write_bytes

ODD = {
    "both codes": {**SFORM, **QFORM},
    "sform alone": {**SFORM, "pixdim": with_sizes(3.00009, 4, 5)},
    "qform alone": QFORM,
    "qform flipped": {**QFORM, "pixdim": with_sizes(3, 4, 5, qfac=-1)},
    "neither code": {},
    "pixdim 0": {**SFORM, "pixdim": with_sizes(0, 0, 5)},
    "pixdim below 0": {**QFORM, "pixdim": with_sizes(-3, 4, 5)},
    "pixdim below 0, neither code": {"pixdim": with_sizes(3, -4, 5)},
    "micron": {**QFORM, "xyzt_units": 3},
    "meter and seconds": {**SFORM, "xyzt_units": 1 + 8},
    "unknown unit": {**SFORM, "xyzt_units": 5},
    "unknown code": {**SFORM, "qform_code": 9},
    "quaternion too long": {**SFORM, **QFORM, "quatern_b": 0.7075},
    "quaternion NaN": {**SFORM, **QFORM, "quatern_c": np.nan},
    "as ACDC": {**QFORM, "sform_code": 1, "srow_x": (1, 0, 0, 0), "srow_y": (0, 1, 0, 0), "srow_z": (0, 0, 1, 0)},
}
every_odd_header = pytest.mark.parametrize("fields", ODD.values(), ids=ODD)
PLACING = ("qform_code", "sform_code", "xyzt_units", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y")
PLACING += ("qoffset_z", "srow_x", "srow_y", "srow_z")


def mask_of(folder: Path, content: bytes, name: str = "scan.nii") -> tuple[str, str]:
    """Write a scan, load it, and save a mask for it; returns both files."""
    scan = write_bytes(folder / name, content)
    _, meta = ScanReader().get_data(scan)
    save_nifti(MetaTensor(torch.ones(1, *SHAPE, dtype=torch.uint8), meta=meta), folder / "mask.nii.gz", like=scan)
    return scan, str(folder / "mask.nii.gz")


@every_odd_header
def test_a_mask_has_its_scans_place_to_the_bit(tmp_path: Path, fields: dict[str, Any]) -> None:
    scan, mask = mask_of(tmp_path, nifti_bytes(noise(), **fields))
    one, other = read_header(scan), read_header(mask)
    for name in PLACING:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    np.testing.assert_array_equal(one["pixdim"][:4], other["pixdim"][:4])
    np.testing.assert_array_equal(nibabel.load(mask).affine, nibabel.load(scan).affine)
    assert nibabel.load(mask).shape == SHAPE


@every_odd_header
def test_itk_puts_a_mask_where_it_puts_the_scan(tmp_path: Path, fields: dict[str, Any]) -> None:
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK, another reader to compare with, is not installed")
    scan, mask = (sitk.ReadImage(file) for file in mask_of(tmp_path, nifti_bytes(noise(), **fields)))
    for place in ("GetOrigin", "GetSpacing", "GetDirection", "GetSize"):
        np.testing.assert_array_equal(getattr(mask, place)(), getattr(scan, place)(), err_msg=place)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Header, nibabel.Nifti2Header])
def test_a_mask_is_of_its_scans_version(tmp_path: Path, kind: type) -> None:
    scan, mask = mask_of(tmp_path, nifti_bytes(noise(), kind, **SFORM))
    assert type(read_header(mask)) is type(read_header(scan)) is kind


def test_a_mask_of_a_big_endian_scan_lies_in_its_place(tmp_path: Path) -> None:
    values = noise(">i2")
    content = bytes(header_of(values, **SFORM).as_byteswapped(">").binaryblock) + bytes(4) + values.tobytes("F")
    scan, mask = mask_of(tmp_path, content)
    np.testing.assert_array_equal(nibabel.load(mask).affine, nibabel.load(scan).affine)


def test_a_label_map_of_no_nifti_scan_lies_by_its_own_affine(tmp_path: Path) -> None:
    affine = np.diag([-1.5, 2.0, 4.0, 1.0])
    label = MetaTensor(torch.ones(1, *SHAPE, dtype=torch.uint8), affine=torch.tensor(affine))
    save_nifti(label, tmp_path / "mask.nii.gz", like="scan.nrrd", description="made_with 1")
    np.testing.assert_array_equal(nibabel.load(tmp_path / "mask.nii.gz").affine, affine)
    assert nibabel.load(tmp_path / "mask.nii.gz").header["descrip"].item() == b"made_with 1"


@pytest.mark.parametrize(
    ("fields", "milliliters"),
    [
        (SFORM, 0.06),  # 3 x 4 x 5 mm
        ({**SFORM, "xyzt_units": 3}, 0.06e-9),
        ({**SFORM, "xyzt_units": 1}, 0.06e9),
        (ODD["as ACDC"], 0.06),
        ({"pixdim": with_sizes(3, 4, 5)}, 0.06),
        ({**SFORM, "pixdim": with_sizes(0, 0, 0)}, 0.06),
    ],
)
def test_milliliters_are_of_the_geometry_that_is_used(tmp_path: Path, fields: Any, milliliters: float) -> None:
    path = write_bytes(tmp_path / "scan.nii", nifti_bytes(noise(), **fields))
    np.testing.assert_allclose(voxel_milliliters(path), milliliters, rtol=1e-6)


# --- voxels ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["u1", "i1", "<i2", ">i2", "<u2", "<i4", "<f4", ">f8", "<i8"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Header, nibabel.Nifti2Header])
def test_voxels_of_every_type_are_read_as_they_are(tmp_path: Path, dtype: str, kind: type) -> None:
    values = noise("u1").astype(dtype)
    header = header_of(values, kind, **SFORM)
    header = header.as_byteswapped(">") if values.dtype.byteorder == ">" else header
    path = write_bytes(tmp_path / "scan.nii", bytes(header.binaryblock) + bytes(4) + values.tobytes("F"))
    read, _ = read_nifti(path)
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, values)


def test_voxels_are_scaled_as_the_header_says(tmp_path: Path) -> None:
    values = noise("i2")
    path = write_bytes(tmp_path / "scan.nii", nifti_bytes(values, **SFORM, scl_slope=0.5, scl_inter=-1024))
    np.testing.assert_array_equal(read_nifti(path)[0], values * 0.5 - 1024)


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "SCAN.NII.GZ"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_whether_a_file_is_compressed_is_seen_from_its_content(tmp_path: Path, name: str, pack: Any) -> None:
    path = write_bytes(tmp_path / name, pack(nifti_bytes(noise(), **SFORM)))
    np.testing.assert_array_equal(read_nifti(path)[0], noise())


def test_a_mask_of_a_compressed_file_with_a_plain_name_lies_in_its_place(tmp_path: Path) -> None:
    scan, mask = mask_of(tmp_path, gzip.compress(nifti_bytes(noise(), **QFORM)), "scan.nii")
    np.testing.assert_array_equal(read_header(mask)["qoffset_x"], read_header(scan)["qoffset_x"])


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((6, 7, 8, 1), (6, 7, 8)),
        ((6, 7, 8, 1, 1), (6, 7, 8)),
        ((6, 7, 1), (6, 7, 1)),
        ((6, 7, 8, 1, 3), (6, 7, 8, 1, 3)),
    ],
)
def test_trailing_dimensions_of_1_are_dropped(tmp_path: Path, shape: Any, expected: Any) -> None:
    values = noise(shape=shape)
    path = write_bytes(tmp_path / "scan.nii", nifti_bytes(values, **SFORM))
    np.testing.assert_array_equal(read_nifti(path)[0], values.reshape(expected))


def test_every_flipped_bit_of_a_compressed_file_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    values = noise()
    content = gzip.compress(nifti_bytes(values, **SFORM), mtime=0)
    random = np.random.default_rng(1)
    noticed = 0
    for bit in random.choice(8 * len(content), 200, replace=False):
        spoiled = bytearray(content)
        spoiled[bit // 8] ^= 1 << bit % 8
        path = write_bytes(tmp_path / "scan.nii.gz", bytes(spoiled))
        try:
            np.testing.assert_array_equal(read_nifti(path)[0], values)
        except BROKEN_FILE:
            noticed += 1
    assert noticed > 190  # the others lie in the file's name and time, and in its checked but unused fields


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_a_header_that_declares_more_than_the_file_holds_is_refused_before_memory_is_taken(
    tmp_path: Path, pack: Any
) -> None:
    dim = (3, 1000, 1000, 1000, 1, 1, 1, 1)
    path = write_bytes(tmp_path / "scan.nii.gz", pack(nifti_bytes(noise(), **SFORM, dim=dim)))
    tracemalloc.start()
    with pytest.raises(ImageFileError, match=r"declares 1000 x 1000 x 1000 voxels of int16, 2000000352 bytes, and can"):
        read_nifti(path)
    assert tracemalloc.get_traced_memory()[1] < 1e7
    tracemalloc.stop()


def test_a_compressed_file_that_ends_early_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    content = nifti_bytes(noise(), **SFORM, dim=(3, 6, 7, 30, 1, 1, 1, 1))
    path = write_bytes(tmp_path / "scan.nii.gz", gzip.compress(content))
    with pytest.raises(ImageFileError, match=r"6 x 7 x 30 voxels of int16, 2520 bytes, but holds 672"):
        read_nifti(path)


NO_FILES = {
    "text": (b"patient 7, second visit", r"does not begin with a NIfTI header"),
    "half a header": (nifti_bytes(noise())[:200], r"its header has 200 of 348 bytes"),
    "a header of a pair": (nifti_bytes(noise(), magic=b"ni1"), r"its header is not followed by voxels"),
    "no dimension": (nifti_bytes(noise(), dim=[0] * 8), r"1 to 7 dimensions of at least 1, got dim \[0, 0"),
    "a negative dimension": (nifti_bytes(noise(), dim=(3, 6, -7, 8, 1, 1, 1, 1)), r"got dim \[3, 6, -7"),
    "voxels in the header": (nifti_bytes(noise(), vox_offset=16), r"vox offset|must begin after"),
}


@pytest.mark.parametrize(("content", "message"), NO_FILES.values(), ids=NO_FILES)
def test_what_is_no_nifti_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = write_bytes(tmp_path / "scan.nii", content)
    with pytest.raises((ImageFileError, nibabel.spatialimages.HeaderDataError), match=message):
        read_nifti(path)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")]), r"colors \(RGB\)"),
        (noise(np.complex64), "complex numbers"),
        (noise(np.complex128), "complex numbers"),
    ],
)
def test_color_and_complex_numbers_are_refused_and_never_cast(tmp_path: Path, values: np.ndarray, kind: str) -> None:
    path = write_bytes(tmp_path / "scan.nii", nifti_bytes(values, **SFORM))
    with pytest.raises(ValueError, match=rf"one real number per voxel, got {kind}\. Export it in gray values\."):
        read_nifti(path)
