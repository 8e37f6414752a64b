"""Tests of ``bundle.inference.matching.slices``; what ``ChunkMatching`` finds is tested in ``test_inferers``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
import torch.nn.functional as F
from bundle.inference.matching import ChunkMatching, Extents, SliceMatching
from bundle.inference.matching.slices import BACKGROUND, EncodedScan
from bundle.networks import BackgroundPrototypes, ForegroundPrototypes, PrototypeHead, TopKClassifier
from bundle.transforms.annotated import IGNORED
from bundle.transforms.masks import scores_to_label
from torch import Tensor, nn

# --- whole scans, whose answer is known ------------------------------------------------------------------------------

HEAD = PrototypeHead(classifier=TopKClassifier(k=1)).eval()


def scan(kinds: str, shift: int = 0, organs: Sequence[int] = (3, 7)) -> dict[str, Tensor]:
    """Slices of 16 x 24: "o" shows organs 3 and 7, in grays 1 and 2, "x" a block of gray 1 that is no organ."""
    image, label = torch.zeros(2, 1, 16, 24, len(kinds))
    for z, kind in enumerate(kinds):
        if kind == "x":
            image[0, 8:16, 16:24, z] = 1
        if kind == "o":
            for gray, organ in enumerate((3, 7), start=1):
                rows = slice(8 * gray - 8, 8 * gray - 2)
                image[0, rows, 2 + shift : 10 + shift, z] = gray
                label[0, rows, 2 + shift : 10 + shift, z] = organ if organ in organs else 0
    return {"image": image, "label": label}


def features_of(volume: Tensor) -> Tensor:
    """One feature a gray, ``(Z, 3, H, W)``."""
    return F.one_hot(volume[0].long().movedim(-1, 0), 3).movedim(-1, 1).float()


def encoded_scan(
    matching: SliceMatching, support: dict[str, Tensor], annotated: Sequence[int] | None = None
) -> EncodedScan:
    return matching.encode(support["label"], lambda slices: features_of(support["image"])[slices], HEAD, annotated)


def scores_in(query: dict[str, Tensor], matching: SliceMatching, *supports: dict[str, Tensor]) -> Tensor:
    """Scores ``(2, H, W, Z)`` of organs 3 and 7."""
    scans = [encoded_scan(matching, support) for support in supports]
    sources = {organ: [encoded for encoded in scans if organ in encoded] for organ in (3, 7)}
    found = matching.pool(sources, HEAD).score(features_of(query["image"]), None)
    return torch.stack([margins for margins, _ in found], dim=-1)


def label_in(query: dict[str, Tensor], matching: SliceMatching, *supports: dict[str, Tensor]) -> Tensor:
    return scores_to_label(scores_in(query, matching, *supports), [3, 7]).float()


def test_an_organs_extent_is_found_without_truth() -> None:
    """The scans begin and end elsewhere, and what looks like organ 3 below the organs shows in both."""
    support, query = scan("xx.oooooo......"), scan("xxx..oooooooo", shift=2)
    torch.testing.assert_close(label_in(query, SliceMatching(slices=1), support), query["label"])


def test_organs_are_each_others_background() -> None:
    scores = scores_in(scan(".oo"), SliceMatching(slices=None), scan("oo.."))
    torch.testing.assert_close(scores[:, 1, 3, 1], torch.tensor([20.0, -20.0]))
    torch.testing.assert_close(scores[:, 9, 3, 1], torch.tensor([-20.0, 20.0]))
    torch.testing.assert_close(scores[:, 1, 3, 0], torch.tensor([-20.0, -20.0]))


def test_each_organ_may_be_annotated_in_a_scan_of_its_own() -> None:
    """Each scan shows the other organ too, unannotated: it is no background of that organ."""
    query = scan("..ooo", shift=4)
    supports = scan("ooo.", organs=[3]), scan(".oo..", shift=2, organs=[7])
    torch.testing.assert_close(label_in(query, SliceMatching(slices=None), *supports), query["label"])


def test_no_slice_shows_an_organ_where_the_support_slice_that_is_most_alike_does_not() -> None:
    scores = scores_in(scan("xo"), SliceMatching(slices=1), scan("ox"))
    assert bool((scores[..., 0] <= 0).all())
    assert bool((scores[..., 1] > 0).any())


def test_the_order_of_the_support_scans_does_not_matter() -> None:
    query, supports = scan("x.oo."), (scan("oo.x"), scan(".ooo.", shift=4), scan("x..o", shift=2))
    one, other = (scores_in(query, SliceMatching(slices=3), *scans) for scans in (supports, supports[::-1]))
    torch.testing.assert_close(one, other)


# --- encoding --------------------------------------------------------------------------------------------------------


class Recorder:
    """Random features of slices, which remember what was asked for."""

    def __init__(self, depth: int) -> None:
        self.features = torch.randn(depth, 5, 4, 6)
        self.asked: list[list[int]] = []

    def __call__(self, slices: Sequence[int]) -> Tensor:
        self.asked.append(list(slices))
        return self.features[list(slices)]


def label_of(depth: int = 9) -> Tensor:
    """Organ 3 in slices 2 to 7, organ 7 beside it in slices 3 and 4, in slices of 8 x 12."""
    label = torch.zeros(1, 8, 12, depth)
    label[0, 1:6, 1:7, 2:8] = 3
    label[0, 2:7, 7:11, 3:5] = 7
    return label


def test_every_slice_gives_the_prototypes_of_the_classes_that_it_shows() -> None:
    head = PrototypeHead(ForegroundPrototypes(1, None, 0.5, 1), BackgroundPrototypes(2, None, 0.5))
    label, features = label_of(), Recorder(9)
    encoded = SliceMatching().encode(label, features, head)
    for z, prototypes in enumerate(encoded.prototypes):
        masks = {organ: F.avg_pool2d((label[..., z] == organ).float(), 2)[None] for organ in (BACKGROUND, 3, 7)}
        expected = {
            organ: (head.foreground if organ else head.background)(features.features[[z]], mask)
            for organ, mask in masks.items()
            if bool(mask.any())
        }
        torch.testing.assert_close(prototypes, expected)


def test_an_encoded_scan_tells_its_organs() -> None:
    encoded = SliceMatching().encode(label_of(), Recorder(9), HEAD)
    assert list(encoded) == [3, 7]
    assert 3 in encoded
    assert 4 not in encoded


@pytest.mark.parametrize(
    ("limit", "annotated", "expected"),
    [
        (None, None, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        (None, [2, 3, 5], [2, 3, 5]),
        (1, None, [4, 5]),  # the middle slices of organs 7 and 3
        (2, None, [3, 4, 6]),  # of two halves: 3 and 6 of organ 3, both of organ 7
        (2, [2, 3, 4, 5, 6, 7], [3, 4, 6]),
        (3, None, [3, 4, 5, 7]),
        (99, None, [2, 3, 4, 5, 6, 7]),
    ],
)
def test_only_annotated_slices_are_encoded(limit: int | None, annotated: list[int] | None, expected: list[int]) -> None:
    features = Recorder(9)
    encoded = SliceMatching(annotated_slices=limit).encode(label_of(), features, HEAD, annotated)
    assert features.asked == [expected]
    assert [sorted(shown) for shown in encoded.prototypes] == [
        [BACKGROUND] + [3] * (2 <= z <= 7) + [7] * (3 <= z <= 4) for z in expected
    ]


def test_ignored_pixels_are_neither_organ_nor_background() -> None:
    """In the drawn slice the block of gray 1 is an organ; the block beside it, of gray 2, is ignored."""
    support = scan("o", organs=(3,))
    without = encoded_scan(SliceMatching(), support)
    support["label"][0, 8:14, 2:10] = IGNORED
    ignored = encoded_scan(SliceMatching(), support)
    assert without.prototypes[0][BACKGROUND][:, 2].max() == 1
    assert ignored.prototypes[0][BACKGROUND][:, 2].max() < 0.5
    assert torch.equal(ignored.prototypes[0][3], without.prototypes[0][3])
    assert list(ignored) == [3]


def test_the_papers_matching_refuses_ignored_pixels_in_a_slice_that_shows_an_organ() -> None:
    support = scan("o.o")
    support["label"][..., 1] = IGNORED
    ChunkMatching().encode(support["label"], lambda slices: features_of(support["image"])[slices], HEAD)
    support["label"][0, 15, 23] = IGNORED
    with pytest.raises(ValueError, match="the paper's matching cannot ignore voxels"):
        ChunkMatching().encode(support["label"], lambda slices: features_of(support["image"])[slices], HEAD)


@pytest.mark.parametrize("annotated", [[], None])
@pytest.mark.parametrize("limit", [None, 3])
def test_a_scan_without_an_organ_says_nothing(limit: int | None, annotated: list[int] | None) -> None:
    features = Recorder(9)
    encoded = SliceMatching(annotated_slices=limit).encode(torch.zeros(1, 8, 12, 9), features, HEAD, annotated)
    assert features.asked == []
    assert encoded.prototypes == []
    assert list(encoded) == []


# --- what slices look like -------------------------------------------------------------------------------------------


def test_a_description_is_the_means_of_the_parts_of_a_slice_less_those_of_its_scan() -> None:
    bright = torch.zeros(3, 1, 2, 4)
    bright[0, 0, 0, :2] = 6  # the upper left part of the first slice: on average of the scan 2
    bright[1, 0, 1, 3] = 6  # half of the lower right part of the second: on average 1
    expected = F.normalize(torch.tensor([[4.0, 0, 0, -1], [-2, 0, 0, 2], [-2, 0, 0, -1]]))
    torch.testing.assert_close(SliceMatching(grid=2).describe(bright, range(len(bright)), len(bright)), expected)


def test_each_feature_has_its_part_in_a_description() -> None:
    features = torch.tensor([[1.0, 0.0], [0.0, 3.0]])[:, :, None, None].expand(2, 2, 6, 9)
    expected = torch.tensor([[1.0, -3.0], [-1.0, 3.0]]) / 10**0.5
    torch.testing.assert_close(SliceMatching(grid=1).describe(features, range(len(features)), len(features)), expected)


def test_what_all_slices_of_a_scan_share_is_in_no_description() -> None:
    features = torch.randn(5, 3, 8, 12)
    matching = SliceMatching()
    one, other = (matching.describe(f, range(5), 5) for f in (features, 2 * features + torch.randn(3, 8, 12)))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def gray_features(*grays: Sequence[float]) -> Tensor:
    """Slices of 8 x 12, each of one feature vector."""
    return torch.tensor(grays)[:, :, None, None].expand(len(grays), len(grays[0]), 8, 12)


def test_of_the_mean_of_a_slab_a_share_is_subtracted_and_of_the_annotated_scans_the_same() -> None:
    """Annotated are (2, 0) and (0, 4): mean (1, 2), spread 5; the query's (4, 1) and (2, 1) have (3, 1) and 1."""
    label = torch.zeros(1, 8, 12, 2)
    label[0, 2:6, 2:6, 0] = 3
    matching = SliceMatching(grid=1, whole_spread=0.8)
    support = gray_features([2.0, 0.0], [0.0, 4.0])
    encoded = matching.encode(label, lambda slices: support[list(slices)], HEAD)
    descriptions, share = matching.describe_query(gray_features([4.0, 1.0], [2.0, 1.0]), spread=5.0)
    assert share == pytest.approx(1 / 4)  # 1 of 0.8 x 5
    torch.testing.assert_close(descriptions, F.normalize(torch.tensor([[3.25, 0.75], [1.25, 0.75]])))
    torch.testing.assert_close(encoded.described(share), F.normalize(torch.tensor([[1.75, -0.5], [-0.25, 3.5]])))
    torch.testing.assert_close(encoded.lengths, torch.tensor([5.0, 5.0]).sqrt())


@pytest.mark.parametrize(("whole_spread", "spread"), [(0.65, 1.5), (0.0, 50.0), (0.65, 0.0)])
def test_all_of_the_mean_of_a_whole_scan_is_subtracted(whole_spread: float, spread: float) -> None:
    """Its spread is 1: enough, never too little, and not to be compared."""
    features = gray_features([4.0, 1.0], [2.0, 1.0])
    matching = SliceMatching(grid=1, whole_spread=whole_spread)
    descriptions, share = matching.describe_query(features, spread)
    assert share == 1
    torch.testing.assert_close(descriptions, matching.describe(features, range(2), 2))


@pytest.mark.parametrize("slab", [([4.0, 0.0], [3.6, 0.2]), ([4.0, 0.0],)], ids=["two slices", "one slice"])
def test_a_slab_of_nothing_but_an_organ_is_matched_to_slices_with_the_organ(slab: Sequence[list[float]]) -> None:
    """Less the mean of the two, the second slice would look like those without the organ."""
    support = gray_features([4.0, 0.0], [4.0, 0.0], [0.0, 4.0], [0.0, 4.0], [0.0, 4.0])
    label = torch.zeros(1, 8, 12, 5)
    label[..., :2] = 3
    matching = SliceMatching(slices=1, grid=1)
    encoded = matching.encode(label, lambda slices: support[list(slices)], HEAD)
    found = matching.pool({3: [encoded]}, HEAD).score(gray_features(*slab), None)
    assert all(bool((margins > 0).all()) for margins, _ in found)


def test_a_negative_spread_of_whole_scans_is_refused() -> None:
    with pytest.raises(ValueError, match=r"whole_spread, a share, must be at least 0, got -1\.0"):
        SliceMatching(whole_spread=-1.0)


def test_by_height_the_nearest_slices_of_the_scans_are_alike() -> None:
    """Ten slices against four: the heights decide, and what the slices look like does not."""
    matching = SliceMatching(by="height")
    query = matching.describe(torch.randn(10, 3, 8, 8), range(10), 10)
    support = matching.describe(torch.randn(2, 3, 8, 8), [1, 3], 4)
    torch.testing.assert_close(query.norm(dim=1), torch.ones(10))
    heights = torch.tensor([[abs((z + 0.5) / 10 - (s + 0.5) / 4) for s in (1, 3)] for z in range(10)])
    assert torch.equal((query @ support.T).argmax(dim=1), heights.argmin(dim=1))


def test_by_height_an_organ_is_found_where_the_annotated_one_lies() -> None:
    """Slices of "x" look like organ 3; only those at its height become it."""
    support, query = scan("....oooo"), scan("xxxxoooo", shift=2)
    found = label_in(query, SliceMatching(slices=2, by="height"), support)
    torch.testing.assert_close(found, query["label"])


# --- which slices speak, and what they say ---------------------------------------------------------------------------


class Total(nn.Module):
    """A score that tells which prototypes were given: their sum."""

    def forward(self, features: Tensor, prototypes: Tensor) -> Tensor:
        return prototypes.sum().expand(features.shape[-2:])


TOTAL = PrototypeHead(classifier=Total())

# Of two slices of 2 x 3: with one part a slice, they are described by (1, -1) and (-1, 1), over the root of 2.
QUERY = ((1.0, 0.0), (0.0, 1.0))

# From the most to the least like the first slice of the query; the other way round for the second.
LIKE = ((0.6, -0.8), (1.0, 0.0), (0.8, 0.6), (0.0, 1.0))


def encoded(*slices: Mapping[int, float], like: Sequence[int] = (0, 1, 2, 3)) -> EncodedScan:
    """One prototype of one number for each class in each slice."""
    prototypes = [{organ: torch.tensor([[value]]) for organ, value in shown.items()} for shown in slices]
    return EncodedScan(prototypes, torch.tensor([LIKE[place] for place, _ in zip(like, slices, strict=False)]))


def margins_and_best(
    slices: int | None, sources: Mapping[int, Sequence[EncodedScan]], extents: Extents | None = None
) -> tuple[list[list[float]], list[float]]:
    """For each slice of the query the margins of all organs, and the largest logit."""
    query = torch.tensor(QUERY)[:, :, None, None].expand(2, 2, 2, 3)
    found = list(SliceMatching(slices, grid=1).pool(sources, TOTAL).score(query, extents))
    assert all(margins.shape[1:] == best.shape == (2, 3) for margins, best in found)
    return [margins[:, 1, 2].tolist() for margins, _ in found], [float(best[1, 2]) for _, best in found]


def named(*values: float) -> list[dict[int, float]]:
    """Slices that show organ 3, told apart by their values."""
    return [{BACKGROUND: 0.0, 3: value} for value in values]


@pytest.mark.parametrize(
    ("slices", "expected"), [(1, [[4.0], [1.0]]), (2, [[12.0], [3.0]]), (3, [[14.0], [11.0]]), (4, [[15.0], [15.0]])]
)
def test_the_slices_most_alike_speak(slices: int, expected: list[list[float]]) -> None:
    support = encoded(*named(1, 2, 4, 8), like=(3, 2, 0, 1))
    assert margins_and_best(slices, {3: [support]})[0] == expected


def test_the_slices_of_all_support_scans_compete() -> None:
    supports = [encoded(*named(1, 2), like=(3, 1)), encoded(*named(4, 8), like=(0, 2))]
    assert margins_and_best(1, {3: supports})[0] == [[4.0], [1.0]]
    assert margins_and_best(2, {3: supports})[0] == [[6.0], [9.0]]


@pytest.mark.parametrize("slices", [8, 9, 500])
def test_no_limit_is_the_same_as_one_that_is_not_reached(slices: int) -> None:
    sources = {3: [encoded(*named(1, 2, 4, 8)), encoded(*named(16, 32, 64, 128))]}
    assert margins_and_best(None, sources)[0] == [[255.0], [255.0]]
    assert margins_and_best(slices, sources) == margins_and_best(None, sources)


@pytest.mark.parametrize("scans", [1, 2, 5])
def test_more_support_scans_leave_the_number_of_compared_slices(scans: int) -> None:
    supports = [encoded(*named(1, 1, 1, 1)) for _ in range(scans)]
    assert margins_and_best(3, {3: supports})[0] == [[3.0], [3.0]]


def test_the_strongest_other_class_is_the_background_of_an_organ() -> None:
    shown = {BACKGROUND: 4.0, 3: 9.0, 7: 6.0, 5: 1.0}
    margins, best = margins_and_best(None, {organ: [encoded(shown)] for organ in (3, 7, 5)})
    assert margins[0] == [9 - 6, 6 - 9, 1 - 9]
    assert best == [9.0, 9.0]


def test_the_largest_logit_may_be_the_backgrounds() -> None:
    margins, best = margins_and_best(None, {3: [encoded({BACKGROUND: 4.0, 3: -2.0})]})
    assert margins == [[-6.0], [-6.0]]
    assert best == [4.0, 4.0]


def test_scores_are_in_the_order_of_the_sources() -> None:
    support = [encoded({BACKGROUND: 0.0, 3: 9.0, 7: 6.0})]
    assert margins_and_best(None, {7: support, 3: support})[0][0] == [-3.0, 3.0]


def test_an_organ_that_no_chosen_slice_shows_scores_0() -> None:
    """The first slice of the query is compared with organ 3 only, the second with organ 7 only."""
    support = encoded({BACKGROUND: -4.0, 3: 5.0}, {BACKGROUND: -6.0, 7: -1.0}, like=(0, 3))
    margins, best = margins_and_best(1, {3: [support], 7: [support]})
    assert margins == [[5 - 0, 0 - 5], [0 + 1, -1 - 0]]
    assert best == [5.0, 0.0]


def test_a_scan_in_which_an_organ_is_not_annotated_gives_no_background_for_it() -> None:
    both, one = encoded({BACKGROUND: 20.0, 3: 2.0, 7: 40.0}), encoded({BACKGROUND: 10.0, 3: 1.0})
    margins, best = margins_and_best(None, {3: [one, both], 7: [both]})
    assert margins[0] == [(1 + 2) - 40, 40 - 20]
    assert best == [40.0, 40.0]


def test_all_scans_in_which_an_organ_is_annotated_give_background_for_it() -> None:
    scans = [encoded({BACKGROUND: 10.0, 3: 1.0}), encoded({BACKGROUND: 20.0, 3: 2.0})]
    assert margins_and_best(None, {3: scans})[0][0] == [(1 + 2) - (10 + 20)]


def test_each_group_of_scans_has_its_own_most_alike_slices() -> None:
    """Organs of different scans: each group is asked for as many slices as the limit says."""
    first = encoded({BACKGROUND: 1.0, 3: 4.0}, {BACKGROUND: 2.0, 3: 8.0}, like=(0, 3))
    second = encoded({BACKGROUND: 3.0, 7: 5.0}, {BACKGROUND: 9.0, 7: 6.0}, like=(2, 1))
    margins, _ = margins_and_best(1, {3: [first], 7: [second]})
    assert margins == [[4 - 6, 6 - 9], [8 - 5, 5 - 8]]


EXTENTS = [
    ({3: (0, 1), 7: (0, 0)}, [[9.0, -9.0], [9.0, -1.0]]),
    ({3: (1, 1), 7: (1, 1)}, [[-1.0, -1.0], [9.0, -9.0]]),
    ({3: None, 7: (0, 5)}, [[-1.0, -9.0], [-1.0, -9.0]]),
    (None, [[9.0, -9.0], [9.0, -9.0]]),
]


@pytest.mark.parametrize(("extents", "expected"), EXTENTS)
def test_outside_of_its_extent_an_organ_is_not_looked_for(extents: Extents | None, expected: list[list[float]]) -> None:
    support = [encoded({BACKGROUND: 2.0, 3: 11.0, 7: 2.0})]
    assert margins_and_best(None, {3: support, 7: support}, extents)[0] == expected


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SliceMatching(slices=0), r"must be at least 1, got \{'slices': 0\}"),
        (lambda: SliceMatching(by="place"), "by must be 'likeness' or 'height', got 'place'"),
        (lambda: SliceMatching(grid=0), r"must be at least 1, got \{'grid': 0\}"),
        (lambda: SliceMatching(annotated_slices=-2), r"must be at least 1, got \{'annotated_slices': -2\}"),
        (lambda: ChunkMatching(chunks=0), "chunks must be at least 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
