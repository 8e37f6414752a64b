"""Score query features against the prototypes of one class: features (D, h, w) + prototypes (N, D) -> (h, w)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CosineClassifier(nn.Module):
    """Softmax-weighted cosine similarity to the prototypes of one class (paper, section 3.3, eq. 3 and 4).

    Each pixel's score is the mean of its similarities to all prototypes, weighted by their softmax: close
    to the largest similarity, yet smooth.

    Args:
        scale: Multiplies the cosine, so that the softmax over prototypes is sharp; > 0.
        eps: Smallest length that a vector is divided by, so that a prototype of zeros scores 0.

    Raises:
        ValueError: If ``scale`` is not positive.
    """

    def __init__(self, scale: float = 20.0, eps: float = 1e-4) -> None:
        super().__init__()
        if scale <= 0:
            raise ValueError(f"scale must be positive, it multiplies the cosine, got {scale}.")
        self.scale = float(scale)
        self.eps = eps

    def forward(self, features: Tensor, prototypes: Tensor) -> Tensor:
        """Return the ``(h, w)`` score, in [-scale, scale], of ``features (D, h, w)``; 0 if there is no prototype."""
        similarity = self.similarity(features, prototypes)
        return (similarity.softmax(dim=0) * similarity).sum(dim=0)

    def similarity(self, features: Tensor, prototypes: Tensor) -> Tensor:
        """Return the scaled cosine ``(N, h, w)`` of each pixel to each prototype."""
        unit_features = F.normalize(features, dim=0, eps=self.eps)
        unit_prototypes = F.normalize(prototypes, dim=1, eps=self.eps)
        return self.scale * torch.einsum("dhw,nd->nhw", unit_features, unit_prototypes)


class TopKClassifier(CosineClassifier):
    """Mean of the largest cosine similarities to the prototypes of one class.

    Unlike the softmax-weighted mean it does not fall when a class gets more prototypes that are unlike the pixel: with
    thousands of prototypes, from all slices of a scan, those would outweigh the few that fit.

    Args:
        k: Similarities to average; all of them where there are fewer prototypes.
        scale: Multiplies the cosine; > 0.
        eps: Smallest length that a vector is divided by.

    Raises:
        ValueError: If ``k`` is below 1 or ``scale`` is not positive.
    """

    def __init__(self, k: int = 5, scale: float = 20.0, eps: float = 1e-4) -> None:
        super().__init__(scale, eps)
        if k < 1:
            raise ValueError(f"k must be at least 1, it is how many similarities are averaged, got {k}.")
        self.k = k

    def forward(self, features: Tensor, prototypes: Tensor) -> Tensor:
        """Return the ``(h, w)`` score, in [-scale, scale], of ``features (D, h, w)``; 0 if there is no prototype."""
        if len(prototypes) == 0:
            return features.new_zeros(features.shape[-2:])
        # Pixels first: the largest of neighbors in memory are found several times faster.
        unit_features = F.normalize(features, dim=0, eps=self.eps).flatten(1).T
        similarity = unit_features @ F.normalize(prototypes, dim=1, eps=self.eps).T
        nearest = similarity.topk(min(self.k, len(prototypes)), dim=1, sorted=False).values
        return self.scale * nearest.mean(dim=1).reshape(features.shape[-2:])
