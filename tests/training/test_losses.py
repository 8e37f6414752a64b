"""Tests of ``bundle.training.losses``."""

from __future__ import annotations

import math

import pytest
import torch
from bundle.training.losses import EpisodeLoss, alignment_loss


def test_the_query_term_is_the_weighted_mean_of_the_pixels() -> None:
    logits = torch.zeros(1, 2, 2, 3)
    logits[0, 1, 0, 0] = math.log(3)  # this pixel is foreground with probability 3/4
    mask = torch.zeros(1, 1, 2, 3)
    mask[0, 0, 0, 0] = 1
    expected = (1.0 * math.log(4 / 3) + 5 * 0.05 * math.log(2)) / (1.0 + 5 * 0.05)
    assert EpisodeLoss().query_loss(logits, mask).item() == pytest.approx(expected)


def test_a_batch_is_the_mean_of_its_episodes() -> None:
    logits, masks = (
        torch.randn(3, 2, 5, 4),
        (torch.rand(3, 1, 5, 4) > torch.tensor([0.1, 0.5, 0.9])[:, None, None, None]),
    )
    loss = EpisodeLoss()
    alone = [loss.query_loss(logits[[k]], masks[[k]].float()) for k in range(3)]
    torch.testing.assert_close(loss.query_loss(logits, masks.float()), torch.stack(alone).mean())


def test_the_alignment_term_is_the_plain_mean() -> None:
    logits = torch.zeros(1, 2, 2, 2, 3)
    logits[0, 1, 0] = 100.0  # the second shot is all background, for sure
    mask = torch.zeros(1, 2, 1, 2, 3)
    assert alignment_loss(logits, mask).item() == pytest.approx(math.log(2) / 2)


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5])
def test_the_terms_are_added_with_the_alignment_weight(weight: float) -> None:
    logits = (torch.randn(1, 2, 5, 4), torch.randn(1, 2, 2, 5, 4))
    target = {"label": torch.ones(1, 1, 5, 4), "support_mask": torch.zeros(1, 2, 1, 5, 4)}
    loss = EpisodeLoss(alignment_weight=weight)
    expected = loss.query_loss(logits[0], target["label"]) + weight * alignment_loss(logits[1], target["support_mask"])
    torch.testing.assert_close(loss(logits, target), expected)


@pytest.mark.parametrize("settings", [{"background_weight": -0.1}, {"alignment_weight": -1.0}])
def test_negative_weights_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="loss weights must be at least 0"):
        EpisodeLoss(**settings)


def test_a_query_without_foreground_has_no_loss_if_background_weighs_nothing() -> None:
    logits = torch.randn(2, 2, 4, 4, requires_grad=True)
    mask = torch.zeros(2, 1, 4, 4)
    mask[1, 0, 0, 0] = 1
    loss = EpisodeLoss(background_weight=0.0).query_loss(logits, mask)
    expected = -logits[1, :, 0, 0].log_softmax(0)[1] / 2
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert bool((logits.grad[0] == 0).all())
