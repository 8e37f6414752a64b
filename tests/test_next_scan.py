"""Tests of ``bundle.next_scan``."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bundle.next_scan import describe_scan, rank_scans


def unit(*degrees: float) -> Tensor:
    angles = torch.deg2rad(torch.tensor(degrees))
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_the_scan_in_the_middle_comes_first() -> None:
    scans = {"left": unit(0.0), "middle": unit(40.0), "right": unit(80.0)}
    ranking = rank_scans(scans)
    assert ranking[0][0] == "middle"
    torch.testing.assert_close(torch.tensor(ranking[0][1]), torch.deg2rad(torch.tensor(40.0)).cos())


def test_what_is_explained_already_does_not_count() -> None:
    scans = {"a": unit(0.0), "like a": unit(1.0), "b": unit(90.0), "like b": unit(89.0)}
    assert rank_scans(scans, annotated=["a"])[0][0] in ("b", "like b")
    assert [name for name, _ in rank_scans(scans, annotated=["a", "b", "like b"])] == ["like a"]


def test_an_outlier_comes_last() -> None:
    scans = {name: unit(angle) for name, angle in (("a", 0.0), ("b", 5.0), ("c", 10.0), ("odd", 170.0))}
    assert rank_scans(scans)[-1][0] == "odd"


def test_a_scan_is_described_by_unit_features_of_its_body_the_same_each_time() -> None:
    volume = torch.zeros(1, 16, 24, 5)
    volume[0, 4:8, 4:12] = 2.0
    encoder = nn.Conv2d(3, 6, 1)
    one, two = (describe_scan(volume, encoder, samples=50, slice_batch=2) for _ in range(2))
    assert one.shape == (50, 6)
    torch.testing.assert_close(one, two)
    inside = nn.functional.normalize(encoder(torch.full((1, 3, 1, 1), 2.0)).flatten(), dim=0)
    torch.testing.assert_close(one, inside.expand(50, 6))


def test_a_volume_that_is_not_standardized_is_refused() -> None:
    with pytest.raises(ValueError, match="it is not standardized"):
        describe_scan(torch.full((1, 16, 24, 5), -1.0), nn.Conv2d(3, 6, 1))
