"""Views of a slice that is wider than high, with an object off its center."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from bundle.transforms.augmentation import Augmentation, View, change_gamma, warp_affine, warp_elastic

HEIGHT, WIDTH = 48, 72
STILL = View(
    rotate=0.0, translate=(0.0, 0.0), shear=0.0, zoom=1.0, displacement=np.zeros((2, HEIGHT, WIDTH)), gamma=1.0
)
BOUNDED = Augmentation(
    rotate=(3, 9), translate=(-7, -2), shear=(-4, -1), zoom=(1.3, 1.4), gamma=(0.2, 0.4), elastic_magnitude=2.5
)


def slice_and_mask() -> tuple[np.ndarray, np.ndarray]:
    """A smooth image, and a disc of radius 9 about row 20, column 31."""
    rows, columns = np.indices((HEIGHT, WIDTH))
    image = np.sin(rows / 7) + 0.02 * columns
    return image, ((rows - 20) ** 2 + (columns - 31) ** 2 <= 9**2).astype(np.uint8)


def moved(point: tuple[float, float], **view: Any) -> np.ndarray:
    """Where a point (column, row) goes."""
    return (replace(STILL, **view).matrix(HEIGHT, WIDTH) @ [*point, 1])[:2]


# --- geometry --------------------------------------------------------------------------------------------------


def test_a_view_without_motion_changes_nothing() -> None:
    image, mask = slice_and_mask()
    image_out, mask_out = Augmentation().apply(STILL, image, mask)
    np.testing.assert_allclose(image_out, image, atol=3e-5)
    np.testing.assert_array_equal(mask_out, mask)


def test_a_translation_moves_along_columns_then_rows_and_what_comes_in_is_0() -> None:
    image, mask = slice_and_mask()
    channels = torch.tensor(np.stack([image, mask]))
    shifted = warp_affine(channels, replace(STILL, translate=(5, -3)).matrix(HEIGHT, WIDTH))
    expected = torch.zeros_like(channels)
    expected[:, :-3, 5:] = channels[:, 3:, :-5]
    torch.testing.assert_close(shifted, expected)


def test_a_positive_rotation_turns_counter_clockwise_as_seen() -> None:
    to_the_right = moved((30, 20), rotate=30.0) - moved((20, 20), rotate=30.0)
    np.testing.assert_allclose(to_the_right, [10 * np.sqrt(0.75), -5], atol=1e-12)  # row 0 is on top: -5 is up


def test_a_shear_moves_columns_against_their_row_about_the_top_left_corner() -> None:
    np.testing.assert_allclose(moved((0, 0), shear=30.0), [0, 0], atol=1e-12)
    np.testing.assert_allclose(moved((50, 0), shear=30.0), [50, 0], atol=1e-12)
    np.testing.assert_allclose(moved((50, 40), shear=30.0), [50 - 40 * 0.5, 40 * np.sqrt(0.75)], atol=1e-12)


@pytest.mark.parametrize("change", [{"zoom": 1.5}, {"rotate": 40.0}], ids=["zoom", "rotation"])
@pytest.mark.parametrize(("height", "width"), [(72, 72), (48, 72), (71, 45)])
def test_what_stays_is_the_authors_center(change: dict[str, float], height: int, width: int) -> None:
    """Column H / 2 and row W // 2: the slice's center if it is square, but for half a pixel."""
    center = np.array([height / 2, width // 2, 1.0])
    np.testing.assert_allclose(replace(STILL, **change).matrix(height, width) @ center, center, atol=1e-12)


@pytest.mark.parametrize("zoom", [0.8, 1.25, 1.5])
def test_zoom_scales_the_area_of_the_mask_by_its_square(zoom: float) -> None:
    image, mask = slice_and_mask()
    _, zoomed = Augmentation().apply(replace(STILL, zoom=zoom), image, mask)
    assert zoomed.sum() / mask.sum() == pytest.approx(zoom**2, rel=0.04)


def test_the_elastic_field_says_from_where_a_pixel_is_fetched_columns_first() -> None:
    image, mask = slice_and_mask()
    channels = torch.tensor(np.stack([image, mask]))
    displacement = np.stack([np.full((HEIGHT, WIDTH), 4.0), np.full((HEIGHT, WIDTH), -2.0)])
    bent = warp_elastic(channels, displacement)
    torch.testing.assert_close(bent[:, 2:, :-4], channels[:, :-2, 4:])


def test_the_elastic_field_fetches_beyond_the_edge_from_the_mirrored_slice() -> None:
    channels = torch.rand(1, HEIGHT, WIDTH, dtype=torch.float64)
    bent = warp_elastic(channels, np.stack([np.full((HEIGHT, WIDTH), 3.0), np.zeros((HEIGHT, WIDTH))]))
    torch.testing.assert_close(bent[..., -3:], channels[..., -3:].flip(-1))


@pytest.mark.parametrize("seed", range(3))
def test_one_view_moves_image_and_mask_alike(seed: int) -> None:
    augmentation = Augmentation(gamma=(1, 1))
    view = augmentation.draw(np.random.default_rng(seed), HEIGHT, WIDTH)
    _, mask = slice_and_mask()
    image_out, mask_out = augmentation.apply(view, mask.astype(float), mask)
    assert not np.array_equal(mask_out, mask)
    np.testing.assert_array_equal(image_out > 0.5 + 1e-4, mask_out)


def test_a_views_image_is_float32_and_its_mask_uint8_of_0_and_1() -> None:
    view = BOUNDED.draw(np.random.default_rng(1), HEIGHT, WIDTH)
    image, mask = BOUNDED.apply(view, *slice_and_mask())
    assert (image.dtype, mask.dtype) == (np.float32, np.uint8)
    assert image.shape == mask.shape == (HEIGHT, WIDTH)
    assert set(np.unique(mask)) == {0, 1}


def test_a_view_leaves_the_slice_that_it_was_made_of_alone() -> None:
    image, mask = slice_and_mask()
    BOUNDED.apply(BOUNDED.draw(np.random.default_rng(1), HEIGHT, WIDTH), image, mask)
    np.testing.assert_array_equal(image, slice_and_mask()[0])
    np.testing.assert_array_equal(mask, slice_and_mask()[1])


# --- intensity -------------------------------------------------------------------------------------------------


def test_gamma_bends_the_intensities_between_their_own_ends() -> None:
    image = torch.tensor([[-2.0, -1.0, 0.0], [1.0, 1.5, 2.0]], dtype=torch.float64)
    # Shares of the range, squared: 0, 1/16, 4/16, 9/16, 49/64, 1; the range is 4 from -2.
    expected = torch.tensor([[-2.0, -1.75, -1.0], [0.25, 1.0625, 2.0]], dtype=torch.float64)
    torch.testing.assert_close(change_gamma(image, 2.0), expected, atol=3e-5, rtol=0)


@pytest.mark.parametrize("gamma", [0.5, 1.5])
def test_a_constant_slice_stays_finite_under_gamma(gamma: float) -> None:
    changed = change_gamma(torch.full((4, 6), 3.0, dtype=torch.float64), gamma)
    torch.testing.assert_close(changed, torch.full((4, 6), 3.0, dtype=torch.float64), atol=1e-4, rtol=0)


def test_gamma_leaves_the_mask_alone() -> None:
    image, mask = slice_and_mask()
    np.testing.assert_array_equal(Augmentation().apply(replace(STILL, gamma=0.5), image, mask)[1], mask)


# --- the draw --------------------------------------------------------------------------------------------------


def test_the_default_ranges_are_the_papers() -> None:
    augmentation = Augmentation()
    assert augmentation.rotate == augmentation.translate == augmentation.shear == (-5, 5)
    assert augmentation.zoom == (0.9, 1.2)
    assert augmentation.gamma == (0.5, 1.5)
    assert (augmentation.elastic_magnitude, augmentation.elastic_sigma) == (10, 5)


def test_one_seed_gives_one_view_and_another_seed_another() -> None:
    first, same, other = (BOUNDED.draw(np.random.default_rng(seed), HEIGHT, WIDTH) for seed in (7, 7, 8))
    np.testing.assert_equal(vars(same), vars(first))
    assert other.rotate != first.rotate
    assert not np.array_equal(other.displacement, first.displacement)


def test_two_views_of_one_generator_differ() -> None:
    random = np.random.default_rng(7)
    views = [BOUNDED.draw(random, HEIGHT, WIDTH) for _ in range(2)]
    assert views[0].rotate != views[1].rotate
    assert not np.array_equal(views[0].displacement, views[1].displacement)


@pytest.mark.parametrize("name", ["rotate", "shear", "zoom", "gamma"])
def test_a_draw_stays_in_its_range_and_uses_all_of_it(name: str) -> None:
    random = np.random.default_rng(0)
    drawn = [getattr(BOUNDED.draw(random, 6, 9), name) for _ in range(60)]
    low, high = getattr(BOUNDED, name)
    assert low <= min(drawn) < low + 0.2 * (high - low)
    assert high - 0.2 * (high - low) < max(drawn) <= high


def test_the_shifts_along_columns_and_rows_are_drawn_apart_within_their_range() -> None:
    random = np.random.default_rng(0)
    shifts = np.array([BOUNDED.draw(random, 6, 9).translate for _ in range(60)])
    assert shifts.min() >= -7
    assert shifts.max() <= -2
    assert (shifts[:, 0] != shifts[:, 1]).all()


def test_the_elastic_field_is_smooth_differs_between_axes_and_stays_below_its_magnitude() -> None:
    field = BOUNDED.draw(np.random.default_rng(0), HEIGHT, WIDTH).displacement
    assert field.shape == (2, HEIGHT, WIDTH)
    assert not np.array_equal(field[0], field[1])
    assert 0 < np.abs(field).max() < 2.5
    assert np.abs(np.diff(field, axis=-1)).max() < 0.25 * np.abs(field).max()


def test_the_elastic_field_is_multiplied_by_its_magnitude() -> None:
    np.testing.assert_allclose(Augmentation(elastic_magnitude=6).smooth(np.ones((2, 20, 30))), 6)


def test_an_elastic_magnitude_of_0_bends_nothing() -> None:
    view = Augmentation(elastic_magnitude=0).draw(np.random.default_rng(0), HEIGHT, WIDTH)
    assert not view.displacement.any()


def test_a_range_of_one_value_always_gives_it() -> None:
    assert Augmentation(rotate=(2, 2)).draw(np.random.default_rng(0), 6, 9).rotate == 2


# --- errors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("span", [(5, -5), (1.0,), (0.9, 1.0, 1.2)], ids=str)
@pytest.mark.parametrize("name", ["rotate", "translate", "shear", "zoom", "gamma"])
def test_a_range_that_is_not_low_and_high_is_refused(name: str, span: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=rf"augmentation {name} must be \[low, high\] with low <= high"):
        Augmentation(**{name: span})


@pytest.mark.parametrize("name", ["zoom", "gamma"])
@pytest.mark.parametrize("low", [0.0, -0.5])
def test_a_factor_that_can_be_0_or_less_is_refused(name: str, low: float) -> None:
    with pytest.raises(ValueError, match=rf"augmentation {name} must be above 0, got \[{low}, 1\.5\]"):
        Augmentation(**{name: (low, 1.5)})
