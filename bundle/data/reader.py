"""The reader of every image and label file, in every workflow: ``LoadImaged(reader=ScanReader())``.

``nifti.py`` reads NIfTI: with its own geometry rule and checksums, and without correcting headers. MONAI's ITKReader
reads NRRD and MetaImage (``.nrrd``, ``.nhdr``, ``.mha``, ``.mhd``), after their headers have been checked.
``dicom.py`` reads a folder of DICOM files, or the series of one of them; ``organ_masks.py`` a folder of masks.
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
from bundle.data.declared import check_declared
from bundle.data.geometry import check_affine
from bundle.data.names import IMAGE_SUFFIXES, LABEL_FOLDERS
from bundle.data.nifti import NIFTI_SUFFIXES, read_grid, read_nifti, without_trailing_ones
from bundle.files import read_json
from bundle.keys import ORGAN_NAMES, OWN_GRID, SERIES
from bundle.transforms.own_grid import on_grid_of
from monai.data import ImageReader, ITKReader, MetaTensor
from monai.data.utils import to_affine_nd
from monai.transforms import LoadImage
from monai.utils import MetaKeys, SpaceKeys, convert_to_tensor, ensure_tuple
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

# What MONAI, nibabel, ITK and zlib raise over a file that is damaged or has another format.
BROKEN_FILE = (
    *(RuntimeError, ValueError, OSError, EOFError, MemoryError),
    *(ImageFileError, HeaderDataError, zlib.error),
)

# Most characters of a library's own message that are quoted.
LONGEST_REASON = 200

LFS_POINTER = b"version https://git-lfs"


class FileError(ValueError):
    """A file that cannot be read; the message begins with its path."""


class ScanReader(ImageReader):
    """Read a volume or a label map: the file's values, and the affine in RAS, mm, without corrections.

    Trailing dimensions of 1 are dropped. Color and complex numbers are refused, and so is a file that is shorter than
    its header declares, before memory is allocated for it. See also ``read_nifti`` and ``affine_of``.
    """

    def verify_suffix(self, filename: Sequence[Any] | Any) -> bool:
        """Return true for any file: this reader reports what it cannot read, and MONAI tries no other reader."""
        return True

    def read(self, data: Sequence[Any] | Any, **kwargs: Any) -> str:
        """Return the file's path. ``get_data`` reads it: MONAI hides errors raised here and tries other readers."""
        (path,) = ensure_tuple(data)
        return str(path)

    def get_data(self, img: str) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the values, float32, and their meta.

        Raises:
            FileError: If the file cannot be read; the message begins with its path.
        """
        try:
            check_is_file(Path(img))
            values, affine, more = _read(Path(img))
        except BROKEN_FILE as error:
            raise FileError(f"{img}: {in_words(error)}") from error
        return values, {
            **more,
            MetaKeys.AFFINE: affine,
            MetaKeys.ORIGINAL_AFFINE: affine.copy(),
            MetaKeys.SPATIAL_SHAPE: np.array(values.shape[:3]),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.ORIGINAL_CHANNEL_DIM: -1 if values.ndim > 3 else float("nan"),
        }


def _read(path: Path) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Return the values of a scan or label map, its affine, and what else its files tell, for its meta."""
    if is_dicom(path):
        return _read_dicom(path)
    if path.is_dir():
        return _read_masks(path)
    _check_content(path)
    if path.name.lower().endswith(NIFTI_SUFFIXES):
        values, affine, names = (*read_nifti(path), names_beside(path))
    else:
        values, affine, names = _read_by_itk(str(path))
    return values, affine, {ORGAN_NAMES: names} if names else {}


def _read_dicom(path: Path) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    dicom = _dicom()
    if (file := dicom.segmentation_in(path)) is not None:
        from bundle.data.dicom_segmentation import read_segmentation  # needs the extra, too

        values, affine, names = read_segmentation(file)
        return values, affine, {ORGAN_NAMES: names, OWN_GRID: True}
    values, affine, files = dicom.read_series(path)
    return values, affine, {SERIES: [str(file) for file in files]}


def _read_masks(folder: Path) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    from bundle.data.organ_masks import read_masks  # which lists files as this room does

    values, affine, names = read_masks(folder, lambda path: _read(Path(path))[:2])
    return values, affine, {ORGAN_NAMES: names}


def names_beside(path: Path) -> dict[int, str]:
    """Return the names of a label map's ids, from the ``dataset.json`` of the Decathlon (MSD) or of nnU-Net.

    Regions of nnU-Net, which are several ids, have no name of their own; 0 is background.

    Raises:
        ValueError: If the file is damaged.
    """
    record = path.parent.parent / "dataset.json"
    if path.parent.name not in LABEL_FOLDERS or not record.is_file():
        return {}
    labels = read_json(record, "Repair it, or move it away.").get("labels")
    found = {}
    for one, other in labels.items() if isinstance(labels, dict) else ():
        number, name = (one, other) if str(one).isdecimal() else (other, one)
        if str(number).isdecimal() and int(number) > 0:
            found[int(number)] = str(name).strip()
    return found


def is_dicom(path: Path) -> bool:
    """Return whether a path is a DICOM file, or a folder that holds one."""
    if path.is_dir():
        return any(is_dicom(file) for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _dicom() -> Any:
    """Return the module that reads DICOM, which needs an extra."""
    if find_spec("pydicom") is None:
        raise ValueError("DICOM needs pydicom, which is not installed: pip install pydicom, or save it as .nii.gz.")
    from bundle.data import dicom

    return dicom


def look_at(path: str | Path) -> tuple[tuple[int, ...], np.ndarray] | None:
    """Return a file's shape and its affine in RAS, mm, without reading its voxels.

    Returns:
        ``None`` for a format whose header only ITK reads: its problems are found when it is read.

    Raises:
        FileError: If it is missing or empty, or its header is damaged.
    """
    try:
        check_is_file(Path(path), "image")
        if is_dicom(Path(path)):
            return _dicom().look_at_series(Path(path))
        if Path(path).is_dir():
            raise ValueError("a scan must be one file or a DICOM series, got a folder of files. Give one of them.")
        _check_content(Path(path))
        return read_grid(path) if str(path).lower().endswith(NIFTI_SUFFIXES) else None
    except BROKEN_FILE as error:
        raise FileError(f"{path}: {in_words(error)}") from error


def check_is_file(path: Path, what: str = "") -> None:
    """Raise ``ValueError`` if there is no file.

    Args:
        path: The path to check.
        what: The kind of file, such as ``image``, for the message.
    """
    if path.is_dir() and (is_dicom(path) or any(file.name.lower().endswith(IMAGE_SUFFIXES) for file in path.iterdir())):
        return
    if path.is_dir():
        raise ValueError("this is a folder, not a file. Rename it, or give the files in it.")
    if not path.is_file():
        kind = f"{what} file".lstrip()
        raise ValueError(f"there is no such {kind}. Check the path.")


def _check_content(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(len(LFS_POINTER))
    if not start:
        raise ValueError("the file is empty. Copy it again.")
    if start == LFS_POINTER:
        raise ValueError("this is a Git LFS pointer, not the file itself. Fetch it with git lfs pull.")


def _read_by_itk(path: str) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    if find_spec("itk") is None:
        raise ValueError("this format needs itk, which is not installed: pip install itk, or save it as .nii.gz.")
    check_declared(Path(path))
    try:
        reader = ITKReader()
        image = reader.read(path)
        channels = image.GetNumberOfComponentsPerPixel()
        values, meta = reader.get_data(image)
    except (TypeError, KeyError, AttributeError) as error:  # ITK raises these over invalid characters and types
        raise ImageFileError(f"ITK cannot interpret its header: {error}") from error
    if channels != 1:
        raise ValueError(f"a scan must hold one real number per voxel, got {channels}. Export it in gray values.")
    affine = to_affine_nd(3, np.asarray(meta[MetaKeys.AFFINE], dtype=np.float64))
    check_affine(affine)
    return np.asarray(without_trailing_ones(values), dtype=np.float32, order="C"), affine, segment_names(meta)


def segment_names(meta: Mapping[Any, Any]) -> dict[int, str]:
    """Return the names of a label map's ids, from the header that 3D Slicer writes for a segmentation."""
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


def load_label(path: str | Path, image: MetaTensor) -> torch.Tensor:
    """Return a label map on the grid of its image, ``(X, Y, Z)``, float32; see ``on_grid_of``.

    Raises:
        FileError: If it cannot be read.
        ValueError: If it does not lie on the image.
    """
    label = LoadImage(reader=ScanReader(), image_only=True)(path)
    return convert_to_tensor(on_grid_of(label[None], image)[0], track_meta=False)


def in_words(error: BaseException) -> str:
    """Return the message for an error over a file, in one or two sentences."""
    if isinstance(error, MemoryError):
        return "the volume does not fit into memory. Close other programs, or use a machine with more memory."
    if isinstance(error, FileNotFoundError) or (isinstance(error, ValueError) and str(error).endswith((".", "?"))):
        return str(error)
    # ITK's messages begin with a line of its source code.
    text = " ".join(str(error).rsplit("ERROR: ", 1)[-1].split()).rstrip(".")
    text = text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]} ..."
    return f"the file cannot be read ({type(error).__name__}: {text}). It may be truncated; copy it again."
