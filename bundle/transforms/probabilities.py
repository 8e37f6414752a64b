"""Probabilities: refined scores of organs -> bytes that are small enough to keep for every voxel."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from bundle.keys import PROBABILITIES
from bundle.transforms.masks import plain
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

# The byte of probability 1.
CERTAIN = 255


class AddProbabilitiesd(MapTransform):
    """Add the probability of every organ in every voxel, in bytes, as ``data["probabilities"]``.

    It is the sigmoid of the organ's refined score: the quality of a mask is the median of its voxels' values. It is a
    confidence of the network, not calibrated, and organs do not share it: two may be above 1/2 in one voxel, where the
    mask has the higher one.

    Args:
        keys: Refined scores ``(O, H, W, Z)``.
        enabled: If false, nothing is added.
    """

    def __init__(self, keys: KeysCollection, enabled: bool = True) -> None:
        super().__init__(keys)
        self.enabled = enabled

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return ``data`` with ``(O, H, W, Z)`` uint8, 0 to 255, which carries the scores' meta."""
        result = dict(data)
        for key in self.key_iterator(data) if self.enabled else ():
            scores = data[key]
            values = torch.stack([_in_bytes(own) for own in plain(scores)])
            result[PROBABILITIES] = MetaTensor(values, meta=scores.meta)
        return result


def _in_bytes(scores: Tensor) -> Tensor:
    """Return sigmoids times 255, rounded away from 1/2: above it just where the score is above 0."""
    scaled = scores.sigmoid() * CERTAIN
    return torch.where(scores > 0, scaled.ceil(), scaled.floor().clamp(max=CERTAIN // 2)).to(torch.uint8)
