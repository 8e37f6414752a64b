"""Tests of ``bundle.inference.matching.self_support``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bundle.inference.matching import SelfSupport, SliceMatching
from bundle.networks import BackgroundPrototypes, ForegroundPrototypes, PrototypeHead, TopKClassifier

HEAD = PrototypeHead(
    ForegroundPrototypes(window=1, eval_window=1, min_coverage=0.5, rule_window=1),
    BackgroundPrototypes(window=1, eval_window=1, min_coverage=0.5),
    TopKClassifier(k=1),
).eval()

ANGLES = {"organ": 0.0, "nothing": 90.0}
"""Of the features of each tissue, degrees."""


def features(*tissues: str) -> Tensor:
    """Slices of 8 x 8 in stripes of these tissues, from left to right, ``(2, 2, 8, 8)``."""
    degrees = torch.tensor([ANGLES[name] for name in tissues]).repeat_interleave(8 // len(tissues)).deg2rad()
    return torch.stack([degrees.cos(), degrees.sin()])[None, :, None].expand(2, 2, 8, 8).contiguous()


def masks_of(matching: SelfSupport | SliceMatching, query: Tensor, extents: Any = None) -> Tensor:
    """Where organ 3 is, ``(Z, h, w)``, from a scan of organ and nothing."""
    label = torch.zeros(1, 8, 8, 2)
    label[:, :, :4] = 3
    encoded = matching.encode(label, lambda slices: features("organ", "nothing")[slices], HEAD)
    support = matching.pool({3: [encoded]}, HEAD)
    assert support.organs == [3]
    return torch.stack([margins[0] > 0 for margins, _ in support.score(query, extents)])


def turned() -> Tensor:
    """The query's organ is 40 degrees off the annotated one, its rim 48: just beyond the middle to nothing."""
    degrees = torch.tensor([40.0, 40.0, 48.0, 90.0]).repeat_interleave(2).deg2rad()
    return torch.stack([degrees.cos(), degrees.sin()])[None, :, None].expand(2, 2, 8, 8).contiguous()


def test_an_organ_that_looks_different_is_found_whole_in_the_second_look() -> None:
    assert masks_of(SliceMatching(), turned())[0, 0].tolist() == [True] * 4 + [False] * 4
    assert masks_of(SelfSupport(SliceMatching()), turned())[0, 0].tolist() == [True] * 6 + [False] * 2


@pytest.mark.parametrize(("agreement", "columns"), [(0.79, 6), (0.81, 4)])
def test_a_second_look_that_disagrees_does_not_count(agreement: float, columns: int) -> None:
    """Four columns before, six after: a Dice of 0.8."""
    assert masks_of(SelfSupport(SliceMatching(), agreement=agreement), turned())[0, 0].sum() == columns


def test_a_slice_with_nothing_certain_does_no_harm() -> None:
    """Each slice is compared with itself alone; in the second one nothing is certain: neither organ nor none."""
    degrees = torch.tensor([[0.0, 90.0, 90.0, 90.0], [40.0, 40.0, 48.0, 48.0]]).repeat_interleave(2, dim=1).deg2rad()
    query = torch.stack([degrees.cos(), degrees.sin()], dim=1)[:, :, None].expand(2, 2, 8, 8).contiguous()
    found = masks_of(SelfSupport(SliceMatching(slices=1), agreement=0.0), query)
    assert found[0, 0].tolist() == [True] * 2 + [False] * 6
    assert not found[1].any()


def test_an_organ_that_is_not_found_stays_so() -> None:
    query = features("nothing", "nothing")
    assert not masks_of(SelfSupport(SliceMatching(), rounds=2), query).any()


def test_the_known_extent_holds_in_the_second_look() -> None:
    query = features("organ", "nothing")
    found = masks_of(SelfSupport(SliceMatching()), query, extents={3: (1, 1)})
    assert not found[0].any()
    assert found[1].any()


def test_certain_pixels_are_the_share_with_the_largest_margins() -> None:
    matching = SelfSupport(SliceMatching(), share=0.25)
    label = torch.zeros(1, 8, 8, 2)
    label[:, :, :4] = 3
    encoded = matching.encode(label, lambda slices: features("organ", "nothing")[slices], HEAD)
    second = matching.pool({3: [encoded]}, HEAD)
    margins = torch.linspace(-1, 1, 2 * 8 * 8).reshape(2, 1, 8, 8)
    joined = second._joined(F.normalize(torch.randn(2, 2, 8, 8), dim=1), margins)
    query = joined.sources[3][-1]
    organ = sum(len(shown[3]) for shown in query.prototypes if 3 in shown)
    assert organ == 16 + 1  # a quarter of 64 positive pixels, all in the second slice, and their mean
    assert 3 not in query.prototypes[0]
    assert sum(len(shown.get(0, [])) for shown in query.prototypes) == 32  # half of the negative ones


@pytest.mark.parametrize("settings", [{"share": 0.0}, {"share": 1.0}, {"rounds": 0}, {"agreement": 1.1}])
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"share must be in \(0, 1\), rounds at least 1 and agreement in \[0, 1\]"):
        SelfSupport(SliceMatching(), **settings)
