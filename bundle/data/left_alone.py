"""Which files of a folder are no scans to segment: one line, so that nothing is left out unnoticed."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set
from importlib.util import find_spec
from pathlib import Path

from bundle.data.layouts import walk
from bundle.data.names import IMAGE_FOLDERS, IMAGE_SUFFIXES, subfolder
from bundle.data.reader import is_dicom

# Kinds of files, or folders, that a line names.
MOST_NAMED = 3

# A series in whose folder another one is taken.
OTHER_SERIES = "other series (see the key series)"


def left_alone(dataset_dir: str | Path | None, taken: Set[str]) -> list[str]:
    """Say which files of a folder are no scans, and of how many channels or series another one is taken.

    Args:
        dataset_dir: The folder, or a file.
        taken: The images and label maps that are used.

    Returns:
        One line; none if nothing is left. Where a scan is a DICOM series, it covers the folders below, too.
    """
    if dataset_dir is None or not Path(dataset_dir).is_dir():
        return []
    folder = subfolder(Path(dataset_dir), IMAGE_FOLDERS)
    place = folder if folder.is_dir() else Path(dataset_dir)
    known = {_absolute(path) for path in taken}
    has_series = any(_is_series(path) for path in known)
    parts = _in_series(_absolute(place), known) if has_series else _counted(_kinds_in(place, known))
    return [f"left alone in {place}: {', '.join(parts)}"] if parts else []


def _absolute(path: str | Path) -> Path:
    return Path(os.path.abspath(path))


def _is_series(path: Path) -> bool:
    return not path.name.lower().endswith(IMAGE_SUFFIXES) and path.exists() and is_dicom(path)


def _counted(kinds: Iterable[str]) -> list[str]:
    counts = Counter(kinds)
    parts = [f"{count} {kind}" for kind, count in counts.most_common(MOST_NAMED)]
    return [*parts[:-1], f"{parts[-1]} and others"] if len(counts) > MOST_NAMED else parts


def _kinds_in(place: Path, known: Set[Path]) -> Iterator[str]:
    """Yield the kind of each file and folder in which nothing is known."""
    holding = {one for path in known for one in (path, *path.parents)}
    for path in place.iterdir():
        if _absolute(path) not in holding and not path.name.startswith("."):
            yield "folders" if path.is_dir() else _kind(path)


def _in_series(place: Path, known: Set[Path]) -> list[str]:
    """Name the folders whose series are all left, and count what else is left in a folder of series and below."""
    from bundle.data.dicom import series_of  # needs the extra, as the series do

    kinds: list[str] = []
    lacking: list[str] = []
    for name, _, files in walk(place):
        folder = Path(name)
        found = series_of(folder)
        left = [one for one in found if known.isdisjoint({*one.files, *([] if one.is_segmentation else [folder])})]
        images = [one for one in found if not one.is_segmentation]
        if images and all(one in left for one in images):
            lacking.append(str(folder.relative_to(place)))
        else:
            kinds += [OTHER_SERIES for one in images if one in left]
        kinds += ["SEG" for one in left if one.is_segmentation]
        rest = {folder / file for file in files} - {file for one in found for file in one.files} - set(known)
        kinds += [_kind(path) for path in sorted(rest) if not path.name.startswith(".")]
    return [*_named(lacking), *_counted(kinds)]


def _named(folders: Sequence[str]) -> list[str]:
    if not folders:
        return []
    count = "1 folder" if len(folders) == 1 else f"{len(folders)} folders"
    more = " and others" if len(folders) > MOST_NAMED else ""
    return [f"{count} without the chosen series ({', '.join(folders[:MOST_NAMED])}{more})"]


def _kind(path: Path) -> str:
    if path.name.lower().endswith(IMAGE_SUFFIXES):
        return "other images (channels; see the key channel)"
    if find_spec("pydicom") is not None and is_dicom(path):
        from bundle.data.dicom_slices import head_of  # needs the extra

        return str(head_of(path, ["Modality"]).get("Modality") or "DICOM without pixels")
    return path.suffix or "no suffix"
