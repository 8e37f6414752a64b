"""Losses: logits of an episode -> the loss that training minimizes (paper, section 3.4)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class EpisodeLoss(nn.Module):
    """Weighted cross-entropy on the query, plus unweighted cross-entropy on the support (alignment).

    ``loss = CE(query; weights) + alignment_weight * CE(support)``. The query term is normalized by the sum of the
    pixels' weights; the alignment term is the mean over pixels and shots.

    Args:
        background_weight: Weight of background pixels in the query term; foreground pixels have 1. With 0, a query
            without foreground has a loss of 0.
        alignment_weight: Weight of the alignment term (lambda in the paper).

    Raises:
        ValueError: If a weight is negative.
    """

    def __init__(self, background_weight: float = 0.05, alignment_weight: float = 1.0) -> None:
        super().__init__()
        if background_weight < 0 or alignment_weight < 0:
            raise ValueError(
                f"loss weights must be at least 0, got background_weight {background_weight} "
                f"and alignment_weight {alignment_weight}. The paper uses 0.05 and 1."
            )
        self.background_weight = background_weight
        self.alignment_weight = alignment_weight

    def forward(self, logits: tuple[Tensor, Tensor], target: Mapping[str, Tensor]) -> Tensor:
        """Return the scalar loss of a batch of episodes.

        Args:
            logits: What ``AlignedALPNet`` returns: ``(B, 2, H, W)`` and ``(B, K, 2, H, W)``.
            target: ``label``, the queries' masks ``(B, 1, H, W)``, and ``support_mask``, ``(B, K, 1, H, W)``.
        """
        query_logits, support_logits = logits
        query = self.query_loss(query_logits, target["label"])
        return query + self.alignment_weight * alignment_loss(support_logits, target["support_mask"])

    def query_loss(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the weighted cross-entropy of ``logits (B, 2, H, W)`` against ``mask (B, 1, H, W)``."""
        weight = logits.new_tensor([self.background_weight, 1.0])
        # Each episode has its own normalizer, so that the batch's loss is the mean over its episodes.
        losses = []
        for one, target in zip(logits, mask, strict=True):
            if self.background_weight > 0 or bool(target.any()):
                losses.append(F.cross_entropy(one[None], target.long(), weight=weight))
            else:  # no pixel has a weight, and their mean would be no number
                losses.append(0 * one.sum())
        return torch.stack(losses).mean()


def alignment_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Return the mean cross-entropy of support logits ``(B, K, 2, H, W)`` against masks ``(B, K, 1, H, W)``."""
    return F.cross_entropy(logits.flatten(0, 1), mask.flatten(0, 1).squeeze(1).long())
