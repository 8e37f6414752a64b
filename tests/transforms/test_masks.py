"""Scores, label maps and masks on four voxels that can be checked by eye."""

from __future__ import annotations

import pytest
import torch
from bundle.transforms.masks import LabelToMasksd, ScoresToLabeld, ScoresToMasksd, organ_masks, scores_to_label
from monai.data import MetaTensor
from torch import Tensor


def scores_of(*organs: list[float]) -> Tensor:
    """Scores ``(O, 1, W, 1)``, a list of voxels for each organ."""
    return torch.tensor(organs)[:, None, :, None]


def voxels(label: Tensor) -> list[float]:
    return label.flatten(start_dim=1).squeeze(0).tolist()


def test_each_voxel_gets_the_id_of_its_best_organ() -> None:
    scores = scores_of([3.0, 0.5, -1.0, 0.1], [1.0, 0.7, -0.5, -9.0], [2.0, 0.6, -3.0, 0.2])
    assert voxels(scores_to_label(scores, [4, 7, 2])) == [4, 7, 0, 2]


@pytest.mark.parametrize("score", [0.0, -1e-6], ids=["tie", "below"])
def test_a_voxel_whose_organs_do_not_beat_the_background_is_background(score: float) -> None:
    scores = scores_of([score, 0.1], [score - 1, -0.2])
    assert voxels(scores_to_label(scores, [5, 6])) == [0, 5]


def test_a_tie_between_organs_goes_to_the_first_of_them() -> None:
    assert voxels(scores_to_label(scores_of([0.0], [2.0], [2.0]), [1, 8, 3])) == [8]


def test_a_score_that_is_no_number_is_background() -> None:
    assert voxels(scores_to_label(scores_of([float("nan"), 1.0]), [5])) == [0, 5]


@pytest.mark.parametrize(("ids", "dtype"), [([255, 3], torch.uint8), ([3, 256], torch.int16), ([600, 3], torch.int16)])
def test_ids_above_255_make_the_label_map_int16(ids: list[int], dtype: torch.dtype) -> None:
    label = scores_to_label(scores_of([1.0, -1.0], [-1.0, 1.0]), ids)
    assert label.dtype == dtype
    assert voxels(label) == ids


def test_a_label_map_keeps_shape_and_meta_of_its_scores() -> None:
    affine = torch.diag(torch.tensor([-0.8, 1.1, 5.0, 1.0])).double()
    scores = MetaTensor(torch.randn(3, 6, 5, 4), affine=affine, meta={"filename_or_obj": "scan.nii.gz"})
    label = scores_to_label(scores, [1, 2, 3])
    assert label.shape == (1, 6, 5, 4)
    torch.testing.assert_close(label.affine, affine)
    assert label.meta["filename_or_obj"] == "scan.nii.gz"


def test_scores_without_meta_give_a_plain_tensor() -> None:
    assert type(scores_to_label(torch.randn(3, 6, 5, 4), [1, 2, 3])) is Tensor


def test_the_meta_of_the_scores_tells_the_ids_of_the_organs() -> None:
    scores = MetaTensor(scores_of([1.0, -1.0], [-1.0, 1.0]), meta={"organ_ids": torch.tensor([[9, 4]])})
    assert voxels(ScoresToLabeld("pred")({"pred": scores})["pred"]) == [9, 4]


# Best alone; both above 0; a tie; one at 0; none.
OVERLAPPING = scores_of([2.0, 3.0, 1.0, 0.0, -1.0], [-1.0, 4.0, 1.0, 0.5, -2.0])


def test_without_overlap_a_voxel_goes_to_its_best_organ_only() -> None:
    masks = ScoresToMasksd("pred")({"pred": OVERLAPPING})["pred"]
    torch.testing.assert_close(masks, scores_of([1.0, 0.0, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 1.0, 0.0]))


def test_with_overlap_each_organ_is_where_its_own_score_is_above_0() -> None:
    masks = ScoresToMasksd("pred", overlap=True)({"pred": OVERLAPPING})["pred"]
    torch.testing.assert_close(masks, scores_of([1.0, 1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 1.0, 1.0, 0.0]))


@pytest.mark.parametrize("overlap", [True, False])
def test_where_an_organ_is_is_true_or_false(overlap: bool) -> None:
    masks = organ_masks(OVERLAPPING, overlap)
    assert masks.dtype == torch.bool
    torch.testing.assert_close(masks.float(), ScoresToMasksd("pred", overlap)({"pred": OVERLAPPING})["pred"])


@pytest.mark.parametrize(
    ("overlap", "expected"), [(True, [[False, True], [True, True]]), (False, [[False, True], [False, False]])]
)
def test_an_organ_is_not_where_its_score_is_no_number(overlap: bool, expected: list[list[bool]]) -> None:
    """Without overlap no organ is, as in the label map."""
    scores = scores_of([float("nan"), 2.0], [3.0, 1.0])
    assert organ_masks(scores, overlap).flatten(1).tolist() == expected


@pytest.mark.parametrize("organs", [1, 3, 300])
def test_masks_without_overlap_say_the_same_as_the_label_map(organs: int) -> None:
    scores = torch.randn(organs, 6, 5, 4)
    ids = list(range(1, organs + 1))
    from_label = LabelToMasksd("label", {str(organ): organ for organ in ids})({"label": scores_to_label(scores, ids)})
    torch.testing.assert_close(ScoresToMasksd("pred")({"pred": scores})["pred"], from_label["label"])


def test_a_label_map_becomes_one_mask_an_organ_in_the_order_of_the_channels() -> None:
    label = torch.tensor([0, 7, 2, 7, 5])[None, None, :, None]
    masks = LabelToMasksd("label", {"spleen": 7, "heart": 9, "liver": 2})({"label": label})["label"]
    expected = scores_of([0.0, 1.0, 0.0, 1.0, 0.0], [0.0] * 5, [0.0, 0.0, 1.0, 0.0, 0.0])
    torch.testing.assert_close(masks, expected)


@pytest.mark.parametrize(
    "transform", [ScoresToMasksd("x"), ScoresToMasksd("x", True), LabelToMasksd("x", {"liver": 1})]
)
def test_masks_are_plain_float32_of_0_and_1(transform: ScoresToMasksd | LabelToMasksd) -> None:
    masks = transform({"x": MetaTensor(torch.tensor([0.0, 1.0, -1.0]).reshape(1, 1, 3, 1))})["x"]
    assert type(masks) is Tensor
    torch.testing.assert_close(masks, scores_of([0.0, 1.0, 0.0]))


def test_the_scores_of_the_caller_stay_as_they_are() -> None:
    data = {"pred": OVERLAPPING.clone(), "image": 3}
    result = ScoresToMasksd("pred")(data)
    torch.testing.assert_close(data["pred"], OVERLAPPING)
    assert result["image"] == 3
