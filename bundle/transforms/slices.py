"""Slices and chunks: which support slice is used for which query slice (paper, section 4.2; Roy et al. 2020).

An organ's extent is divided into chunks of slices. Each chunk of the support is represented by its middle slice, and
each query slice is segmented with the support slice of its own chunk.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def shows_organ(label: Tensor, organ: int) -> Tensor:
    """Return for each slice of ``label (1, H, W, Z)`` whether it shows the organ, ``(Z,)``."""
    return (label[0] == organ).any(dim=0).any(dim=0)


def organ_slices(label: Tensor, organ: int) -> list[int]:
    """Return the slices of ``label (1, H, W, Z)`` that show the organ, in order."""
    return torch.nonzero(shows_organ(label, organ)).flatten().tolist()


def organs_of(label: Tensor) -> list[int]:
    """Return the ids of the organs in a label map."""
    return [int(organ) for organ in torch.unique(label) if organ > 0]


def support_slices(slices: Sequence[int], chunks: int) -> list[int]:
    """Return the middle slice of each chunk of an organ.

    Args:
        slices: All slices of the support scan that show the organ, in order; gaps are allowed.
        chunks: Number of chunks, of equal length.

    Returns:
        One slice for each chunk; for short organs some are repeated.

    Raises:
        ValueError: If there is no slice, or no chunk.
    """
    if chunks < 1:
        raise ValueError(f"chunks must be at least 1, got {chunks}. The paper uses 3.")
    if not slices:
        raise ValueError("the organ has no voxel in the support scan. Choose another support scan or organ.")
    first = 1 / (2 * chunks)
    step = (1 - 2 * first) / (chunks - 1) if chunks > 1 else 0.0
    return [slices[int((first + chunk * step) * len(slices))] for chunk in range(chunks)]


def chunks_of_extent(depth: int, first: int, last: int, chunks: int) -> list[int]:
    """Assign each slice of a scan to a chunk, given the organ's first and last slice in the same scan.

    This is the paper's protocol and needs the truth of the query. Slices outside the extent belong to the nearest
    chunk; an organ of one slice is chunk 0.
    """
    length = (last - first) / chunks
    places = np.zeros(depth) if length == 0 else np.floor((np.arange(depth) - first) / length)
    return np.clip(places, 0, chunks - 1).astype(int).tolist()


def chunks_by_position(depth: int, extent: tuple[float, float], chunks: int) -> list[int]:
    """Assign each slice of a scan to a chunk by its relative height alone, without the truth of the query.

    Args:
        depth: Number of slices of the query scan.
        extent: Where the organ begins and ends in the support scan, as shares of that scan's height; begin < end.
        chunks: Number of chunks.
    """
    heights = (np.arange(depth) + 0.5) / depth
    places = np.floor((heights - extent[0]) / ((extent[1] - extent[0]) / chunks))
    return np.clip(places, 0, chunks - 1).astype(int).tolist()


def to_network(slices: Tensor, channels: int = 3) -> Tensor:
    """Turn slices ``(1, H, W, S)`` into images ``(S, channels, H, W)``."""
    return slices[0].movedim(-1, 0)[:, None].repeat(1, channels, 1, 1)
