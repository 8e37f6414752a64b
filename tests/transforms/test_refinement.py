"""Refined scores against answers worked out by hand, and the guided filter against a plain loop."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from bundle.keys import SUPPORT_THICKNESS
from bundle.transforms import AssessScoresd, GuidedScoresd, LargestComponentsd, SmoothAcrossSlicesd
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

REFINEMENTS = [SmoothAcrossSlicesd, GuidedScoresd, LargestComponentsd, AssessScoresd]


def stack_of(*slices: float) -> Tensor:
    """Scores ``(1, 1, 1, Z)`` of one organ in slices of one pixel."""
    return torch.tensor(slices)[None, None, None]


def refined(transform: MapTransform, scores: Tensor, image: Tensor | None = None) -> Tensor:
    return transform({"pred": scores, "image": image})["pred"]


# --- across slices ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        (0.0, [4.0, 0.0, -2.0, 2.0]),
        (0.25, [3.0, 0.5, -0.5, 1.0]),
        (0.1, [3.6, 0.2, -1.4, 1.6]),
        (1 / 3, [8 / 3, 2 / 3, 0.0, 2 / 3]),
    ],
)
def test_each_slice_is_averaged_with_its_neighbors(weight: float, expected: list[float]) -> None:
    smooth = refined(SmoothAcrossSlicesd("pred", weight), stack_of(4.0, 0.0, -2.0, 2.0))
    torch.testing.assert_close(smooth, stack_of(*expected))


def test_one_slice_has_no_neighbor() -> None:
    scores = torch.randn(2, 3, 4, 1)
    torch.testing.assert_close(refined(SmoothAcrossSlicesd("pred"), scores), scores)


def test_smoothing_mixes_slices_only() -> None:
    scores = torch.randn(2, 3, 4, 5)
    alone = [refined(SmoothAcrossSlicesd("pred"), line[None, None, None]) for line in scores.reshape(-1, 5)]
    smooth = refined(SmoothAcrossSlicesd("pred"), scores)
    torch.testing.assert_close(smooth, torch.cat(alone).reshape(2, 3, 4, 5))


@pytest.mark.parametrize(("limit", "expected"), [(6.0, [6.0, 3.0, -6.0]), (2.0, [2.0, 2.0, -2.0])])
def test_scores_are_cut_off_at_the_limit(limit: float, expected: list[float]) -> None:
    transform = SmoothAcrossSlicesd("pred", weight=0.0, limit=limit)
    assert refined(transform, stack_of(9.0, 3.0, -20.0)).flatten().tolist() == expected


# --- along the edges of the image ------------------------------------------------------------------------------------


def window_around(row: int, column: int, radius: int) -> tuple[slice, slice]:
    return slice(max(row - radius, 0), row + radius + 1), slice(max(column - radius, 0), column + radius + 1)


def filter_by_loop(guide: Tensor, scores: Tensor, radius: int, flatness: float) -> Tensor:
    """He et al. 2013, equations 5, 6 and 8, one window at a time."""
    slopes, offsets = torch.zeros_like(scores), torch.zeros_like(scores)
    pixels = [(row, column) for row in range(scores.shape[0]) for column in range(scores.shape[1])]
    for pixel in pixels:
        inside = window_around(*pixel, radius)
        own_guide, own_scores = guide[inside], scores[inside]
        covariance = ((own_guide - own_guide.mean()) * (own_scores - own_scores.mean())).mean()
        slopes[pixel] = covariance / (own_guide.var(correction=0) + flatness)
        offsets[pixel] = own_scores.mean() - slopes[pixel] * own_guide.mean()
    result = torch.zeros_like(scores)
    for pixel in pixels:
        inside = window_around(*pixel, radius)
        result[pixel] = slopes[inside].mean() * guide[pixel] + offsets[inside].mean()
    return result


@pytest.mark.parametrize(("radius", "flatness"), [(1, 0.03), (2, 0.5), (4, 0.03), (20, 0.03)])
def test_the_filter_matches_the_loop(radius: int, flatness: float) -> None:
    image, scores = torch.randn(1, 7, 10, 3).double(), torch.randn(2, 7, 10, 3).double()
    expected = torch.stack(
        [
            torch.stack([filter_by_loop(image[0, ..., z], organ[..., z], radius, flatness) for z in range(3)], dim=-1)
            for organ in scores
        ]
    )
    torch.testing.assert_close(
        refined(GuidedScoresd("pred", radius=radius, flatness=flatness), scores, image), expected
    )


def test_a_constant_score_stays_as_it_is() -> None:
    scores = torch.full((2, 9, 13, 2), 3.5)
    torch.testing.assert_close(refined(GuidedScoresd("pred"), scores, torch.randn(1, 9, 13, 2)), scores)


def test_scores_that_go_with_the_intensities_stay_as_they_are() -> None:
    image = torch.randn(1, 9, 13, 2).double()
    transform = GuidedScoresd("pred", radius=2, flatness=1e-9)
    torch.testing.assert_close(refined(transform, 3 * image - 1, image), 3 * image - 1)


def test_a_border_of_scores_moves_to_the_edge_of_the_image() -> None:
    """The border is blurred, and three pixels away from the edge."""
    columns = torch.arange(40.0).expand(30, 40)[None, ..., None]
    image = torch.where(columns < 20, -1.0, 1.0)
    scores = (columns - 16.5).clamp(-4, 4)
    sharp = refined(GuidedScoresd("pred"), scores, image)
    assert torch.equal(sharp > 0, image > 0)
    assert not torch.equal(scores > 0, image > 0)


def test_without_an_edge_scores_are_averaged() -> None:
    """A window of three pixels, twice, in a line of pixels."""
    scores = torch.tensor([0.0, 0.0, 9.0, 0.0, 0.0, 0.0])[None, None, :, None]
    smooth = refined(GuidedScoresd("pred", radius=1), scores, torch.full((1, 1, 6, 1), 5.0))
    torch.testing.assert_close(smooth.flatten(), torch.tensor([1.5, 2.0, 3.0, 2.0, 1.0, 0.0]))


def test_the_guide_may_have_another_key_and_type() -> None:
    image, scores = torch.randint(0, 9, (1, 5, 6, 2)), torch.randn(1, 5, 6, 2)
    expected = refined(GuidedScoresd("pred", radius=1), scores, image.float())
    data = GuidedScoresd("pred", image="guide", radius=1)({"pred": scores, "guide": MetaTensor(image)})
    assert type(data["pred"]) is Tensor
    torch.testing.assert_close(data["pred"], expected)


# --- connected parts -------------------------------------------------------------------------------------------------


def test_an_organ_thinner_than_the_minimum_is_not_filtered() -> None:
    generator = torch.Generator().manual_seed(0)
    image, scores = torch.rand(1, 12, 12, 2, generator=generator), torch.rand(3, 12, 12, 2, generator=generator)
    meta = {SUPPORT_THICKNESS: torch.tensor([[4.9, 5.0, torch.nan]])}
    given = {"pred": MetaTensor(scores, meta=meta), "image": image}
    kept = GuidedScoresd("pred", radius=2, min_thickness=5.0)(given)["pred"].as_tensor()
    every = GuidedScoresd("pred", radius=2, min_thickness=0.0)(given)["pred"].as_tensor()
    assert torch.equal(kept[0], scores[0])
    assert torch.equal(kept[1:], every[1:])  # one of unknown thickness is filtered
    assert not torch.allclose(every[0], scores[0], atol=0.05)


def organ_at(*voxels: tuple[int, int, int], score: float = 2.0) -> Tensor:
    """Scores ``(4, 5, 6)`` of an organ, -3 where it is not."""
    scores = torch.full((4, 5, 6), -3.0)
    for voxel in voxels:
        scores[voxel] = score
    return scores


def largest(*organs: Tensor, num_components: int = 1, overlap: bool = False) -> Tensor:
    return refined(LargestComponentsd("pred", num_components, overlap), torch.stack(organs))


THROUGH_SLICES = [(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 0, 3)]
IN_A_SLICE = [(2, 2, 5), (2, 3, 5), (3, 3, 5)]
TWO = [(3, 0, 0), (3, 1, 0)]


@pytest.mark.parametrize(
    ("num_components", "removed"), [(1, IN_A_SLICE + TWO), (2, TWO), (3, []), (4, [])], ids=["1", "2", "3", "4"]
)
def test_the_largest_parts_are_kept_and_the_others_turn_negative(
    num_components: int, removed: list[tuple[int, int, int]]
) -> None:
    scores = organ_at(*THROUGH_SLICES, *IN_A_SLICE, *TWO)
    expected = scores.clone()
    for voxel in removed:
        expected[voxel] = -2
    torch.testing.assert_close(largest(scores, num_components=num_components), expected[None])


@pytest.mark.parametrize("corner", [(2, 2, 1), (1, 2, 2), (2, 1, 2), (2, 2, 2)])
def test_voxels_that_touch_at_an_edge_or_a_corner_are_not_connected(corner: tuple[int, int, int]) -> None:
    kept = largest(organ_at((1, 1, 1), (0, 1, 1), corner))
    assert torch.equal(kept[0] > 0, organ_at((1, 1, 1), (0, 1, 1)) > 0)


@pytest.mark.parametrize("neighbor", [(2, 1, 1), (1, 2, 1), (1, 1, 2)])
def test_voxels_that_share_a_face_are_connected(neighbor: tuple[int, int, int]) -> None:
    scores = organ_at((1, 1, 1), neighbor)
    torch.testing.assert_close(largest(scores), scores[None])


def test_each_organ_has_its_own_parts() -> None:
    first, second = organ_at(*THROUGH_SLICES, (3, 0, 0)), organ_at(*IN_A_SLICE, (3, 4, 0))
    kept = largest(first, second)
    torch.testing.assert_close(kept > 0, torch.stack([organ_at(*THROUGH_SLICES), organ_at(*IN_A_SLICE)]) > 0)


STRAY = (3, 4, 5)


def test_a_removed_voxel_goes_to_no_other_organ() -> None:
    """Nor does a kept one change, although the other organ has a score there."""
    kept = largest(organ_at(*TWO, STRAY), organ_at(STRAY, *TWO, (0, 4, 0), score=1.0))
    torch.testing.assert_close(kept[:, 3, 4, 5], torch.tensor([-2.0, -1.0]))
    torch.testing.assert_close(kept[:, 3, 1, 0], torch.tensor([2.0, 1.0]))


def test_a_removed_voxel_does_not_become_an_organ_that_had_not_been_there() -> None:
    kept = largest(organ_at(*TWO, STRAY), organ_at(*THROUGH_SLICES))
    torch.testing.assert_close(kept[:, 3, 4, 5], torch.tensor([-2.0, -3.0]))


def test_with_overlap_the_other_organs_keep_a_removed_voxel() -> None:
    second = organ_at(STRAY, (3, 3, 5), score=1.0)
    kept = largest(organ_at(*TWO, STRAY), second, overlap=True)
    torch.testing.assert_close(kept[:, 3, 4, 5], torch.tensor([-2.0, 1.0]))


def test_only_without_overlap_a_better_organ_cuts_another_in_two() -> None:
    line = organ_at((0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 0, 3))
    better = organ_at((0, 0, 2), score=5.0)
    assert (largest(line, better)[0, 0, 0] > 0).tolist() == [True, True, True, False, False, False]
    torch.testing.assert_close(largest(line, better, overlap=True)[0], line)


def test_an_organ_that_was_not_found_has_no_part() -> None:
    found, missing = organ_at(*TWO, STRAY), organ_at()
    torch.testing.assert_close(largest(found, missing)[1], missing)


# --- how good the masks are ------------------------------------------------------------------------------------------


def quality(*organs: list[float], overlap: bool = False) -> Tensor:
    scores = torch.tensor(organs)[:, None, None]
    return refined(AssessScoresd("pred", overlap), scores).meta["quality"]


def test_the_quality_of_a_mask_is_the_median_probability_of_its_voxels() -> None:
    expected = torch.tensor([2.0, 0.1]).sigmoid()
    torch.testing.assert_close(quality([9.0, 2.0, 1.0, -5.0, -6.0], [-9.0, -2.0, -9.0, -9.0, 0.1]), expected)


def test_an_organ_that_was_not_found_has_quality_0() -> None:
    assert quality([0.0, -2.0], [-1.0, 30.0]).tolist() == [0.0, 1.0]


@pytest.mark.parametrize(("overlap", "expected"), [(False, [6.0, 2.0]), (True, [4.0, 2.0])])
def test_the_voxels_of_a_better_organ_count_only_with_overlap(overlap: bool, expected: list[float]) -> None:
    found = quality([1.0, 4.0, 6.0], [2.0, 5.0, -1.0], overlap=overlap)
    torch.testing.assert_close(found, torch.tensor(expected).sigmoid())


def test_scores_are_assessed_as_they_are() -> None:
    scores = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(refined(AssessScoresd("pred"), scores).as_tensor(), scores)


# --- what holds for all of them --------------------------------------------------------------------------------------


def scores_of(organs: int) -> MetaTensor:
    affine = torch.diag(torch.tensor([-0.8, 1.1, 5.0, 1.0])).double()
    meta = {"organ_ids": torch.arange(organs) + 4, "more": "kept"}
    return MetaTensor(torch.randn(organs, 6, 5, 4), affine=affine, meta=meta)


@pytest.mark.parametrize("refinement", REFINEMENTS)
class TestEveryRefinement:
    """What holds for each member; a new one is added to ``REFINEMENTS``."""

    def test_scores_keep_shape_and_meta(self, refinement: type[MapTransform]) -> None:
        before = scores_of(organs=2)
        after = refined(refinement("pred"), before, torch.randn(1, 6, 5, 4))
        assert after.shape == before.shape
        assert after.meta["organ_ids"].tolist() == [4, 5]
        assert after.meta["more"] == "kept"
        torch.testing.assert_close(after.affine, before.affine)

    def test_the_data_of_the_caller_stay_as_they_are(self, refinement: type[MapTransform]) -> None:
        scores, image = scores_of(organs=2), torch.randn(1, 6, 5, 4)
        before, entries = scores.clone(), set(scores.meta)
        data = {"pred": scores, "image": image, "more": "kept"}
        result = refinement("pred")(data)
        torch.testing.assert_close(data["pred"], before)
        assert set(scores.meta) == entries
        assert result["image"] is image
        assert result["more"] == "kept"

    def test_several_entries_are_refined_each_alone(self, refinement: type[MapTransform]) -> None:
        one, other, image = scores_of(organs=2), scores_of(organs=3), torch.randn(1, 6, 5, 4)
        both = refinement(["one", "other"])({"one": one, "other": other, "image": image})
        for key, scores in {"one": one, "other": other}.items():
            torch.testing.assert_close(both[key], refined(refinement("pred"), scores, image))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: SmoothAcrossSlicesd("pred", weight=-0.1),
            r"weight, the share of each neighboring slice, must be in \[0, 1/3\]",
        ),
        (
            lambda: SmoothAcrossSlicesd("pred", weight=0.34),
            r"weight, the share of each neighboring slice, must be in \[0, 1/3\]",
        ),
        (lambda: SmoothAcrossSlicesd("pred", limit=0), "limit must be above 0 logits, got 0"),
        (lambda: GuidedScoresd("pred", radius=0), "radius must be at least 1 pixel and flatness above 0, got 0"),
        (
            lambda: GuidedScoresd("pred", flatness=0),
            "radius must be at least 1 pixel and flatness above 0, got 8 and 0",
        ),
        (lambda: LargestComponentsd("pred", num_components=0), "num_components must be at least 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(build: Callable[[], MapTransform], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_an_image_on_another_grid_is_refused() -> None:
    with pytest.raises(ValueError, match=r"image must be on the grid of the scores, \[8, 8, 2\], got \[8, 8, 3\]"):
        GuidedScoresd("pred")({"pred": torch.zeros(1, 8, 8, 2), "image": torch.zeros(1, 8, 8, 3)})


# --- in place --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transform", [t for t in REFINEMENTS if t is not AssessScoresd])
def test_in_place_the_scores_are_the_same_and_held_once(transform: Callable[..., MapTransform]) -> None:
    scores = MetaTensor(5 * torch.randn(2, 20, 24, 6))
    image, before = torch.randn(1, 20, 24, 6), scores.clone()
    expected = refined(transform("pred"), scores, image)
    assert torch.equal(scores, before)
    assert not torch.equal(expected, before)
    found = refined(transform("pred", inplace=True), scores, image)
    assert torch.equal(found, expected)
    assert found.data_ptr() == scores.data_ptr()
    assert torch.equal(scores, expected)


@pytest.mark.parametrize("transform", REFINEMENTS)
def test_scores_may_lie_in_memory_slice_by_slice(transform: Callable[..., MapTransform]) -> None:
    """So ``VolumeInferer`` gives them."""
    scores, image = torch.randn(2, 20, 24, 6), torch.randn(1, 20, 24, 6)
    by_slice = scores.movedim(-1, 0).contiguous().movedim(0, -1)
    expected = refined(transform("pred"), MetaTensor(scores), image)
    torch.testing.assert_close(refined(transform("pred"), MetaTensor(by_slice), image), expected)
