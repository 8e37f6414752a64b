"""Tests of ``bundle.transforms.annotated``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch
from bundle.transforms.annotated import IGNORED, annotated_slices, checked_annotated, mark_ignored
from torch import Tensor


def label_of(areas: Sequence[int], organ: int = 3) -> Tensor:
    """Slices of 7 x 9 with so many voxels of an organ."""
    label = torch.zeros(1, 7, 9, len(areas))
    for z, area in enumerate(areas):
        label[0].reshape(63, -1)[:area, z] = organ
    return label


TAPERED = [0, 4, 12, 20, 16, 5, 0, 0]


def test_a_label_that_tapers_off_is_finished_and_all_its_slices_are_annotated() -> None:
    found = annotated_slices(label_of(TAPERED))
    assert (found.taken, found.slices) == ("all", tuple(range(8)))
    assert str(found) == "all: 8 of 8 slices"


@pytest.mark.parametrize(
    ("areas", "slices"),
    [
        ([0, 0, 0, 20, 0, 0, 0, 0], (3,)),  # one slice
        ([0, 4, 0, 20, 0, 5, 0, 0], (1, 3, 5)),  # every second one
        ([0, 4, 12, 20, 0, 5, 0, 0], (1, 2, 3, 5)),  # a single gap
        ([0, 0, 13, 20, 22, 5, 0, 0], (2, 3, 4, 5)),  # contiguous, begins within the organ
        ([0, 4, 12, 20, 16, 0, 0, 0], (1, 2, 3, 4)),  # contiguous, ends within it
        ([0, 4, 12, 20, 12, 6, 0, 0], (1, 2, 3, 4, 5)),  # 6 of 20 voxels are more than a quarter, and go on
    ],
)
def test_a_label_with_a_gap_or_an_end_within_an_organ_is_a_drawing(areas: list[int], slices: tuple[int, ...]) -> None:
    found = annotated_slices(label_of(areas))
    assert (found.taken, found.slices) == ("drawn", slices)


def ellipsoid(half: float, center: float, depth: int, largest: int = 60) -> list[int]:
    """Voxels in the slices through an ellipsoid: its sections shrink as a parabola."""
    return [round(max(0.0, largest * (1 - ((z - center) / half) ** 2))) for z in range(depth)]


@pytest.mark.parametrize(("half", "center"), [(4.4, 4.5), (4.4, 4.3), (3.5, 4.5), (2.1, 4.5), (4.6, 4.1)])
@pytest.mark.parametrize("depth", [10, 20])
def test_the_thick_slices_of_a_round_organ_are_finished(half: float, center: float, depth: int) -> None:
    areas = ellipsoid(half, center, depth)
    drawn = [area for area in areas if area]
    assert max(drawn[0], drawn[-1]) > max(drawn) / 4
    assert annotated_slices(label_of(areas)).taken == "all"


@pytest.mark.parametrize("kept", [slice(0, 7), slice(3, 10), slice(2, 8), slice(4, 6)])
def test_a_part_of_a_round_organs_slices_is_a_drawing(kept: slice) -> None:
    areas = [0] * 12
    areas[kept] = ellipsoid(4.4, 4.5, 10)[kept]
    assert annotated_slices(label_of(areas)).taken == "drawn"


@pytest.mark.parametrize("areas", [[20, 16, 5, 0], [0, 4, 12, 20], [20, 20, 20, 20]])
def test_an_organ_that_the_scan_cuts_off_may_be_finished(areas: list[int]) -> None:
    assert annotated_slices(label_of(areas)).taken == "all"


def test_only_the_slice_axis_decides() -> None:
    """A vessel three voxels wide, and two femoral heads far from each other: finished labels with gaps in the plane."""
    vessel = torch.zeros(1, 30, 40, 6)
    vessel[:, 10:13, 20:23] = 1
    heads = torch.zeros(1, 30, 40, 6)
    heads[:, 4:8, 2:6, 1:5] = heads[:, 4:8, 33:37, 1:5] = 1
    heads[:, 4:8, 3:37, 1] = heads[:, 4:8, 3:37, 4] = 0
    heads[:, 5, 4, [1, 4]] = 1
    assert annotated_slices(vessel).taken == annotated_slices(heads).taken == "all"


def test_two_organs_one_above_the_other_are_no_gap() -> None:
    lower, upper = label_of([0, 2, 9, 3, 0, 0, 0, 0]), label_of([0, 0, 0, 0, 3, 9, 2, 0], organ=5)
    assert annotated_slices(lower + upper).taken == "all"


@pytest.mark.parametrize(("said", "slices"), [("drawn", (1, 2, 3, 4, 5)), ("all", tuple(range(8)))])
def test_what_is_said_goes_before_what_it_looks_like(said: str, slices: tuple[int, ...]) -> None:
    found = annotated_slices(label_of(TAPERED), checked_annotated(said))
    assert (found.taken, found.slices) == (said, slices)


@pytest.mark.parametrize("said", ["auto", "all"])
def test_slices_that_are_ignored_are_not_annotated_and_all_others_are(said: str) -> None:
    label = label_of([0, 0, 0, 20, 0, 0, 0, 0])
    label[..., [1, 2, 6]] = IGNORED
    found = annotated_slices(label, checked_annotated(said))
    assert (found.taken, found.slices) == ("all", (0, 3, 4, 5, 7))


def test_ignored_voxels_in_a_drawn_slice_leave_it_annotated() -> None:
    label = label_of(TAPERED)
    label[0, 6, :, 3] = IGNORED
    assert annotated_slices(label).slices == tuple(range(8))


@pytest.mark.parametrize("values", [{}, {0: IGNORED}])
def test_a_label_without_an_organ_has_no_annotated_slice(values: Mapping[int, int]) -> None:
    label = torch.zeros(1, 7, 9, 4)
    for z, value in values.items():
        label[..., z] = value
    assert annotated_slices(label).slices == ()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float32])
def test_a_value_of_the_file_is_ignored(dtype: torch.dtype) -> None:
    label = torch.tensor([0, 255, 3], dtype=dtype)
    assert mark_ignored(label, 255).tolist() == [0, IGNORED, 3]
    assert mark_ignored(label, None).tolist() == [0, 255, 3]


def test_a_wrong_setting_is_refused() -> None:
    with pytest.raises(ValueError, match=r"annotated must be auto, drawn .* or all .*, got 'some'"):
        checked_annotated("some")
