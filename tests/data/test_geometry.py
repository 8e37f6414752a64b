"""Where a header puts its voxels: each rule against an affine worked out by hand."""

from __future__ import annotations

from typing import Any

import nibabel
import numpy as np
import pytest
from bundle.data.geometry import affine_of, check_affine
from tests.data.headers import ORIGIN, QFORM, SFORM, header_of, noise, with_sizes

BY_SFORM = np.array([[-3, 0, 0, 20], [0, 4, 0, -30], [0, 0, 5, 7], [0, 0, 0, 1]], dtype=float)
# The first axis goes to y in steps of 3, the second to -x in steps of 4, the third to z in steps of 5.
BY_QFORM = np.array([[0, -4, 0, ORIGIN[0]], [3, 0, 0, ORIGIN[1]], [0, 0, 5, ORIGIN[2]], [0, 0, 0, 1]], dtype=float)
# Left first; the middle of 6, 7 and 8 voxels is 2.5, 3 and 3.5 steps from the first one.
BY_DEFAULT = np.array([[-3, 0, 0, 7.5], [0, 4, 0, -12], [0, 0, 5, -17.5], [0, 0, 0, 1]], dtype=float)
UNIT_SFORM = {"sform_code": 1, "srow_x": (1, 0, 0, 0), "srow_y": (0, 1, 0, 0), "srow_z": (0, 0, 1, 0)}


def scaled(affine: np.ndarray, factor: float) -> np.ndarray:
    return np.diag([factor, factor, factor, 1]) @ affine


def mirrored_third(affine: np.ndarray) -> np.ndarray:
    return affine @ np.diag([1, 1, -1, 1])


RULES = {
    "sform before qform": ({**SFORM, **QFORM}, BY_SFORM),
    "sform alone": (SFORM, BY_SFORM),
    "sform, pixdim off in the fifth digit": ({**SFORM, "pixdim": with_sizes(3.00009, 4, 5)}, BY_SFORM),
    "sform, pixdim 0.9 % off": ({**SFORM, **QFORM, "pixdim": with_sizes(3.027, 4, 5)}, BY_SFORM),
    "sform, pixdim 0": ({**SFORM, "pixdim": with_sizes(0, 0, 0)}, BY_SFORM),
    "sform, pixdim below 0": ({**SFORM, "pixdim": with_sizes(-3, 4, -5)}, BY_SFORM),
    "sform, pixdim NaN": ({**SFORM, "pixdim": with_sizes(np.nan, 4, 5)}, BY_SFORM),
    "sform, quaternion too long": ({**SFORM, **QFORM, "quatern_b": 0.9}, BY_SFORM),
    "sform, quaternion NaN": ({**SFORM, **QFORM, "quatern_b": np.nan}, BY_SFORM),
    "sform of code 0": ({**SFORM, **QFORM, "sform_code": 0}, BY_QFORM),
    "sform of an unknown code": ({**SFORM, **QFORM, "sform_code": 77}, BY_QFORM),
    "sform of unit scale beside a true qform": ({**UNIT_SFORM, **QFORM}, BY_QFORM),
    "qform alone": (QFORM, BY_QFORM),
    "qform with a flipped third axis": ({**QFORM, "pixdim": with_sizes(3, 4, 5, qfac=-1)}, mirrored_third(BY_QFORM)),
    "qform, qfac 0": ({**QFORM, "pixdim": with_sizes(3, 4, 5, qfac=0)}, BY_QFORM),
    "qform, quaternion a rounding error too long": (
        {**QFORM, "quatern_c": np.sqrt(0.5003), "quatern_d": 0, "quatern_b": np.sqrt(0.5)},
        # Half a turn about the diagonal of x and y: x <-> y, z -> -z.
        np.array([[0, 4, 0, ORIGIN[0]], [3, 0, 0, ORIGIN[1]], [0, 0, -5, ORIGIN[2]], [0, 0, 0, 1]], dtype=float),
    ),
    "neither code": ({}, BY_DEFAULT),
    "neither code, forms filled": ({**SFORM, **QFORM, "sform_code": 0, "qform_code": 0}, BY_DEFAULT),
    "micron": ({**SFORM, "xyzt_units": 3}, scaled(BY_SFORM, 1e-3)),
    "meter, with seconds": ({**QFORM, "xyzt_units": 1 + 8}, scaled(BY_QFORM, 1e3)),
    "unit unknown": ({**SFORM, "xyzt_units": 0}, BY_SFORM),
    "unit of a code that does not exist": ({**SFORM, "xyzt_units": 5}, BY_SFORM),
}


@pytest.mark.parametrize("kind", [nibabel.Nifti1Header, nibabel.Nifti2Header])
@pytest.mark.parametrize(("fields", "expected"), RULES.values(), ids=RULES)
def test_voxels_lie_where_the_rule_says(fields: dict[str, Any], expected: np.ndarray, kind: type) -> None:
    affine = affine_of(header_of(noise(), kind, **fields))
    np.testing.assert_allclose(affine, expected, atol=2e-3 * np.abs(expected[:3, :3]).max())


def test_the_byte_order_does_not_matter() -> None:
    header = header_of(noise(), **SFORM).as_byteswapped(">")
    np.testing.assert_array_equal(affine_of(header), BY_SFORM)


def test_nibabel_places_a_file_without_codes_there_too() -> None:
    np.testing.assert_allclose(header_of(noise()).get_best_affine(), BY_DEFAULT)


REFUSED = {
    "sform against pixdim": (
        {**SFORM, "pixdim": with_sizes(1, 1, 1)},
        r"contradicts itself: sform gives voxels of 3 x 4 x 5 mm, pixdim of 1 x 1 x 1 mm \(they may differ by 1%\)",
    ),
    "sform NaN": ({**SFORM, "srow_x": (np.nan, 0, 0, 0)}, r"finite numbers, got \[\[nan"),
    "sform NaN beside a qform": ({**SFORM, **QFORM, "srow_x": (np.nan, 0, 0, 0)}, r"finite numbers, got \[\[nan"),
    "sform 1e34": (
        {**SFORM, "srow_x": (1e34, 0, 0, 0), "pixdim": with_sizes(0, 0, 0)},
        r"size of 1e-06 to 100000 mm along each axis, got 1e\+34 x 4 x 5 mm",
    ),
    "sform 0": (
        {**SFORM, "srow_x": (0, 0, 0, 20), "pixdim": with_sizes(0, 0, 0)},
        r"size of 1e-06 to 100000 mm along each axis, got 0 x 4 x 5 mm",
    ),
    "sform of two equal axes": (
        {**SFORM, "srow_x": (-3, 4, 0, 0), "srow_y": (0, 0, 0, 0), "pixdim": with_sizes(0, 0, 0)},
        r"three axes must have different directions",
    ),
    "first voxel far away": ({**SFORM, "srow_x": (-3, 0, 0, 1e9)}, r"within 1e\+07 mm of the origin"),
    "qform 0": ({**QFORM, "pixdim": with_sizes(0, 4, 5)}, r"pixdim is 0 x 4 x 5 mm and no sform is set"),
    "default 0": ({"pixdim": with_sizes(3, 0, 5)}, r"pixdim is 3 x 0 x 5 mm and no sform is set"),
    "qform 1e34": ({**QFORM, "pixdim": with_sizes(3, 4, 1e34)}, r"along each axis, got 3 x 4 x 1e\+34 mm"),
    "default inf": ({"pixdim": with_sizes(3, np.inf, 5)}, r"finite numbers, got"),
    "qform, quaternion of length 1.3": (
        {**QFORM, "quatern_b": 1.0},
        r"quaternion must have a length of at most 1, got 1\.225 from \[1\.0, 0\.0, 0\.7",
    ),
    "qform, quaternion NaN": ({**QFORM, "quatern_b": np.nan}, r"quaternion must have a length of at most 1, got nan"),
}


@pytest.mark.parametrize(("fields", "message"), REFUSED.values(), ids=REFUSED)
def test_a_header_that_does_not_say_where_its_voxels_lie_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        affine_of(header_of(noise(), **fields))


@pytest.mark.parametrize("size", [2e-6, 9e4])
def test_voxels_of_any_sensible_size_are_taken(size: float) -> None:
    check_affine(np.diag([size, size, size, 1.0]))
