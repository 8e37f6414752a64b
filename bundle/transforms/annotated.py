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

# A finished label tapers off: its first and last slice hold at most this share of its largest slice's organ voxels, or
# at most ROUND_END of it, and the parabola through the three slices at that end leaves none for the next slice. Thick
# slices cut a round organ so.
#
# This is true of 116 of 129 finished labels (abdomen in MR and CT, heart, hippocampus, prostate), of 12 of their 2,009
# contiguous halves, of 3 of 3,184 runs of 5 slices and none of 2,546 of 10 (docs/annotate_one.md).
FINISHED_END = 0.25
ROUND_END = 0.75


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
    its first or last drawn slice is not at the scan's end, holds more than a quarter of the organ voxels of the
    largest slice, and is not the last one of a round organ (at most three quarters, and the parabola through the three
    slices at that end reaches zero by the next slice). Slices with ignored voxels and no organ are never annotated; if
    there are any, ``"auto"`` takes all other slices as annotated.

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
    first, last = drawn[0], drawn[-1]
    if len(drawn) <= last - first:
        return False
    shown = area[first : last + 1]
    inward = ([shown] if first > 0 else []) + ([shown[::-1]] if last < len(area) - 1 else [])
    return all(_tapers_off(areas) for areas in inward)


def _tapers_off(areas: Sequence[int]) -> bool:
    """Return whether an organ ends with the first of its slices: their organ voxels, from that end inward."""
    largest = max(areas)
    if areas[0] <= FINISHED_END * largest:
        return True
    # None are left for the next slice outside, if the areas lie on a parabola, as those of an ellipsoid do.
    return len(areas) > 2 and areas[0] <= ROUND_END * largest and 3 * (areas[0] - areas[1]) + areas[2] <= 0


def _places(mask: Tensor) -> list[int]:
    return torch.nonzero(mask).flatten().tolist()
