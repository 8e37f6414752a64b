"""Find the scans of a folder, and split them into training, support and queries.

<dataset_dir>/images/<scan>.nii.gz        every scan
<dataset_dir>/labels/<scan>.nii.gz        label maps of the annotated scans, with the same names

nnU-Net's imagesTr/<scan>_0000.nii.gz and labelsTr/<scan>.nii.gz are also accepted. A scan may be a folder, a DICOM
series, and so may a label map, with a mask for each organ; ``layouts.py`` has the folders without ``images``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from bundle.data.layouts import chosen_series, dicom_scans, scans_in_folders
from bundle.data.names import (
    DICOM_SUFFIXES,
    IMAGE_FOLDERS,
    IMAGE_SUFFIXES,
    LABEL_FOLDERS,
    SEGMENTATION_SUFFIX,
    by_name,
    of_channel,
    subfolder,
)
from bundle.data.phantoms import write_phantoms

ScanFiles = dict[str, Any]


@dataclass(frozen=True)
class Split:
    """Scans by purpose; each part is a list of ``{"image": path}`` or ``{"image": path, "label": path}``.

    Attributes:
        training: Scans to train on, without labels.
        support: The annotated scans that show the organs.
        queries: Annotated scans to segment and compare.
        training_labels: The label map of each training image that has one. Training in setting 1 never reads them; in
            setting 2 they determine which slices are excluded.
    """

    training: list[ScanFiles]
    support: list[ScanFiles]
    queries: list[ScanFiles]
    training_labels: dict[str, str] = field(default_factory=dict)


def open_split(
    dataset_dir: str | Path | None,
    phantom_dir: str | Path,
    fold: int | None = None,
    num_folds: int = 5,
    phantom: dict[str, Any] | None = None,
    support_scans: int = 1,
    empty: bool = False,
    channel: int = 0,
    series: str | int | None = None,
) -> Split:
    """Find the scans of a folder and split them by purpose.

    Without ``fold``, scans without a label are for training, the first annotated scans are the support, and the other
    annotated scans are queries. With ``fold``, the annotated scans are split as in the paper; see ``fold_of``.

    Args:
        dataset_dir: Folder with ``images`` and, optionally, ``labels``. ``None`` makes phantom scans instead.
        phantom_dir: Where phantom scans are made.
        fold: Which of ``num_folds`` parts to hold out, from 0.
        num_folds: Number of parts of the annotated scans.
        phantom: Settings of ``write_phantoms``.
        support_scans: Number of annotated scans in the support, >= 1.
        empty: If true, no scans are searched for: a server provides them.
        channel: As of ``list_scans``.
        series: As of ``list_scans``.

    Returns:
        The split. There are no queries if only ``support_scans`` scans are annotated.

    Raises:
        FileNotFoundError: If the folder or its images are missing.
        ValueError: If there are too few scans, or a label has no image.
    """
    if isinstance(support_scans, bool) or not isinstance(support_scans, int) or support_scans < 1:
        raise ValueError(f"support_scans must be a whole number, at least 1, got {support_scans!r}. The paper uses 1.")
    if empty:
        return Split([], [], [])
    if dataset_dir is None:
        with idist.one_rank_first():  # the other processes then find the scans
            dataset_dir = write_phantoms(phantom_dir, **(phantom or {}))
    scans = list_scans(dataset_dir, channel, series)
    if fold is not None:
        return _split_of_fold(scans, fold, num_folds, support_scans)
    annotated = [scan for scan in scans if "label" in scan]
    training = [scan for scan in scans if "label" not in scan]
    if not training:
        raise ValueError(
            f"all {len(scans)} scans of {dataset_dir} have labels, so none is left to train on. Set fold "
            f"(0 to {num_folds - 1}): a part of them is held out for evaluation, and the others are for training."
        )
    return Split(_images(training), annotated[:support_scans], annotated[support_scans:])


def _split_of_fold(scans: Sequence[ScanFiles], fold: int, num_folds: int, support_scans: int) -> Split:
    queries, support = fold_of([scan for scan in scans if "label" in scan], fold, num_folds, support_scans)
    held_out = {scan["image"] for scan in [*queries, *support]}
    training = [scan for scan in scans if scan["image"] not in held_out]
    labels = {scan["image"]: scan["label"] for scan in training if "label" in scan}
    return Split(_images(training), support, queries, labels)


def find_support(
    support_dir: str | Path | None = None,
    support_image: str | Sequence[str] | None = None,
    support_label: str | Sequence[str] | None = None,
    default: Callable[[], Split] | None = None,
    dataset_dir: str | Path | None = None,
    needed: bool = True,
    prototypes: Any = None,
    channel: int = 0,
    series: str | int | None = None,
) -> list[ScanFiles]:
    """Find the annotated scans that show what to segment.

    Args:
        support_dir: Folder with ``images`` and ``labels``. Its images without a label are scans to segment if no other
            ``dataset_dir`` is given; else every image needs its label.
        support_image: Instead of a folder, the image file or files.
        support_label: Their label maps, in the same order.
        default: Opens the split whose support is used if nothing is given.
        dataset_dir: Folder of the scans to segment. If nothing else is given, its scans with a label are the support.
            ``default`` is not used then, since phantoms are no support for a user's scans.
        needed: If false, the support may be empty, and ``default`` is not used.
        prototypes: Files of prototypes; with any of them, no annotated scan is needed.
        channel: As of ``list_scans``.
        series: As of ``list_scans``.

    Returns:
        ``{"image", "label"}`` of each annotated scan.

    Raises:
        FileNotFoundError: If ``support_dir`` or its images are missing.
        ValueError: If an image has no label, one of the files is missing, or nothing was given.
    """
    if support_dir is not None and support_image is not None:
        raise ValueError("support must be support_dir or support_image, got both. Leave one of them out.")
    if support_dir is not None:
        scans = list_scans(support_dir, channel, series)
        return _labeled_of(Path(support_dir), scans, None if dataset_dir is None else Path(dataset_dir))
    if files := _support_of_files(support_image, support_label):
        return files
    if prototypes or (not needed and dataset_dir is None):
        return []
    if default is not None and dataset_dir is None:
        support = default().support
    else:
        support = _labeled(dataset_dir, channel, series)
    if not support and needed:
        raise ValueError(
            "no annotated scan was given. Set support_dir (a folder with images/ and labels/), or support_image "
            "and support_label, or put label maps into labels/ of dataset_dir."
        )
    return support


def _support_of_files(image: str | Sequence[str] | None, label: str | Sequence[str] | None) -> list[ScanFiles]:
    images = [image] if isinstance(image, str) else list(image or [])
    labels = [label] if isinstance(label, str) else list(label or [])
    if len(images) != len(labels):
        raise ValueError(
            f"support_image and support_label must have equal numbers of files, got {len(images)} images and "
            f"{len(labels)} labels. Give every support image its label map."
        )
    for kind, paths in (("image", images), ("label", labels)):
        for path in paths:
            if not Path(path).exists():
                raise ValueError(f"{path}: there is no such {kind} file. Check the path.")
    return [{"image": one, "label": other} for one, other in zip(images, labels, strict=True)]


def _labeled(dataset_dir: str | Path | None, channel: int, series: str | int | None) -> list[ScanFiles]:
    """Return the scans of a folder that have a label; none of a folder of files, or of a file."""
    folder = None if dataset_dir is None else Path(dataset_dir)
    if folder is None or not folder.is_dir():
        return []
    has_labels = subfolder(folder, LABEL_FOLDERS).is_dir()
    scans = list_scans(folder, channel, series) if has_labels else other_layout(folder, series)
    return [scan for scan in scans if "label" in scan]


def _labeled_of(support_dir: Path, scans: Sequence[ScanFiles], dataset_dir: Path | None) -> list[ScanFiles]:
    """Return the annotated scans of a folder; its other scans are segmented, unless ``dataset_dir`` is another one."""
    bare = [scan.get("name") or Path(scan["image"]).name for scan in scans if "label" not in scan]
    is_apart = dataset_dir is not None and dataset_dir.resolve() != support_dir.resolve()
    if bare and (is_apart or len(bare) == len(scans)):
        raise ValueError(
            f"every support image needs a label map of its name, but {support_dir / 'labels'} has none for "
            f"{', '.join(bare[:5])}. Annotate them, or remove them from the support."
        )
    return [scan for scan in scans if "label" in scan]


def find_scans(
    dataset_dir: str | Path | None,
    support: Sequence[ScanFiles],
    default: Callable[[], Split] | None = None,
    support_dir: str | Path | None = None,
    channel: int = 0,
    series: str | int | None = None,
) -> list[ScanFiles]:
    """List the scans to segment: those of a folder, or of its ``images``, without those of the support.

    Args:
        dataset_dir: Folder of scans, or one file.
        support: The annotated scans, which are not segmented.
        default: Opens the split whose queries are used if there is no folder.
        support_dir: Folder of annotated scans; without ``dataset_dir`` its scans without a label are segmented.
        channel: As of ``list_scans``.
        series: As of ``list_scans``.

    Raises:
        FileNotFoundError: If the folder does not exist or holds no scan besides the support's.
    """
    shown = [] if support_dir is None else list_scans(support_dir, channel, series)
    if dataset_dir is None and (bare := [scan for scan in shown if "label" not in scan]):
        return bare
    if dataset_dir is None:
        return _images(default().queries if default is not None else [])
    folder = Path(dataset_dir)
    if folder.is_file():
        scans = [{"image": str(folder)}]
    elif folder.is_dir() and not subfolder(folder, IMAGE_FOLDERS).is_dir():
        images = of_channel(by_name(folder, folders=False), {}, folder, channel)
        scans = [{"image": str(path)} for _, path in sorted(images.items())]
        scans = scans or _images(other_layout(folder, series))
    else:
        scans = _images(list_scans(folder, channel, series))
    known = {Path(scan["image"]).resolve() for scan in support}
    scans = [scan for scan in scans if Path(scan["image"]).resolve() not in known]
    if not scans:
        raise FileNotFoundError(
            f"{folder} holds no scan to segment besides the support. Put scans there as one of "
            f"{', '.join(IMAGE_SUFFIXES)}."
        )
    return scans


def list_scans(dataset_dir: str | Path, channel: int = 0, series: str | int | None = None) -> list[ScanFiles]:
    """List the scans of a folder with their labels, if any, sorted by the last number in their names.

    Args:
        dataset_dir: Folder with ``images``, or one of those in ``layouts.py``.
        channel: The channel to take where a scan has one file for each, as nnU-Net's ``<scan>_0001.nii.gz``.
        series: Number, description or ``SeriesInstanceUID`` of the DICOM series to take, where folders hold several.

    Raises:
        FileNotFoundError: If the folder does not exist or holds no image.
        ValueError: If a label has no image of its name, or a channel or series does not exist.
    """
    folder = Path(dataset_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f"dataset_dir {folder} does not exist. Give a folder that holds images/.")
    place, label_place = subfolder(folder, IMAGE_FOLDERS), subfolder(folder, LABEL_FOLDERS)
    labels = by_name(label_place, (SEGMENTATION_SUFFIX, *IMAGE_SUFFIXES, *DICOM_SUFFIXES))
    images = of_channel(by_name(place), labels, place, channel)
    if series is not None:
        images = {name: chosen_series(path, series) if path.is_dir() else path for name, path in images.items()}
    if not images and (others := other_layout(place if place.is_dir() else folder, series)):
        return others
    if not images:
        raise FileNotFoundError(
            f"{folder} holds no scan. Put scans into {place} as one of {', '.join(IMAGE_SUFFIXES)} "
            "(and label maps with the same names into labels/)."
        )
    if orphans := sorted(set(labels) - set(images)):
        raise ValueError(
            f"a label map must have the name of its image, but {len(orphans)} of {label_place} have none: "
            f"{', '.join(orphans[:5])}. Rename them, or move them away."
        )
    return [
        {"image": str(path)} | ({"label": str(labels[name])} if name in labels else {})
        for name, path in sorted(images.items(), key=lambda item: (_number(item[0]), item[0]))
    ]


def fold_of(
    scans: Sequence[ScanFiles], fold: int, num_folds: int = 5, shots: int = 1
) -> tuple[list[ScanFiles], list[ScanFiles]]:
    """Split scans as in the paper: a fold's scans are queries, and the next ones, cyclically, are the support.

    Args:
        scans: All annotated scans, in order.
        fold: From 0 to ``num_folds - 1``.
        num_folds: Number of equal parts.
        shots: Support scans.

    Returns:
        Queries and support; all other scans are for training.

    Raises:
        ValueError: If the fold does not exist, there are fewer scans than folds, or none is left for training.
    """
    if len(scans) < num_folds:
        raise ValueError(
            f"{num_folds} folds need at least as many annotated scans, got {len(scans)}. Annotate more, or use fewer."
        )
    if isinstance(fold, bool) or not isinstance(fold, int) or not 0 <= fold < num_folds:
        raise ValueError(
            f"fold must be a whole number from 0 to {num_folds - 1}, got {fold!r}. Set it to 0, for example."
        )
    bounds = [round(part * len(scans) / num_folds) for part in range(num_folds + 1)]
    queries = list(scans[bounds[fold] : bounds[fold + 1]])
    if len(queries) + shots >= len(scans):
        raise ValueError(
            f"{shots} support scans and {len(queries)} queries leave none of the {len(scans)} annotated scans to "
            "train on. Set support_scans to fewer."
        )
    support = [scans[(bounds[fold + 1] + shot) % len(scans)] for shot in range(shots)]
    return queries, support


def dataset_name(dataset_dir: str | Path | None) -> str:
    """Return the name of a folder of scans, for tables; without a folder the scans are phantoms."""
    return "phantoms" if dataset_dir is None else Path(dataset_dir).resolve().name


def files_of(scans: Sequence[ScanFiles]) -> list[str]:
    """Return all files of some scans, images and label maps."""
    return [str(scan[key]) for scan in scans for key in ("image", "label") if key in scan]


def _images(scans: Sequence[ScanFiles]) -> list[ScanFiles]:
    return [{key: value for key, value in scan.items() if key != "label"} for scan in scans]


def other_layout(folder: Path, series: str | int | None) -> list[ScanFiles]:
    """Return the scans of a folder without ``images``; see ``layouts.py``."""
    return scans_in_folders(folder, IMAGE_SUFFIXES) or dicom_scans(folder, series)


def _number(name: str) -> int:
    numbers = re.findall(r"\d+", name)
    return int(numbers[-1]) if numbers else -1
