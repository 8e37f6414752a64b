"""Reading and writing NIfTI files: a mask lies exactly where its scan lies."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import nibabel
import numpy as np
from monai.data import MetaTensor
from monai.utils import ImageMetaKey

from bundle.data.scans import scan_name
from bundle.files import written_whole


def source_of(image: MetaTensor) -> str:
    """Return the file that a volume was read from."""
    return str(image.meta[ImageMetaKey.FILENAME_OR_OBJ])


def name_of(image: MetaTensor) -> str:
    """Return the name of a volume's scan."""
    return scan_name(source_of(image))


def save_nifti(label: MetaTensor, path: Path, like: str | None = None, description: str = "") -> None:
    """Write a label map ``(1, H, W, Z)``; beside its place first, then renamed.

    Args:
        label: The label map on its scan's grid.
        path: Where it goes.
        like: The scan's file: if it is NIfTI, the mask gets exactly its affine, with its codes and units.
        description: What stands in the header's ``descrip``, at most 79 characters.
    """
    values, affine, header = np.asarray(label)[0], np.asarray(label.affine), None
    if like is not None and like.lower().endswith((".nii", ".nii.gz")) and Path(like).is_file():
        scan = cast("nibabel.Nifti1Image", nibabel.load(like))
        affine, header = np.asarray(scan.affine), nibabel.Nifti1Header()
        header.set_xyzt_units(*scan.header.get_xyzt_units())
        header.set_data_dtype(values.dtype)
    image = nibabel.Nifti1Image(values, affine, header)
    if header is not None:
        image.set_sform(affine, int(scan.header["sform_code"]) or 2)
        qform, code = scan.header.get_qform(coded=True)
        image.set_qform(qform, int(code))
    image.header["descrip"] = description
    with written_whole(path) as unfinished:
        nibabel.save(image, unfinished)
