"""Tests of ``bundle.inference.next_scan``."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from bundle.inference.next_scan import (
    Glance,
    Ranking,
    expected_quality,
    glance_at,
    rank_by_quality,
    rank_by_similarity,
    report_ranking,
)
from bundle.inference.organ_shapes import OrganShape
from torch import Tensor, nn


def facing(*degrees: float) -> Glance:
    """Look at a scan of one slice, whose body's features have these directions; the first pixel is no body."""
    angles = torch.deg2rad(torch.tensor([10.0, *degrees]))
    features = 3 * torch.stack([angles.cos(), angles.sin()])[None, :, None]
    return Glance(features.half(), torch.tensor([False] + [True] * len(degrees))[None, None])


class Marked:
    """A support that gives each slice fixed margins."""

    def __init__(self, *margins: Tensor) -> None:
        self.given = margins
        self.organs = list(range(1, len(margins[0]) + 1))
        self.shapes: dict[int, list[OrganShape]] = {}
        self.seen: Sequence[Tensor] = []

    def score(self, features: Sequence[Tensor], extents: None) -> Iterator[tuple[Tensor, Tensor]]:
        self.seen = features
        yield from ((margins, margins) for margins in self.given)


def test_the_scan_in_the_middle_comes_first() -> None:
    ranking = rank_by_similarity({"left": facing(0.0), "middle": facing(40.0), "right": facing(80.0)})
    assert ranking[0][0] == "middle"
    assert ranking[0][1] == pytest.approx(float(torch.deg2rad(torch.tensor(40.0)).cos()), abs=1e-3)


def test_a_scan_explains_each_feature_by_the_most_similar_of_its_own() -> None:
    ranking = dict(rank_by_similarity({"both": facing(0.0, 90.0), "one": facing(0.0), "other": facing(90.0)}))
    assert ranking["both"] == pytest.approx(1.0, abs=1e-3)
    assert ranking["one"] == pytest.approx((0.5 + 0.0) / 2, abs=1e-3)


def test_an_outlier_comes_last() -> None:
    scans = {name: facing(angle) for name, angle in (("a", 0.0), ("b", 5.0), ("odd", 170.0), ("c", 10.0))}
    assert rank_by_similarity(scans)[-1][0] == "odd"


def test_a_ranking_takes_as_many_features_as_it_is_told_the_same_ones_each_time() -> None:
    scans = {"a": facing(*range(0, 90, 3)), "b": facing(*range(30, 120, 3))}
    one, two = (rank_by_similarity(scans, samples=4) for _ in range(2))
    assert one == two != rank_by_similarity(scans)


def test_one_scan_or_none_is_a_ranking_too() -> None:
    assert rank_by_similarity({"a": facing(0.0)}) == [("a", 1.0)]
    assert rank_by_similarity({}) == []


def test_a_glance_encodes_slices_spread_over_the_scan_and_knows_its_body() -> None:
    volume = torch.full((1, 16, 24, 30), -1.0)
    volume[0, 4:8, 4:12] = torch.arange(1.0, 31.0)
    glance = glance_at(volume, lambda slices: nn.functional.avg_pool2d(slices.movedim(-1, 0), 4), slices=5)
    assert glance.features.dtype == torch.float16
    assert glance.features[:, 0, 1, 1].tolist() == [4.0, 10.0, 16.0, 22.0, 28.0]  # brightness counts slices from 1
    body = torch.zeros(5, 4, 6, dtype=torch.bool)
    body[:, 1, 1:3] = True
    assert torch.equal(glance.body, body)


def test_a_glance_at_a_short_scan_takes_each_slice_once() -> None:
    volume = torch.arange(1.0, 4.0).expand(1, 16, 16, 3)
    assert glance_at(volume, lambda slices: slices.movedim(-1, 0)).features[:, 0, 0, 0].tolist() == [1.0, 2.0, 3.0]


def test_a_scan_that_is_nowhere_bright_is_body_everywhere() -> None:
    glance = glance_at(torch.full((1, 16, 24, 5), -1.0), lambda slices: slices.movedim(-1, 0))
    assert bool(glance.body.all())


def test_expected_quality_is_the_organs_mean_probability_where_only_the_largest_piece_counts() -> None:
    whole = [[2.0, 1.0, -1.0, -1.0, -1.0]]
    pieces = [[0.5, -1.0, 3.0, -1.0, 0.5]]  # the first is a voxel of the other organ
    nowhere = [[-1.0] * 5]
    first = torch.tensor([whole, pieces, nowhere])
    second = torch.tensor([whole, [[-1.0, -1.0, 3.0, -1.0, -1.0]], nowhere])  # the piece goes on in the next slice
    support = Marked(first, second)
    glance = Glance(torch.zeros(2, 5, 1, 5).half(), torch.ones(2, 1, 5, dtype=torch.bool))
    one, two, three = torch.tensor([1.0, 2.0, 3.0]).sigmoid().tolist()
    expected = ((one + two) / 2 + 2 * three / 3 + 0.0) / 3
    assert expected_quality(glance, support) == pytest.approx(expected)  # type: ignore[arg-type]
    support.shapes = {2: [OrganShape(2)], 1: [OrganShape(1)], 3: [OrganShape(3)]}
    both = ((one + two) / 2 + (2 * three + torch.tensor(0.5).sigmoid().item()) / 3 + 0.0) / 3
    assert expected_quality(glance, support, num_components=2) == pytest.approx(both)  # type: ignore[arg-type]
    assert expected_quality(glance, support) == pytest.approx(both)  # type: ignore[arg-type]
    assert expected_quality(glance, support, num_components=1) == pytest.approx(expected)  # type: ignore[arg-type]
    assert isinstance(support.seen, Tensor)
    assert support.seen.dtype == torch.float32


def test_the_scan_whose_mask_is_least_confident_comes_first() -> None:
    assert rank_by_quality({"a": 0.8, "b": 0.5, "c": 0.9}) == [("b", 0.5), ("a", 0.8), ("c", 0.9)]


def test_a_ranking_is_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results" / "next_scan.csv"
    report_ranking(Ranking("quality", [("scan, no 7", 0.51234), ("scan 2", 0.9)]), path)
    with path.open(newline="") as file:
        assert list(csv.reader(file)) == [["scan", "quality"], ["scan, no 7", "0.5123"], ["scan 2", "0.9000"]]
    assert capsys.readouterr().out.splitlines() == [
        "First comes the scan whose mask is least confident:",
        "  scan, no 7  0.512",
        "  scan 2  0.900",
        f"ranking: {path}",
    ]


def test_scans_that_cannot_be_read_are_said_at_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "next_scan.csv"
    with pytest.raises(ValueError, match=r"broken\.nii\.gz: the file cannot be read"):
        report_ranking(Ranking("similarity", [("a", 1.0)], ["broken.nii.gz: the file cannot be read"]), path)
    assert path.read_text().split() == ["scan,similarity", "a,1.0000"]
    assert "No annotated scan is given." in capsys.readouterr().out
