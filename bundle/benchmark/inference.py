"""Seconds of a scan: this bundle, the original way to evaluate, and the encoder alone.

The original way encodes an annotated slice again with every query slice, for every organ; the encoder alone, on the
query's slices, is the least that any way can take on a machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor

from bundle.benchmark.results import Result
from bundle.benchmark.synthetic import blob_scan
from bundle.benchmark.timing import side_by_side
from bundle.command_line.checks import check_positive_integers
from bundle.command_line.configs import parsed
from bundle.inference.matching import Matching, SliceMatching
from bundle.inference.volume_inferer import VolumeInferer
from bundle.networks import ALPNet, PrototypeHead, ResNetEncoder, load_network
from bundle.networks.encoders import Depth, Stage
from bundle.transforms.slices import chunks_by_position, organ_slices, organs_of, support_slices, to_network

Scan = Mapping[str, Tensor]

ENCODERS: dict[str, tuple[Depth, Stage]] = {
    "resnet18": (18, "layer3"),
    "resnet34": (34, "layer3"),
    "resnet50": (50, "layer4"),
    "resnet101": (101, "layer4"),
}
"""Depth and last stage by name; ``resnet101`` is the paper's."""

MATCHINGS = {"paper": "preset_paper.yaml", "annotate_one": "preset_annotate_one.yaml"}
"""The override that has the matching and the head."""

SLICE_BATCH = 8
"""Slices that are encoded at once, by this bundle and by the encoder alone."""

CHUNKS = 3


def measure(
    encoder: str,
    organs: int,
    support_scans: int,
    slices: int,
    matchings: Sequence[str] = tuple(MATCHINGS),
    naive_slices: int | None = None,
    size: int = 256,
    repeats: int = 3,
    device: str = "cpu",
    seed: int = 0,
) -> list[Result]:
    """Measure a case: each round has every matching, the original way and the encoder alone.

    Args:
        encoder: One of ``ENCODERS``.
        organs: Organs that are asked for.
        support_scans: Annotated scans; each has as many slices as the query.
        slices: Slices of the query.
        matchings: Of ``MATCHINGS``.
        naive_slices: Slices that the original way is measured on, for every organ; its time is scaled to all of
            them. ``None`` measures all.
        size: Rows and columns of a slice.
        repeats: Rounds, after one that does not count.
        device: Where everything is.
        seed: Of scans and weights.

    Returns:
        One result for each matching.

    Raises:
        ValueError: If a name is unknown or a number out of range.
    """
    check_positive_integers(organs=organs, support_scans=support_scans, slices=slices, repeats=repeats)
    refuse_unknown("matching", matchings, MATCHINGS)
    measured = list(range(slices)) if naive_slices is None else _some(slices, naive_slices)
    network = build_network(encoder, seed).to(device)
    ours = cast("ALPNet", load_network(deepcopy(network), None, device)).eval()
    support = [blob_scan(size, slices, organs, seed + 1 + number) for number in range(support_scans)]
    query = blob_scan(size, slices, organs, seed)["image"].to(device)
    works: dict[str, Callable[[], object]] = {}
    for name in matchings:
        parts = matching_of(name)
        kept = VolumeInferer(support, slice_batch=SLICE_BATCH, **parts)
        works[name] = lambda kept=kept: kept(query[None], ours)  # type: ignore[misc]
        works[f"{name}, first"] = lambda parts=parts: VolumeInferer(  # type: ignore[misc]
            support, slice_batch=SLICE_BATCH, **parts
        )(query[None], ours)
    on_device = [{key: values.to(device) for key, values in scan.items()} for scan in support]
    works["naive"] = lambda: naive_scores(network, on_device, query, measured)
    works["encoder"] = lambda: encode_alone(network, query)
    title = f"{encoder}, {organs} organs, {support_scans} support scans, {slices} slices"
    seconds = side_by_side(works, repeats, title)
    seconds["naive"] *= slices / len(measured)
    note = "" if len(measured) == slices else f"naive: {len(measured)} of {slices} slices measured"
    case: dict[str, str | int] = {
        "encoder": encoder,
        "organs": organs,
        "support_scans": support_scans,
        "slices": slices,
    }
    return [Result("inference", {**case, "matching": n}, _values(seconds, n, slices), note) for n in matchings]


def measure_prototypes(
    wanted: int = 5000,
    encoder: str = "resnet18",
    slices: int = 30,
    size: int = 256,
    repeats: int = 3,
    device: str = "cpu",
    seed: int = 0,
) -> Result:
    """Measure many prototypes, all of which speak for every slice of a query with four organs.

    Args:
        wanted: Prototypes of all classes together, about; the result's case says how many there are.
        encoder: One of ``ENCODERS``.
        slices: Slices of the query.
        size: Rows and columns of a slice.
        repeats: Rounds, after one that does not count.
        device: Where everything is.
        seed: Of scans and weights.
    """
    check_positive_integers(prototypes=wanted, slices=slices, repeats=repeats)
    network = build_network(encoder, seed).to(device)
    ours = cast("ALPNet", load_network(deepcopy(network), None, device)).eval()
    parts = matching_of("annotate_one")
    head = parts["head"]
    query = blob_scan(size, slices, 4, seed)["image"].to(device)
    each = count_prototypes(head, lambda: _all_speak(_annotated(1, size, seed), head)(query[None, ..., :1], ours))
    scan = _annotated(max(1, round(wanted / each)), size, seed)
    inferer = _all_speak(scan, head)
    count = count_prototypes(head, lambda: inferer(query[None], ours))
    seconds = side_by_side(
        {"ours": lambda: inferer(query[None], ours), "encoder": lambda: encode_alone(network, query)},
        repeats,
        f"{encoder}, {count} prototypes",
    )
    case: dict[str, str | int] = {"encoder": encoder, "organs": 4, "slices": slices}
    case |= {"matching": "annotate_one, slices: null", "prototypes": count}
    return Result(
        "prototypes",
        case,
        {
            "ours, s a scan": seconds["ours"],
            "encoder alone, s a scan": seconds["encoder"],
            "ours, slices/s": slices / seconds["ours"],
            "encoder alone, slices/s": slices / seconds["encoder"],
            "ours / encoder alone": seconds["ours"] / seconds["encoder"],
        },
    )


def build_network(encoder: str, seed: int) -> ALPNet:
    """Return a network with random weights, in eval mode.

    Raises:
        ValueError: If the encoder's name is unknown.
    """
    refuse_unknown("encoder", [encoder], ENCODERS)
    depth, last_stage = ENCODERS[encoder]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ALPNet(ResNetEncoder(depth, last_stage)).eval()


def matching_of(name: str) -> dict[str, Any]:
    """Return ``matching`` and ``head`` of a preset, as a ``VolumeInferer`` takes them."""
    parser = parsed(["inference.yaml", MATCHINGS[name]], {})
    return {part: parser.get_parsed_content(part) for part in ("matching", "head")}


def naive_scores(network: ALPNet, support: Sequence[Scan], query: Tensor, slices: Sequence[int]) -> Tensor:
    """Segment as the original evaluation does: organ by organ, slice by slice, everything again each time.

    The annotated slices of the query slice's third pass the encoder in one batch with it; prototypes are pooled from
    them, the slice is scored, and its scores are enlarged. A slice's third is found by relative height, as
    ``VolumeInferer`` does without the query's truth.

    Args:
        network: In eval mode.
        support: Annotated scans, each with all organs, on the network's device.
        query: Volume ``(1, H, W, Z)``.
        slices: Which of its slices.

    Returns:
        Foreground minus background logit, ``(O, H, W, len(slices))``.
    """
    organs = [_naive_organ(network, support, query, slices, organ) for organ in organs_of(support[0]["label"])]
    return torch.stack(organs)


@torch.no_grad()
def _naive_organ(network: ALPNet, support: Sequence[Scan], query: Tensor, slices: Sequence[int], organ: int) -> Tensor:
    shown = [organ_slices(scan["label"], organ) for scan in support]
    chosen = [support_slices(places, CHUNKS) for places in shown]
    depths = [scan["label"].shape[-1] for scan in support]
    begin = sum(places[0] / depth for places, depth in zip(shown, depths, strict=True)) / len(support)
    end = sum((places[-1] + 1) / depth for places, depth in zip(shown, depths, strict=True)) / len(support)
    chunks = chunks_by_position(query.shape[-1], (begin, end), CHUNKS)
    scores = []
    for z in slices:
        speaking = [places[chunks[z]] for places in chosen]
        pairs = list(zip(support, speaking, strict=True))
        images = torch.cat([to_network(scan["image"][..., [place]]) for scan, place in pairs])
        masks = torch.stack([(scan["label"][..., place] == organ).float() for scan, place in pairs])
        background, foreground = network(to_network(query[..., [z]]), images[None], masks[None])[0]
        scores.append(foreground - background)
    return torch.stack(scores, dim=-1)


@torch.no_grad()
def encode_alone(network: ALPNet, query: Tensor) -> None:
    """Encode all slices of a volume ``(1, H, W, Z)``, and nothing else."""
    images = to_network(query)
    for start in range(0, len(images), SLICE_BATCH):
        network.encoder(images[start : start + SLICE_BATCH])


def count_prototypes(head: PrototypeHead, work: Callable[[], object]) -> int:
    """Return how many prototypes a head pools while something is done."""
    counted: list[int] = []
    poolings = (head.foreground, head.background)
    hooks = [pooling.register_forward_hook(lambda _, __, found: counted.append(len(found))) for pooling in poolings]
    try:
        work()
    finally:
        for hook in hooks:
            hook.remove()
    return sum(counted)


def refuse_unknown(what: str, names: Sequence[str], known: Mapping[str, Any]) -> None:
    """Raise if a name is not known.

    Raises:
        ValueError: With the known ones.
    """
    for name in names:
        if name not in known:
            raise ValueError(f"unknown {what} {name!r}; known are {', '.join(known)}.")


def _annotated(slices: int, size: int, seed: int) -> Scan:
    """Return slices that are alike in what they show: each is the middle one of a scan of its own."""
    scans = [blob_scan(size, 3, 4, seed + 1 + number) for number in range(slices)]
    return {key: torch.cat([scan[key][..., 1:2] for scan in scans], dim=-1) for key in scans[0]}


def _all_speak(scan: Scan, head: PrototypeHead) -> VolumeInferer:
    everything: Matching = SliceMatching(slices=None)
    return VolumeInferer([scan], matching=everything, head=head, slice_batch=SLICE_BATCH)


def _some(slices: int, wanted: int) -> list[int]:
    """Return ``wanted`` of so many slices, spread over all; all of them if there are no more."""
    check_positive_integers(naive_slices=wanted)
    return support_slices(range(slices), min(wanted, slices))


def _values(seconds: Mapping[str, float], matching: str, slices: int) -> dict[str, float]:
    ours, naive, alone = seconds[matching], seconds["naive"], seconds["encoder"]
    return {
        "ours, s a scan": ours,
        "ours, s the first scan": seconds[f"{matching}, first"],
        "naive, s a scan": naive,
        "encoder alone, s a scan": alone,
        "ours, slices/s": slices / ours,
        "encoder alone, slices/s": slices / alone,
        "naive / ours": naive / ours,
        "ours / encoder alone": ours / alone,
    }
