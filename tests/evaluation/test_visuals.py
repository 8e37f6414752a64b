"""Pictures: masks drawn where they are, and everything else left as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from bundle.evaluation import visuals
from bundle.evaluation.visuals import (
    COLORS,
    caption,
    enlarged,
    episode_picture,
    overlay,
    overlay_label,
    save_png,
    side_by_side,
    stacked,
    to_gray,
)
from PIL import Image

GRAY = np.full((7, 10, 3), 100, dtype=np.uint8)


def block(rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros((7, 10), dtype=np.uint8)
    mask[rows, columns] = 1
    return mask


def test_an_overlay_is_solid_on_the_rim_tinted_inside_and_nothing_outside() -> None:
    drawn = overlay(GRAY, block(slice(1, 5), slice(2, 8)), color=(200, 0, 60), opacity=0.25)
    inside = block(slice(2, 4), slice(3, 7)).astype(bool)
    rim = block(slice(1, 5), slice(2, 8)).astype(bool) & ~inside
    assert (drawn[rim] == (200, 0, 60)).all()
    assert (drawn[inside] == (125, 75, 90)).all()
    assert (drawn[~rim & ~inside] == 100).all()


def test_an_overlay_leaves_the_picture_that_it_is_drawn_on() -> None:
    picture = GRAY.copy()
    overlay(picture, block(slice(1, 5), slice(2, 8)), color=(200, 0, 50))
    np.testing.assert_array_equal(picture, GRAY)


def test_an_empty_mask_draws_nothing() -> None:
    np.testing.assert_array_equal(overlay(GRAY, np.zeros((7, 10)), color=(200, 0, 50)), GRAY)


def test_each_organ_has_the_color_of_its_place_in_the_list_not_of_its_id() -> None:
    label = 6 * block(slice(1, 3), slice(1, 3)) + 3 * block(slice(4, 6), slice(7, 9))
    drawn = overlay_label(np.arange(70.0).reshape(7, 10), label, ids=[6, 3])
    assert tuple(drawn[1, 1]) == COLORS[0]
    assert tuple(drawn[5, 8]) == COLORS[1]


def test_the_ninth_organ_has_the_first_color_again() -> None:
    label = 9 * block(slice(1, 3), slice(1, 3))
    assert tuple(overlay_label(np.zeros((7, 10)), label, ids=range(1, 10))[1, 1]) == COLORS[0]


def test_gray_spans_the_range_whatever_it_is() -> None:
    slice_image = np.linspace(-1000, 3000, 70).reshape(7, 10)
    gray = to_gray(slice_image)
    assert (gray.shape, gray.dtype) == ((7, 10, 3), np.uint8)
    assert (gray[0, 0] == 0).all()
    assert (gray[6, 9] == 255).all()
    assert (np.diff(gray[..., 0].ravel().astype(int)) >= 0).all()


def test_a_constant_slice_is_black() -> None:
    assert to_gray(np.full((7, 10), 42.0)).max() == 0


@pytest.mark.parametrize(("least", "factor"), [(256, 26), (30, 3), (31, 4), (10, 1), (5, 1)])
def test_a_small_picture_is_enlarged_by_whole_pixels(least: int, factor: int) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (7, 10, 3), dtype=np.uint8)
    large = enlarged(picture, least)
    assert large.shape == (7 * factor, 10 * factor, 3)
    np.testing.assert_array_equal(large[::factor, ::factor], picture)
    np.testing.assert_array_equal(large[factor - 1 :: factor, factor - 1 :: factor], picture)


def test_pictures_side_by_side_have_a_white_gap_between_them_only() -> None:
    joined = side_by_side([GRAY, GRAY[:, :6], GRAY], gap=3)
    assert joined.shape == (7, 10 + 3 + 6 + 3 + 10, 3)
    assert (joined[:, 10:13] == 255).all()
    assert (joined[:, 19:22] == 255).all()
    assert (joined[:, -1] == 100).all()


def test_stacked_rows_have_a_white_gap_between_them_only() -> None:
    joined = stacked([GRAY, GRAY[:4]], gap=2)
    assert joined.shape == (7 + 2 + 4, 10, 3)
    assert (joined[7:9] == 255).all()
    assert (joined[-1] == 100).all()


def test_a_caption_stands_above_the_picture() -> None:
    picture = enlarged(GRAY, 100)
    captioned = caption(picture, "support, liver")
    assert captioned.shape == (70 + 16, 100, 3)
    assert captioned[:16].max() > 200
    np.testing.assert_array_equal(captioned[16:], picture)


def test_an_episode_shows_the_first_support_the_truth_and_the_prediction() -> None:
    episode = {
        "image": torch.rand(3, 7, 10),
        "label": torch.as_tensor(block(slice(1, 3), slice(1, 3)))[None],
        "support_image": torch.rand(2, 3, 7, 10),
        "support_mask": torch.as_tensor(np.stack([block(slice(1, 3), slice(7, 9)), np.zeros((7, 10))]))[:, None],
    }
    drawn = episode_picture(episode, block(slice(4, 6), slice(1, 3)))
    assert drawn.shape == (7, 3 * 10 + 2 * 4, 3)
    assert tuple(drawn[1, 8]) == COLORS[0]
    assert tuple(drawn[1, 14 + 1]) == COLORS[0]
    assert tuple(drawn[5, 28 + 2]) == COLORS[1]


def test_a_saved_picture_is_read_back_as_it_was(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (7, 10, 3), dtype=np.uint8)
    save_png(picture, tmp_path / "new" / "a.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new" / "a.png")), picture)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]


def test_a_picture_that_fails_midway_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(image: Image.Image, path: Path, **_: str) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    (tmp_path / "a.png").write_bytes(b"the old picture")
    monkeypatch.setattr(visuals.Image.Image, "save", fail)
    with pytest.raises(ValueError, match="No space left"):
        save_png(GRAY, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == b"the old picture"
