"""Every annotated slice speaks for the slices that look like it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bundle.matching.base import Encode, Extents, Features, Matching, Support
from bundle.networks.alpnet import PrototypeHead, reduce_mask
from bundle.transforms.slices import organ_slices, organs_of, support_slices

BACKGROUND = 0
"""The class of what is no organ."""


@dataclass(frozen=True)
class EncodedScan:
    """All annotated slices of one scan.

    Attributes:
        prototypes: For each slice the prototypes ``(N, D)`` of the classes that it shows, by id.
        descriptions: What the slices look like, unit vectors ``(S, E)``.
        own_margins: By organ the median margin of its pixels, when each slice is scored by the others; without organs
            that fewer than two slices show.
        lengths: Of the descriptions before they became unit vectors, ``(S,)``.
        center: What was subtracted from them, ``(E,)``; empty if nothing was.
    """

    prototypes: list[dict[int, Tensor]]
    descriptions: Tensor
    own_margins: dict[int, float] = field(default_factory=dict)
    lengths: Tensor = field(default_factory=lambda: torch.zeros(0))
    center: Tensor = field(default_factory=lambda: torch.zeros(0))

    def described(self, share: float) -> Tensor:
        """Return the descriptions ``(S, E)`` with only a share of the center subtracted, unit vectors."""
        if share == 1 or len(self.center) == 0:
            return self.descriptions
        return F.normalize(self.descriptions * self.lengths[:, None] + (1 - share) * self.center, dim=1)

    def __iter__(self) -> Iterator[int]:
        """Iterate over the ids of the organs that the scan shows."""
        return iter(sorted({organ for shown in self.prototypes for organ in shown} - {BACKGROUND}))

    def __contains__(self, organ: object) -> bool:
        """Tell whether the scan shows an organ."""
        return any(organ in shown for shown in self.prototypes)


class SliceMatching(Matching):
    """Every annotated slice may speak: a query slice is compared with those that look most like it.

    All organs are segmented together. Slices without an organ supply background, so that the extent of the organs is
    found and need not be known; organs are each other's background. How alike two slices are is the cosine of their
    features, averaged in ``grid x grid`` parts and centered by scan: no position in the scan is used, so scans may
    begin and end anywhere. The mean of a slab is mostly the organ itself: the less its slices differ, the less of the
    means is subtracted, from both. The cost of a query slice hardly depends on the number of annotated scans.

    Args:
        slices: Annotated slices, of all scans together, that each query slice is compared with; ``None`` takes all.
        grid: Parts of a slice along each side that are compared.
        by: ``"likeness"`` of the slices, or ``"height"``: the slices that are nearest by relative height in their scan,
            for scans that all show the same part of the body.
        annotated_slices: Use no more than so many slices of each organ and scan, spread over its extent, as if only
            they had been annotated (every organ in each); ``None`` uses all.
        measure_own: Score each annotated slice by the others, for ``PresenceGated``.
        whole_spread: A query is taken for a whole scan if the spread of its slices (mean squared distance from their
            mean) is at least this share of the annotated scans'. All of the mean is subtracted then, and below it in
            proportion; 0 takes every query for a whole scan.

    Raises:
        ValueError: If a number is below 1, ``whole_spread`` is negative, or ``by`` is unknown.
    """

    def __init__(
        self,
        slices: int | None = 12,
        grid: int = 4,
        by: Literal["likeness", "height"] = "likeness",
        annotated_slices: int | None = None,
        measure_own: bool = False,
        whole_spread: float = 0.65,
    ) -> None:
        if by not in ("likeness", "height"):
            raise ValueError(f"by must be 'likeness' or 'height', got {by!r}.")
        given = {"slices": slices, "grid": grid, "annotated_slices": annotated_slices}
        if wrong := {name: number for name, number in given.items() if number is not None and number < 1}:
            raise ValueError(f"slices, grid and annotated_slices must be at least 1, got {wrong}.")
        if not whole_spread >= 0:
            raise ValueError(f"whole_spread must be at least 0, a share, got {whole_spread}.")
        self.whole_spread = whole_spread
        self.slices = slices
        self.grid = grid
        self.by = by
        self.annotated_slices = annotated_slices
        self.measure_own = measure_own

    def encode(self, label: Tensor, encode: Encode, head: PrototypeHead, partial: bool = False) -> EncodedScan:
        """Pool the prototypes of each class in each annotated slice."""
        slices = self._annotated(label, partial)
        if not slices:
            return EncodedScan([], label.new_zeros(0, 1).float())
        features = encode(slices)
        organs = organs_of(label)
        prototypes, masks = [], []
        for z, feature in zip(slices, features, strict=True):  # one by one: masks of a volume are as large as it is
            whole = torch.stack([label[..., z] == organ for organ in organs])[None]  # (1, O, 1, H, W)
            soft = reduce_mask(whole, feature[None])[0]
            classes = {BACKGROUND: head.background(feature[None], 1 - soft.sum(dim=0)[None].clamp(max=1))}
            for place, organ in enumerate(organs):
                if whole[0, place].any():
                    classes[organ] = head.foreground(feature[None], soft[place, None])
            prototypes.append(classes)
            masks.append(soft[:, 0] > 0.5)
        descriptions = self.describe(features, slices, label.shape[-1])
        encoded = EncodedScan(prototypes, descriptions, {}, *self.center_of(features))
        if not self.measure_own:
            return encoded
        return replace(encoded, own_margins=self._own_margins(encoded, features, masks, organs, head))

    def _own_margins(
        self, encoded: EncodedScan, features: Features, masks: list[Tensor], organs: Sequence[int], head: PrototypeHead
    ) -> dict[int, float]:
        found: dict[int, list[Tensor]] = {}
        for z, (query, shown) in enumerate(zip(features, masks, strict=True)):
            if not shown.any():
                continue
            others = [place for place in range(len(features)) if place != z]
            rest = EncodedScan([encoded.prototypes[place] for place in others], encoded.descriptions[others])
            seen = {organ: [rest] for organ in organs if organ in rest}
            if not seen:
                continue
            support = SliceSupport(seen, self, head)
            margins, _ = support.margins(query, encoded.descriptions[z], support.described(1.0))
            for organ, margin in zip(seen, margins, strict=True):
                found.setdefault(organ, []).append(margin[shown[organs.index(organ)]])
        pixels = {organ: torch.cat(margins) for organ, margins in found.items()}
        return {organ: float(values.median()) for organ, values in pixels.items() if len(values)}

    def _annotated(self, label: Tensor, partial: bool) -> list[int]:
        shown = [organ_slices(label, organ) for organ in organs_of(label)]
        if self.annotated_slices is not None:
            shown = [support_slices(s, self.annotated_slices) for s in shown]
        elif not partial:
            return list(range(label.shape[-1])) if shown else []
        return sorted({z for slices in shown for z in slices})

    def settings(self) -> dict[str, Any]:
        """Return what shapes the prototypes and the descriptions of slices."""
        names = ("grid", "by", "annotated_slices", "measure_own")
        return super().settings() | {name: getattr(self, name) for name in names}

    def to_tensors(self, encoded: EncodedScan) -> dict[str, Tensor]:
        """Return all prototypes, one behind the other, and of which slice and class they are."""
        kept = [(z, organ, some) for z, shown in enumerate(encoded.prototypes) for organ, some in shown.items()]
        return {
            "prototypes": torch.cat([some for _, _, some in kept]),
            "slice_class_number": torch.tensor([(z, organ, len(some)) for z, organ, some in kept]),
            "descriptions": encoded.descriptions,
            "lengths": encoded.lengths,
            "center": encoded.center,
            "own_margin_organs": torch.tensor(list(encoded.own_margins), dtype=torch.int64),
            "own_margins": torch.tensor(list(encoded.own_margins.values()), dtype=torch.float64),
        }

    def from_tensors(self, tensors: Mapping[str, Tensor]) -> EncodedScan:
        """Return the scan that ``to_tensors`` was given."""
        kept = tensors["slice_class_number"].tolist()
        prototypes: list[dict[int, Tensor]] = [{} for _ in tensors["descriptions"]]
        parts = tensors["prototypes"].split([number for _, _, number in kept])
        for (z, organ, _), some in zip(kept, parts, strict=True):
            prototypes[z][organ] = some
        own = zip(tensors["own_margin_organs"].tolist(), tensors["own_margins"].tolist(), strict=True)
        # Files of earlier versions have no center: all of it stays subtracted.
        center = {name: tensors[name] for name in ("lengths", "center") if name in tensors}
        return EncodedScan(prototypes, tensors["descriptions"], dict(own), **center)

    def describe(self, features: Features, slices: Sequence[int], depth: int) -> Tensor:
        """Describe slices by unit vectors ``(S, E)``, whose products tell which of them belong together.

        By likeness they are centered: what sets them apart in their scan. A slice alone is not: nothing would be left.

        Args:
            features: Of the slices.
            slices: Their places in the scan.
            depth: Slices of the scan.
        """
        if self.by == "height":
            # On a quarter of a circle: the nearer two heights, the larger the product.
            angles = (features[0].new_tensor(slices) + 0.5) / depth * (math.pi / 2)
            return torch.stack([angles.cos(), angles.sin()], dim=1)
        parts = self._parts(features)
        return F.normalize(parts - parts.mean(dim=0) if len(parts) > 1 else parts, dim=1)

    def describe_query(self, features: Features, spread: float) -> tuple[Tensor, float]:
        """Describe the slices of a query.

        Args:
            features: Of all its slices.
            spread: Of the annotated scans' slices; 0 if it is not known.

        Returns:
            The descriptions ``(Z, E)``, and the share of the mean that was subtracted, in [0, 1].
        """
        if self.by == "height" or self.whole_spread * spread == 0:
            return self.describe(features, range(len(features)), len(features)), 1.0
        parts = self._parts(features)
        mean = parts.mean(dim=0)
        own = float((parts - mean).square().sum(dim=1).mean())
        share = min(1.0, own / (self.whole_spread * spread))
        return F.normalize(parts - share * mean, dim=1), share

    def _parts(self, features: Features) -> Tensor:
        return torch.stack([F.adaptive_avg_pool2d(feature, self.grid).flatten() for feature in features])

    def center_of(self, features: Features) -> tuple[Tensor, Tensor]:
        """Return the lengths of annotated slices less their center, and the center; empty if nothing is subtracted."""
        if self.by == "height" or len(features) < 2:
            return features[0].new_zeros(0), features[0].new_zeros(0)
        parts = self._parts(features)
        return (parts - parts.mean(dim=0)).norm(dim=1), parts.mean(dim=0)

    def pool(self, sources: Mapping[int, Sequence[EncodedScan]], head: PrototypeHead) -> SliceSupport:
        """Put the slices of all scans side by side."""
        return SliceSupport(sources, self, head)


class _Group:
    """Organs that are taken from the same scans, and the slices of these, put side by side once a query."""

    def __init__(self, organs: Sequence[int], scans: Sequence[EncodedScan]) -> None:
        self.organs = organs
        self.slices = [shown for scan in scans for shown in scan.prototypes]
        self.scans = scans

    def described(self, share: float) -> Tensor:
        return torch.cat([scan.described(share) for scan in self.scans])

    def most_alike(self, likeness: Tensor, number: int | None) -> list[dict[int, Tensor]]:
        if number is None or number >= len(self.slices):
            return self.slices
        return [self.slices[place] for place in likeness.topk(number).indices.tolist()]


class SliceSupport(Support):
    """Prototypes of each class in each annotated slice.

    Args:
        sources: For each organ the scans that show it. Only these are its background: a scan in which an organ was
            not annotated may show it all the same.
        matching: Describes slices.
        head: Scores.
    """

    def __init__(
        self, sources: Mapping[int, Sequence[EncodedScan]], matching: SliceMatching, head: PrototypeHead
    ) -> None:
        self.matching = matching
        self.head = head
        self.sources = sources
        # Organs of the same scans share their slices and their background.
        shared: dict[tuple[int, ...], list[int]] = {}
        for organ, scans in sources.items():
            shared.setdefault(tuple(map(id, scans)), []).append(organ)
        self.groups = [_Group(organs, sources[organs[0]]) for organs in shared.values()]

    @property
    def organs(self) -> list[int]:
        """The ids of the organs, in the order of the margins."""
        return list(self.sources)

    def own_margins(self) -> list[float] | None:
        """Return for each organ the mean over its scans; NaN if none of them knows."""
        if not self.matching.measure_own:
            return None
        known = [[s.own_margins[o] for s in scans if o in s.own_margins] for o, scans in self.sources.items()]
        return [fmean(margins) if margins else math.nan for margins in known]

    def score(self, features: Features, extents: Extents | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Score each slice with the prototypes of the annotated slices that look most like it."""
        descriptions, share = self.matching.describe_query(features, self._spread())
        described = self.described(share)
        for z, (query, description) in enumerate(zip(features, descriptions, strict=True)):
            margins, best = self.margins(query, description, described)
            within = [_within(m, z, extents, organ) for m, organ in zip(margins, self.organs, strict=True)]
            yield torch.stack(within), best

    def _spread(self) -> float:
        """Return the mean spread of the slices of the annotated scans; 0 if one does not tell its own."""
        scans = {id(scan): scan for scans in self.sources.values() for scan in scans}.values()
        if not all(len(scan.center) for scan in scans):
            return 0.0
        return fmean(float(scan.lengths.square().mean()) for scan in scans)

    def described(self, share: float) -> list[Tensor]:
        """Return for each group of organs the descriptions of its slices, a share of their scan's mean subtracted."""
        return [group.described(share) for group in self.groups]

    def margins(self, query: Tensor, description: Tensor, described: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Score one slice ``(D, h, w)``.

        Args:
            query: Its features.
            description: Its description, ``(E,)``.
            described: Those of the annotated slices, as ``described`` returns them.

        Returns:
            The margins ``(O, h, w)``, each organ against background and all other organs, and the largest logit.
        """
        background, foreground = {}, {}
        for group, known in zip(self.groups, described, strict=True):
            slices = group.most_alike(known @ description, self.matching.slices)
            # Organs that were annotated and are not asked for are no organ here.
            rest = {BACKGROUND, *(organ for shown in slices for organ in shown)} - set(self.organs)
            nothing = torch.stack([self._class_score(query, organ, slices) for organ in sorted(rest)]).amax(dim=0)
            for organ in group.organs:
                background[organ] = nothing
                foreground[organ] = self._class_score(query, organ, slices)
        margins = [
            foreground[o] - torch.stack([background[o], *(foreground[x] for x in self.organs if x != o)]).amax(0)
            for o in self.organs
        ]
        best = torch.stack([*background.values(), *foreground.values()]).amax(dim=0)
        return torch.stack(margins), best

    def _class_score(self, query: Tensor, organ: int, slices: Sequence[Mapping[int, Tensor]]) -> Tensor:
        """Return the logit ``(h, w)`` of a class; 0 if no slice shows it."""
        prototypes = [shown[organ] for shown in slices if organ in shown]
        if not prototypes:
            return query.new_zeros(query.shape[-2:])
        return self.head.classifier(query, torch.cat(prototypes))


def _within(margin: Tensor, z: int, extents: Extents | None, organ: int) -> Tensor:
    """Let background lead by 1 where an organ is not looked for."""
    if extents is None:
        return margin
    extent = extents[organ]
    return margin if extent is not None and extent[0] <= z <= extent[1] else torch.full_like(margin, -1.0)
