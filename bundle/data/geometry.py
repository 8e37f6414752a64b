"""The geometry of NIfTI files: one rule for images and labels, in every workflow.

    header -> sform, if its code is set -> else qform -> else the header's default -> affine in RAS, mm

Nothing is corrected silently: a header that contradicts itself is refused.
"""

from __future__ import annotations

import nibabel
import numpy as np

# The header of NIfTI-1, or of NIfTI-2, which nibabel derives from it.
Header = nibabel.Nifti1Header

# Largest relative difference between the voxel sizes of ``sform`` and ``pixdim``; writers round either of them.
TOLERANCE = 0.01

# Squared length up to which a quaternion counts as a rounded one of length 1.
LONGEST_QUATERNION = 1.01

# Millimeters in each unit of NIfTI: meter, millimeter, micron. A file with another code is assumed to be in mm.
MILLIMETERS = {1: 1e3, 2: 1.0, 3: 1e-3}

# Smallest and largest distance between two voxels, mm.
VOXEL_RANGE = (1e-6, 1e5)

# Largest distance of the first voxel from the origin, mm.
FARTHEST = 1e7


def affine_of(header: Header) -> np.ndarray:
    """Return a file's affine: RAS, mm, float64 ``(4, 4)``.

    ``sform`` is used if its code is set. If its voxel sizes differ from ``pixdim`` by more than 1 %, ``qform`` is used
    instead, if its code is set, since it is based on ``pixdim`` (ACDC's files have such headers). Without ``sform``,
    ``qform`` is used, and without either code nibabel's default: left first, the volume's center at the origin.

    Args:
        header: The header as stored in the file, not corrected.

    Raises:
        ValueError: If ``sform`` and ``pixdim`` contradict each other without a ``qform``, or the affine holds NaN,
            infinite or absurd numbers, voxels of size 0, or two axes in one direction.
    """
    affine = _stored(header)
    if not np.isfinite(affine).all():
        raise ValueError(f"the header must place the voxels by finite numbers, got {_text(affine)}. Repair the header.")
    # The first three bits are the unit of space, the others that of time.
    affine[:3] *= MILLIMETERS.get(int(header["xyzt_units"]) & 7, 1.0)
    check_affine(affine)
    return affine


def check_affine(affine: np.ndarray) -> None:
    """Raise ``ValueError`` unless an affine in mm is invertible, with sensible voxel sizes and origin."""
    low, high = VOXEL_RANGE
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not ((sizes >= low) & (sizes <= high)).all():
        raise ValueError(
            f"voxels must have a size of {low:g} to {high:g} mm along each axis, got {_sizes(sizes)}. "
            "Repair the header, or its unit."
        )
    if abs(np.linalg.det(affine[:3, :3] / sizes)) < 1e-3:
        raise ValueError(
            f"the header's three axes must have different directions, got {_text(affine)}. Repair the header."
        )
    if np.abs(affine[:3, 3]).max() > FARTHEST:
        raise ValueError(
            f"the first voxel must lie within {FARTHEST:g} mm of the origin, got {affine[:3, 3].tolist()}. "
            "Repair the header."
        )


def _stored(header: Header) -> np.ndarray:
    """Return the affine to use, in the header's own unit."""
    known = _corrected(header)
    if int(known["sform_code"]) > 0:
        sform = np.asarray(known.get_sform(), dtype=np.float64)
        stated = np.asarray(header["pixdim"][1:4], dtype=np.float64)
        if not np.isfinite(sform).all() or _agree(np.linalg.norm(sform[:3, :3], axis=0), stated):
            return sform
        if int(known["qform_code"]) > 0:
            return _qform(known)
        raise ValueError(
            f"the header contradicts itself: sform gives voxels of {_sizes(np.linalg.norm(sform[:3, :3], axis=0))}, "
            f"pixdim of {_sizes(stated)} (they may differ by {TOLERANCE:.0%}). Correct the wrong one."
        )
    if not (np.asarray(header["pixdim"][1:4]) != 0).all():
        raise ValueError(
            f"voxels must have a size, but pixdim is {_sizes(header['pixdim'][1:4])} and no sform is set. "
            "Set one of the two."
        )
    return _qform(known) if int(known["qform_code"]) > 0 else np.asarray(known.get_base_affine(), dtype=np.float64)


def _corrected(header: Header) -> Header:
    """Return the header as nibabel corrects it: without negative ``pixdim`` and unknown codes."""
    return type(header)(header.binaryblock, endianness=header.endianness, check=True)


def _agree(sizes: np.ndarray, stated: np.ndarray) -> bool:
    # A pixdim of 0, below 0 or NaN is ignored: many writers leave it so if they write an sform.
    is_given = stated > 0
    return bool((np.abs(sizes - stated)[is_given] <= TOLERANCE * stated[is_given]).all())


def _qform(header: Header) -> np.ndarray:
    parts = ("quatern_b", "quatern_c", "quatern_d")
    quaternion = np.array([header[part] for part in parts], dtype=np.float64)
    square = float(quaternion @ quaternion)
    if not square <= LONGEST_QUATERNION:
        raise ValueError(
            f"the qform's quaternion must have a length of at most 1, got {square**0.5:.4g} from "
            f"{quaternion.tolist()}. Repair the header, or set its sform."
        )
    if square > 1:
        header = header.copy()
        for part, value in zip(parts, quaternion / square**0.5, strict=True):
            header[part] = value
    return np.asarray(header.get_qform(), dtype=np.float64)


def _sizes(sizes: np.ndarray) -> str:
    return " x ".join(f"{size:.5g}" for size in np.asarray(sizes, dtype=float)) + " mm"


def _text(affine: np.ndarray) -> str:
    return str([[float(f"{value:.4g}") for value in row] for row in affine[:3]])
