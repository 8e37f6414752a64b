"""The slice of the lowest confidence: a known one is found, in its place."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from bundle.keys import LEAST_CONFIDENT
from bundle.transforms import AssessScoresd
from bundle.transforms.confidence import least_confident_slice
from monai.data import MetaTensor

# Rows to the back, columns to the left, slices up: steps of 2, 3 and 5 mm.
AFFINE = torch.tensor([[0, -3.0, 0, 40.0], [-2.0, 0, 0, 30.0], [0, 0, 5.0, -7.0], [0, 0, 0, 1.0]], dtype=torch.float64)


def scores(affine: torch.Tensor = AFFINE) -> MetaTensor:
    """An organ of 8 x 8 voxels in the slices 1 to 4, doubtful in slice 3; slice 5 has one voxel of it."""
    values = torch.full((2, 10, 10, 7), -4.0)
    values[0, 1:9, 1:9, 1:5] = 3.0
    values[0, 1:9, 1:9, 3] = 1.0
    values[0, 4, 4, 5] = 0.1
    return MetaTensor(values, affine=affine)


def test_the_slice_with_the_lowest_mean_probability_is_found_in_its_place() -> None:
    least = AssessScoresd("pred")({"pred": scores()})["pred"].meta[LEAST_CONFIDENT]
    np.testing.assert_allclose(least[0], [40.0, 30.0, -7.0 + 3 * 5.0, 1 / (1 + math.exp(-1.0))], rtol=1e-6)
    assert least[1].isnan().all(), "the second organ was not found"


@pytest.mark.parametrize("axis", [0, 1])
def test_slices_that_are_not_axial_have_no_place_on_an_axial_page(axis: int) -> None:
    affine = AFFINE.clone()
    affine[:3, [axis, 2]] = affine[:3, [2, axis]]
    assert AssessScoresd("pred")({"pred": scores(affine)})["pred"].meta[LEAST_CONFIDENT].isnan().all()


def test_scores_without_an_affine_have_no_place() -> None:
    assert all(map(math.isnan, least_confident_slice(torch.ones(3), torch.arange(3), torch.zeros(1, 2, 2, 3))))
