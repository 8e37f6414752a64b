"""Tests of ``bundle.inference.next_slice``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from bundle.inference.next_slice import slice_order


def described(angles: list[float]) -> torch.Tensor:
    """Slices that look as alike as directions in the plane, angles in degrees."""
    turned = torch.deg2rad(torch.tensor(angles))
    return torch.stack([turned.cos(), turned.sin()], dim=1)


def test_one_slice_of_each_kind_comes_before_a_second_one_of_any() -> None:
    """Four slices of one kind, two of another, one of a third."""
    order = slice_order(described([0, 2, 4, 6, 120, 122, 240]))
    assert order[0] in range(4)  # most slices look like it
    assert order[1] in (4, 5)  # then the kind of two slices, then that of one
    assert order[2] == 6


def test_every_slice_is_in_the_order_once() -> None:
    assert sorted(slice_order(described([0, 50, 200, 10, 11]))) == [0, 1, 2, 3, 4]
    assert slice_order(torch.zeros(0, 3)) == []


def test_drawn_slices_are_taken_into_account_and_not_named_again() -> None:
    order = slice_order(described([0, 2, 4, 90, 92]), drawn=[1])
    assert order[0] in (3, 4)
    assert sorted(order) == [0, 2, 3, 4]


def test_each_slice_is_the_best_to_add() -> None:
    """The definition, by trying every slice."""
    descriptions = F.normalize(torch.randn(9, 4, generator=torch.Generator("cpu").manual_seed(3), device="cpu"), dim=1)
    similarity, drawn = descriptions @ descriptions.T, []
    for z in slice_order(descriptions):
        values = {
            other: float(similarity[:, [*drawn, other]].max(dim=1).values.mean())
            for other in range(9)
            if other not in drawn
        }
        assert values[z] >= max(values.values()) - 1e-6
        drawn.append(z)
