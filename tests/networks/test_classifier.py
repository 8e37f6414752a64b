"""Tests of ``bundle.networks.classifier``."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bundle.networks import CosineClassifier


def score_by_loop(features: Tensor, prototypes: Tensor, scale: float) -> Tensor:
    """The paper's definition, one pixel at a time."""
    score = torch.zeros(features.shape[1:])
    for row in range(features.shape[1]):
        for column in range(features.shape[2]):
            pixel = features[:, row, column]
            similar = [scale * float(pixel @ p) / (float(pixel.norm()) * float(p.norm())) for p in prototypes]
            weights = [math.exp(s - max(similar)) for s in similar]
            score[row, column] = sum(w * s for w, s in zip(weights, similar, strict=True)) / sum(weights)
    return score


@pytest.mark.parametrize("count", [1, 4])
def test_scores_match_the_loop(count: int) -> None:
    features, prototypes = torch.randn(5, 3, 4), torch.randn(count, 5)
    expected = score_by_loop(features, prototypes, 20.0)
    torch.testing.assert_close(CosineClassifier()(features, prototypes), expected, rtol=1e-4, atol=1e-4)


def test_a_feature_equal_to_its_only_prototype_scores_the_scale() -> None:
    feature = torch.randn(5, 1, 1)
    torch.testing.assert_close(CosineClassifier(7.0)(feature, feature.flatten()[None]), torch.full((1, 1), 7.0))


def test_scores_do_not_depend_on_the_length_of_the_vectors() -> None:
    features, prototypes = torch.randn(5, 3, 4), torch.randn(3, 5)
    classifier = CosineClassifier()
    torch.testing.assert_close(classifier(7 * features, 3 * prototypes), classifier(features, prototypes))


def test_without_a_prototype_the_score_is_zero() -> None:
    score = CosineClassifier()(torch.randn(5, 3, 4), torch.zeros(0, 5))
    torch.testing.assert_close(score, torch.zeros(3, 4))


def test_a_prototype_of_zeros_scores_zero() -> None:
    score = CosineClassifier()(torch.randn(5, 3, 4), torch.zeros(1, 5))
    torch.testing.assert_close(score, torch.zeros(3, 4))


def test_the_order_of_the_prototypes_does_not_matter() -> None:
    features, prototypes = torch.randn(5, 3, 4), torch.randn(6, 5)
    classifier = CosineClassifier()
    torch.testing.assert_close(classifier(features, prototypes), classifier(features, prototypes.flip(0)))


@pytest.mark.parametrize("scale", [0.0, -20.0])
def test_a_scale_that_is_not_positive_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="scale must be positive"):
        CosineClassifier(scale)
