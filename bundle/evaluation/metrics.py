"""How well one organ of one scan was segmented: MONAI's metrics, and what the field leaves out."""

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
        status: ``"absent"`` if the scan does not have the organ: it has no Dice, and takes part in no mean.
            ``"missed"`` if it has, and nothing was predicted.
        dice: Dice coefficient, in [0, 1].
        nsd: Normalized surface Dice: share of both surfaces that lie within the tolerance of each other.
        hd95_mm: 95th percentile of the distances between the surfaces, mm; NaN if missed.
        precision: Share of the predicted voxels that are the organ's; NaN if missed.
        recall: Share of the organ's voxels that were predicted.
        fp_outside_ml: Volume predicted before the organ's first slice or after its last, milliliters. The paper's
            protocol never looks there. Slices between the two count as inside, whether they show the organ or not.
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
        prediction: Any shape of three axes, true where the organ was predicted.
        truth: The same, where the organ is.
        spacing: Voxel size along the axes, mm.
        slice_axis: The axis that counts slices.
        tolerance: How far apart surfaces may lie for ``nsd``, mm.

    Raises:
        ValueError: If the masks differ in shape, or the tolerance is not above 0.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"masks must have equal shapes, got {tuple(prediction.shape)} and {tuple(truth.shape)}.")
    if not tolerance > 0:
        raise ValueError(f"the tolerance of the surface Dice must be above 0 mm, got {tolerance}.")
    predicted, true = prediction.bool(), truth.bool()
    in_plane = [axis for axis in range(3) if axis != slice_axis]
    outside = ~_extent(true.any(dim=in_plane[1]).any(dim=in_plane[0]))
    fp_outside_ml = float(predicted.sum(dim=in_plane)[outside].sum()) * math.prod(spacing) / 1000
    if not true.any():
        nothing = dict.fromkeys(("dice", "nsd", "hd95_mm", "precision", "recall"), math.nan)
        return CaseMetrics("absent", fp_outside_ml=fp_outside_ml, **nothing)
    if not predicted.any():
        return CaseMetrics("missed", 0.0, 0.0, math.nan, math.nan, 0.0, fp_outside_ml)
    # Batch and channel first; a box around both masks has all that counts.
    y_pred, y = (mask[_box(predicted | true)].float()[None, None] for mask in (predicted, true))
    counts = get_confusion_matrix(y_pred, y)
    size = [float(length) for length in spacing]
    return CaseMetrics(
        status="ok",
        dice=float(compute_dice(y_pred, y)),
        nsd=float(compute_surface_dice(y_pred, y, [tolerance], include_background=True, spacing=size)),
        hd95_mm=float(compute_hausdorff_distance(y_pred, y, include_background=True, percentile=95, spacing=size)),
        precision=float(compute_confusion_matrix_metric("precision", counts)),
        recall=float(compute_confusion_matrix_metric("recall", counts)),
        fp_outside_ml=fp_outside_ml,
    )


def _extent(shown: Tensor) -> Tensor:
    """Return for each slice whether it lies between the first and the last that show the organ, both included."""
    return (shown.cumsum(dim=0) > 0) & (shown.flip(0).cumsum(dim=0).flip(0) > 0)


def _box(mask: Tensor) -> tuple[slice, ...]:
    """Return the smallest box around a mask, one voxel wider on each side where there is room."""
    places = torch.nonzero(mask)
    low = np.maximum(places.amin(dim=0).cpu().numpy() - 1, 0)
    return tuple(slice(int(a), int(b) + 2) for a, b in zip(low, places.amax(dim=0), strict=True))


class OrganDice(MeanDice):
    """``MeanDice`` for several processes: one without a scan gives a row of NaN, which is part of no mean.

    MONAI gathers the rows of all processes, and would wait forever for the one that has none. Beside the mean, the
    engine gets ``<name of the metric>_<organ>``, the mean over the scans that have the organ, if any has it.

    Args:
        organs: One for each column.
        **settings: Those of ``MeanDice``.
    """

    def __init__(self, organs: Collection[str], **settings: Any) -> None:
        super().__init__(**settings)
        self.organs = list(organs)
        self._has_rows = False

    def reset(self) -> None:
        """Start anew."""
        super().reset()
        self._has_rows = False

    def update(self, output: Sequence[Tensor]) -> None:
        """Take in the masks of some scans: predicted and true ones."""
        super().update(output)
        self._has_rows = True

    def compute(self) -> Any:
        """Return the mean over organs, then scans, and tell the engine the mean of each organ."""
        if not self._has_rows:
            self.metric_fn.append(torch.full((len(self.organs),), float("nan")))
        result = super().compute()
        if self._engine is not None:
            means = torch.nanmean(self.metric_fn.get_buffer(), dim=0).tolist()
            named = zip(self.organs, means, strict=True)
            self._engine.state.metrics |= {f"{self._name}_{organ}": dice for organ, dice in named if dice == dice}
        return result
