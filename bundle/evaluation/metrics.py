"""Metrics of one organ of one scan: MONAI's, and false positives outside of the organ's extent."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from monai.handlers import MeanDice
from monai.metrics import (
    compute_confusion_matrix_metric,
    compute_dice,
    compute_hausdorff_distance,
    compute_surface_dice,
    get_confusion_matrix,
)
from torch import Tensor

Status = Literal["ok", "absent", "missed"]


@dataclass(frozen=True)
class CaseMetrics:
    """One organ of one scan; NaN where a metric is not defined.

    Attributes:
        status: ``"absent"`` if the scan does not show the organ: the case has no Dice and is left out of all means.
            ``"missed"`` if it does, and nothing was predicted.
        dice: Dice coefficient, in [0, 1].
        nsd: Normalized surface Dice: share of both surfaces that lies within the tolerance of the other.
        hd95_mm: 95th percentile of the distances between the surfaces, mm; NaN if missed.
        precision: Share of the predicted voxels that belong to the organ; NaN if missed.
        recall: Share of the organ's voxels that were predicted.
        fp_outside_ml: Volume predicted before the organ's first slice or after its last, milliliters. The paper's
            protocol leaves these slices out. Slices in between count as inside, whether they show the organ or not.
    """

    status: Status
    dice: float
    nsd: float
    hd95_mm: float
    precision: float
    recall: float
    fp_outside_ml: float


def case_metrics(
    prediction: Tensor, truth: Tensor, spacing: Sequence[float], slice_axis: int, tolerance: float
) -> CaseMetrics:
    """Compare a predicted mask with the true one.

    Args:
        prediction: Mask {0, 1} with three axes in any order.
        truth: Mask of the same shape.
        spacing: Voxel size along the axes, mm.
        slice_axis: The axis along which slices are counted.
        tolerance: Largest distance between matching surfaces for ``nsd``, mm.

    Raises:
        ValueError: If the masks differ in shape, or the tolerance is not above 0.
    """
    if prediction.shape != truth.shape:
        raise ValueError(
            f"masks must have equal shapes, got {tuple(prediction.shape)} and {tuple(truth.shape)}. "
            "Resample one to the grid of the other."
        )
    if not tolerance > 0:
        raise ValueError(f"nsd_tolerance must be above 0 mm, got {tolerance}. Write, for example, --nsd_tolerance 3.")
    predicted, true = prediction.bool(), truth.bool()
    in_plane = [axis for axis in range(3) if axis != slice_axis]
    outside = ~_extent(true.any(dim=in_plane[1]).any(dim=in_plane[0]))
    fp_outside_ml = float(predicted.sum(dim=in_plane)[outside].sum()) * math.prod(spacing) / 1000
    if not true.any():
        nothing = dict.fromkeys(("dice", "nsd", "hd95_mm", "precision", "recall"), math.nan)
        return CaseMetrics("absent", fp_outside_ml=fp_outside_ml, **nothing)
    if not predicted.any():
        return CaseMetrics("missed", 0.0, 0.0, math.nan, math.nan, 0.0, fp_outside_ml)
    found = _defined_metrics(predicted, true, [float(length) for length in spacing], tolerance)
    return CaseMetrics("ok", fp_outside_ml=fp_outside_ml, **found)


def _defined_metrics(predicted: Tensor, true: Tensor, size: Sequence[float], tolerance: float) -> dict[str, float]:
    """Return the metrics of two masks, neither of them empty."""
    # Batch and channel first; voxels outside of a box around both masks change no metric.
    y_pred, y = (mask[_box(predicted | true)].float()[None, None] for mask in (predicted, true))
    counts = get_confusion_matrix(y_pred, y)
    nsd = compute_surface_dice(y_pred, y, [tolerance], include_background=True, spacing=size)
    hd95 = compute_hausdorff_distance(y_pred, y, include_background=True, percentile=95, spacing=size)
    return {
        "dice": float(compute_dice(y_pred, y)),
        "nsd": float(nsd),
        "hd95_mm": float(hd95),
        "precision": float(compute_confusion_matrix_metric("precision", counts)),
        "recall": float(compute_confusion_matrix_metric("recall", counts)),
    }


def _extent(shown: Tensor) -> Tensor:
    """Return for each slice whether it lies between the first and the last that show the organ, both included."""
    return (shown.cumsum(dim=0) > 0) & (shown.flip(0).cumsum(dim=0).flip(0) > 0)


def _box(mask: Tensor) -> tuple[slice, ...]:
    """Return the smallest box around a mask, one voxel wider on each side where there is room."""
    places = torch.nonzero(mask)
    low = np.maximum(places.amin(dim=0).cpu().numpy() - 1, 0)
    return tuple(slice(int(a), int(b) + 2) for a, b in zip(low, places.amax(dim=0), strict=True))


class OrganDice(MeanDice):
    """``MeanDice`` with several processes: one without a scan contributes a row of NaN, which no mean includes.

    MONAI gathers the rows of all processes, and would wait forever for a process that has none. The engine also gets
    ``<name of the metric>_<organ>``, the mean over the scans that show the organ, if any does.

    Args:
        organs: Names, one for each column.
        **settings: Arguments of ``MeanDice``.
    """

    def __init__(self, organs: Collection[str], **settings: Any) -> None:
        super().__init__(**settings)
        self.organs = list(organs)
        self._has_rows = False

    def reset(self) -> None:
        """Forget all rows."""
        super().reset()
        self._has_rows = False

    def update(self, output: Sequence[Tensor]) -> None:
        """Add the predicted and true masks of some scans."""
        super().update(output)
        self._has_rows = True

    def compute(self) -> Any:
        """Return the mean over organs, then scans, and give the engine the mean of each organ."""
        if not self._has_rows:
            self.metric_fn.append(torch.full((len(self.organs),), float("nan")))
        result = super().compute()
        if self._engine is not None:
            means = torch.nanmean(self.metric_fn.get_buffer(), dim=0).tolist()
            named = zip(self.organs, means, strict=True)
            self._engine.state.metrics |= {f"{self._name}_{organ}": dice for organ, dice in named if dice == dice}
        return result
