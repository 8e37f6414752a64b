"""Tests of ``bundle.networks.prototypes``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bundle.networks import BackgroundPrototypes, ClassPrototype, ForegroundPrototypes, LocalPrototypes
from bundle.networks.prototypes import masked_average_pool
from torch import Tensor, nn

POOLINGS = [ClassPrototype, LocalPrototypes, ForegroundPrototypes, BackgroundPrototypes]


def block(top: int, left: int, height: int, width: int, field: tuple[int, int] = (12, 16)) -> Tensor:
    """A rectangle in a field, ``(1, 1, *field)``."""
    mask = torch.zeros(1, 1, *field)
    mask[..., top : top + height, left : left + width] = 1
    return mask


def pool_by_loop(features: Tensor, mask: Tensor, window: int | tuple[int, int], min_coverage: float) -> Tensor:
    """The paper's definition, one cell at a time."""
    rows, columns = window if isinstance(window, tuple) else (window, window)
    kept = []
    for shot, shot_mask in zip(features, mask, strict=True):
        for top in range(0, shot.shape[-2] - rows + 1, rows):
            for left in range(0, shot.shape[-1] - columns + 1, columns):
                cell = (slice(top, top + rows), slice(left, left + columns))
                if shot_mask[0][cell].mean() > min_coverage:
                    kept.append(shot[(slice(None), *cell)].mean(dim=(-2, -1)))
    return torch.stack(kept) if kept else features.new_zeros(0, features.shape[1])


@pytest.mark.parametrize("window", [1, 2, 3, 4, (3, 5), (5, 3), (1, 14)])
@pytest.mark.parametrize("shots", [1, 3])
def test_local_prototypes_match_the_loop(window: Any, shots: int) -> None:
    features = torch.randn(shots, 5, 9, 14)
    mask = (torch.rand(shots, 1, 9, 14) > 0.3).float()
    pooling = LocalPrototypes(window, eval_window=None, min_coverage=0.5)
    torch.testing.assert_close(pooling(features, mask), pool_by_loop(features, mask, window, 0.5))


def test_windows_may_have_other_rows_than_columns_in_training_in_eval_mode_and_in_the_rule() -> None:
    features, mask = torch.randn(1, 5, 12, 20), block(3, 5, 3, 5, field=(12, 20))
    pooling = ForegroundPrototypes(window=[3, 5], eval_window=(1, 5), rule_window=[3, 5])
    assert pooling.train()(features, mask).shape[0] == 1 + 1
    torch.testing.assert_close(pooling(features, mask)[:1], features[:, :, 3:6, 5:10].mean((-2, -1)))
    assert pooling.eval()(features, mask).shape[0] == 3 + 1
    assert ForegroundPrototypes(3, rule_window=(5, 3))(features, mask).shape[0] == 1
    assert ForegroundPrototypes(3, rule_window=(4, 21))(features, mask).shape[0] == 1  # no cell fits the map
    assert BackgroundPrototypes([3, 5])(features, 1 - mask).shape[0] == 4 * 4 - 1


def test_mixed_cells_are_dropped_or_go_to_the_background() -> None:
    """Four cells of 4 x 4: free of foreground, half covered, covered but for a pixel, covered."""
    foreground = torch.zeros(1, 1, 4, 16)
    foreground[..., :2, 4:8] = 1
    foreground[..., 8:16] = 1
    foreground[..., 0, 8] = 0  # 15 of 16 pixels: 0.9375
    features = torch.randn(1, 5, 4, 16)
    cells = features[0].unflatten(-1, (4, 4)).mean(dim=(1, 3)).T
    for mixed, coverage, expected in [
        ("drop", 0.95, [0]),
        ("background", 0.95, [0, 1, 2]),
        ("background", 0.93, [0, 1]),
        ("background", 0.9375, [0, 1]),  # as much as the threshold is covered
    ]:
        pooling = BackgroundPrototypes(4, min_coverage=coverage, mixed_cells=mixed)
        torch.testing.assert_close(pooling(features, 1 - foreground), cells[expected])


def test_unknown_or_useless_ways_with_mixed_cells_are_refused() -> None:
    with pytest.raises(ValueError, match="mixed_cells must be 'drop' or 'background', got 'keep'"):
        BackgroundPrototypes(mixed_cells="keep")
    with pytest.raises(ValueError, match="min_coverage must be above 0 with mixed_cells 'background'"):
        BackgroundPrototypes(min_coverage=0.0, mixed_cells="background")


def test_the_window_is_4_in_training_and_2_in_eval_mode() -> None:
    features, mask = torch.randn(1, 5, 12, 16), block(0, 0, 12, 16)
    pooling = LocalPrototypes()
    assert pooling.train()(features, mask).shape == (3 * 4, 5)
    assert pooling.eval()(features, mask).shape == (6 * 8, 5)


def test_a_cell_is_kept_only_above_the_coverage() -> None:
    mask = block(0, 0, 4, 4)
    mask[..., 0, 0] = 0  # 15 of 16 pixels: 0.9375
    features = torch.randn(1, 5, 12, 16)
    assert LocalPrototypes(4, min_coverage=0.93)(features, mask).shape[0] == 1
    assert LocalPrototypes(4, min_coverage=0.9375)(features, mask).shape[0] == 0


def test_foreground_has_local_prototypes_and_one_a_shot_last() -> None:
    features = torch.randn(2, 5, 12, 16)
    mask = torch.cat([block(4, 4, 4, 8), block(0, 0, 2, 2)])
    prototypes = ForegroundPrototypes(window=4)(features, mask)
    torch.testing.assert_close(prototypes[:2], pool_by_loop(features, mask, 4, 0.95))
    torch.testing.assert_close(prototypes[2:], masked_average_pool(features, mask))


def test_a_small_foreground_has_one_prototype_averaged_over_shots() -> None:
    features = torch.randn(2, 5, 12, 16)
    mask = torch.cat([block(5, 5, 2, 2), block(1, 1, 3, 3)])
    expected = (features[0, :, 5:7, 5:7].mean((-2, -1)) + features[1, :, 1:4, 1:4].mean((-2, -1))) / 2
    torch.testing.assert_close(ForegroundPrototypes()(features, mask), expected[None], rtol=1e-4, atol=1e-5)


def test_the_rule_for_local_foreground_asks_4_x_4_cells_in_eval_mode_too() -> None:
    mask = block(1, 1, 4, 4)  # covers 2 x 2 cells, but no 4 x 4 cell of the grid
    pooling = ForegroundPrototypes().eval()
    assert pooling(torch.randn(1, 5, 12, 16), mask).shape[0] == 1
    assert pooling.local(torch.randn(1, 5, 12, 16), mask).shape[0] == 1
    assert ForegroundPrototypes(rule_window=2).eval()(torch.randn(1, 5, 12, 16), mask).shape[0] == 2


def test_background_without_a_covered_cell_is_one_class_prototype() -> None:
    features, mask = torch.randn(1, 5, 12, 16), block(5, 5, 2, 2)
    expected = features[0, :, 5:7, 5:7].mean((-2, -1))
    torch.testing.assert_close(BackgroundPrototypes()(features, mask), expected[None], rtol=1e-4, atol=1e-5)


def test_background_has_no_class_prototype_beside_local_ones() -> None:
    features, mask = torch.randn(1, 5, 12, 16), block(0, 0, 8, 8)
    torch.testing.assert_close(BackgroundPrototypes(4)(features, mask), pool_by_loop(features, mask, 4, 0.95))


@pytest.mark.parametrize("pooling", POOLINGS)
class TestEveryPooling:
    """What holds for each member; a new one is added to ``POOLINGS``."""

    def test_it_gives_vectors_of_the_features(self, pooling: type[nn.Module]) -> None:
        prototypes = pooling()(torch.randn(3, 5, 12, 16), block(0, 0, 8, 8).expand(3, 1, 12, 16))
        assert prototypes.ndim == 2
        assert prototypes.shape[1] == 5

    def test_an_empty_mask_gives_zeros_or_nothing(self, pooling: type[nn.Module]) -> None:
        prototypes = pooling()(torch.randn(1, 5, 12, 16), torch.zeros(1, 1, 12, 16))
        assert prototypes.shape[0] <= 1
        assert bool((prototypes == 0).all())

    def test_a_full_mask_is_finite(self, pooling: type[nn.Module]) -> None:
        prototypes = pooling()(torch.randn(1, 5, 12, 16), torch.ones(1, 1, 12, 16))
        assert prototypes.isfinite().all()

    def test_a_map_smaller_than_the_window_works(self, pooling: type[nn.Module]) -> None:
        assert pooling()(torch.randn(1, 5, 3, 2), torch.ones(1, 1, 3, 2)).isfinite().all()

    def test_of_a_constant_region_it_is_that_constant(self, pooling: type[nn.Module]) -> None:
        mask = block(4, 4, 8, 8)
        features = torch.where(mask.bool(), 3.0, 99.0).expand(1, 5, 12, 16)
        prototypes = pooling()(features, mask)
        torch.testing.assert_close(prototypes, torch.full_like(prototypes, 3.0))

    def test_gradient_reaches_the_features(self, pooling: type[nn.Module]) -> None:
        features = torch.randn(1, 5, 12, 16, requires_grad=True)
        pooling()(features, block(0, 0, 8, 8)).sum().backward()
        assert features.grad is not None
        assert bool((features.grad[..., :8, :8] != 0).any())

    def test_a_mask_at_image_resolution_is_refused(self, pooling: type[nn.Module]) -> None:
        with pytest.raises(ValueError, match=r"Resize the mask to the feature map"):
            pooling()(torch.randn(1, 5, 4, 4), torch.ones(1, 1, 12, 16))


@pytest.mark.parametrize("pooling", [LocalPrototypes, ForegroundPrototypes, BackgroundPrototypes])
@pytest.mark.parametrize("window", [0, -1, 1.5, True, "4", (3,), (3, 5, 1), [3, 0], (3, 2.0)])
def test_a_window_that_is_no_positive_whole_number_is_refused(pooling: type[nn.Module], window: Any) -> None:
    with pytest.raises(ValueError, match="window must be a whole number of feature-map pixels, at least 1"):
        pooling(window=window)


@pytest.mark.parametrize("pooling", [LocalPrototypes, ForegroundPrototypes, BackgroundPrototypes])
@pytest.mark.parametrize("min_coverage", [-0.1, 1.0, 1.5])
def test_a_coverage_out_of_range_is_refused(pooling: type[nn.Module], min_coverage: float) -> None:
    with pytest.raises(ValueError, match=r"min_coverage, a share of the cell, must be in \[0, 1\)"):
        pooling(min_coverage=min_coverage)


def test_the_same_shot_twice_leaves_the_class_prototype_as_it_is() -> None:
    features, mask = torch.randn(1, 5, 12, 16), block(2, 3, 4, 7)
    twice = ClassPrototype()(features.repeat(2, 1, 1, 1), mask.repeat(2, 1, 1, 1))
    torch.testing.assert_close(twice, ClassPrototype()(features, mask))


def test_the_rule_for_local_foreground_takes_coverage_that_is_just_reached() -> None:
    """At least the coverage for the rule, above it for a cell: here no cell is kept, but the rule holds."""
    features, mask = torch.randn(2, 5, 8, 8), torch.full((2, 1, 8, 8), 0.75)
    assert ForegroundPrototypes(min_coverage=0.75)(features, mask).shape[0] == 2  # one a shot, and not their mean
    assert LocalPrototypes(min_coverage=0.75)(features, mask).shape[0] == 0


@pytest.mark.parametrize("size", [(3, 16), (16, 3)])
def test_a_map_that_is_too_narrow_on_one_side_has_no_local_prototypes(size: tuple[int, int]) -> None:
    features, mask = torch.randn(1, 5, *size), torch.ones(1, 1, *size)
    assert LocalPrototypes(window=4)(features, mask).shape == (0, 5)
    assert ForegroundPrototypes(window=4)(features, mask).shape == (1, 5)
