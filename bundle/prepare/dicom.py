"""A folder of DICOM slices and a folder of PNG labels -> one volume each, with an affine that is true.

    slices (C, R), one a file  ->  paired with labels by file name  ->  sorted by position  ->  (1, C, R, Z), RAS

Where a slice lies is read from its header (``ImagePositionPatient``, ``ImageOrientationPatient``,
``PixelSpacing``), never from the order of files or from ``InstanceNumber``, which MONAI's reader of whole series
goes by. Each label is paired with its slice before they are sorted together, so the two cannot come apart.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import torch
from monai.data import MetaTensor, PydicomReader
from PIL import Image
from pydicom.errors import BytesLengthException, InvalidDicomError

from bundle.data.reader import BROKEN_FILE
from bundle.keys import IMAGE, LABEL
from bundle.transforms.volumes import Data

BROKEN_SLICE = (*BROKEN_FILE, InvalidDicomError, BytesLengthException, struct.error, TypeError, SyntaxError)
"""What pydicom and PIL raise over a damaged file; TypeError is of a word where a DICOM header must hold a number."""

Grays = Mapping[int, tuple[int, int]]
"""Organ id -> the smallest and the largest gray value that mean it."""

_LPS = np.array([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class DicomSlice:
    """One slice.

    Attributes:
        file: Where it is from.
        series: Its ``SeriesInstanceUID``.
        pixels: Rescaled values, float32 ``(C, R)``: columns first, as NIfTI files have them.
        affine: RAS, mm; the steps along columns and rows, and the place of the first pixel. Its third column means
            nothing.
    """

    file: Path
    series: str
    pixels: np.ndarray
    affine: np.ndarray

    @property
    def place(self) -> np.ndarray:
        """Where the first pixel's center lies, RAS, mm."""
        return self.affine[:3, 3]

    def __str__(self) -> str:
        return f"{self.file.name} at {tuple(float(mm) for mm in np.round(self.place * _LPS, 2))}"


def read_stack(dicom: Sequence[Path], png: Sequence[Path], grays: Grays) -> Data:
    """Read a scan.

    Args:
        dicom: Files of the slices; the n-th one belongs to the n-th label.
        png: Files of the labels, or none for a scan without.
        grays: What their gray values mean; 0 is no organ.

    Returns:
        ``image`` and, if there are labels, ``label``: float32 ``(1, C, R, Z)``, slices in the order of their places.

    Raises:
        ValueError: If a file is damaged, labels and slices do not fit, a gray value means nothing, or the slices are
            not one regular stack.
    """
    _check_pairs(dicom, png)
    slices = [_read_slice(path) for path in dicom]
    planes = {IMAGE: [one.pixels for one in slices]}
    if png:
        planes[LABEL] = [_read_label(path, one, grays) for path, one in zip(png, slices, strict=True)]
    _check_one_scan(slices)
    # One order for both, so that they cannot come apart.
    order = np.argsort([float(_normal(slices[0]) @ one.place) for one in slices])
    affine = torch.as_tensor(_affine_of_stack([slices[place] for place in order]))
    return {
        key: MetaTensor(torch.as_tensor(np.stack(values, axis=-1)[None, ..., order]), affine=affine)
        for key, values in planes.items()
    }


def _check_pairs(dicom: Sequence[Path], png: Sequence[Path]) -> None:
    if not dicom:
        raise ValueError("there is no DICOM file. Unzip the download again.")
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
            f"slices and labels of equal names belong together, but {', '.join(sorted(names ^ labels)[:4])} have no "
            "partner. Unzip the download again."
        )


def _read_slice(path: Path) -> DicomSlice:
    reader = PydicomReader()
    try:
        dataset = reader.read(path)
        _check_header(dataset)
        # A file at a time: pixels and in-plane affine are right, only its stacking of a series goes by InstanceNumber.
        pixels, meta = reader.get_data(dataset)
        if pixels.ndim != 2:
            raise ValueError(f"a DICOM file must hold one gray slice, got data of shape {pixels.shape}")
    except BROKEN_SLICE as error:
        raise _named(path, error) from error
    series = str(dataset.get("SeriesInstanceUID", ""))
    return DicomSlice(path, series, pixels.astype(np.float32), np.asarray(meta["affine"]))


def _check_header(dataset: pydicom.Dataset) -> None:
    """Raise ``ValueError`` if a header does not tell where its slice lies."""
    for tag, count in {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}.items():
        values = dataset.get(tag)
        if values is None or len(values) != count:
            raise ValueError(f"the header must tell where the slice lies, but has no {tag} of {count} numbers")
    axes = np.array(dataset.ImageOrientationPatient, dtype=float).reshape(2, 3)
    if not np.allclose(axes @ axes.T, np.eye(2), atol=1e-2) or min(dataset.PixelSpacing) <= 0:
        raise ValueError("ImageOrientationPatient must be two directions at right angles, and PixelSpacing above 0")


def _read_label(path: Path, one: DicomSlice, grays: Grays) -> np.ndarray:
    """Return the organ ids of a slice, float32 ``(C, R)``."""
    try:
        with Image.open(path) as picture:
            gray = np.asarray(picture).astype(np.int64).T
    except BROKEN_SLICE as error:
        raise _named(path, error) from error
    if gray.shape != one.pixels.shape:
        raise ValueError(
            f"a label must have the size of its slice, but {path.name} has {gray.T.shape} pixels and {one.file.name} "
            f"{one.pixels.T.shape}. Are the two of the same scan?"
        )
    label = np.zeros(gray.shape, dtype=np.float32)
    for organ, (low, high) in grays.items():
        label[(gray >= low) & (gray <= high)] = organ
    unknown = np.unique(gray[(gray != 0) & (label == 0)])
    if len(unknown):
        meant = ", ".join(f"{low} to {high} = {organ}" for organ, (low, high) in grays.items())
        raise ValueError(
            f"{path.name} holds the gray values {unknown[:4].tolist()}, which mean no organ ({meant}). "
            "Use the labels as they were downloaded."
        )
    return label


def _named(path: Path, error: BaseException) -> ValueError:
    return ValueError(f"{path.name} cannot be read ({error}). Copy or unzip it again.")


def _check_one_scan(slices: Sequence[DicomSlice]) -> None:
    """Raise ``ValueError`` unless all slices are of one scan."""
    first = slices[0]
    pixel = np.linalg.norm(first.affine[:3, :2], axis=0)
    for one in slices:
        if one.pixels.shape != first.pixels.shape:
            raise ValueError(
                f"all slices must have the same size, got {first.pixels.T.shape} in {first.file.name} and "
                f"{one.pixels.T.shape} in {one.file.name}. Two scans are mixed."
            )
        if (np.abs(one.affine[:3, :2] - first.affine[:3, :2]) > 1e-3 * pixel).any():
            raise ValueError(
                f"all slices must have the same orientation and pixel size, but {first.file.name} and "
                f"{one.file.name} differ. Two scans are mixed."
            )
    series = {one.series for one in slices}
    # Some anonymizers give every file a series of its own: that says nothing.
    if 1 < len(series) < len(slices):
        raise ValueError(f"the folder holds slices of {len(series)} series. Two scans are mixed: keep one.")


def _normal(one: DicomSlice) -> np.ndarray:
    normal = np.cross(one.affine[:3, 0], one.affine[:3, 1])
    return normal / np.linalg.norm(normal)


def _affine_of_stack(slices: Sequence[DicomSlice]) -> np.ndarray:
    """Return the affine of slices that are sorted by place.

    Raises:
        ValueError: If the slices do not follow each other at equal steps along their normal.
    """
    if len(slices) < 2:
        raise ValueError("a scan must have at least 2 slices, got 1. A single slice is no volume.")
    places = np.array([one.place for one in slices])
    _check_gaps(slices, np.diff(places @ _normal(slices[0])))
    affine = slices[0].affine.copy()
    affine[:3, 2] = (places[-1] - places[0]) / (len(slices) - 1)
    aside = places - places[0]
    aside = np.linalg.norm(aside - np.outer(aside @ _normal(slices[0]), _normal(slices[0])), axis=1)
    if aside.max() > np.linalg.norm(affine[:3, 0]) / 2:
        raise ValueError(
            f"slices must lie straight above each other, but {slices[int(aside.argmax())]} lies {aside.max():.1f} mm "
            f"aside of {slices[0]}. Was the gantry tilted? Resample such a scan first."
        )
    return affine


def _check_gaps(slices: Sequence[DicomSlice], gaps: np.ndarray) -> None:
    usual = float(np.median(gaps))
    # Headers round positions, often to 0.1 mm.
    off = np.abs(gaps - usual)
    worst = int(off.argmax())
    if usual < 1e-3 or off[worst] > 0.1 + 0.05 * usual:
        raise ValueError(
            f"slices must lie at equal distances, but {slices[worst]} and {slices[worst + 1]} (mm, "
            f"ImagePositionPatient) are {gaps[worst]:.2f} mm apart, and most {usual:.2f} mm. Is a slice missing or "
            "there twice?"
        )
