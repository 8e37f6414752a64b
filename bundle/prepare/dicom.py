"""A folder of DICOM slices and a folder of PNG labels -> one volume each, with the correct affine.

    slices (C, R), one per file  ->  paired with labels by file name  ->  sorted by position  ->  (1, C, R, Z), RAS

The position of a slice is read from its header (``ImagePositionPatient``, ``ImageOrientationPatient``,
``PixelSpacing``), never from the order of files or from ``InstanceNumber``, which MONAI's reader of whole series
uses. Each label is paired with its slice before both are sorted together, so that they stay paired.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import torch
from bundle.data.reader import BROKEN_FILE
from bundle.keys import IMAGE, LABEL
from bundle.transforms.volumes import Data
from monai.data import MetaTensor, PydicomReader
from PIL import Image
from pydicom.errors import BytesLengthException, InvalidDicomError

# What pydicom and PIL raise for a damaged file; TypeError if a DICOM header holds text in place of a number.
BROKEN_SLICE = (*BROKEN_FILE, InvalidDicomError, BytesLengthException, struct.error, TypeError, SyntaxError)

# Organ id -> its smallest and largest gray value.
Grays = Mapping[int, tuple[int, int]]

_LPS = np.array([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class DicomSlice:
    """One slice.

    Attributes:
        file: Its file.
        series: Its ``SeriesInstanceUID``.
        pixels: Rescaled values, float32 ``(C, R)``: columns first, as in NIfTI files.
        affine: RAS, mm; the steps along columns and rows, and the position of the first pixel. The third column is not
            used.
    """

    file: Path
    series: str
    pixels: np.ndarray
    affine: np.ndarray

    @property
    def place(self) -> np.ndarray:
        """The position of the first pixel's center, RAS, mm."""
        return self.affine[:3, 3]

    def __str__(self) -> str:
        return f"{self.file.name} at {tuple(float(mm) for mm in np.round(self.place * _LPS, 2))}"


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
    slices = [_read_slice(path) for path in dicom]
    planes = {IMAGE: [one.pixels for one in slices]}
    if png:
        planes[LABEL] = [_read_label(path, one, grays) for path, one in zip(png, slices, strict=True)]
    _check_one_scan(slices)
    # One order for both, so that they stay paired.
    order = np.argsort([float(_normal(slices[0]) @ one.place) for one in slices])
    affine = torch.as_tensor(_affine_of_stack([slices[place] for place in order]))
    return {
        key: MetaTensor(torch.as_tensor(np.stack(values, axis=-1)[None, ..., order]), affine=affine)
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


def _read_slice(path: Path) -> DicomSlice:
    reader = PydicomReader()
    try:
        dataset = reader.read(path)
        _check_header(dataset)
        # One file at a time: pixels and in-plane affine are right; only stacking a series would use InstanceNumber.
        pixels, meta = reader.get_data(dataset)
        if pixels.ndim != 2:
            raise ValueError(f"a DICOM file must hold one gray slice, got data of shape {pixels.shape}")
    except BROKEN_SLICE as error:
        raise _named(path, error) from error
    series = str(dataset.get("SeriesInstanceUID", ""))
    return DicomSlice(path, series, pixels.astype(np.float32), np.asarray(meta["affine"]))


def _check_header(dataset: pydicom.Dataset) -> None:
    """Raise ``ValueError`` if a header does not state the position of its slice."""
    for tag, count in {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}.items():
        values = dataset.get(tag)
        if values is None or len(values) != count:
            raise ValueError(f"the header must state the position of the slice, but has no {tag} of {count} numbers")
    axes = np.array(dataset.ImageOrientationPatient, dtype=float).reshape(2, 3)
    if not np.allclose(axes @ axes.T, np.eye(2), atol=1e-2) or min(dataset.PixelSpacing) <= 0:
        got = f"got {axes.ravel().tolist()} and {[float(mm) for mm in dataset.PixelSpacing]}"
        raise ValueError(f"ImageOrientationPatient must be two orthogonal directions and PixelSpacing above 0, {got}")


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
            f"{one.pixels.T.shape}. Unzip the download again."
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
                f"{one.pixels.T.shape} in {one.file.name}. Keep one scan: two are mixed."
            )
        if (np.abs(one.affine[:3, :2] - first.affine[:3, :2]) > 1e-3 * pixel).any():
            raise ValueError(
                f"all slices must have the same orientation and pixel size, but {first.file.name} and "
                f"{one.file.name} differ. Keep one scan: two are mixed."
            )
    series = {one.series for one in slices}
    # Some anonymizers give every file its own series, which is no sign of mixed scans.
    if 1 < len(series) < len(slices):
        raise ValueError(f"all slices must be of one series, got {len(series)} series. Keep one scan: two are mixed.")


def _normal(one: DicomSlice) -> np.ndarray:
    normal = np.cross(one.affine[:3, 0], one.affine[:3, 1])
    return normal / np.linalg.norm(normal)


def _affine_of_stack(slices: Sequence[DicomSlice]) -> np.ndarray:
    """Return the affine of slices that are sorted by place.

    Raises:
        ValueError: If the slices are not equally spaced along their normal.
    """
    if len(slices) < 2:
        raise ValueError("a scan must have at least 2 slices, got 1. Unzip the download again.")
    places = np.array([one.place for one in slices])
    _check_gaps(slices, np.diff(places @ _normal(slices[0])))
    affine = slices[0].affine.copy()
    affine[:3, 2] = (places[-1] - places[0]) / (len(slices) - 1)
    aside = places - places[0]
    aside = np.linalg.norm(aside - np.outer(aside @ _normal(slices[0]), _normal(slices[0])), axis=1)
    if aside.max() > np.linalg.norm(affine[:3, 0]) / 2:
        raise ValueError(
            f"slices must be stacked along their normal, but {slices[int(aside.argmax())]} is shifted by "
            f"{aside.max():.1f} mm from {slices[0]}. If the gantry was tilted, resample the scan first."
        )
    return affine


def _check_gaps(slices: Sequence[DicomSlice], gaps: np.ndarray) -> None:
    usual = float(np.median(gaps))
    # Headers round positions, often to 0.1 mm.
    off = np.abs(gaps - usual)
    worst = int(off.argmax())
    if usual < 1e-3 or off[worst] > 0.1 + 0.05 * usual:
        raise ValueError(
            f"slices must be equally spaced, but {slices[worst]} and {slices[worst + 1]} (mm, "
            f"ImagePositionPatient) are {gaps[worst]:.2f} mm apart, and most {usual:.2f} mm. Look for a slice that is "
            "missing or there twice."
        )
