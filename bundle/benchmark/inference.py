"""Seconds per scan: this bundle, the original evaluation, and the encoder alone.

The original evaluation encodes the annotated slices again for every query slice and every organ. The encoder alone, on
the query's slices, is a lower bound for any method.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any, cast

import torch
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
from torch import Tensor

Scan = Mapping[str, Tensor]

# Depth and last stage by name; ``resnet101`` is the paper's.
ENCODERS: dict[str, tuple[Depth, Stage]] = {
    "resnet18": (18, "layer3"),
    "resnet34": (34, "layer3"),
    "resnet50": (50, "layer4"),
    "resnet101": (101, "layer4"),
}

# The override that sets the matching and the head.
MATCHINGS = {"paper": "preset_paper.yaml", "annotate_one": "preset_annotate_one.yaml"}

# Slices per batch, for this bundle and for the encoder alone.
SLICE_BATCH = 8

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
    """Measure a case: each round runs every matching, the original evaluation and the encoder alone.

    Args:
        encoder: One of ``ENCODERS``.
        organs: Number of organs to segment.
        support_scans: Annotated scans; each has as many slices as the query.
        slices: Slices of the query.
        matchings: Names in ``MATCHINGS``.
        naive_slices: Slices on which the original evaluation is measured, for every organ; its time is scaled up to
            all slices. ``None`` measures all of them.
        size: Rows and columns of a slice.
        repeats: Counted rounds, after one warm-up round.
        device: Device of network and scans.
        seed: Random seed of scans and weights.

    Returns:
        One result for each matching.

    Raises:
        ValueError: If a name is unknown or a number is out of range.
    """
    check_positive_integers(organs=organs, support_scans=support_scans, slices=slices, repeats=repeats)
    refuse_unknown("matching", matchings, MATCHINGS)
    measured = list(range(slices)) if naive_slices is None else _some(slices, naive_slices)
    network = build_network(encoder, seed).to(device)
    support = [blob_scan(size, slices, organs, seed + 1 + number) for number in range(support_scans)]
    query = blob_scan(size, slices, organs, seed)["image"].to(device)
    works = _works(network, support, query, matchings, measured)
    title = f"{encoder}, {organs} organs, {support_scans} support scans, {slices} slices"
    seconds = side_by_side(works, repeats, title)
    seconds["naive"] *= slices / len(measured)
    note = "" if len(measured) == slices else f"naive: {len(measured)} of {slices} slices measured"
    case: dict[str, str | int] = {"encoder": encoder, "organs": organs}
    case |= {"support_scans": support_scans, "slices": slices}
    return [Result("inference", {**case, "matching": n}, _values(seconds, n, slices), note) for n in matchings]


def _works(
    network: ALPNet, support: Sequence[Scan], query: Tensor, matchings: Sequence[str], measured: Sequence[int]
) -> dict[str, Callable[[], object]]:
    """Return what a round runs, by name: each matching with the support encoded already, and from scratch."""
    ours = _as_shipped(network, query.device)
    works: dict[str, Callable[[], object]] = {}
    for name in matchings:
        inferer = functools.partial(VolumeInferer, support, slice_batch=SLICE_BATCH, **matching_of(name))
        works[name] = functools.partial(inferer(), query[None], ours)
        works[f"{name}, first"] = lambda inferer=inferer: inferer()(query[None], ours)  # type: ignore[misc]
    on_device = [{key: values.to(query.device) for key, values in scan.items()} for scan in support]
    works["naive"] = lambda: naive_scores(network, on_device, query, measured)
    works["encoder"] = lambda: encode_alone(network, query)
    return works


def _as_shipped(network: ALPNet, device: torch.device) -> ALPNet:
    """Return a copy of a network as an inference loads it."""
    return cast("ALPNet", load_network(deepcopy(network), None, device)).eval()


def measure_prototypes(
    wanted: int = 5000,
    encoder: str = "resnet18",
    slices: int = 30,
    size: int = 256,
    repeats: int = 3,
    device: str = "cpu",
    seed: int = 0,
) -> Result:
    """Measure many prototypes, all of them compared with every slice of a query with four organs.

    Args:
        wanted: Approximate number of prototypes of all classes together; the result's case states the exact one.
        encoder: One of ``ENCODERS``.
        slices: Slices of the query.
        size: Rows and columns of a slice.
        repeats: Counted rounds, after one warm-up round.
        device: Device of network and scans.
        seed: Random seed of scans and weights.
    """
    check_positive_integers(prototypes=wanted, slices=slices, repeats=repeats)
    network = build_network(encoder, seed).to(device)
    head = matching_of("annotate_one")["head"]
    query = blob_scan(size, slices, 4, seed)["image"].to(device)
    ours = _as_shipped(network, query.device)
    each = count_prototypes(head, lambda: _comparing_all(_annotated(1, size, seed), head)(query[None, ..., :1], ours))
    inferer = _comparing_all(_annotated(max(1, round(wanted / each)), size, seed), head)
    count = count_prototypes(head, lambda: inferer(query[None], ours))
    works = {"ours": lambda: inferer(query[None], ours), "encoder": lambda: encode_alone(network, query)}
    seconds = side_by_side(works, repeats, f"{encoder}, {count} prototypes")
    case: dict[str, str | int] = {"encoder": encoder, "organs": 4, "slices": slices}
    case |= {"matching": "annotate_one, slices: null", "prototypes": count}
    return Result("prototypes", case, _beside_encoder(seconds["ours"], seconds["encoder"], slices))


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
    """Return ``matching`` and ``head`` of a preset, for ``VolumeInferer``."""
    parser = parsed(["inference.yaml", MATCHINGS[name]], {})
    return {part: parser.get_parsed_content(part) for part in ("matching", "head")}


def naive_scores(network: ALPNet, support: Sequence[Scan], query: Tensor, slices: Sequence[int]) -> Tensor:
    """Segment as the original evaluation does: organ by organ and slice by slice, with nothing kept in between.

    The query slice and the annotated slices of its third pass the encoder in one batch; prototypes are pooled, the
    slice is scored, and its scores are upsampled. A slice's third follows from its relative position, as in
    ``VolumeInferer`` without the query's truth.

    Args:
        network: In eval mode.
        support: Annotated scans, each with all organs, on the network's device.
        query: Volume ``(1, H, W, Z)``.
        slices: Slices of the query to segment.

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
        pairs = [(scan, places[chunks[z]]) for scan, places in zip(support, chosen, strict=True)]
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
    """Return how many prototypes a head pools while ``work`` runs."""
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
    """Raise if a name is unknown.

    Raises:
        ValueError: With the known names.
    """
    for name in names:
        if name not in known:
            raise ValueError(f"unknown {what} {name!r}. Choose among {', '.join(known)}.")


def _annotated(slices: int, size: int, seed: int) -> Scan:
    """Return a scan of similar slices: each is the middle slice of a different scan."""
    scans = [blob_scan(size, 3, 4, seed + 1 + number) for number in range(slices)]
    return {key: torch.cat([scan[key][..., 1:2] for scan in scans], dim=-1) for key in scans[0]}


def _comparing_all(scan: Scan, head: PrototypeHead) -> VolumeInferer:
    """Return an inferer that compares the prototypes of all annotated slices with every query slice."""
    everything: Matching = SliceMatching(slices=None)
    return VolumeInferer([scan], matching=everything, head=head, slice_batch=SLICE_BATCH)


def _some(slices: int, wanted: int) -> list[int]:
    """Return up to ``wanted`` of this many slices, evenly spread."""
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


def _beside_encoder(ours: float, alone: float, slices: int) -> dict[str, float]:
    return {
        "ours, s a scan": ours,
        "encoder alone, s a scan": alone,
        "ours, slices/s": slices / ours,
        "encoder alone, slices/s": slices / alone,
        "ours / encoder alone": ours / alone,
    }
