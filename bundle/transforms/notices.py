"""Notices: why a predicted mask is doubtful, in sentences. They need no truth, only the annotated scans."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from bundle.keys import EXPLAINED, INTENSITY_DISTANCE, ORGAN_IDS, SUPPORT_COMPONENTS, SUPPORT_MILLILITERS
from bundle.transforms.components import count_components
from monai.data import MetaTensor
from torch import Tensor

# The id for notices of the whole scan.
SCAN = 0

# Largest ratio of an organ's volume to that in the annotated scans, up or down; spleens differ by nearly as much.
VOLUME_FACTOR = 3.0

# Distance of intensities above which a scan counts as unlike the annotated ones.
#
# Within a data set no pair of scans is above 0.44 (643 pairs of five data sets); with inverted contrast it is 0.75 if
# the histogram is not symmetric (docs/annotate_one.md).
MOST_DISTANT = 0.5

# Voxels that an intensity profile is computed from.
SAMPLES = 200_000


def milliliters_of(voxels: int, volume: Tensor) -> float:
    """Return the volume of some voxels, by the affine of their grid in mm; NaN if there is no affine."""
    if not isinstance(volume, MetaTensor):
        return math.nan
    return voxels * abs(float(torch.linalg.det(volume.affine[:3, :3].double()))) / 1000


@dataclass(frozen=True)
class Expected:
    """The shape of an organ in the annotated scans.

    Attributes:
        organ: Its id.
        components: Its number of components; 0 if not known.
        least: Its smallest volume, ml; NaN if not known.
        most: Its largest volume, ml; NaN if not known.
    """

    organ: int
    components: int = 0
    least: float = math.nan
    most: float = math.nan


def expected_organs(scores: Tensor) -> list[Expected]:
    """Return each organ's shape in the annotated scans, from the meta of scores ``(O, H, W, Z)``."""
    meta = scores.meta if isinstance(scores, MetaTensor) else {}
    organs = torch.as_tensor(meta.get(ORGAN_IDS, range(1, len(scores) + 1))).flatten()
    components = torch.as_tensor(meta.get(SUPPORT_COMPONENTS, [0] * len(scores))).flatten()
    volumes = torch.as_tensor(meta.get(SUPPORT_MILLILITERS, [[math.nan] * 2] * len(scores))).reshape(-1, 2)
    rows = zip(organs.tolist(), components.tolist(), volumes.tolist(), strict=True)
    return [Expected(int(organ), int(number), *volume) for organ, number, volume in rows]


def organ_notices(mask: Tensor, milliliters: float, expected: Expected) -> list[str]:
    """Return the notices about an organ's mask ``(H, W, Z)`` of the given volume in ml."""
    if not mask.any():
        return ["nothing was found: the scan may not show the organ, or it looks different here"]
    notices = []
    if milliliters < expected.least / VOLUME_FACTOR:
        notices.append(f"{milliliters:.1f} ml is less than a third of the annotated scans' {expected.least:.1f} ml")
    if milliliters > expected.most * VOLUME_FACTOR:
        notices.append(f"{milliliters:.1f} ml is more than three times the annotated scans' {expected.most:.1f} ml")
    if expected.components > 1 and (parts := count_components(mask)) < expected.components:
        notices.append(f"{parts} parts were found, but the annotated scans show {expected.components}")
    return notices


def intensity_profile(volume: Tensor) -> Tensor:
    """Return 33 quantiles of a standardized volume's intensities, from 1 to 99 %."""
    values = volume.flatten()[:: max(1, volume.numel() // SAMPLES)].float().cpu()
    return values.quantile(torch.linspace(0.01, 0.99, 33))


def scan_notices(meta: Mapping[Any, Any], least_explained: float | None) -> list[str]:
    """Return the notices about a whole scan.

    Args:
        meta: The meta of its scores.
        least_explained: Similarity to the annotated scans, in logits, below which a scan counts as unlike them;
            ``None`` skips this check.
    """
    notices = []
    distance = _number(meta, INTENSITY_DISTANCE)
    if distance > MOST_DISTANT:
        notices.append(
            f"the intensities differ from the annotated scans' by {distance:.2f} standard deviations (usually at most "
            f"{MOST_DISTANT:g}): another modality or contrast?"
        )
    explained = _number(meta, EXPLAINED)
    if least_explained is not None and explained < least_explained:
        notices.append(
            f"the scan looks unlike the annotated ones: similarity {explained:.1f} "
            f"(usually at least {least_explained:g})"
        )
    return notices


def _number(meta: Mapping[Any, Any], key: str) -> float:
    return float(torch.as_tensor(meta[key]).flatten()[0]) if key in meta else math.nan
