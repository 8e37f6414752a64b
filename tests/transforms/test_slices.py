"""Support slices and chunks against the authors' protocol, and against answers worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bundle.transforms.slices import chunks_by_position, chunks_of_extent, organ_slices, support_slices, to_network
from tests.golden_data import golden_json

PROTOCOL = golden_json("eval_protocol.json")


def named(case: dict[str, Any]) -> str:
    support, query = case.get("support_zlist"), case.get("query_zlist")
    extents = " to ".join(f"{slices[0]}..{slices[-1]}" for slices in (support, query) if slices)
    return f"{extents} in {case['n_part']}"


@pytest.mark.parametrize("case", PROTOCOL["support_slices"], ids=named)
def test_support_slices_equal_the_authors(case: dict[str, Any]) -> None:
    assert support_slices(case["support_zlist"], case["n_part"]) == case["chosen_z"]


@pytest.mark.parametrize("case", PROTOCOL["support_slices_2shot"], ids=lambda case: f"{case['n_part']} chunks")
def test_support_slices_of_two_shots_equal_the_authors(case: dict[str, Any]) -> None:
    of_shots = [support_slices(slices, case["n_part"]) for slices in case["support_zlists"]]
    assert [[[shot, z] for shot, z in enumerate(chunk)] for chunk in zip(*of_shots, strict=True)] == case["chosen"]


@pytest.mark.parametrize("case", PROTOCOL["query_parts"], ids=named)
def test_chunks_of_the_query_equal_the_authors(case: dict[str, Any]) -> None:
    first, last = case["query_zlist"][0], case["query_zlist"][-1]
    assert chunks_of_extent(case["n_slices"], first, last, case["n_part"]) == case["part_of_slice"]


@pytest.mark.parametrize("case", PROTOCOL["query_parts"], ids=named)
def test_the_authors_count_the_slices_from_the_organs_first_to_its_last(case: dict[str, Any]) -> None:
    first, last = case["query_zlist"][0], case["query_zlist"][-1]
    assert case["counted_in_metric"] == [first <= z <= last for z in range(case["n_slices"])]


@pytest.mark.parametrize("case", PROTOCOL["query_to_support"], ids=named)
def test_each_query_slice_has_the_authors_support_slice(case: dict[str, Any]) -> None:
    chosen = support_slices(case["support_zlist"], case["n_part"])
    first, last = case["query_zlist"][0], case["query_zlist"][-1]
    chunks = chunks_of_extent(case["n_slices"], first, last, case["n_part"])
    assert [chosen[chunk] for chunk in chunks] == case["support_z_for_query_slice"]


# --- known answers ---------------------------------------------------------------------------------------------


def test_an_organs_slices_are_those_with_a_voxel_of_it() -> None:
    label = torch.zeros(1, 5, 4, 7)
    label[0, 4, 0, 6] = label[0, 0, 3, 2] = 3
    label[0, 1, 1, 4] = 1
    assert organ_slices(label, 3) == [2, 6]
    assert organ_slices(label, 2) == []


@pytest.mark.parametrize(
    ("slices", "chunks", "chosen"),
    [
        ([4, 5, 6], 1, [5]),
        ([4, 5, 6, 7, 8, 9], 3, [5, 7, 9]),
        ([4, 5, 6, 7, 8, 9], 2, [5, 8]),
        ([8], 3, [8, 8, 8]),
        ([2, 9], 3, [2, 9, 9]),
        ([2, 3, 11, 12, 20, 21], 3, [3, 12, 21]),  # gaps
    ],
)
def test_the_support_is_the_slice_in_the_middle_of_each_chunk(
    slices: list[int], chunks: int, chosen: list[int]
) -> None:
    assert support_slices(slices, chunks) == chosen


@pytest.mark.parametrize("chunks", [1, 2, 3, 5])
@pytest.mark.parametrize("length", [1, 2, 3, 7, 30])
def test_support_slices_show_the_organ_in_order_one_a_chunk(length: int, chunks: int) -> None:
    slices = list(range(5, 5 + 2 * length, 2))
    chosen = support_slices(slices, chunks)
    assert len(chosen) == chunks
    assert chosen == sorted(chosen)
    assert set(chosen) <= set(slices)


def test_slices_outside_the_organ_go_to_the_nearest_chunk() -> None:
    assert chunks_of_extent(12, 3, 9, 3) == [0, 0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 2]


def test_an_organ_of_one_slice_is_chunk_0() -> None:
    assert chunks_of_extent(5, 2, 2, 3) == [0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("depth", "extent", "chunks", "expected"),
    [
        (6, (0.0, 1.0), 3, [0, 0, 1, 1, 2, 2]),
        (10, (0.0, 1.0), 2, [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]),
        (10, (0.2, 0.8), 3, [0, 0, 0, 0, 1, 1, 2, 2, 2, 2]),
        (10, (0.5, 0.75), 2, [0, 0, 0, 0, 0, 0, 1, 1, 1, 1]),
        (4, (0.3, 0.9), 1, [0, 0, 0, 0]),
    ],
    ids=str,
)
def test_a_slices_height_decides_its_chunk(
    depth: int, extent: tuple[float, float], chunks: int, expected: list[int]
) -> None:
    assert chunks_by_position(depth, extent, chunks) == expected


@pytest.mark.parametrize("extent", [(0.0, 1.0), (0.13, 0.58), (0.4, 0.45)], ids=str)
def test_a_scan_in_finer_slices_has_the_same_chunks_at_the_same_heights(extent: tuple[float, float]) -> None:
    coarse = chunks_by_position(7, extent, 3)
    fine = chunks_by_position(7 * 3, extent, 3)
    assert fine[1::3] == coarse  # the middle one of three lies where the coarse one lies


def test_slices_become_grey_images_of_equal_channels() -> None:
    slices = torch.rand(1, 6, 5, 4)
    images = to_network(slices, channels=3)
    assert images.shape == (4, 3, 6, 5)
    for z in range(4):
        for channel in range(3):
            torch.testing.assert_close(images[z, channel], slices[0, :, :, z])


# --- errors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [0, -2])
def test_no_chunk_is_refused(chunks: int) -> None:
    with pytest.raises(ValueError, match=rf"chunks must be at least 1, got {chunks}"):
        support_slices([3, 4], chunks)


def test_a_support_without_the_organ_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the organ has no voxel in the support scan\. Choose another"):
        support_slices([], 3)
