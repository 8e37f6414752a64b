"""Tests of ``bundle.networks.classifier``."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from bundle.networks import CosineClassifier, TopKClassifier
from torch import Tensor

CLASSIFIERS = [CosineClassifier, TopKClassifier]


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


@pytest.mark.parametrize("classifier", CLASSIFIERS)
@pytest.mark.parametrize(
    "size", [(3, 4), (16, 16), (17, 29)]
)  # fewer pixels than 16, a multiple of it, and no multiple
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("training", [True, False])
def test_pixels_in_blocks_score_as_by_the_plain_product(
    classifier: type[CosineClassifier], size: tuple[int, int], threads: int, training: bool
) -> None:
    features, prototypes = torch.randn(6, *size), torch.randn(40, 6)
    unit_features, unit_prototypes = F.normalize(features, dim=0), F.normalize(prototypes, dim=1)
    similarity = 20 * torch.einsum("dhw,nd->hwn", unit_features, unit_prototypes)
    plain = {
        CosineClassifier: (similarity.softmax(-1) * similarity).sum(-1),
        TopKClassifier: similarity.sort(dim=-1).values[..., -5:].mean(-1),
    }
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for largest_block in (1, 40 * 48, 1 << 21):  # 16 pixels, 48, all
            found = classifier()
            found.largest_block = largest_block
            for layout in (torch.contiguous_format, torch.channels_last):
                with torch.set_grad_enabled(training):
                    scores = found(features[None].to(memory_format=layout)[0], prototypes)
                torch.testing.assert_close(scores, plain[classifier], rtol=1e-5, atol=2e-5)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_no_more_similarities_are_held_at_once_than_a_block(classifier: type[CosineClassifier]) -> None:
    class Noting(classifier):  # type: ignore[misc, valid-type]
        def combine(self, cosine: Tensor) -> Tensor:
            held.append(cosine.numel())
            return super().combine(cosine)

    held: list[int] = []
    noting = Noting()
    noting.largest_block = 5000
    noting(torch.randn(4, 20, 20), torch.randn(100, 4))
    assert max(held) == 48 * 100
    assert sum(held) == 400 * 100


@pytest.mark.parametrize("classifier", CLASSIFIERS)
class TestEveryClassifier:
    """What holds for each member; a new one is added to ``CLASSIFIERS``."""

    def test_a_feature_equal_to_its_only_prototype_scores_the_scale(self, classifier: type[CosineClassifier]) -> None:
        feature = torch.randn(5, 1, 1)
        score = classifier(scale=7.0)(feature, feature.flatten()[None])
        torch.testing.assert_close(score, torch.full((1, 1), 7.0))

    def test_scores_do_not_depend_on_the_length_of_the_vectors(self, classifier: type[CosineClassifier]) -> None:
        features, prototypes = torch.randn(5, 3, 4), torch.randn(3, 5)
        torch.testing.assert_close(classifier()(7 * features, 3 * prototypes), classifier()(features, prototypes))

    def test_without_a_prototype_the_score_is_zero(self, classifier: type[CosineClassifier]) -> None:
        score = classifier()(torch.randn(5, 3, 4), torch.zeros(0, 5))
        torch.testing.assert_close(score, torch.zeros(3, 4))

    def test_a_prototype_of_zeros_scores_zero(self, classifier: type[CosineClassifier]) -> None:
        score = classifier()(torch.randn(5, 3, 4), torch.zeros(1, 5))
        torch.testing.assert_close(score, torch.zeros(3, 4))

    def test_the_order_of_the_prototypes_does_not_matter(self, classifier: type[CosineClassifier]) -> None:
        features, prototypes = torch.randn(5, 3, 4), torch.randn(8, 5)
        torch.testing.assert_close(classifier()(features, prototypes), classifier()(features, prototypes.flip(0)))

    @pytest.mark.parametrize("scale", [0.0, -20.0])
    def test_a_scale_that_is_not_positive_is_refused(self, classifier: type[CosineClassifier], scale: float) -> None:
        with pytest.raises(ValueError, match="scale, the factor of the cosine, must be positive"):
            classifier(scale=scale)


def mean_of_largest_by_loop(features: Tensor, prototypes: Tensor, k: int, scale: float) -> Tensor:
    """The definition, one pixel at a time."""
    score = torch.zeros(features.shape[1:])
    for row in range(features.shape[1]):
        for column in range(features.shape[2]):
            pixel = features[:, row, column]
            similar = sorted(float(pixel @ p) / (float(pixel.norm()) * float(p.norm())) for p in prototypes)[-k:]
            score[row, column] = scale * sum(similar) / len(similar)
    return score


@pytest.mark.parametrize("count", [1, 5, 9])
@pytest.mark.parametrize("k", [1, 3, 5, 20])
def test_the_mean_of_the_largest_similarities_matches_the_loop(k: int, count: int) -> None:
    features, prototypes = torch.randn(6, 3, 4), torch.randn(count, 6)
    expected = mean_of_largest_by_loop(features, prototypes, k, 7.0)
    torch.testing.assert_close(TopKClassifier(k, scale=7.0)(features, prototypes), expected)


@pytest.mark.parametrize(("k", "expected"), [(1, 20.0), (2, 18.0), (3, 16.0), (4, 12.0), (5, 12.0)])
def test_the_largest_similarities_are_averaged(k: int, expected: float) -> None:
    prototypes = torch.tensor([[0.6, 0.8], [1.0, 0.0], [0.0, 1.0], [0.8, -0.6]])
    score = TopKClassifier(k)(torch.tensor([3.0, 0.0])[:, None, None], prototypes)
    torch.testing.assert_close(score, torch.tensor([[expected]]))


def test_prototypes_unlike_a_pixel_leave_its_score_as_it_is() -> None:
    feature = torch.tensor([1.0, 0.0])[:, None, None]
    prototypes = torch.tensor([[0.8, 0.6]] * 5 + [[0.0, 1.0]] * 1000)
    torch.testing.assert_close(TopKClassifier()(feature, prototypes), torch.tensor([[16.0]]))


def test_averaging_less_than_one_similarity_is_refused() -> None:
    with pytest.raises(ValueError, match="k, the number of averaged similarities, must be at least 1"):
        TopKClassifier(k=0)
