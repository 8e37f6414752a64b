"""Shapes of organs in annotated scans: their number of components and their volumes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median_high, median_low

from bundle.transforms.components import count_components
from bundle.transforms.masks import plain
from bundle.transforms.notices import milliliters_of
from bundle.transforms.slices import organ_slices, organs_of
from torch import Tensor


@dataclass(frozen=True)
class OrganShape:
    """An organ in one annotated scan.

    Attributes:
        components: Its number of connected components, specks left out.
        milliliters: Its volume; NaN if only some of its slices are annotated.
    """

    components: int
    milliliters: float = math.nan


def shapes_of(label: Tensor, partial: bool = False) -> dict[int, OrganShape]:
    """Return the shape of each organ of a label map.

    Args:
        label: Organ ids ``(1, H, W, Z)``, with an affine in mm; without one, volumes are NaN.
        partial: Whether only some slices are annotated: then components are those of a typical slice, and volumes are
            not known.
    """
    ids = plain(label)[0]
    if partial:
        return {organ: OrganShape(_components_in_a_slice(ids, organ)) for organ in organs_of(ids)}
    masks = {organ: ids == organ for organ in organs_of(ids)}
    return {
        organ: OrganShape(count_components(mask), milliliters_of(int(mask.sum()), label))
        for organ, mask in masks.items()
    }


def _components_in_a_slice(ids: Tensor, organ: int) -> int:
    return median_low(count_components(ids[..., z] == organ) for z in organ_slices(ids[None], organ))


def typical_components(shapes: Sequence[OrganShape]) -> int:
    """Return an organ's number of components, the median over several scans; 1 if nothing is known."""
    return median_high(shape.components for shape in shapes) if shapes else 1


def range_of_volumes(shapes: Sequence[OrganShape]) -> tuple[float, float]:
    """Return an organ's smallest and largest known volume, ml; NaN if none is known."""
    known = [shape.milliliters for shape in shapes if not math.isnan(shape.milliliters)]
    return (min(known), max(known)) if known else (math.nan, math.nan)


# The shapes of a scan's organs, by id.
Shapes = Mapping[int, OrganShape]
