"""A folder with a mask for each organ -> one label map.

    <scan>/segmentations/<organ>.nii.gz, or labels/<scan>/<organ>.nii.gz  ->  organ ids (X, Y, Z) and their names

An organ has the same id in all scans of a data set: its place among the names, sorted, of all their masks. A new organ
changes the ids of others, so that whatever is kept of a label map records ``stated_names``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
from bundle.data.layouts import MASK_FOLDER
from bundle.data.names import IMAGE_SUFFIXES, scan_name
from bundle.data.nifti import NIFTI_SUFFIXES
from bundle.data.reader import is_dicom, names_beside

# Largest difference between the affines of two masks of a scan, mm.
TOLERANCE = 1e-2

Read = Callable[[str], tuple[np.ndarray, np.ndarray]]


def mask_files(folder: Path) -> dict[str, Path]:
    """Return the masks of a folder by the names of their organs; none if it holds no image files."""
    files = [path for path in sorted(folder.iterdir()) if path.name.lower().endswith(IMAGE_SUFFIXES)]
    return {scan_name(path): path for path in files if not path.name.startswith(".")}


def organ_ids(folder: Path) -> dict[str, int]:
    """Return the id of each organ, from the masks of this scan and of the scans beside it."""
    is_named = folder.name == MASK_FOLDER
    root, pattern = (folder.parent.parent, f"*/{MASK_FOLDER}") if is_named else (folder.parent, "*")
    places = [place for place in sorted(root.glob(pattern)) if _is_shown(place, root)]
    names = _names(tuple((place, place.stat().st_mtime_ns) for place in places))
    return {name: number for number, name in enumerate(names, start=1)}


def stated_names(label: str | Path) -> dict[int, str]:
    """Return the names of a label map's ids that its own files do not hold: from masks and records beside it.

    Raises:
        ValueError: If a record is damaged.
    """
    path = Path(label)
    if path.is_dir() and not is_dicom(path):
        return {number: name for name, number in organ_ids(path.absolute()).items()}
    return names_beside(path) if path.name.lower().endswith(NIFTI_SUFFIXES) else {}


@functools.lru_cache(maxsize=64)
def _names(places: tuple[tuple[Path, int], ...]) -> list[str]:
    # Every scan's masks ask for the names of all; folders are listed again only if a file was added or removed.
    return sorted({name for place, _ in places for name in mask_files(place)})


def _is_shown(place: Path, root: Path) -> bool:
    return place.is_dir() and not place.relative_to(root).parts[0].startswith(".")


def read_masks(folder: Path, read: Read) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Read the masks of a scan.

    Args:
        folder: The folder of the masks.
        read: Returns the values and the affine of a file.

    Returns:
        Organ ids, float32 ``(X, Y, Z)``; the affine, RAS, mm; and the names of the ids.

    Raises:
        ValueError: If masks differ in shape or place, hold other values than 0 and one other, or overlap.
    """
    ids = organ_ids(folder.absolute())
    label, affine, first = np.zeros(0, np.float32), np.zeros((4, 4)), ""
    for name, path in mask_files(folder).items():
        values, own = read(str(path))
        _check_mask(path, values)
        if not first:
            label, affine, first = np.zeros(values.shape, np.float32), own, path.name
        if values.shape != label.shape or np.abs(own - affine).max() > TOLERANCE:
            raise ValueError(f"the masks of a scan must lie on one grid, but {first} and {path.name} do not. Resample.")
        _add(label, values > 0, name, ids)
    return label, affine, {number: name for name, number in ids.items()}


def _check_mask(path: Path, values: np.ndarray) -> None:
    if (found := np.unique(values)).size > 2 or found.min() < 0:
        raise ValueError(
            f"the mask of an organ must hold 0 and one value above, but {path.name} holds {found[:4].tolist()}. "
            "Give a label map as one file in labels/."
        )


def _add(label: np.ndarray, mask: np.ndarray, name: str, ids: dict[str, int]) -> None:
    """Write an organ's id into a label map, in place."""
    if other := int(label[mask].max(initial=0)):
        names = {number: organ for organ, number in ids.items()}
        raise ValueError(
            f"a voxel can belong to one organ, but {names[other]} and {name} share {int((label[mask] > 0).sum())} "
            "voxels. Move one of the two masks away."
        )
    label[mask] = ids[name]
