"""Which slices of a label map are annotated: a drawing on some slices tells nothing of the others.

    label (1, H, W, Z)  ->  annotated slices, and whether the label was taken as a drawing or as finished

There is one rule for the command line and for MONAI Label. It looks along the slice axis only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

Annotated = Literal["auto", "drawn", "all"]
"""Which slices count as annotated: those that show an organ (``drawn``), ``all``, or what the label looks like."""

IGNORED = -1
"""In a label map inside the bundle: a voxel that is neither organ nor background."""

FINISHED_END = 0.25
"""A finished label tapers off: its first and last slice show at most this share of its largest slice's organs.

Of 129 finished labels (abdomen in MR and CT, heart, hippocampus, prostate) 116 do; of their contiguous halves 12 of
2,009 (docs/annotate_one.md).
"""


@dataclass(frozen=True)
class AnnotatedSlices:
    """The slices of a label map that are annotated.

    Attributes:
        slices: In order.
        depth: Slices of the scan.
        taken: ``"drawn"`` if the slices without an organ are not annotated, ``"all"`` if they show that there is none.
    """

    slices: tuple[int, ...]
    depth: int
    taken: Literal["drawn", "all"]

    def __str__(self) -> str:
        """Say it in the words of an answer."""
        return f"{self.taken}: {len(self.slices)} of {self.depth} slices"


def checked_annotated(value: Any) -> Annotated:
    """Return a setting of which slices are annotated.

    Raises:
        ValueError: If it is none of ``auto``, ``drawn`` and ``all``.
    """
    if value not in get_args(Annotated):
        raise ValueError(
            f"annotated must be auto, drawn (slices with a drawing) or all (the label is finished), got {value!r}."
        )
    return value


def mark_ignored(label: Tensor, value: int | None) -> Tensor:
    """Return a label map whose voxels of ``value`` are ``IGNORED``; ``None`` ignores nothing.

    Args:
        label: Organ ids, of any shape.
        value: What the file says for "neither organ nor background".
    """
    return label if value is None else torch.where(label == value, float(IGNORED), label.float())


def annotated_slices(label: Tensor, annotated: Annotated = "auto") -> AnnotatedSlices:
    """Tell which slices of a label map are annotated.

    With ``"auto"``, a label is a drawing if a slice between two drawn ones is empty, or if it ends within an organ:
    if its first or last drawn slice, unless it is the scan's own, shows more than a quarter of the largest slice's
    voxels of organs. Slices that hold ignored voxels and no organ are not annotated, whatever is said; where there are
    such, ``"auto"`` takes all others as annotated.

    Args:
        label: Organ ids ``(1, H, W, Z)``, 0 = none, ``IGNORED`` = neither organ nor background.
        annotated: What is known of it.

    Returns:
        The slices. A label map without an organ has none.
    """
    area = (label[0] > 0).sum(dim=(0, 1))
    left_out = (label[0] == IGNORED).any(dim=0).any(dim=0) & (area == 0)
    drawn = _places(area > 0)
    if not drawn:
        return AnnotatedSlices((), label.shape[-1], "drawn")
    if annotated == "auto":
        annotated = "all" if bool(left_out.any()) or _is_finished(area.tolist(), drawn) else "drawn"
    slices = drawn if annotated == "drawn" else _places(~left_out)
    return AnnotatedSlices(tuple(slices), label.shape[-1], annotated)


def _is_finished(area: Sequence[int], drawn: Sequence[int]) -> bool:
    """Tell whether the drawn slices have no gap and taper off at both ends, as far as the scan shows them."""
    ends = [z for z in (drawn[0], drawn[-1]) if 0 < z < len(area) - 1]
    has_gap = len(drawn) <= drawn[-1] - drawn[0]
    return not has_gap and all(area[z] <= FINISHED_END * max(area) for z in ends)


def _places(mask: Tensor) -> list[int]:
    return torch.nonzero(mask).flatten().tolist()
