"""The original evaluation finds what this bundle finds, with many more images; each number has its column."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from bundle.benchmark import inference
from bundle.benchmark.inference import (
    build_network,
    count_prototypes,
    encode_alone,
    matching_of,
    measure,
    measure_prototypes,
    naive_scores,
)
from bundle.benchmark.synthetic import blob_scan
from bundle.inference.matching import ChunkMatching, SliceMatching
from bundle.inference.volume_inferer import VolumeInferer
from bundle.networks import ALPNet, TopKClassifier
from bundle.transforms.slices import to_network
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("one_thread")

# Images of every call of an encoder that counts.
IMAGES: list[int] = []


class CountingEncoder(nn.Module):
    """Features of 8 x 8 pixels each, in no time."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 5, 8, stride=8)

    def forward(self, image: Tensor) -> Tensor:
        IMAGES.append(len(image))
        return self.convolution(image)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> ALPNet:
    IMAGES.clear()
    network = ALPNet(CountingEncoder()).eval()
    monkeypatch.setattr(inference, "build_network", lambda encoder, seed: network)
    return network


@pytest.mark.parametrize("depths", [[7], [7, 12]])
def test_the_original_way_gives_the_scores_of_the_papers_matching(depths: list[int]) -> None:
    network = build_network("resnet18", seed=3)
    support = [blob_scan(64, depth, 3, seed=number) for number, depth in enumerate(depths)]
    query = blob_scan(64, 9, 3, seed=9)["image"]
    naive = naive_scores(network, support, query, range(9))
    ours = VolumeInferer(support, matching=ChunkMatching(3))(query[None], network)[0].as_tensor()
    torch.testing.assert_close(naive, ours, atol=1e-4, rtol=1e-4)
    assert torch.equal(naive.argmax(dim=0), ours.argmax(dim=0))
    assert 0.02 < (naive > 0).float().mean() < 0.98
    assert torch.equal(naive_scores(network, support, query, [2, 5]), naive[..., [2, 5]])


def test_the_original_way_encodes_two_images_for_every_organ_and_slice(counted: ALPNet) -> None:
    query = blob_scan(64, 6, 3, seed=9)["image"]
    naive_scores(counted, [blob_scan(64, 5, 3, seed=1)], query, range(6))
    assert IMAGES == [2] * (3 * 6)


def test_with_several_annotated_scans_the_original_way_encodes_a_slice_of_each(counted: ALPNet) -> None:
    query = blob_scan(64, 6, 2, seed=9)["image"]
    naive_scores(counted, [blob_scan(64, 5, 2, seed=number) for number in (1, 2, 3)], query, [0, 4])
    assert IMAGES == [4] * (2 * 2)


def test_the_encoder_alone_sees_each_slice_once_and_as_many_at_once_as_this_bundle(counted: ALPNet) -> None:
    query = blob_scan(64, 19, 1, seed=9)["image"]
    encode_alone(counted, query)
    assert IMAGES == [8, 8, 3]
    IMAGES.clear()
    seen = []
    counted.encoder.register_forward_hook(lambda _, images, __: seen.append(images[0]))
    encode_alone(counted, query)
    assert torch.equal(torch.cat(seen), to_network(query))


def test_this_bundle_encodes_each_slice_of_a_second_scan_once(counted: ALPNet, monkeypatch: pytest.MonkeyPatch) -> None:
    images: dict[str, int] = {}

    def count(works: Mapping[str, Callable[[], object]], repeats: int, title: str) -> dict[str, float]:
        for round_number in range(2):
            for name, work in works.items():
                IMAGES.clear()
                work()
                images[f"{name}, round {round_number}"] = sum(IMAGES)
        return dict.fromkeys(works, 1.0)

    monkeypatch.setattr(inference, "side_by_side", count)
    measure("resnet18", organs=2, support_scans=2, slices=6, size=64)
    # Each annotated scan has 6 slices; the paper's matching needs those in the middle of three thirds.
    assert images == {
        "paper, round 0": 2 * 3 + 6,
        "paper, round 1": 6,
        "paper, first, round 0": 2 * 3 + 6,
        "paper, first, round 1": 2 * 3 + 6,
        "annotate_one, round 0": 2 * 6 + 6,
        "annotate_one, round 1": 6,
        "annotate_one, first, round 0": 2 * 6 + 6,
        "annotate_one, first, round 1": 2 * 6 + 6,
        "naive, round 0": 3 * 2 * 6,
        "naive, round 1": 3 * 2 * 6,
        "encoder, round 0": 6,
        "encoder, round 1": 6,
    }


SECONDS = {
    "paper": 2.0,
    "paper, first": 5.0,
    "annotate_one": 4.0,
    "annotate_one, first": 6.0,
    "naive": 3.0,
    "encoder": 1.0,
}


def fake_seconds(works: Mapping[str, Any], repeats: int, title: str) -> dict[str, float]:
    assert (list(works), repeats) == (list(SECONDS), 7)
    return dict(SECONDS)


def test_numbers_and_ratios_are_of_the_measured_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "side_by_side", fake_seconds)
    paper, annotate_one = measure("resnet18", 4, 1, slices=10, size=64, repeats=7)
    assert paper.case == {"encoder": "resnet18", "organs": 4, "support_scans": 1, "slices": 10, "matching": "paper"}
    assert annotate_one.case == {**paper.case, "matching": "annotate_one"}
    shared = {"naive, s a scan": 3, "encoder alone, s a scan": 1, "encoder alone, slices/s": 10}
    assert paper.values == shared | {
        "ours, s a scan": 2,
        "ours, s the first scan": 5,
        "ours, slices/s": 5,
        "naive / ours": 1.5,
        "ours / encoder alone": 2,
    }
    assert annotate_one.values == shared | {
        "ours, s a scan": 4,
        "ours, s the first scan": 6,
        "ours, slices/s": 2.5,
        "naive / ours": 0.75,
        "ours / encoder alone": 4,
    }
    assert paper.note == annotate_one.note == ""


def test_the_original_way_may_be_measured_on_some_slices_and_is_scaled(
    counted: ALPNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def count(works: Mapping[str, Callable[[], object]], repeats: int, title: str) -> dict[str, float]:
        works["naive"]()
        return dict(SECONDS)

    monkeypatch.setattr(inference, "side_by_side", count)
    result, _ = measure("resnet18", 2, 1, slices=10, naive_slices=4, size=64)
    assert IMAGES == [2] * (2 * 4)
    assert result.values["naive, s a scan"] == 3 * 10 / 4
    assert result.values["naive / ours"] == 3 * 10 / 4 / 2
    assert result.note == "naive: 4 of 10 slices measured"
    IMAGES.clear()
    result, _ = measure("resnet18", 2, 1, slices=3, naive_slices=4, size=64)
    assert IMAGES == [2] * (2 * 3)
    assert (result.values["naive, s a scan"], result.note) == (3, "")


def test_many_prototypes_are_counted_and_all_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    inferers: list[VolumeInferer] = []
    comparing_all = inference._comparing_all

    def remember(*arguments: Any) -> VolumeInferer:
        inferers.append(comparing_all(*arguments))
        return inferers[-1]

    def fake(works: Mapping[str, Callable[[], object]], repeats: int, title: str) -> dict[str, float]:
        works["ours"]()
        works["encoder"]()
        return {"ours": 6.0, "encoder": 3.0}

    monkeypatch.setattr(inference, "_comparing_all", remember)
    monkeypatch.setattr(inference, "side_by_side", fake)
    result = measure_prototypes(300, slices=3, size=64)
    used = inferers[-1]
    assert isinstance(used.matching, SliceMatching)
    assert used.matching.slices is None
    network = build_network("resnet18", 0)
    (scan,) = used.support_scans()
    encoded = used.matching.encode(
        scan["label"], lambda slices: network.encoder(to_network(scan["image"][..., slices])).detach(), used.head
    )
    count = sum(len(prototypes) for shown in encoded.prototypes for prototypes in shown.values())
    assert result.case["prototypes"] == count
    assert 240 < count < 360
    assert result.values == {
        "ours, s a scan": 6,
        "encoder alone, s a scan": 3,
        "ours, slices/s": 0.5,
        "encoder alone, slices/s": 1,
        "ours / encoder alone": 2,
    }


def test_prototypes_are_counted_while_something_is_done_and_no_longer() -> None:
    network = build_network("resnet18", 0)
    features, mask = torch.rand(1, 4, 6, 6), torch.zeros(1, 1, 6, 6)
    # An empty foreground has one prototype, a full background one for each of 3 x 3 cells.
    assert count_prototypes(network, lambda: network.prototypes(features, mask)) == 1 + 9
    assert not network.foreground._forward_hooks
    assert not network.background._forward_hooks


def test_a_preset_has_its_own_matching_and_head() -> None:
    assert isinstance(matching_of("paper")["matching"], ChunkMatching)
    assert matching_of("paper")["head"] is None
    ours = matching_of("annotate_one")
    assert isinstance(ours["matching"], SliceMatching)
    assert isinstance(ours["head"].classifier, TopKClassifier)


def test_weights_are_of_the_seed_alone_and_leave_other_random_numbers_as_they_are() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, same, other = (build_network("resnet18", seed).encoder.localconv.weight for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"encoder": "resnet19"}, "unknown encoder 'resnet19'. Choose among resnet18, resnet34, resnet50, resnet101"),
        ({"matchings": ["mine"]}, "unknown matching 'mine'. Choose among paper, annotate_one"),
        ({"organs": 0}, "organs must be a whole number of at least 1, got 0"),
        ({"support_scans": 1.5}, "support_scans must be a whole number"),
        ({"slices": -3}, "slices must be a whole number"),
        ({"naive_slices": -1}, "naive_slices must be a whole number"),
        ({"repeats": 0}, "repeats must be a whole number"),
        ({"organs": 65}, "needs 8 pixels along each side of every organ.*got 65 organs in 64 x 64 pixels"),
    ],
)
def test_an_error_is_reported_in_plain_words(keys: dict[str, Any], message: str) -> None:
    given = {"encoder": "resnet18", "organs": 1, "support_scans": 1, "slices": 2, "size": 64} | keys
    with pytest.raises(ValueError, match=message):
        measure(**given)


def test_numbers_of_the_prototypes_are_checked() -> None:
    with pytest.raises(ValueError, match="prototypes must be a whole number of at least 1, got 0"):
        measure_prototypes(0)
