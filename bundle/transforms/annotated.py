"""Which slices of a label map are annotated: a drawing on some slices says nothing about the others.

    label (1, H, W, Z)  ->  annotated slices, and whether the label counts as a drawing or as finished

The same rule holds for the command line and for MONAI Label. It considers the slice axis only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

# Which slices count as annotated: those with an organ (``drawn``), ``all``, or as the label suggests (``auto``).
Annotated = Literal["auto", "drawn", "all"]

# The bundle's own label of a voxel that is neither organ nor background.
IGNORED = -1

# A finished label tapers off: its first and last slice hold at most this share of its largest slice's organ voxels.
#
# This is true of 116 of 129 finished labels (abdomen in MR and CT, heart, hippocampus, prostate), and of 12 of their
# 2,009 contiguous halves (docs/annotate_one.md).
FINISHED_END = 0.25


@dataclass(frozen=True)
class AnnotatedSlices:
    """The slices of a label map that are annotated.

    Attributes:
        slices: In order.
        depth: Slices of the scan.
        taken: ``"drawn"`` if slices without an organ are not annotated, ``"all"`` if they are annotated as background.
    """

    slices: tuple[int, ...]
    depth: int
    taken: Literal["drawn", "all"]

    def __str__(self) -> str:
        """Return the text for messages, such as ``drawn: 3 of 30 slices``."""
        return f"{self.taken}: {len(self.slices)} of {self.depth} slices"


def checked_annotated(value: Any) -> Annotated:
    """Return the setting, checked.

    Raises:
        ValueError: If it is not ``auto``, ``drawn`` or ``all``.
    """
    if value not in get_args(Annotated):
        raise ValueError(
            f"annotated must be auto, drawn (slices with a drawing) or all (the label is finished), got {value!r}. "
            "Set auto if in doubt."
        )
    return value


def mark_ignored(label: Tensor, value: int | None) -> Tensor:
    """Return a label map with the voxels of ``value`` set to ``IGNORED``; ``None`` ignores nothing.

    Args:
        label: Organ ids, of any shape.
        value: The file's value for "neither organ nor background".
    """
    return label if value is None else torch.where(label == value, float(IGNORED), label.float())


def annotated_slices(label: Tensor, annotated: Annotated = "auto") -> AnnotatedSlices:
    """Find the annotated slices of a label map.

    With ``"auto"``, a label counts as a drawing if a slice between two drawn ones is empty, or if it ends abruptly: if
    its first or last drawn slice is not at the scan's end and holds more than a quarter of the organ voxels of the
    largest slice. Slices with ignored voxels and no organ are never annotated; if there are any, ``"auto"`` takes all
    other slices as annotated.

    Args:
        label: Organ ids ``(1, H, W, Z)``, 0 = none, ``IGNORED`` = neither organ nor background.
        annotated: The setting.

    Returns:
        The annotated slices; none for a label map without an organ.
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
    """Return whether the drawn slices have no gap and taper off at both ends, unless these are the scan's own."""
    ends = [z for z in (drawn[0], drawn[-1]) if 0 < z < len(area) - 1]
    has_gap = len(drawn) <= drawn[-1] - drawn[0]
    return not has_gap and all(area[z] <= FINISHED_END * max(area) for z in ends)


def _places(mask: Tensor) -> list[int]:
    return torch.nonzero(mask).flatten().tolist()
