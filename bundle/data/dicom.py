"""A series of DICOM slices -> one volume with its place in the patient.

    files of a folder  ->  one series  ->  slices (C, R), rescaled  ->  sorted by position  ->  (C, R, Z), affine in RAS

``dicom_slices.py`` has the slices and their order.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bundle.data.dicom_slices import head_of, read_slices, stacked
from bundle.data.reader import is_dicom

# Segmentations, which are label maps: DICOM's classes Segmentation and Label Map Segmentation.
SEGMENTATION_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")

# The attributes that tell which series a file belongs to.
SERIES_TAGS = [
    *("SOPClassUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "Rows", "NumberOfFrames"),
    "ReferencedSeriesSequence",
]

# Most series that a message names.
MOST_NAMED = 5


@dataclass(frozen=True)
class DicomSeries:
    """The files of a folder that belong together.

    Attributes:
        files: The files, in the order of their names.
        uid: ``SeriesInstanceUID``.
        number: ``SeriesNumber``, ``""`` if there is none.
        description: ``SeriesDescription``, ``""`` if there is none.
        refers_to: For a segmentation, the ``SeriesInstanceUID`` of the series that it was drawn on.
        is_segmentation: Whether it is a label map and no scan.
    """

    files: tuple[Path, ...]
    uid: str
    number: str = ""
    description: str = ""
    refers_to: str = ""
    is_segmentation: bool = False

    def matches(self, wanted: str | int) -> bool:
        """Return whether a number, description or ``SeriesInstanceUID`` is that of the series."""
        return str(wanted).lower() in (self.number, self.description.lower(), self.uid)

    def __str__(self) -> str:
        return f"{self.number or 'no number'} {self.description!r} ({len(self.files)} files)"


def series_of(folder: Path) -> list[DicomSeries]:
    """Return the series with pixels among the files of a folder, those of its subfolders left out.

    Files that all have a series of their own are one series: so do some anonymizers write them.

    Raises:
        ValueError: If the header of a DICOM file is damaged.
    """
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    # A folder is listed several times before its scans are read; its files are opened again only if they changed.
    return list(_series_among(tuple((path, (state := path.stat()).st_size, state.st_mtime_ns) for path in files)))


@functools.lru_cache(maxsize=4096)
def _series_among(states: tuple[tuple[Path, int, int], ...]) -> tuple[DicomSeries, ...]:
    files = [path for path, _, _ in states]
    heads = {path: head for path in files if is_dicom(path) and "Rows" in (head := head_of(path, SERIES_TAGS))}
    groups: dict[str, list[Path]] = defaultdict(list)
    for path, head in heads.items():
        groups[str(head.get("SeriesInstanceUID", ""))].append(path)
    single = [path for path, head in heads.items() if not _is_segmentation(head) and "NumberOfFrames" not in head]
    if 1 < len(single) == len({heads[path].get("SeriesInstanceUID") for path in single}):
        rest = {uid: found for uid, found in groups.items() if found[0] not in single}
        groups = defaultdict(list, {str(heads[single[0]].get("SeriesInstanceUID", "")): single, **rest})
    return tuple(_series(found, heads[found[0]]) for found in groups.values())


def one_series(path: Path) -> DicomSeries:
    """Return the series of a folder, or the one that a file belongs to.

    Raises:
        ValueError: If a folder holds no series or several.
    """
    found = [one for one in series_of(path if path.is_dir() else path.parent) if not one.is_segmentation]
    if path.is_file():
        found = [one for one in found if path in one.files]
    if not found:
        raise ValueError("there is no DICOM image here. Give a folder that holds a series.")
    if len(found) > 1:
        raise ValueError(
            f"a folder must hold one series of DICOM images, got {named(found)}. Give a file of the one to use in "
            "place of the folder, or set series to its number, description or SeriesInstanceUID."
        )
    return found[0]


def named(found: Sequence[DicomSeries]) -> str:
    """Return the number, names and sizes of some series, for messages."""
    more = " and others" if len(found) > MOST_NAMED else ""
    return f"{len(found)}: {', '.join(map(str, found[:MOST_NAMED]))}{more}"


def segmentation_in(path: Path) -> Path | None:
    """Return the file of a segmentation: a file itself, or that of a folder without scans; else ``None``.

    Raises:
        ValueError: If a folder holds several, or a header is damaged.
    """
    if path.is_file():
        return path if _is_segmentation(head_of(path, SERIES_TAGS)) else None
    found = series_of(path)
    files = [file for one in found for file in one.files]
    if not found or not all(one.is_segmentation for one in found):
        return None
    if len(files) > 1:
        raise ValueError(f"a scan must have one segmentation, got {len(files)}. Give the file of one.")
    return files[0]


def read_series(path: Path) -> tuple[np.ndarray, np.ndarray, list[Path]]:
    """Read a series.

    Args:
        path: A folder with one series, or a file of a series.

    Returns:
        The rescaled values (HU for CT), float32 ``(C, R, Z)``; the affine, RAS, mm; and the files in the order of the
        slices, each once.

    Raises:
        ValueError: If there are several series, a file is damaged, or the slices do not form one regular stack.
    """
    slices, affine = stacked([one for file in one_series(path).files for one in read_slices(file)])
    values = np.stack([one.pixels for one in slices], axis=-1)
    return values, affine, list(dict.fromkeys(one.file for one in slices))


def look_at_series(path: Path) -> tuple[tuple[int, ...], np.ndarray]:
    """Return the shape and the affine of a series from its headers; see ``read_series``."""
    slices, affine = stacked([one for file in one_series(path).files for one in read_slices(file, pixels=False)])
    return (*slices[0].shape, len(slices)), affine


def _series(files: Sequence[Path], head: Any) -> DicomSeries:
    refers = [str(one.get("SeriesInstanceUID", "")) for one in head.get("ReferencedSeriesSequence") or []]
    return DicomSeries(
        files=tuple(files),
        uid=str(head.get("SeriesInstanceUID", "")),
        number=str(head.get("SeriesNumber") or ""),
        description=str(head.get("SeriesDescription") or ""),
        refers_to=refers[0] if refers else "",
        is_segmentation=_is_segmentation(head),
    )


def _is_segmentation(head: Any) -> bool:
    return str(head.get("SOPClassUID", "")) in SEGMENTATION_CLASSES
