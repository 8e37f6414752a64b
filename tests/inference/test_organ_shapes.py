"""Shapes of organs in annotated scans."""

from __future__ import annotations

import math

import pytest
import torch
from bundle.inference.organ_shapes import OrganShape, shapes_of, thickness_of, typical_thickness


@pytest.mark.parametrize("width", [2, 4, 8])
def test_the_thickness_of_a_long_strip_is_its_width(width: int) -> None:
    mask = torch.zeros(20, 400, 3, dtype=torch.bool)
    mask[5 : 5 + width, :, 1] = True
    mask[5 : 5 + width, :, 2] = True
    assert thickness_of(mask) == pytest.approx(width, rel=0.05)


def test_the_thickness_of_a_disk_is_two_thirds_of_its_diameter() -> None:
    y, x = torch.meshgrid(torch.arange(100) - 50, torch.arange(100) - 50, indexing="ij")
    assert thickness_of((y**2 + x**2 <= 40**2)[..., None]) == pytest.approx(2 / 3 * 80, rel=0.05)


def test_a_ring_is_thin_and_its_inside_is_not() -> None:
    y, x = torch.meshgrid(torch.arange(100) - 50, torch.arange(100) - 50, indexing="ij")
    radius = (y**2 + x**2).sqrt()
    label = torch.zeros(1, 100, 100, 2)
    label[0, radius <= 30] = 1.0
    label[0, radius <= 22] = 2.0
    for partial in (False, True):
        shapes = shapes_of(label, partial)
        assert shapes[1].thickness == pytest.approx(8, abs=1)
        assert shapes[2].thickness == pytest.approx(2 / 3 * 44, abs=2)


def test_an_empty_mask_has_no_thickness() -> None:
    assert math.isnan(thickness_of(torch.zeros(4, 4, 2, dtype=torch.bool)))


def test_the_thickness_of_several_scans_is_the_median_of_the_known_ones() -> None:
    shapes = [OrganShape(1, thickness=value) for value in (3.0, math.nan, 5.0, 10.0)]
    assert typical_thickness(shapes) == 5.0
    assert math.isnan(typical_thickness(shapes[1:2]))
    assert math.isnan(typical_thickness([]))
