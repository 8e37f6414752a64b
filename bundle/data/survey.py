"""A look at a whole folder before hours of work: headers only, so that thousands of files take seconds.

files -> which can be used, what is wrong with the others, and a few lines on what will be done
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bundle import distributed
from bundle.data.left_alone import left_alone
from bundle.data.loading import Scan
from bundle.data.reader import FileError, load_volume, look_at
from bundle.data.scans import Split

# A scan with values below is a CT in HU: air is -1000.
HOUNSFIELD_AIR = -500.0

logger = logging.getLogger(__name__)

# Shape and affine of a file.
Grid = tuple[tuple[int, ...], np.ndarray]


@dataclass(frozen=True)
class Survey:
    """What headers tell of the scans to segment.

    Attributes:
        usable: Scans whose header can be read; voxels that are damaged are found when they are read.
        problems: What is wrong with the others, a line each.
        lines: What a user should know before the work starts; at most five.
    """

    usable: list[Scan]
    problems: list[str]
    lines: list[str]

    def tell(self) -> None:
        """Print the lines and the problems; the first process does it for all."""
        if distributed.is_first():
            print("\n".join(self.lines), flush=True)
            for problem in self.problems:
                logger.error("cannot use %s", problem)


def survey(
    scans: Sequence[Scan],
    pending: Sequence[Scan],
    support: Sequence[Scan] = (),
    dataset_dir: str | Path | None = None,
    check: Callable[[str], None] | None = None,
) -> Survey:
    """Look at the header of every scan that is to be segmented.

    Args:
        scans: The files of all scans, those with a finished mask, too.
        pending: Those that are to be segmented.
        support: The annotated scans; the first one tells whether they are CT.
        dataset_dir: The folder of the scans, to say which of its files are left alone.
        check: Raises a ``FileError`` if the mask of a scan, given by its path, could not be written.
    """
    usable, problems, grids = [], [], []
    for scan in pending:
        try:
            grid = look_at(scan["image"])
            if check is not None:
                check(str(scan["image"]))
            grids.append(grid)
            usable.append(scan)
        except FileError as error:
            problems.append(str(error))
    finished = len(scans) - len(pending)
    name = "1 scan" if len(scans) == 1 else f"{len(scans)} scans"
    counts = f"{name}: {len(usable)} to segment, {finished} with a finished mask, {len(problems)} unusable"
    taken = {str(scan[key]) for scan in (*scans, *support) for key in ("image", "label") if key in scan}
    lines = [counts, *_ranges("scans", grids), *_about_support(support), *left_alone(dataset_dir, taken)]
    return Survey(usable, problems, lines)


def _ranges(what: str, grids: Sequence[Grid | None]) -> list[str]:
    """Say in a line which sizes and spacings files have."""
    known = [grid for grid in grids if grid is not None and len(grid[0]) >= 3]
    if not known:
        return []
    sizes = np.array([shape[:3] for shape, _ in known])
    spacings = np.array([np.linalg.norm(affine[:3, :3], axis=0) for _, affine in known])
    return [f"{what}: {_range_of(sizes)} voxels, spacing {_range_of(spacings)} mm"]


def _range_of(rows: np.ndarray) -> str:
    pairs = [(f"{low:.4g}", f"{high:.4g}") for low, high in zip(rows.min(axis=0), rows.max(axis=0), strict=True)]
    return " x ".join(low if low == high else f"{low} to {high}" for low, high in pairs)


def _about_support(support: Sequence[Scan]) -> list[str]:
    """Say how many annotated scans there are, their sizes, and whether they look like CT."""
    grids = []
    lowest = np.inf
    # What is wrong with an annotated scan is said where it is encoded, next.
    with suppress(FileError):
        grids = [look_at(scan["image"]) for scan in support]
        lowest = float(load_volume(support[0]["image"]).min()) if support else lowest
    modality = f"CT, values from {lowest:g}" if lowest < HOUNSFIELD_AIR else "no CT in HU"
    name = "1 annotated scan" if len(support) == 1 else f"{len(support)} annotated scans"
    return _ranges(f"{name} ({modality})", grids)


def check_support(split: Split, organs: Mapping[str, int] | None, used: bool = True) -> None:
    """Raise if the annotated scans of an evaluation do not show its organs: it would end with that hours later.

    Args:
        split: The scans; without queries there is no evaluation.
        organs: Names and ids of the organs to evaluate.
        used: Whether there is an evaluation.

    Raises:
        FileError: If a label map cannot be read.
        ValueError: If an organ has no voxel in any label map of the support.
    """
    if not (used and split.queries and isinstance(organs, Mapping)):
        return
    shown = {int(organ) for scan in split.support for organ in load_volume(scan["label"]).nan_to_num().round().unique()}
    if missing := [f"{name} (id {organ})" for name, organ in organs.items() if organ not in shown]:
        files = ", ".join(str(scan["label"]) for scan in split.support)
        raise ValueError(
            f"the annotated scan of the evaluation must show every organ, but {', '.join(missing)} has no voxel in "
            f"{files}, which holds the ids {sorted(shown - {0})}. Correct organs, such as --organs "
            "'{liver: 1, spleen: 4}', or annotate it."
        )
