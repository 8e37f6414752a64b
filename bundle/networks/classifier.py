"""Score query features against the prototypes of one class: features (D, h, w) + prototypes (N, D) -> (h, w)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CosineClassifier(nn.Module):
    """Softmax-weighted cosine similarity to the prototypes of one class (paper, section 3.3, eq. 3 and 4).

    Each pixel's score is the mean of its similarities to all prototypes, weighted by their softmax: a smooth
    approximation of the largest similarity.

    Args:
        scale: Factor of the cosine, so that the softmax over prototypes is sharp; > 0.
        eps: Lower bound of the length that a vector is divided by, so that a prototype of zeros scores 0.

    Raises:
        ValueError: If ``scale`` is not positive.
    """

    def __init__(self, scale: float = 20.0, eps: float = 1e-4) -> None:
        super().__init__()
        if scale <= 0:
            raise ValueError(f"scale, the factor of the cosine, must be positive, got {scale}. The paper uses 20.")
        self.scale = float(scale)
        self.eps = eps
        self.largest_block = 1 << 21  # similarities in memory at once, 8 MiB

    def forward(self, features: Tensor, prototypes: Tensor) -> Tensor:
        """Return the ``(h, w)`` score, in [-scale, scale], of ``features (D, h, w)``; 0 if there is no prototype."""
        if len(prototypes) == 0:
            return features.new_zeros(features.shape[-2:])
        pixels = F.normalize(features, dim=0, eps=self.eps).flatten(1)
        directions = F.normalize(prototypes, dim=1, eps=self.eps)
        # In blocks of pixels, so that memory does not grow with the number of prototypes.
        size = max(16, self.largest_block // len(prototypes) // 16 * 16)
        scores = [self.combine(_products(some, directions)) for some in pixels.split(size, dim=1)]
        return torch.cat(scores).reshape(features.shape[-2:])

    def combine(self, cosine: Tensor) -> Tensor:
        """Return the ``(P,)`` scores of pixels from their cosines ``(P, N)`` to the prototypes, ``N >= 1``."""
        similarity = self.scale * cosine
        return (similarity.softmax(dim=1) * similarity).sum(dim=1)

    def similarity(self, features: Tensor, prototypes: Tensor) -> Tensor:
        """Return the scaled cosine ``(N, h, w)`` of each pixel to each prototype."""
        pixels = F.normalize(features, dim=0, eps=self.eps).flatten(1)
        products = _products(pixels, F.normalize(prototypes, dim=1, eps=self.eps))
        return self.scale * products.T.unflatten(1, features.shape[-2:])


class TopKClassifier(CosineClassifier):
    """Mean of the largest cosine similarities to the prototypes of one class.

    Unlike the softmax-weighted mean, it does not fall when dissimilar prototypes are added to a class: among thousands
    of prototypes, from all slices of a scan, those would outweigh the few similar ones.

    Args:
        k: Number of similarities to average; all of them if there are fewer prototypes.
        scale: Factor of the cosine; > 0.
        eps: Lower bound of the length that a vector is divided by.

    Raises:
        ValueError: If ``k`` is below 1 or ``scale`` is not positive.
    """

    def __init__(self, k: int = 5, scale: float = 20.0, eps: float = 1e-4) -> None:
        super().__init__(scale, eps)
        if k < 1:
            raise ValueError(f"k, the number of averaged similarities, must be at least 1, got {k}. The default is 5.")
        self.k = k

    def combine(self, cosine: Tensor) -> Tensor:
        """Return the ``(P,)`` scores of pixels from their cosines ``(P, N)`` to the prototypes, ``N >= 1``."""
        return self.scale * cosine.topk(min(self.k, cosine.shape[1]), dim=1, sorted=False).values.mean(dim=1)


def _products(pixels: Tensor, prototypes: Tensor) -> Tensor:
    """Return the ``(P, N)`` dot products of pixels ``(D, P)`` and prototypes ``(N, D)``."""
    if pixels.device.type != "cpu" or torch.is_grad_enabled():
        return (prototypes @ pixels).T
    # On a CPU, oneDNN's convolution with channels last is twice as fast as the matrix product; with a single thread
    # PyTorch uses it for batches of 16 or more only. On a GPU it would round to TensorFloat-32, and training has only
    # few prototypes.
    dimensions, number = pixels.shape[0], pixels.shape[1]
    if number % 16 > 0:
        pixels = F.pad(pixels, [0, 16 - number % 16])
    images = pixels.T.contiguous().reshape(16, 1, -1, dimensions).movedim(-1, 1)
    return F.conv2d(images, prototypes[..., None, None]).movedim(1, -1).flatten(0, 2)[:number]
