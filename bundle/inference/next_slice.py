"""Which slice of a scan to annotate next. It needs neither training nor labels.

    features of all slices  ->  similarity of each slice to the others  ->  order to annotate them in

The first slice is the most similar to all others. Each next one is chosen so that every slice of the scan is similar to
an annotated one (greedy facility location).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def slice_order(descriptions: Tensor, drawn: Sequence[int] = ()) -> list[int]:
    """Return the slices of a scan in the order to annotate them.

    Args:
        descriptions: Descriptions of the slices, unit vectors ``(Z, E)``; see ``SliceMatching.describe``.
        drawn: Slices that are already annotated.

    Returns:
        All other slices. Each one adds most to the mean similarity of all slices to their nearest annotated slice.
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
