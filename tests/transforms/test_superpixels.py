"""Superpixels of slices small enough to draw."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bundle.transforms.superpixels import (
    SliceSegmenter,
    Superpixelsd,
    Supervoxelsd,
    body_mask,
    felzenszwalb_superpixels,
    number_superpixels,
    slic_superpixels,
)
from torch import Tensor


def quarters(image: np.ndarray) -> np.ndarray:
    """A segmenter that looks at no intensity: four rectangles, 0 to 3."""
    rows, columns = np.indices(image.shape)
    return 2 * (rows >= image.shape[0] // 2) + (columns >= image.shape[1] // 2)


def whole(image: np.ndarray) -> np.ndarray:
    return np.zeros(image.shape, dtype=int)


SEGMENTERS = {"felzenszwalb": felzenszwalb_superpixels, "slic": slic_superpixels, "quarters": quarters, "whole": whole}


def disc_volume() -> Tensor:
    """A textured bright disc off center in a dark background, ``(1, 48, 64, 3)``; the last slice is empty."""
    rows, columns = np.indices((48, 64))
    disc = (rows - 20) ** 2 + (columns - 36) ** 2 < 17**2
    noise = np.random.default_rng(4).uniform(0, 1, size=(48, 64, 3))
    image = 5 * noise + disc[..., None] * (300 + 200 * (columns > 36)[..., None] + 20 * noise)
    image[..., 2] = 5 * noise[..., 2]
    return torch.tensor(image[None], dtype=torch.float32)


def segment(volume: Tensor, **settings: object) -> Tensor:
    return Superpixelsd("image", **settings)({"image": volume})["superpixels"]


# --- numbering -------------------------------------------------------------------------------------------------

SEGMENTS = np.array([[0, 0, 1, 1, 2], [3, 3, 4, 4, 5], [6, 6, 6, 7, 7]])
BODY = np.array([[1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]], dtype=bool)


def test_consecutive_ids_count_the_segments_of_the_body_without_gaps() -> None:
    expected = [[1, 1, 2, 0, 0], [3, 3, 0, 0, 0], [4, 4, 4, 5, 5]]
    np.testing.assert_array_equal(number_superpixels(SEGMENTS, BODY), expected)


def test_reference_ids_lose_segment_0_leave_gaps_and_raise_the_last() -> None:
    expected = [[0, 0, 1, 0, 0], [3, 3, 0, 0, 0], [6, 6, 6, 8, 8]]
    np.testing.assert_array_equal(number_superpixels(SEGMENTS, BODY, "reference"), expected)


def test_a_body_that_fills_the_slice_keeps_every_segment() -> None:
    np.testing.assert_array_equal(number_superpixels(SEGMENTS, np.ones_like(BODY)), SEGMENTS + 1)


@pytest.mark.parametrize("numbering", ["consecutive", "reference"])
def test_a_slice_without_body_has_no_superpixel(numbering: str) -> None:
    assert not number_superpixels(SEGMENTS, np.zeros_like(BODY), numbering).any()


def test_one_segment_for_the_whole_slice_is_one_superpixel() -> None:
    np.testing.assert_array_equal(number_superpixels(np.zeros((3, 5), dtype=int), BODY), BODY)


def test_an_unknown_numbering_is_refused() -> None:
    with pytest.raises(ValueError, match=r"numbering must be 'consecutive' or 'reference', got 'dense'"):
        number_superpixels(SEGMENTS, BODY, "dense")


# --- body ------------------------------------------------------------------------------------------------------


def test_the_body_is_the_largest_piece_with_its_holes_filled() -> None:
    image = np.zeros((12, 20))
    image[1:3, 1:6] = 90  # a table, brighter and smaller
    image[4:11, 8:18] = 50
    image[6:9, 10:13] = 0  # lung
    expected = np.zeros((12, 20), dtype=bool)
    expected[4:11, 8:18] = True
    np.testing.assert_array_equal(body_mask(image, 10), expected)


def test_pieces_that_touch_at_a_corner_are_one() -> None:
    image = np.zeros((6, 9))
    image[1:3, 1:3] = image[3:5, 3:6] = 50
    np.testing.assert_array_equal(body_mask(image, 10), image > 0)


def test_the_threshold_itself_is_outside_the_body() -> None:
    image = np.full((4, 6), 10.0)
    image[1:3, 2:5] = 10.5
    np.testing.assert_array_equal(body_mask(image, 10), image > 10.2)


def test_a_slice_below_the_threshold_has_no_body() -> None:
    mask = body_mask(np.full((4, 6), 3.0), 10)
    assert mask.shape == (4, 6)
    assert mask.dtype == bool
    assert not mask.any()


# --- felzenszwalb ----------------------------------------------------------------------------------------------


def test_felzenszwalb_separates_two_flat_halves() -> None:
    image = np.zeros((30, 40))
    image[:, 25:] = 500
    segments = felzenszwalb_superpixels(image, min_size=40)
    left, right = segments[:, :20], segments[:, 30:]
    assert not np.intersect1d(left, right).size
    assert set(segments[[0, -1], [0, 0]]) == {0}  # flat, so one segment; ids in raster order


@pytest.mark.parametrize("min_size", [40, 150, 400])
def test_no_superpixel_is_smaller_than_min_size(min_size: int) -> None:
    image = np.random.default_rng(8).uniform(0, 800, size=(50, 60))
    sizes = np.bincount(felzenszwalb_superpixels(image, min_size=min_size).ravel())
    assert min_size <= sizes.min() < 3000
    assert len(sizes) > 1


# --- volumes: a contract for every segmenter -------------------------------------------------------------------


@pytest.mark.parametrize("numbering", ["consecutive", "reference"])
@pytest.mark.parametrize("segmenter", SEGMENTERS.values(), ids=SEGMENTERS)
class TestEverySegmenter:
    def test_gives_int16_ids_of_the_volumes_shape(self, segmenter: SliceSegmenter, numbering: str) -> None:
        superpixels = segment(disc_volume(), segmenter=segmenter, numbering=numbering)
        assert superpixels.shape == (1, 48, 64, 3)
        assert superpixels.dtype == torch.int16

    def test_gives_the_same_ids_twice(self, segmenter: SliceSegmenter, numbering: str) -> None:
        once, twice = (segment(disc_volume(), segmenter=segmenter, numbering=numbering) for _ in range(2))
        torch.testing.assert_close(once, twice)

    def test_leaves_a_slice_without_body_empty(self, segmenter: SliceSegmenter, numbering: str) -> None:
        superpixels = segment(disc_volume(), segmenter=segmenter, numbering=numbering, body_threshold=100.0)
        assert not superpixels[..., 2].any()

    def test_has_no_superpixel_outside_the_body(self, segmenter: SliceSegmenter, numbering: str) -> None:
        superpixels = segment(disc_volume(), segmenter=segmenter, numbering=numbering, body_threshold=100.0)
        assert not superpixels[disc_volume() <= 100].any()


@pytest.mark.parametrize("segmenter", SEGMENTERS.values(), ids=SEGMENTERS)
def test_consecutive_superpixels_cover_the_body_and_each_is_one_segment(segmenter: SliceSegmenter) -> None:
    volume = disc_volume()
    superpixels = segment(volume, segmenter=segmenter, body_threshold=100.0)[0, ..., 0].numpy()
    body = (volume[0, ..., 0] > 100).numpy()  # a disc without holes
    segments = segmenter(volume[0, ..., 0].double().numpy())
    np.testing.assert_array_equal(superpixels > 0, body)
    assert set(np.unique(superpixels)) == set(range(superpixels.max() + 1))
    pairs = np.unique(np.stack([superpixels[body], segments[body]]), axis=1)
    assert pairs.shape[1] == superpixels.max() == len(np.unique(segments[body]))


@pytest.mark.parametrize("empty", [0, 1, 9])
def test_without_a_threshold_a_bright_disc_is_found_in_a_dark_background(empty: int) -> None:
    volume = torch.cat([disc_volume()[..., :2], disc_volume()[..., 2:].repeat(1, 1, 1, empty)], dim=-1)
    np.testing.assert_array_equal(segment(volume, segmenter=whole).numpy(), (volume > 100).numpy())


def test_a_segmenter_gets_one_raw_slice_at_a_time_in_double_precision() -> None:
    volume, seen = disc_volume(), []

    def spy(image: np.ndarray) -> np.ndarray:
        seen.append(image)
        return quarters(image)

    segment(volume, segmenter=spy)
    assert [image.dtype for image in seen] == [np.float64] * 3
    np.testing.assert_array_equal(np.stack(seen, axis=-1), volume[0].numpy())


@pytest.mark.parametrize(("numbering", "ids"), [("consecutive", (1, 2, 3, 4)), ("reference", (0, 1, 2, 4))])
def test_the_superpixels_of_a_custom_segmenter_are_used(numbering: str, ids: tuple[int, ...]) -> None:
    volume = torch.ones(1, 4, 6, 2)
    superpixels = segment(volume, segmenter=quarters, body_threshold=0.5, numbering=numbering)
    rows = [[left] * 3 + [right] * 3 for left, right in (ids[:2], ids[:2], ids[2:], ids[2:])]
    expected = torch.tensor(rows, dtype=torch.int16)
    torch.testing.assert_close(superpixels[0, ..., 1], expected)


def test_superpixels_go_to_their_own_key_and_the_image_stays() -> None:
    data = {"image": disc_volume(), "label": 3}
    result = Superpixelsd("image", segmenter=quarters, output_key="ids")(data)
    assert result.keys() == {"image", "label", "ids"}
    torch.testing.assert_close(result["image"], disc_volume())
    assert data.keys() == {"image", "label"}


@pytest.mark.parametrize("shape", [(2, 8, 9, 3), (8, 9, 3), (1, 8, 9)], ids=str)
def test_what_is_not_a_single_channel_volume_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"a volume must be \(1, H, W, Z\), got \(" + str(shape[0])):
        segment(torch.rand(shape))


def test_slices_take_turns_with_several_segmenters() -> None:
    superpixels = segment(disc_volume(), segmenter=[whole, quarters], body_threshold=-1.0)
    assert [int(superpixels[..., z].max()) for z in range(3)] == [1, 4, 1]


def test_no_segmenter_is_refused() -> None:
    with pytest.raises(ValueError, match="segmenter must name at least one pseudo-label method, got an empty list"):
        Superpixelsd("image", segmenter=[])


@pytest.mark.parametrize("size", [100, 400])
def test_slic_superpixels_have_about_the_size_that_is_asked_for(size: int) -> None:
    image = np.random.default_rng(0).uniform(0, 1, (80, 80)) + np.indices((80, 80))[0]
    areas = np.bincount(slic_superpixels(image, size).ravel())
    assert 0.5 * size < areas.mean() < 2 * size


def test_slic_does_not_depend_on_the_unit_of_intensities() -> None:
    image = np.asarray(disc_volume()[0, ..., 0], dtype=float)
    np.testing.assert_array_equal(slic_superpixels(image), slic_superpixels(7 * image + 100))


# --- supervoxels -----------------------------------------------------------------------------------------------


def blocks(depth: int = 6) -> Tensor:
    """Bright blocks in a gray body: one in slices 0 to 2, another one elsewhere in slices 3 to 5."""
    volume = torch.zeros(1, 48, 64, depth)
    volume[:, 4:44, 4:60] = 100.0
    volume[:, 8:24, 8:24, : depth // 2] = 300.0
    volume[:, 24:40, 36:52, depth // 2 :] = 300.0
    return volume


def supervoxels(**settings: object) -> Tensor:
    return Supervoxelsd("image", **{"size": 256, "body_threshold": 10.0} | settings)({"image": blocks()})["superpixels"]


def test_a_supervoxel_has_one_id_in_all_its_slices() -> None:
    ids = supervoxels()
    assert ids.dtype == torch.int16
    assert ids.shape == (1, 48, 64, 6)
    inside = [set(ids[0, 10:22, 10:22, z].unique().tolist()) for z in range(6)]
    assert inside[0] & inside[1] & inside[2]
    assert not inside[2] & inside[3]


def test_supervoxels_lie_in_the_body_and_are_numbered_without_gaps() -> None:
    ids = supervoxels()
    assert bool(((ids > 0) == (blocks() > 10)).all())
    assert ids.unique().tolist() == list(range(int(ids.max()) + 1))


def test_more_slices_make_longer_supervoxels() -> None:
    def reach(ids: Tensor) -> float:
        shown = [set(ids[..., z].unique().tolist()) - {0} for z in range(6)]
        return sum(map(len, shown)) / len(set.union(*shown))

    assert reach(supervoxels(slices=1)) < 2 < reach(supervoxels(slices=6))


@pytest.mark.parametrize("settings", [{"size": 0}, {"slices": 0}])
def test_supervoxels_of_no_size_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="size and slices of a supervoxel must be at least 1"):
        Supervoxelsd("image", **settings)


def test_supervoxels_of_two_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="a volume must be"):
        Supervoxelsd("image")({"image": torch.zeros(2, 8, 8, 2)})
