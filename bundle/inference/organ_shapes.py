"""Shapes of organs in annotated scans: their number of components, their volumes and their thickness."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median, median_high, median_low

import torch
import torch.nn.functional as F
from bundle.transforms.components import bounding_box, count_components
from bundle.transforms.masks import plain
from bundle.transforms.notices import milliliters_of
from bundle.transforms.slices import organ_slices, organs_of
from monai.transforms.utils import distance_transform_edt
from torch import Tensor


@dataclass(frozen=True)
class OrganShape:
    """An organ in one annotated scan.

    Attributes:
        components: Its number of connected components, specks left out.
        milliliters: Its volume; NaN if only some of its slices are annotated.
        thickness: Its mean thickness in its slices, pixels: a strip's width; NaN if it is not known.
    """

    components: int
    milliliters: float = math.nan
    thickness: float = math.nan


def shapes_of(label: Tensor, partial: bool = False) -> dict[int, OrganShape]:
    """Return the shape of each organ of a label map.

    Args:
        label: Organ ids ``(1, H, W, Z)``, with an affine in mm; without one, volumes are NaN.
        partial: Whether only some slices are annotated: then components are those of a typical slice, and volumes are
            not known.
    """
    ids = plain(label)[0]
    shapes = {}
    for organ in organs_of(ids):
        mask = ids == organ
        components = _components_in_a_slice(ids, organ) if partial else count_components(mask)
        milliliters = math.nan if partial else milliliters_of(int(mask.sum()), label)
        shapes[organ] = OrganShape(components, milliliters, thickness_of(mask))
    return shapes


def thickness_of(mask: Tensor) -> float:
    """Return the mean thickness of a mask ``(H, W, Z)`` in its slices, pixels; NaN if it is empty.

    It is four times the mean distance to the border: a strip's width, and two thirds of a disk's diameter.
    """
    if not mask.any():
        return math.nan
    box = mask[bounding_box(mask)].movedim(-1, 0)
    distances = torch.as_tensor(distance_transform_edt(F.pad(box, (1, 1, 1, 1))))[:, 1:-1, 1:-1]
    return 4 * (float(distances[box].mean()) - 0.5)  # from the pixel's center to the border


def _components_in_a_slice(ids: Tensor, organ: int) -> int:
    return median_low(count_components(ids[..., z] == organ) for z in organ_slices(ids[None], organ))


def typical_components(shapes: Sequence[OrganShape]) -> int:
    """Return an organ's number of components, the median over several scans; 1 if nothing is known."""
    return median_high(shape.components for shape in shapes) if shapes else 1


def range_of_volumes(shapes: Sequence[OrganShape]) -> tuple[float, float]:
    """Return an organ's smallest and largest known volume, ml; NaN if none is known."""
    known = [shape.milliliters for shape in shapes if not math.isnan(shape.milliliters)]
    return (min(known), max(known)) if known else (math.nan, math.nan)


def typical_thickness(shapes: Sequence[OrganShape]) -> float:
    """Return an organ's thickness, the median over several scans, pixels; NaN if none is known."""
    known = [shape.thickness for shape in shapes if not math.isnan(shape.thickness)]
    return median(known) if known else math.nan


# The shapes of a scan's organs, by id.
Shapes = Mapping[int, OrganShape]
