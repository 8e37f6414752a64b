"""The slices of DICOM files -> a stack: where each lies, and whether they form one regular volume.

The position of a slice is read from its header (``ImagePositionPatient``, ``ImageOrientationPatient``,
``PixelSpacing``), never from the order of files or from ``InstanceNumber``, which MONAI's reader of whole series
uses. A file of several frames (enhanced CT or MR) holds the same for each frame.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from bundle.data.reader import BROKEN_FILE
from pydicom.errors import BytesLengthException, InvalidDicomError

# What pydicom and PIL raise for a damaged file; TypeError if a header holds text in place of a number, AttributeError
# if it lacks what describes the pixels.
BROKEN_SLICE = (
    *(*BROKEN_FILE, InvalidDicomError, BytesLengthException),
    *(struct.error, TypeError, SyntaxError, AttributeError),
)

# The attributes that place a slice.
PLACE_TAGS = [
    *("SeriesInstanceUID", "Rows", "Columns", "SamplesPerPixel", "NumberOfFrames"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
]

# Where the groups of an enhanced file hold what the header of a single slice holds.
GROUPS = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "SpacingBetweenSlices": "PixelMeasuresSequence",
    "SliceThickness": "PixelMeasuresSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
}

# Least distance between two slices, mm.
SAME_PLACE = 1e-3

LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class DicomSlice:
    """One slice.

    Attributes:
        file: Its file.
        series: Its ``SeriesInstanceUID``.
        shape: Columns and rows.
        affine: RAS, mm; the steps along columns and rows, and the position of the first pixel. The third column is not
            used.
        pixels: Rescaled values, float32 ``(C, R)``: columns first, as in NIfTI files; empty if only its header was
            read.
    """

    file: Path
    series: str
    shape: tuple[int, int]
    affine: np.ndarray
    pixels: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    @property
    def place(self) -> np.ndarray:
        """The position of the first pixel's center, RAS, mm."""
        return self.affine[:3, 3]

    def __str__(self) -> str:
        return f"{self.file.name} at {tuple(float(mm) for mm in np.round(self.place * LPS_TO_RAS, 2))}"


def read_slices(path: Path, pixels: bool = True) -> list[DicomSlice]:
    """Return the slices of a file: one, or as many as it has frames.

    Raises:
        ValueError: If the file is damaged, in color, or does not state where its slices lie.
    """
    try:
        head = pydicom.dcmread(path) if pixels else head_of(path, PLACE_TAGS)
        if int(head.get("SamplesPerPixel") or 1) != 1:
            raise ValueError("a DICOM file must hold gray slices, got colors")
        frames = int(head.get("NumberOfFrames") or 1)
        if (placed := len(head.get("PerFrameFunctionalGroupsSequence") or [])) not in (0, frames):
            raise ValueError(f"a file of {frames} frames must place each of them, but places {placed}")
        values = frames_of(head, frames) if pixels else np.zeros((frames, 0))
        return [_slice(path, head, number, values[number]) for number in range(frames)]
    except BROKEN_SLICE as error:
        raise damaged(path, error) from error


def frames_of(head: Any, frames: int) -> np.ndarray:
    """Return the stored values, ``(frames, rows, columns)``.

    Raises:
        ValueError: If they are compressed in a way that needs another package.
    """
    syntax = head.file_meta.TransferSyntaxUID
    try:
        return np.asarray(head.pixel_array).reshape(frames, head.Rows, head.Columns)
    except (RuntimeError, NotImplementedError) as error:
        if not syntax.is_compressed:
            raise
        raise ValueError(
            f"its pixels are compressed as {syntax.name}, which needs another package: pip install pylibjpeg "
            "pylibjpeg-libjpeg pylibjpeg-openjpeg"
        ) from error


def damaged(path: Path, error: BaseException) -> ValueError:
    """Return the error over a file that cannot be read."""
    return ValueError(f"{path.name} cannot be read ({error}). Copy or unzip it again.")


def attribute(head: Any, number: int, name: str) -> Any:
    """Return an attribute of a frame: its own, that of all frames, or the header's; ``None`` if there is none."""
    for groups, place in (("PerFrameFunctionalGroupsSequence", number), ("SharedFunctionalGroupsSequence", 0)):
        held = head.get(groups)
        for item in held[place].get(GROUPS[name], []) if held else []:
            if name in item:
                return item[name].value
    return head.get(name)


def frame_affine(head: Any, number: int) -> np.ndarray:
    """Return the affine of a frame, RAS, mm; its third column is the normal, of length 1.

    Raises:
        ValueError: If the header does not state the position of the frame.
    """
    given = {}
    for tag, count in {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}.items():
        values = attribute(head, number, tag)
        if values is None or len(values) != count:
            raise ValueError(f"the header must state the position of the slice, but has no {tag} of {count} numbers")
        given[tag] = np.array(values, dtype=np.float64)
    axes, spacing = given["ImageOrientationPatient"].reshape(2, 3), given["PixelSpacing"]
    if not np.allclose(axes @ axes.T, np.eye(2), atol=1e-2) or min(spacing) <= 0:
        raise ValueError(
            "ImageOrientationPatient must be two orthogonal directions and PixelSpacing above 0, got "
            f"{axes.ravel().tolist()} and {spacing.tolist()}"
        )
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = axes[0] * spacing[1], axes[1] * spacing[0]
    affine[:3, 2], affine[:3, 3] = np.cross(axes[0], axes[1]), given["ImagePositionPatient"]
    return np.diag([*LPS_TO_RAS, 1.0]) @ affine


def stacked(slices: Sequence[DicomSlice]) -> tuple[list[DicomSlice], np.ndarray]:
    """Return the slices of a scan in the order of their places, and the affine of the stack, RAS, mm.

    Raises:
        ValueError: If they differ in size, direction or series, or are not equally spaced along their normal.
    """
    _check_one_scan(slices)
    ordered = sorted(slices, key=lambda one: float(_normal(slices[0]) @ one.place))
    return ordered, _affine_of_stack(ordered)


def head_of(path: Path, tags: Sequence[str]) -> Any:
    """Return some attributes of a file.

    Raises:
        ValueError: If the file is damaged.
    """
    try:
        head = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(tags))
        list(head)  # decodes what is wrong now, where the file is known
        return head
    except BROKEN_SLICE as error:
        raise damaged(path, error) from error


def _slice(path: Path, head: Any, number: int, values: np.ndarray) -> DicomSlice:
    if values.size:
        slope, intercept = (attribute(head, number, name) for name in ("RescaleSlope", "RescaleIntercept"))
        rescaled = values.astype(np.float64) * float(1 if slope is None else slope) + float(intercept or 0)
        values = rescaled.T.astype(np.float32)
    series, shape = str(head.get("SeriesInstanceUID", "")), (int(head.Columns), int(head.Rows))
    return DicomSlice(path, series, shape, frame_affine(head, number), values)


def _check_one_scan(slices: Sequence[DicomSlice]) -> None:
    """Raise ``ValueError`` unless all slices are of one scan."""
    first = slices[0]
    pixel = np.linalg.norm(first.affine[:3, :2], axis=0)
    for one in slices:
        if one.shape != first.shape:
            raise ValueError(
                f"all slices must have the same size, got {first.shape[::-1]} in {first.file.name} and "
                f"{one.shape[::-1]} in {one.file.name}. Keep one scan: two are mixed."
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
    """Return the affine of slices that are sorted by place."""
    if len(slices) < 2:
        raise ValueError("a scan must have at least 2 slices, got 1. Give the folder with all slices of the series.")
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
    if usual < SAME_PLACE:
        raise ValueError(
            f"slices must be equally spaced, but {len(slices)} slices lie at {1 + int((gaps >= SAME_PLACE).sum())} "
            "places. Keep one phase or echo of the series."
        )
    # Headers round positions, often to 0.1 mm.
    off = np.abs(gaps - usual)
    worst = int(off.argmax())
    if off[worst] > 0.1 + 0.05 * usual:
        raise ValueError(
            f"slices must be equally spaced, but {slices[worst]} and {slices[worst + 1]} (mm, "
            f"ImagePositionPatient) are {gaps[worst]:.2f} mm apart, and most {usual:.2f} mm. Look for a slice that is "
            "missing or there twice."
        )
