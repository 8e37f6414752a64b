"""Tests of ``bundle.transforms.notices``, and of ``AssessScoresd`` that writes them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from bundle.transforms import AssessScoresd
from bundle.transforms.notices import Expected, expected_organs, intensity_profile, organ_notices, scan_notices
from monai.data import MetaTensor

TWO_PARTS = torch.tensor([1, 1, 1, 0, 1, 1, 1], dtype=torch.bool)[:, None, None]
SMALL = "{} ml is less than a third of the annotated scans' {} ml"
LARGE = "{} ml is more than three times the annotated scans' {} ml"


@pytest.mark.parametrize(
    ("milliliters", "expected", "notices"),
    [
        (6.0, Expected(1, 2, 4.0, 8.0), []),
        (6.0, Expected(1), []),
        (6.0, Expected(1, 2, 18.0, 20.0), []),
        (5.9, Expected(1, 2, 18.0, 20.0), [SMALL.format("5.9", "18.0")]),
        (6.0, Expected(1, 2, 1.0, 2.0), []),
        (6.1, Expected(1, 2, 1.0, 2.0), [LARGE.format("6.1", "2.0")]),
        (6.0, Expected(1, 3, 4.0, 8.0), ["2 parts were found, but the annotated scans show 3"]),
        (math.nan, Expected(1, 2, 4.0, 8.0), []),
    ],
)
def test_volume_and_parts_are_compared_with_the_annotated_scans(
    milliliters: float, expected: Expected, notices: list[str]
) -> None:
    assert organ_notices(TWO_PARTS, milliliters, expected) == notices


def test_an_empty_mask_is_said_and_nothing_else_of_it() -> None:
    (notice,) = organ_notices(torch.zeros(2, 2, 2), 0.0, Expected(1, 3, 4.0, 8.0))
    assert notice.startswith("nothing was found")


@pytest.mark.parametrize(
    ("meta", "least_explained", "words"),
    [
        ({}, 14.0, []),
        ({"explained": torch.tensor([13.9])}, None, []),
        ({"explained": torch.tensor([14.0])}, 14.0, []),
        ({"explained": torch.tensor([13.9])}, 14.0, ["similarity 13.9 (usually at least 14)"]),
        ({"intensity_distance": torch.tensor([0.5])}, None, []),
        ({"intensity_distance": torch.tensor([math.nan])}, None, []),
        ({"intensity_distance": torch.tensor([0.71])}, None, ["by 0.71 standard deviations (usually at most 0.5)"]),
    ],
)
def test_a_scan_unlike_the_annotated_ones_is_said(
    meta: dict[str, Any], least_explained: float | None, words: list[str]
) -> None:
    notices = scan_notices(meta, least_explained)
    assert len(notices) == len(words)
    assert all(word in notice for word, notice in zip(words, notices, strict=True))


def test_inverted_contrast_is_far_and_other_noise_of_the_same_kind_is_near() -> None:
    one, other = (torch.rand(1, 40, 40, 20).pow(4) for _ in range(2))
    one, other = ((volume - volume.mean()) / volume.std() for volume in (one, other))
    assert (intensity_profile(one) - intensity_profile(other)).abs().mean() < 0.05
    assert (intensity_profile(one) - intensity_profile(-other)).abs().mean() > 0.5


def test_scores_without_meta_expect_nothing() -> None:
    assert [(e.organ, e.components) for e in expected_organs(torch.zeros(2, 1, 1, 1))] == [(1, 0), (2, 0)]


def test_notices_stand_in_the_meta_by_organ() -> None:
    """Organ 4 has half of its parts and is small: 3 voxels of 2 ml; organ 7 is as it should be; organ 9 is missing."""
    scores = torch.full((3, 7, 1, 2), -1.0)
    scores[0, :3, 0, 0] = 2.0
    scores[1, :, 0, 1] = 2.0
    meta = {
        "organ_ids": torch.tensor([4, 7, 9]),
        "support_components": torch.tensor([2, 1, 1]),
        "support_milliliters": torch.tensor([[20.0, 30.0], [14.0, 14.0], [1.0, 1.0]]),
        "intensity_distance": torch.tensor([0.9]),
    }
    volume = MetaTensor(scores, affine=torch.diag(torch.tensor([20.0, 10.0, 10.0, 1.0])), meta=meta)
    found = AssessScoresd("pred")({"pred": volume})["pred"].meta["notices"]
    assert {organ: len(said) for organ, said in found.items()} == {0: 1, 4: 2, 9: 1}
    assert found[4][0] == SMALL.format("6.0", "20.0")
    assert found[9][0].startswith("nothing was found")
