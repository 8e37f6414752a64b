"""NIfTI files byte by byte, so that a header can hold what no writer would write."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

SHAPE = (6, 7, 8)
SIZES = (3.0, 4.0, 5.0)
ORIGIN = (-90.0, 80.0, 40.0)
# From the first axis to the second: x -> y, y -> -x.
QUARTER_TURN = {"quatern_d": math.sqrt(0.5)}

# Left, back and foot first, with the voxel sizes of ``SIZES``.
SFORM = {"sform_code": 1, "srow_x": (-3, 0, 0, 20), "srow_y": (0, 4, 0, -30), "srow_z": (0, 0, 5, 7)}

# A quarter turn, from ``ORIGIN``.
QFORM = {"qform_code": 1, "qoffset_x": ORIGIN[0], "qoffset_y": ORIGIN[1], "qoffset_z": ORIGIN[2], **QUARTER_TURN}


def header_of(values: np.ndarray, kind: type = nibabel.Nifti1Header, **fields: Any) -> nibabel.Nifti1Header:
    """A header as it stands in a file, nothing corrected; voxels measure ``SIZES`` unless a field says otherwise."""
    header = kind(check=False)
    header.set_data_dtype(values.dtype)
    header.set_data_shape(values.shape)
    header["pixdim"][:4] = (1.0, *SIZES)
    header["vox_offset"] = 352 if header.sizeof_hdr == 348 else 544
    header["xyzt_units"] = 2
    for name, value in fields.items():
        header[name] = value
    return header


def with_sizes(*sizes: float, qfac: float = 1.0) -> np.ndarray:
    return np.array([qfac, *sizes, 1, 1, 1, 1], dtype=np.float32)


def nifti_bytes(values: np.ndarray, kind: type = nibabel.Nifti1Header, **fields: Any) -> bytes:
    header = header_of(values, kind, **fields)
    return bytes(header.binaryblock) + bytes(4) + values.tobytes("F")


def write_bytes(path: Path, content: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


def noise(dtype: Any = np.int16, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 200, shape).astype(dtype)
