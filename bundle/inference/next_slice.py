"""Which slice of a scan to draw on next. No training, and no labels.

    features of all slices  ->  how much each slice looks like the others  ->  order to draw them in

The first is the slice that looks most like all others; each next one is chosen so that every slice of the scan has one
that looks like it among those that are drawn (facility location, greedily).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def slice_order(descriptions: Tensor, drawn: Sequence[int] = ()) -> list[int]:
    """Put the slices of a scan in the order to draw them in.

    Args:
        descriptions: What the slices look like, unit vectors ``(Z, E)``; see ``SliceMatching.describe``.
        drawn: Slices that are drawn already.

    Returns:
        All other slices. Each one raises most the mean over all slices of the similarity to the nearest drawn one.
    """
    similarity = descriptions @ descriptions.T
    left = [z for z in range(len(similarity)) if z not in set(drawn)]
    covered = similarity[:, list(drawn)].amax(dim=1) if drawn else similarity.new_full((len(similarity),), -1.0)
    order = []
    while left:
        gains = torch.maximum(similarity[:, left], covered[:, None]).mean(dim=0)
        best = left.pop(int(gains.argmax()))
        order.append(best)
        covered = torch.maximum(covered, similarity[:, best])
    return order
