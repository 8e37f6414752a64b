"""The files of a folder by the names of their scans: suffixes, channels, folders that are scans."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")

# Suffix of 3D Slicer's segmentations, which are label maps and never scans.
SEGMENTATION_SUFFIX = ".seg.nrrd"

# Suffixes of DICOM segmentations, which are label maps, too.
DICOM_SUFFIXES = (".seg.dcm", ".dcm")

IMAGE_FOLDERS = ("images", "imagesTr")
# Folder names of the bundle and of nnU-Net; the first that exists is used.
LABEL_FOLDERS = ("labels", "labelsTr")

# Folders in which nnU-Net has one file for each channel of a scan.
NNUNET_FOLDERS = ("imagesTr", "imagesTs")


def subfolder(folder: Path, names: Sequence[str]) -> Path:
    """Return the first of some subfolders that exists, or the first one if none does."""
    return next((folder / name for name in names if (folder / name).is_dir()), folder / names[0])


def of_channel(images: Mapping[str, Path], labels: Collection[str], folder: Path, channel: int = 0) -> dict[str, Path]:
    """Keep one channel of each scan, if images have nnU-Net's names: ``<scan>_0000``, ``<scan>_0001``, ...

    That is assumed in nnU-Net's folders (``imagesTr``, ``imagesTs``), or if labels have the names without the number.

    Args:
        images: The image files by name.
        labels: The names of the label maps.
        folder: The folder of the images.
        channel: The number of the channel. If files have no numbers, there is only channel 0.

    Returns:
        The image files by the names of their scans.

    Raises:
        ValueError: If a scan does not have the channel.
    """
    without = {name: re.sub(r"_\d{4}$", "", name) for name in images}
    fit = bool(labels) and not set(labels) & set(images) and set(labels) <= set(without.values())
    if not fit and folder.name not in NNUNET_FOLDERS and not (channel and set(without) - set(without.values())):
        without = {name: name for name in images}
    kept: dict[str, dict[int, Path]] = {}
    ordered = images if set(without) == set(without.values()) else sorted(images)
    for name in ordered:
        number = int(name[-4:]) if without[name] != name else 0
        kept.setdefault(without[name], {})[number] = images[name]
    chosen = {name: found.get(channel) for name, found in kept.items()}
    if channel == 0:  # the first of a scan's files, whatever its number
        chosen = {name: next(iter(found.values())) for name, found in kept.items()}
    if lacking := [name for name, path in chosen.items() if path is None]:
        raise ValueError(
            f"channel must be one that every scan has, but {lacking[0]} of {folder} has no channel {channel}, only "
            f"{', '.join(map(str, kept[lacking[0]]))}. Set channel to one of these."
        )
    return {name: path for name, path in chosen.items() if path is not None}


def by_name(folder: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES, folders: bool = True) -> dict[str, Path]:
    """Return the files of a folder with some suffixes by their names.

    Args:
        folder: The folder.
        suffixes: The suffixes.
        folders: Whether to return the folders in it that are scans or label maps, too; see ``is_scan_folder``.

    Raises:
        ValueError: If two have one name.
    """
    if not folder.is_dir():
        return {}
    paths = list(folder.iterdir())
    files = [path for path in paths if path.name.lower().endswith(suffixes)]
    files += [path for path in paths if folders and path not in files and is_scan_folder(path, suffixes)]
    if SEGMENTATION_SUFFIX not in suffixes:
        files = [path for path in files if not path.name.lower().endswith(SEGMENTATION_SUFFIX)]
    named: dict[str, Path] = {}
    for path in sorted(path for path in files if not path.name.startswith(".")):
        other = named.setdefault(scan_name(path), path)
        if other is not path:
            raise ValueError(
                f"a scan must have one file, but {folder} has {other.name} and {path.name}. Keep one of them."
            )
    return named


def is_scan_folder(path: Path, suffixes: tuple[str, ...]) -> bool:
    """Return whether a folder is a DICOM series or, among label maps, holds a segmentation or masks of organs.

    Args:
        path: The folder.
        suffixes: Suffixes of the files beside it: with 3D Slicer's, they are label maps.
    """
    if not path.is_dir() or path.name.startswith("."):
        return False
    from bundle.data.reader import is_dicom  # which imports from this room

    masks = any(file.name.lower().endswith(IMAGE_SUFFIXES) for file in path.iterdir())
    return is_dicom(path) or (SEGMENTATION_SUFFIX in suffixes and masks)


def name_of_scan(scan: Mapping[str, Any]) -> str:
    """Return the name of a scan: its own, or that of its image file."""
    return str(scan.get("name") or scan_name(scan["image"]))


def scan_name(path: str | Path) -> str:
    """Return a file's name without folder and image suffix."""
    name = Path(path).name
    for suffix in (SEGMENTATION_SUFFIX, *IMAGE_SUFFIXES, *DICOM_SUFFIXES):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name
