"""A folder of DICOM slices and a folder of PNG labels -> one volume each, with the correct affine.

    slices (C, R), one per file  ->  paired with labels by file name  ->  sorted by position  ->  (1, C, R, Z), RAS

Each label is paired with its slice before both are sorted together, so that they stay paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from bundle.data.dicom_slices import BROKEN_SLICE, DicomSlice, damaged, read_slices, stacked
from bundle.keys import IMAGE, LABEL
from bundle.transforms.volumes import Data
from monai.data import MetaTensor
from PIL import Image

# Organ id -> its smallest and largest gray value.
Grays = Mapping[int, tuple[int, int]]


def read_stack(dicom: Sequence[Path], png: Sequence[Path], grays: Grays) -> Data:
    """Read a scan.

    Args:
        dicom: Files of the slices; the n-th one belongs to the n-th label.
        png: Files of the labels; none for a scan without labels.
        grays: The gray values of each organ; 0 is background.

    Returns:
        ``image`` and, if there are labels, ``label``: float32 ``(1, C, R, Z)``, slices in the order of their positions.

    Raises:
        ValueError: If a file is damaged, labels and slices do not match, a gray value is unknown, or the slices do not
            form one regular stack.
    """
    _check_pairs(dicom, png)
    slices = [_one_slice(path) for path in dicom]
    ordered, affine = stacked(slices)
    planes = {IMAGE: [one.pixels for one in ordered]}
    if png:
        labels = {one.file: _read_label(path, one, grays) for path, one in zip(png, slices, strict=True)}
        planes[LABEL] = [labels[one.file] for one in ordered]
    return {
        key: MetaTensor(torch.as_tensor(np.stack(values, axis=-1)[None]), affine=torch.as_tensor(affine))
        for key, values in planes.items()
    }


def _check_pairs(dicom: Sequence[Path], png: Sequence[Path]) -> None:
    if not dicom:
        raise ValueError("a scan must have DICOM files, got none. Unzip the download again.")
    if not png:
        return
    if len(png) != len(dicom):
        raise ValueError(
            f"every slice needs its label, got {len(dicom)} DICOM files and {len(png)} PNG files. "
            "Unzip the download again."
        )
    names, labels = {path.stem for path in dicom}, {path.stem for path in png}
    if names & labels and names != labels:
        raise ValueError(
            f"slices and labels must have equal names, but {', '.join(sorted(names ^ labels)[:4])} have no "
            "partner. Unzip the download again."
        )


def _one_slice(path: Path) -> DicomSlice:
    slices = read_slices(path)
    if len(slices) != 1:
        raise damaged(path, ValueError(f"a DICOM file must hold one gray slice, got {len(slices)} frames"))
    return slices[0]


def _read_label(path: Path, one: DicomSlice, grays: Grays) -> np.ndarray:
    """Return the organ ids of a slice, float32 ``(C, R)``."""
    try:
        with Image.open(path) as picture:
            gray = np.asarray(picture).astype(np.int64).T
    except BROKEN_SLICE as error:
        raise damaged(path, error) from error
    if gray.shape != one.shape:
        raise ValueError(
            f"a label must have the size of its slice, but {path.name} has {gray.T.shape} pixels and {one.file.name} "
            f"{one.shape[::-1]}. Unzip the download again."
        )
    label = np.zeros(gray.shape, dtype=np.float32)
    for organ, (low, high) in grays.items():
        label[(gray >= low) & (gray <= high)] = organ
    unknown = np.unique(gray[(gray != 0) & (label == 0)])
    if len(unknown):
        meant = ", ".join(f"{low} to {high} = {organ}" for organ, (low, high) in grays.items())
        raise ValueError(
            f"gray values of labels must mean organs ({meant}), got {unknown[:4].tolist()} in {path.name}. "
            "Use the labels as they were downloaded."
        )
    return label
