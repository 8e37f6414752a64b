"""Metrics of one organ of one scan, against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from bundle.evaluation.metrics import CaseMetrics, case_metrics
from monai.metrics import DiceMetric
from tests.golden_data import golden_arrays, golden_json

SPACING = (2.0, 1.0, 5.0)


def mask(*boxes: tuple[slice, slice, slice]) -> torch.Tensor:
    volume = torch.zeros(20, 24, 10, dtype=torch.bool)
    for box in boxes:
        volume[box] = True
    return volume


CUBE = mask((slice(5, 9), slice(5, 9), slice(3, 7)))


def compare(prediction: torch.Tensor, truth: torch.Tensor = CUBE, tolerance: float = 3.0, axis: int = 2) -> CaseMetrics:
    return case_metrics(prediction, truth, SPACING, axis, tolerance)


def test_the_truth_itself_is_perfect() -> None:
    found = compare(CUBE)
    assert found.status == "ok"
    assert (found.dice, found.nsd, found.hd95_mm, found.precision, found.recall, found.fp_outside_ml) == (
        1,
        1,
        0,
        1,
        1,
        0,
    )


def test_half_of_the_organ() -> None:
    found = compare(mask((slice(5, 9), slice(5, 9), slice(3, 5))))
    assert found.dice == pytest.approx(2 * 32 / (32 + 64))
    assert (found.precision, found.recall) == (1.0, 0.5)
    assert found.hd95_mm == pytest.approx(10.0)  # two slices of 5 mm


def test_distances_are_in_mm_along_each_axis() -> None:
    shifts = {0: 2.0, 1: 1.0, 2: 5.0}
    for axis, millimeters in shifts.items():
        shifted = torch.roll(CUBE, 1, dims=axis)
        assert compare(shifted).hd95_mm == pytest.approx(millimeters)
        # Within the tolerance the surfaces count as equal; below it they do not.
        assert compare(shifted, tolerance=millimeters + 0.01).nsd == 1.0
        assert compare(shifted, tolerance=millimeters - 0.01).nsd < 1.0


def test_the_box_around_the_masks_changes_nothing() -> None:
    far = mask((slice(0, 2), slice(0, 2), slice(0, 1)), (slice(6, 9), slice(5, 9), slice(3, 7)))
    moved = compare(torch.roll(far, (3, 4, 2), (0, 1, 2)), torch.roll(CUBE, (3, 4, 2), (0, 1, 2)))
    assert moved.hd95_mm == pytest.approx(compare(far).hd95_mm)
    assert moved.dice == compare(far).dice


def test_false_positives_outside_the_extent_are_counted_in_ml() -> None:
    # 8 voxels of 10 cubic mm in slices without the organ, and 16 in slices with it, which do not count.
    prediction = CUBE | mask((slice(0, 2), slice(0, 2), slice(8, 10)), (slice(0, 2), slice(0, 2), slice(3, 7)))
    assert compare(prediction).fp_outside_ml == pytest.approx(8 * 10 / 1000)
    assert compare(prediction, axis=0).fp_outside_ml == pytest.approx(24 * 10 / 1000)
    assert compare(prediction).recall == 1.0


def test_a_slice_inside_the_extent_that_skips_the_organ_is_not_outside() -> None:
    truth = mask((slice(5, 9), slice(5, 9), slice(2, 4)), (slice(5, 9), slice(5, 9), slice(6, 8)))
    prediction = mask((slice(5, 7), slice(5, 7), slice(1, 9)))  # slices 1 and 8 lie outside, 4 and 5 between
    assert compare(prediction, truth).fp_outside_ml == pytest.approx(2 * 4 * 10 / 1000)


def test_an_organ_that_is_not_there_has_no_dice() -> None:
    found = compare(CUBE, mask())
    assert found.status == "absent"
    assert all(math.isnan(value) for value in (found.dice, found.nsd, found.hd95_mm, found.precision, found.recall))
    assert found.fp_outside_ml == pytest.approx(64 * 10 / 1000)
    assert compare(mask(), mask()).fp_outside_ml == 0


def test_an_organ_that_was_missed_scores_zero() -> None:
    found = compare(mask())
    assert found.status == "missed"
    assert (found.dice, found.nsd, found.recall, found.fp_outside_ml) == (0, 0, 0, 0)
    assert math.isnan(found.hd95_mm)
    assert math.isnan(found.precision)


def test_masks_without_overlap_score_zero_and_are_not_missed() -> None:
    found = compare(mask((slice(15, 17), slice(5, 9), slice(3, 7))))
    assert (found.status, found.dice, found.precision, found.recall) == ("ok", 0, 0, 0)


@pytest.mark.parametrize("tolerance", [0.0, -1.0, math.nan])
def test_a_tolerance_that_is_none_is_refused(tolerance: float) -> None:
    with pytest.raises(ValueError, match="above 0 mm"):
        compare(CUBE, tolerance=tolerance)


def test_masks_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="equal shapes"):
        compare(CUBE, CUBE[1:])


def golden_masks(scan: int, label: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Prediction and truth of one scan and class of the authors' example."""
    arrays = golden_arrays("metric.npz")
    names = [name for name in arrays if name.startswith(f"pred_l{label}_s{scan}_z")]
    slices = sorted(names, key=lambda name: int(name.rpartition("z")[2]))
    prediction, truth = (
        np.stack([arrays[name.replace("pred", kind)] for name in slices], axis=-1) for kind in ("pred", "gt")
    )
    return torch.tensor(prediction), torch.tensor(truth)


GOLDEN = golden_json("eval_protocol.json")["metric"]
GOLDEN_LABELS = sorted(
    {int(name.split("_")[1][1:]) for name in golden_arrays("metric.npz") if name.startswith("pred_l")}
)


@pytest.mark.parametrize(("scan", "place"), list(np.ndindex(np.shape(GOLDEN["rawDice"]))))
def test_dice_precision_and_recall_equal_the_authors(scan: int, place: int) -> None:
    found = case_metrics(*golden_masks(scan, GOLDEN_LABELS[place]), (1, 1, 1), 2, 1.0)
    assert found.dice == pytest.approx(GOLDEN["rawDice"][scan][place], abs=1e-6)
    assert found.recall == pytest.approx(GOLDEN["rawRec"][scan][place], abs=1e-6)
    precision = GOLDEN["rawPrec"][scan][place]
    assert found.precision == pytest.approx(math.nan if precision is None else precision, abs=1e-6, nan_ok=True)


def test_monais_metric_over_scans_equals_the_authors() -> None:
    metric = DiceMetric(ignore_empty=False)
    for scan in range(len(GOLDEN["rawDice"])):
        pairs = [golden_masks(scan, label) for label in GOLDEN_LABELS]
        metric(*(torch.stack([pair[kind] for pair in pairs]).float()[None] for kind in (0, 1)))
    raw = metric.get_buffer().numpy()
    assert raw == pytest.approx(np.array(GOLDEN["rawDice"]), abs=1e-6)
    assert raw.mean(axis=0) == pytest.approx(GOLDEN["classDice"], abs=1e-6)
