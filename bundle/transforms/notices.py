"""Notices: what makes a predicted mask doubtful, in sentences. No truth is needed, only what the support shows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from monai.data import MetaTensor
from torch import Tensor

from bundle.keys import EXPLAINED, INTENSITY_DISTANCE, ORGAN_IDS, SUPPORT_COMPONENTS, SUPPORT_MILLILITERS
from bundle.transforms.components import count_components

SCAN = 0
"""The id under which notices of the whole scan stand."""

VOLUME_FACTOR = 3.0
"""How many times as large or as small as in the annotated scans an organ may be; spleens differ by nearly as much."""

MOST_DISTANT = 0.5
"""Distance of intensities above which a scan is unlike the annotated ones.

Within a data set it stays below 0.2 in whole scans; with inverted contrast it is 0.75 where the histogram is not
symmetric (docs/annotate_one.md).
"""

SAMPLES = 200_000
"""Voxels that a profile is taken from."""


def milliliters_of(voxels: int, volume: Tensor) -> float:
    """Return the volume of voxels on a volume's grid, by its affine in mm; NaN if it has none."""
    if not isinstance(volume, MetaTensor):
        return math.nan
    return voxels * abs(float(torch.linalg.det(volume.affine[:3, :3].double()))) / 1000


@dataclass(frozen=True)
class Expected:
    """What the annotated scans show of an organ.

    Attributes:
        organ: Its id.
        components: In how many parts it comes; 0 if it is not known.
        least: Its smallest volume, ml; NaN if it is not known.
        most: Its largest volume, ml.
    """

    organ: int
    components: int = 0
    least: float = math.nan
    most: float = math.nan


def expected_organs(scores: Tensor) -> list[Expected]:
    """Return what the meta of scores ``(O, H, W, Z)`` tells of each organ in the annotated scans."""
    meta = scores.meta if isinstance(scores, MetaTensor) else {}
    organs = torch.as_tensor(meta.get(ORGAN_IDS, range(1, len(scores) + 1))).flatten()
    components = torch.as_tensor(meta.get(SUPPORT_COMPONENTS, [0] * len(scores))).flatten()
    volumes = torch.as_tensor(meta.get(SUPPORT_MILLILITERS, [[math.nan] * 2] * len(scores))).reshape(-1, 2)
    rows = zip(organs.tolist(), components.tolist(), volumes.tolist(), strict=True)
    return [Expected(int(organ), int(number), *volume) for organ, number, volume in rows]


def organ_notices(mask: Tensor, milliliters: float, expected: Expected) -> list[str]:
    """Return what is doubtful about an organ's mask ``(H, W, Z)`` of so many milliliters."""
    if not mask.any():
        return ["nothing was found: the scan may not show it, or it looks different here"]
    notices = []
    if milliliters < expected.least / VOLUME_FACTOR:
        notices.append(f"{milliliters:.1f} ml is less than a third of the annotated scans' {expected.least:.1f} ml")
    if milliliters > expected.most * VOLUME_FACTOR:
        notices.append(f"{milliliters:.1f} ml is more than three times the annotated scans' {expected.most:.1f} ml")
    if expected.components > 1 and (parts := count_components(mask)) < expected.components:
        notices.append(f"{parts} of the {expected.components} parts were found that the annotated scans show")
    return notices


def intensity_profile(volume: Tensor) -> Tensor:
    """Return 33 quantiles of a standardized volume's intensities, from 1 to 99 %."""
    values = volume.flatten()[:: max(1, volume.numel() // SAMPLES)].float().cpu()
    return values.quantile(torch.linspace(0.01, 0.99, 33))


def scan_notices(meta: Mapping[Any, Any], least_explained: float | None) -> list[str]:
    """Return what is doubtful about a whole scan.

    Args:
        meta: Of its scores.
        least_explained: Similarity to the annotated scans, in logits, below which a scan is unlike them; ``None`` does
            not compare.
    """
    notices = []
    distance = _number(meta, INTENSITY_DISTANCE)
    if distance > MOST_DISTANT:
        notices.append(
            f"the intensities differ from the annotated scans' by {distance:.2f} standard deviations, at most "
            f"{MOST_DISTANT:g} is usual: another modality or contrast?"
        )
    explained = _number(meta, EXPLAINED)
    if least_explained is not None and explained < least_explained:
        notices.append(
            f"the scan looks unlike the annotated ones: similarity {explained:.1f}, usual from {least_explained:g} on"
        )
    return notices


def _number(meta: Mapping[Any, Any], key: str) -> float:
    return float(torch.as_tensor(meta[key]).flatten()[0]) if key in meta else math.nan
