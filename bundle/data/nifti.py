"""Reading and writing NIfTI files: every byte is checked, and a mask has exactly its scan's geometry."""

from __future__ import annotations

import gzip
import io
import math
from pathlib import Path

import nibabel
import numpy as np
from bundle.data.geometry import Header, affine_of
from bundle.data.names import scan_name
from bundle.files import written_whole
from bundle.keys import SCAN_NAME
from monai.data import MetaTensor
from monai.utils import ImageMetaKey
from nibabel.filebasedimages import ImageFileError
from nibabel.volumeutils import apply_read_scaling

NIFTI_SUFFIXES = (".nii.gz", ".nii")

# First bytes of a compressed file, whatever its name.
GZIP = b"\x1f\x8b"

# Most bytes that one byte of a gzip file can hold: a file that declares more need not be read.
DEFLATE_LIMIT = 1032

# Bytes that are read at once.
BLOCK = 1 << 20

# The header fields that define, with ``pixdim``, the geometry.
GEOMETRY = (
    *("qform_code", "sform_code", "xyzt_units", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)


def source_of(image: MetaTensor) -> str:
    """Return the file that a volume was read from."""
    return str(image.meta[ImageMetaKey.FILENAME_OR_OBJ])


def name_of(image: MetaTensor) -> str:
    """Return the name of a volume's scan."""
    return str(image.meta.get(SCAN_NAME) or scan_name(source_of(image)))


def read_nifti(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a NIfTI file to its last byte, compressed or not, whatever its suffix.

    Memory is allocated for the bytes that the file really holds, never for what its header declares.

    Args:
        path: The file.

    Returns:
        Its values, scaled, float32, of the file's shape without trailing dimensions of 1 (from the fourth on); and
        its affine, see ``affine_of``.

    Raises:
        ValueError: If it is no NIfTI file, is shorter than its header declares, holds other than real numbers, or
            has no valid geometry.
        OSError, EOFError, zlib.error: If it is damaged, a wrong checksum of gzip included.
    """
    with _opened(Path(path)) as stream:
        header = _header(stream)
        affine = affine_of(header)
        values = _values(stream, header, Path(path).stat().st_size)
        while stream.read(BLOCK):  # up to the checksum at the end
            pass
    return values, affine


def read_header(path: str | Path) -> Header:
    """Return a NIfTI file's header as stored, not corrected.

    Raises:
        ValueError: If it is no NIfTI file.
        OSError, EOFError, zlib.error: If it is damaged.
    """
    with _opened(Path(path)) as stream:
        return _header(stream)


def read_grid(path: str | Path) -> tuple[tuple[int, ...], np.ndarray]:
    """Return a NIfTI file's shape and affine (see ``affine_of``) by its header alone.

    Raises:
        ValueError: As ``read_nifti``; missing voxels are only noticed where the file is too small for them, however
            well it is compressed.
        OSError, EOFError, zlib.error: If the header is damaged.
    """
    with _opened(Path(path)) as stream:
        header = _header(stream)
        _check_room(header, Path(path).stat().st_size, isinstance(stream, gzip.GzipFile))
    return _shape(header), affine_of(header)


def voxel_milliliters(path: str | Path) -> float:
    """Return the volume of a voxel of a NIfTI file, ml, by the geometry used for loading."""
    return abs(float(np.linalg.det(affine_of(read_header(path))[:3, :3]))) / 1000


def save_nifti(
    label: MetaTensor, path: Path, like: str | None = None, description: str = "", slope: float | None = None
) -> None:
    """Write a label map ``(1, H, W, Z)`` whole or not at all.

    Args:
        label: The label map on its scan's grid.
        path: The file to write.
        like: The scan's file: if it is NIfTI, the geometry fields of its header are copied byte for byte, so that every
            program shows both at the same place.
        description: The header's ``descrip``, at most 79 characters.
        slope: The header's ``scl_slope``, by which readers multiply the values; ``None`` for ids.

    Raises:
        WriteError: If the file cannot be written, or the disk is full.
    """
    values = np.asarray(label)[0]
    if like is not None and like.lower().endswith(NIFTI_SUFFIXES) and Path(like).is_file():
        image = with_geometry(values, read_header(like))
    else:
        image = nibabel.Nifti1Image(values, np.asarray(label.affine))
    image.header["descrip"] = description
    if slope is not None:
        image.header.set_slope_inter(slope, 0)
    with written_whole(path) as unfinished:
        nibabel.save(image, unfinished)


def with_geometry(values: np.ndarray, scan: Header) -> nibabel.Nifti1Image:
    """Return an image of ``values (H, W, Z)`` whose header places voxels exactly as a scan's header does."""
    # Without an affine, nibabel leaves the header's geometry unchanged, and it does not correct fields set later.
    kind = nibabel.Nifti2Image if isinstance(scan, nibabel.Nifti2Header) else nibabel.Nifti1Image
    image = kind(values, None)
    image.header["pixdim"][:4] = scan["pixdim"][:4]
    for field in GEOMETRY:
        image.header[field] = scan[field]
    return image


def _opened(path: Path) -> io.BufferedIOBase:
    with path.open("rb") as file:
        is_compressed = file.read(len(GZIP)) == GZIP
    return gzip.GzipFile(path) if is_compressed else path.open("rb")


def _header(stream: io.BufferedIOBase) -> Header:
    kinds = {348: nibabel.Nifti1Header, 540: nibabel.Nifti2Header}
    start = stream.read(4)
    size = next((n for order in ("little", "big") if (n := int.from_bytes(start, order)) in kinds), None)
    if size is None:
        raise ImageFileError("it does not begin with a NIfTI header")
    block = start + stream.read(size - len(start))
    if len(block) < size:
        raise ImageFileError(f"its header has {len(block)} of {size} bytes")
    header = kinds[size](block, check=False)
    if header["magic"].item()[:3] != (b"n+2" if size == 540 else b"n+1"):
        raise ImageFileError(f"its header is not followed by voxels: magic {header['magic'].item()!r}")
    return header


def _values(stream: io.BufferedIOBase, header: Header, bytes_on_disk: int) -> np.ndarray:
    _check_room(header, bytes_on_disk, isinstance(stream, gzip.GzipFile))
    shape, dtype, offset = _shape(header), _dtype(header), _offset(header)
    count = math.prod(shape) * dtype.itemsize
    stream.seek(offset)
    buffer = np.empty(count, np.uint8)  # memory pages are allocated only when they are written to
    filled = _fill(stream, buffer.data)
    if filled < count:
        raise _too_short(shape, dtype, f"{count} bytes, but holds {filled}")
    slope, intercept = header.get_slope_inter()
    values = apply_read_scaling(buffer.view(dtype).reshape(shape, order="F"), slope, intercept)
    return np.asarray(without_trailing_ones(values), dtype=np.float32, order="C")


def _check_room(header: Header, bytes_on_disk: int, is_compressed: bool) -> None:
    shape, dtype, offset = _shape(header), _dtype(header), _offset(header)
    count = math.prod(shape) * dtype.itemsize
    room = bytes_on_disk * (DEFLATE_LIMIT if is_compressed else 1)
    if offset + count > room:
        raise _too_short(shape, dtype, f"{offset + count} bytes, and can hold {room} at most")


def without_trailing_ones(values: np.ndarray) -> np.ndarray:
    """Drop trailing dimensions of 1, from the fourth on."""
    kept = values.ndim
    while kept > 3 and values.shape[kept - 1] == 1:
        kept -= 1
    return values[(slice(None),) * kept + (0,) * (values.ndim - kept)]


def _fill(stream: io.BufferedIOBase, view: memoryview) -> int:
    filled = 0
    while filled < len(view) and (read := stream.readinto(view[filled : filled + BLOCK])):
        filled += read
    return filled


def _shape(header: Header) -> tuple[int, ...]:
    stored = [int(n) for n in header["dim"]]
    shape = tuple(stored[1 : stored[0] + 1])
    if not 1 <= stored[0] <= 7 or min(shape) < 1:
        raise ImageFileError(f"its header must declare 1 to 7 dimensions of at least 1, got dim {stored}")
    return shape


def _dtype(header: Header) -> np.dtype:
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf":
        kind = "complex numbers" if dtype.kind == "c" else "colors (RGB)" if dtype.names else str(dtype)
        raise ValueError(f"a scan must hold one real number per voxel, got {kind}. Export it in gray values.")
    return dtype


def _offset(header: Header) -> int:
    offset = float(header["vox_offset"])
    if not header.sizeof_hdr <= offset <= 2**40:
        raise ImageFileError(f"its voxels must begin after {header.sizeof_hdr} bytes of header, got {offset:g}")
    return int(offset)


def _too_short(shape: tuple[int, ...], dtype: np.dtype, what: str) -> ImageFileError:
    return ImageFileError(f"it declares {' x '.join(map(str, shape))} voxels of {dtype.name}, {what}")
