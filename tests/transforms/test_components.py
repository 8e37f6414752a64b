"""Tests of ``bundle.transforms.components``."""

from __future__ import annotations

import pytest
import torch
from bundle.transforms.components import count_components, largest_components
from torch import Tensor


def mask_of(*sizes: int) -> Tensor:
    """Components of so many voxels, each in a row of its own, in a volume of 20 x 7 x 20."""
    mask = torch.zeros(20, 7, 20, dtype=torch.bool)
    for number, size in enumerate(sizes):
        mask[2 * number, 3, :size] = True
    return mask


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [((), 0), ((1,), 1), ((12, 12), 2), ((12, 3), 2), ((12, 2), 1), ((12, 2, 2, 2, 2, 2), 1), ((8, 16, 12, 3), 3)],
)
def test_components_of_at_least_a_quarter_of_the_largest_are_counted(sizes: tuple[int, ...], expected: int) -> None:
    assert count_components(mask_of(*sizes)) == expected


def test_voxels_that_share_an_edge_or_a_corner_alone_are_not_connected() -> None:
    mask = torch.zeros(4, 4, 4, dtype=torch.bool)
    mask[0, 0, 0] = mask[0, 1, 1] = mask[1, 2, 2] = True
    assert count_components(mask) == 3
    mask[0, 0, 1] = True
    assert count_components(mask) == 2
    assert count_components(torch.eye(3, dtype=torch.bool)) == 3  # in a slice


@pytest.mark.parametrize(("number", "kept"), [(1, (12, 0, 0)), (2, (12, 5, 0)), (3, (12, 5, 2)), (9, (12, 5, 2))])
def test_the_largest_components_are_kept(number: int, kept: tuple[int, ...]) -> None:
    assert torch.equal(largest_components(mask_of(12, 5, 2), number), mask_of(*kept))


def test_an_empty_mask_stays_empty() -> None:
    assert not largest_components(mask_of(), 2).any()
