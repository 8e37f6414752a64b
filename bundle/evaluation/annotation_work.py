"""How much an annotator draws: voxels and slices that change, from a mask or from an empty label map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import fmean

import torch
from torch import Tensor

# One more value for each annotation, from 1 on.
Curve = Sequence[float]


@dataclass(frozen=True)
class Work:
    """What changes when a label map is made from another one.

    Attributes:
        voxels: Voxels that change their organ, or get or lose one.
        slices: Slices with such a voxel.
    """

    voxels: int
    slices: int


@dataclass(frozen=True)
class Annotation:
    """The work on one scan.

    Attributes:
        order: The order of annotation, such as ``"suggested"``.
        scan: Name of the scan.
        corrected: From the mask that the scans annotated before give; the first scan has none and is drawn.
        drawn: From an empty label map.
    """

    order: str
    scan: str
    corrected: Work
    drawn: Work


COUNTS: dict[str, Callable[[Annotation], int]] = {
    "voxels, corrected": lambda one: one.corrected.voxels,
    "voxels, from scratch": lambda one: one.drawn.voxels,
    "slices, corrected": lambda one: one.corrected.slices,
    "slices, from scratch": lambda one: one.drawn.slices,
}


def changes(start: Tensor, truth: Tensor) -> Work:
    """Compare two label maps ``(1, H, W, Z)`` of the same organ ids."""
    changed = start != truth
    return Work(int(changed.sum()), int(changed.flatten(0, -2).any(dim=0).sum()))


def drawing(truth: Tensor) -> Work:
    """Return the work to draw a label map ``(1, H, W, Z)`` from scratch."""
    return changes(torch.zeros_like(truth), truth)


def work_rows(work: Sequence[Annotation]) -> list[list[str]]:
    """Return the rows of work.csv, a scan each."""
    rows = [["order", "scan", "corrected_voxels", "corrected_slices", "drawn_voxels", "drawn_slices"]]
    for one in work:
        counts = (one.corrected.voxels, one.corrected.slices, one.drawn.voxels, one.drawn.slices)
        rows.append([one.order, one.scan, *map(str, counts)])
    return rows


def work_table(work: Sequence[Annotation], suggested: str) -> str:
    """Return a table of the voxels and slices changed so far, after each annotation; random orders as their mean."""
    columns = [curve for count in COUNTS.values() for curve in _pair(work, suggested, count)]
    lines = ["", "## Voxels and slices changed so far", ""]
    lines += ["| annotated scans | " + " | ".join(f"{name}: suggested | random" for name in COUNTS) + " |"]
    lines += ["|" + " --- |" * (1 + len(columns))]
    for number, values in enumerate(zip(*columns, strict=True), start=1):
        lines += [f"| {number} | {' | '.join(f'{value:.0f}' for value in values)} |"]
    return "\n".join(lines) + "\n"


def _pair(work: Sequence[Annotation], suggested: str, count: Callable[[Annotation], int]) -> tuple[Curve, Curve]:
    """Return the sums after 1, 2, ... annotations: in the suggested order, and in the mean of the random ones."""
    counts: dict[str, list[int]] = {}
    for one in work:
        counts.setdefault(one.order, []).append(count(one))
    sums = {order: list(accumulate(values)) for order, values in counts.items()}
    own = sums.pop(suggested)
    return own, [fmean(column) for column in zip(*sums.values(), strict=True)]
