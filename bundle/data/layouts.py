"""Folders as other programs leave them: a folder for each scan, or DICOM series at any depth.

<scan>/ct.nii.gz, <scan>/segmentations/<organ>.nii.gz    TotalSegmentator: a mask for each organ
<patient>/<series>/*.dcm                                 an archive's export; segmentations belong to their series
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bundle.data.dicom import DicomSeries

# Names of the image in a folder that holds one scan.
IMAGE_NAMES = ("ct", "mri", "image")

MASK_FOLDER = "segmentations"

# Most folders or scans that a message names.
MOST_NAMED = 5


def scans_in_folders(folder: Path, suffixes: Sequence[str]) -> list[dict[str, Any]]:
    """Return the scans of a folder that has a subfolder for each, as TotalSegmentator's data set.

    Args:
        folder: The folder.
        suffixes: Suffixes of images.

    Returns:
        ``image``, ``name`` and, if there are masks, ``label``, the folder that holds them; sorted by name.
    """
    found = []
    for place in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        images = [place / f"{name}{suffix}" for name in IMAGE_NAMES for suffix in suffixes]
        image = next((path for path in images if path.is_file()), None)
        if image is not None:
            scan = {"image": str(image), "name": place.name}
            masks = place / MASK_FOLDER
            found.append(scan | ({"label": str(masks)} if masks.is_dir() and any(masks.iterdir()) else {}))
    return found


def dicom_scans(folder: Path, series: str | int | None = None) -> list[dict[str, Any]]:
    """Return the DICOM series in a folder and below, one for each folder with DICOM files.

    Args:
        folder: The folder of a series, or any folder above.
        series: Number, description or ``SeriesInstanceUID`` of the series to take; folders without it are left out.

    Returns:
        ``image``, the folder of the series or, if it holds several, a file of the chosen one; ``name``; and ``label``,
        the segmentation that refers to the series, if there is one. Sorted by name.

    Raises:
        ValueError: If a folder holds several series and none is chosen, no folder holds the chosen one, a series has
            several segmentations, or pydicom is missing.
    """
    from bundle.data.reader import is_dicom  # which imports from this room

    folders = [Path(place) for place, _, _ in walk(folder) if is_dicom(Path(place))]
    if not folders:
        return []
    if find_spec("pydicom") is None:
        raise ValueError(f"{folder} holds DICOM files, which need pydicom. Install it: pip install pydicom.")
    from bundle.data.dicom import series_of

    held = {place: series_of(place) for place in folders}
    labels = _segmentations([one for found in held.values() for one in found if one.is_segmentation])
    scans = []
    for place, found in held.items():
        images = [one for one in found if not one.is_segmentation]
        chosen = _chosen(place, images, series)
        if chosen is not None:
            image = place if len(images) == 1 else chosen.files[0]
            name = "_".join(place.relative_to(folder).parts) or folder.resolve().name
            label = labels.get(chosen.uid)
            scans.append({"image": str(image), "name": name} | ({"label": str(label)} if label else {}))
    if not scans and series is not None:
        known = sorted({str(one) for found in held.values() for one in found if not one.is_segmentation})
        raise ValueError(
            f"series must be the number, description or SeriesInstanceUID of a series, got {series!r}. {folder} holds "
            f"{', '.join(known[:MOST_NAMED]) or 'no images'}."
        )
    return scans


def chosen_series(folder: Path, series: str | int) -> Path:
    """Return the image of the chosen series in the folder of a scan.

    Raises:
        ValueError: As ``dicom_scans``.
    """
    return Path(dicom_scans(folder, series)[0]["image"])


def walk(folder: Path) -> list[tuple[str, list[str], list[str]]]:
    """Return a folder and those below, without hidden ones, sorted: path, subfolders and files, as ``os.walk``."""
    found = []
    for place, below, files in os.walk(folder):
        below[:] = sorted(name for name in below if not name.startswith("."))
        found.append((place, below, files))
    return found


def _chosen(place: Path, images: Sequence[DicomSeries], series: str | int | None) -> DicomSeries | None:
    fit = [one for one in images if series is None or one.matches(series)]
    if len(fit) > 1:
        from bundle.data.dicom import named

        raise ValueError(
            f"{place} must hold one series to segment, got {named(fit)}. Set series to a number, a description or a "
            "SeriesInstanceUID."
        )
    return fit[0] if fit else None


def _segmentations(found: Sequence[DicomSeries]) -> Mapping[str, Path]:
    """Return the files of segmentations by the series that they refer to."""
    files: dict[str, Path] = {}
    for one in found:
        for path in one.files:
            other = files.setdefault(one.refers_to, path)
            if other is not path:
                raise ValueError(f"a series must have one segmentation, got {other} and {path}. Move one of them away.")
    return files
