"""The reader of every image and label file, on every road: ``LoadImaged(reader=ScanReader())``.

NIfTI is read by ``nifti.py``: a geometry rule of our own, checksums, no correction of headers. NRRD and MetaImage
(``.nrrd``, ``.nhdr``, ``.mha``, ``.mhd``) are read by MONAI's ITKReader, after a look at what their headers declare.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import ImageReader, ITKReader
from monai.data.utils import to_affine_nd
from monai.transforms import LoadImage
from monai.utils import MetaKeys, SpaceKeys, convert_to_tensor, ensure_tuple
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from bundle.data.declared import check_declared
from bundle.data.geometry import check_affine
from bundle.data.nifti import NIFTI_SUFFIXES, read_grid, read_nifti, without_trailing_ones
from bundle.keys import ORGAN_NAMES

BROKEN_FILE = (
    *(RuntimeError, ValueError, OSError, EOFError, MemoryError),
    *(ImageFileError, HeaderDataError, zlib.error),
)
"""What MONAI, nibabel, ITK and zlib raise over a file that is damaged or is not what it should be."""

LONGEST_REASON = 200
"""Characters of a library's own words that a message has."""

LFS_POINTER = b"version https://git-lfs"


class FileError(ValueError):
    """A file that cannot be read; the message begins with its path."""


class ScanReader(ImageReader):
    """Read a volume or a label map: values as the file has them, the affine in RAS, mm, and nothing corrected.

    Trailing dimensions of 1 are dropped. What is refused: see ``read_nifti`` and ``affine_of``; color and complex
    numbers; a file that is shorter than its header declares, before memory is taken for it.
    """

    def verify_suffix(self, filename: Sequence[Any] | Any) -> bool:
        """Tell that any file is welcome: what cannot be read is named, and nobody else tries."""
        return True

    def read(self, data: Sequence[Any] | Any, **kwargs: Any) -> str:
        """Return the file's path. ``get_data`` reads it: what is raised here, MONAI hides and tries other readers."""
        (path,) = ensure_tuple(data)
        return str(path)

    def get_data(self, img: str) -> tuple[np.ndarray, dict[str, Any]]:
        """Return values, float32, and what is known of them.

        Raises:
            FileError: If the file cannot be read; a sentence that begins with its path.
        """
        try:
            check_is_file(Path(img))
            _check_content(Path(img))
            is_nifti = img.lower().endswith(NIFTI_SUFFIXES)
            values, affine, names = (*read_nifti(img), {}) if is_nifti else _read_by_itk(img)
        except BROKEN_FILE as error:
            raise FileError(f"{img}: {in_words(error)}") from error
        return values, {
            **({ORGAN_NAMES: names} if names else {}),
            MetaKeys.AFFINE: affine,
            MetaKeys.ORIGINAL_AFFINE: affine.copy(),
            MetaKeys.SPATIAL_SHAPE: np.array(values.shape[:3]),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.ORIGINAL_CHANNEL_DIM: -1 if values.ndim > 3 else float("nan"),
        }


def look_at(path: str | Path) -> tuple[tuple[int, ...], np.ndarray] | None:
    """Return a file's shape and its affine in RAS, mm, without reading its voxels.

    Returns:
        ``None`` for a format whose header only ITK reads: what is wrong with it is found when it is read.

    Raises:
        FileError: If it is not there, empty, or its header is none.
    """
    try:
        check_is_file(Path(path), "image")
        _check_content(Path(path))
        return read_grid(path) if str(path).lower().endswith(NIFTI_SUFFIXES) else None
    except BROKEN_FILE as error:
        raise FileError(f"{path}: {in_words(error)}") from error


def check_is_file(path: Path, what: str = "file") -> None:
    """Raise ``ValueError`` if there is no file.

    Args:
        path: Where it should be.
        what: What it should be, for the message.
    """
    if path.is_dir():
        raise ValueError(f"this is a folder, no {what}. Rename it, or give the files in it.")
    if not path.is_file():
        raise ValueError(f"there is no such {what} file.")


def _check_content(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(len(LFS_POINTER))
    if not start:
        raise ValueError("the file is empty. Copy it again.")
    if start == LFS_POINTER:
        raise ValueError("this is Git LFS's pointer to the file, not the file. Fetch it with git lfs pull.")


def _read_by_itk(path: str) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    if find_spec("itk") is None:
        raise ValueError("this format is read by itk, which is not installed: pip install itk, or save it as .nii.gz.")
    check_declared(Path(path))
    try:
        reader = ITKReader()
        image = reader.read(path)
        channels = image.GetNumberOfComponentsPerPixel()
        values, meta = reader.get_data(image)
    except (TypeError, KeyError, AttributeError) as error:  # ITK's answer to letters that are none, and odd types
        raise ImageFileError(f"its header makes no sense to ITK: {error}") from error
    if channels != 1:
        raise ValueError(f"a scan must hold one real number a voxel, got {channels}. Export it in gray values.")
    affine = to_affine_nd(3, np.asarray(meta[MetaKeys.AFFINE], dtype=np.float64))
    check_affine(affine)
    return np.asarray(without_trailing_ones(values), dtype=np.float32, order="C"), affine, segment_names(meta)


def segment_names(meta: Mapping[Any, Any]) -> dict[int, str]:
    """Return the names of a label map's ids, as 3D Slicer writes them into the header of a segmentation."""
    found = {}
    for key, name in meta.items():
        match = re.fullmatch(r"Segment(\d+)_Name", str(key))
        value = str(meta.get(f"Segment{match[1]}_LabelValue", "")) if match else ""
        if value.isdecimal() and str(name).strip():
            found[int(value)] = str(name).strip()
    return found


def load_volume(path: str | Path) -> torch.Tensor:
    """Return the values of an image or label file, ``(X, Y, Z)``, float32, as ``ScanReader`` reads them.

    Raises:
        FileError: If it cannot be read.
    """
    return convert_to_tensor(LoadImage(reader=ScanReader(), image_only=True)(path), track_meta=False)


def in_words(error: BaseException) -> str:
    """Return what a user should read of an error over a file, in one or two sentences."""
    if isinstance(error, MemoryError):
        return "the volume does not fit into memory. Close other programs, or take a machine with more."
    if isinstance(error, FileNotFoundError) or (isinstance(error, ValueError) and str(error).endswith((".", "?"))):
        return str(error)
    text = " ".join(str(error).rsplit("ERROR: ", 1)[-1].split()).rstrip(".")  # ITK's begin with a place in its source
    text = text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]} ..."
    return f"the file cannot be read ({type(error).__name__}: {text}). It may be truncated; copy it again."
