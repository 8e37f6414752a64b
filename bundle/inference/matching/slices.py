"""Matching by similarity: each query slice takes prototypes from the annotated slices that are most similar to it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any, Literal

import torch
import torch.nn.functional as F
from bundle.inference.matching.base import Encode, Extents, Features, Matching, Support, check_tensors
from bundle.networks.alpnet import PrototypeHead, reduce_mask
from bundle.transforms.annotated import IGNORED
from bundle.transforms.slices import organ_slices, organs_of, support_slices
from torch import Tensor

# The id of the background class.
BACKGROUND = 0


@dataclass(frozen=True)
class EncodedScan:
    """All annotated slices of one scan.

    Attributes:
        prototypes: For each slice the prototypes ``(N, D)`` of its classes, by id.
        descriptions: Descriptions of the slices, unit vectors ``(S, E)``.
        lengths: Lengths of the descriptions before normalization, ``(S,)``; empty if they are not centered.
        center: The mean that was subtracted from them, ``(E,)``; empty if they are not centered.
    """

    prototypes: list[dict[int, Tensor]]
    descriptions: Tensor
    lengths: Tensor = field(default_factory=lambda: torch.zeros(0))
    center: Tensor = field(default_factory=lambda: torch.zeros(0))

    def described(self, share: float) -> Tensor:
        """Return the descriptions, unit vectors ``(S, E)``, with only a share of the center subtracted."""
        if share == 1 or len(self.center) == 0:
            return self.descriptions
        return F.normalize(self.descriptions * self.lengths[:, None] + (1 - share) * self.center, dim=1)

    def __iter__(self) -> Iterator[int]:
        """Iterate over the ids of the organs that the scan shows."""
        return iter(sorted({organ for shown in self.prototypes for organ in shown} - {BACKGROUND}))

    def __contains__(self, organ: object) -> bool:
        """Return whether the scan shows an organ."""
        return any(organ in shown for shown in self.prototypes)


class SliceMatching(Matching):
    """Every annotated slice may contribute prototypes; each query slice takes those of the most similar ones.

    All organs are segmented together. Slices without an organ supply background, so that the extent of the organs is
    found and need not be known; organs are each other's background. The similarity of two slices is the cosine of
    their features, averaged in ``grid x grid`` parts and centered by scan. No position in the scan is used, so scans
    may begin and end anywhere. In a thin slab, the mean is mostly the organ itself: the less its slices differ, the
    smaller the share of the mean that is subtracted, from query and support. The cost of a query slice hardly depends
    on the number of annotated scans.

    Args:
        slices: Number of annotated slices, of all scans together, that contribute prototypes for each query slice;
            ``None`` takes all.
        grid: Parts along each side of a slice for the comparison.
        by: ``"likeness"`` compares slices by their features. ``"height"`` takes the slices at the nearest relative
            height, for scans that all show the same part of the body.
        annotated_slices: Use at most this many slices of each organ and scan, spread over its extent, as if only these
            were annotated (with every organ in them); ``None`` uses all.
        whole_spread: A query counts as a whole scan if the spread of its slices (mean squared distance from their
            mean) is at least this share of the annotated scans' spread. Then the whole mean is subtracted, otherwise a
            proportional share of it; 0 counts every query as a whole scan.

    Raises:
        ValueError: If a number is below 1, ``whole_spread`` is negative, or ``by`` is unknown.
    """

    def __init__(
        self,
        slices: int | None = 12,
        grid: int = 4,
        by: Literal["likeness", "height"] = "likeness",
        annotated_slices: int | None = None,
        whole_spread: float = 0.65,
    ) -> None:
        if by not in ("likeness", "height"):
            raise ValueError(f"by must be 'likeness' or 'height', got {by!r}. The default is likeness.")
        given = {"slices": slices, "grid": grid, "annotated_slices": annotated_slices}
        if wrong := {name: number for name, number in given.items() if number is not None and number < 1}:
            raise ValueError(
                f"slices, grid and annotated_slices must be at least 1, got {wrong}. null takes all slices."
            )
        if not whole_spread >= 0:
            raise ValueError(f"whole_spread, a share, must be at least 0, got {whole_spread}. The default is 0.65.")
        self.whole_spread = whole_spread
        self.slices = slices
        self.grid = grid
        self.by = by
        self.annotated_slices = annotated_slices

    def encode(
        self, label: Tensor, encode: Encode, head: PrototypeHead, annotated: Sequence[int] | None = None
    ) -> EncodedScan:
        """Pool the prototypes of each class in each annotated slice."""
        slices = self._slices(label, range(label.shape[-1]) if annotated is None else annotated)
        if not slices:
            return EncodedScan([], label.new_zeros(0, 1).float())
        features = encode(slices)
        organs = organs_of(label)
        prototypes = []
        for z, feature in zip(slices, features, strict=True):  # one by one: all masks together would fill the memory
            whole = torch.stack([label[..., z] == organ for organ in organs])[None]  # (1, O, 1, H, W)
            soft = reduce_mask(whole, feature[None])[0]
            ignored = reduce_mask((label[..., z] == IGNORED)[None, None], feature[None])[0]
            taken = torch.cat([soft, ignored]).sum(dim=0)[None].clamp(max=1)
            classes = {BACKGROUND: head.background(feature[None], 1 - taken)}
            for place, organ in enumerate(organs):
                if whole[0, place].any():
                    classes[organ] = head.foreground(feature[None], soft[place, None])
            prototypes.append(classes)
        return EncodedScan(prototypes, self.describe(features, slices, label.shape[-1]), *self.center_of(features))

    def _slices(self, label: Tensor, annotated: Sequence[int]) -> list[int]:
        """Return the annotated slices to use; none if the label map shows no organ."""
        shown = [organ_slices(label, organ) for organ in organs_of(label)]
        if self.annotated_slices is not None:
            return sorted({z for slices in shown for z in support_slices(slices, self.annotated_slices)})
        return list(annotated) if shown else []

    def settings(self) -> dict[str, Any]:
        """Return the settings that shape the prototypes and the descriptions of slices."""
        names = ("grid", "by", "annotated_slices")
        return super().settings() | {name: getattr(self, name) for name in names}

    def to_tensors(self, encoded: EncodedScan) -> dict[str, Tensor]:
        """Return all prototypes, concatenated, with their slices and classes."""
        kept = [(z, organ, some) for z, shown in enumerate(encoded.prototypes) for organ, some in shown.items()]
        return {
            "prototypes": torch.cat([some for _, _, some in kept]),
            "slice_class_number": torch.tensor([(z, organ, len(some)) for z, organ, some in kept]),
            "descriptions": encoded.descriptions,
            "lengths": encoded.lengths,
            "center": encoded.center,
        }

    def from_tensors(self, tensors: Mapping[str, Tensor]) -> EncodedScan:
        """Return the encoded scan from the tensors of ``to_tensors``."""
        self._check(tensors)
        kept = tensors["slice_class_number"].tolist()
        prototypes: list[dict[int, Tensor]] = [{} for _ in tensors["descriptions"]]
        parts = tensors["prototypes"].split([number for _, _, number in kept])
        for (z, organ, _), some in zip(kept, parts, strict=True):
            prototypes[z][organ] = some
        return EncodedScan(prototypes, tensors["descriptions"], tensors["lengths"], tensors["center"])

    def _check(self, tensors: Mapping[str, Tensor]) -> None:
        shapes = {"prototypes": (None, None), "slice_class_number*": (None, 3), "descriptions": (None, None)}
        check_tensors(tensors, {**shapes, "lengths": (None,), "center": (None,)})
        slices, channels = len(tensors["descriptions"]), tensors["prototypes"].shape[1]
        rows = tensors["slice_class_number"].tolist()
        inside = all(0 <= z < slices and organ >= 0 and number >= 0 for z, organ, number in rows)
        if not inside or sum(number for _, _, number in rows) != len(tensors["prototypes"]):
            raise ValueError("slice_class_number must have a row for each slice and class, and count all prototypes")
        width = 2 if self.by == "height" else channels * self.grid**2
        if tensors["descriptions"].shape[1] != width:
            raise ValueError(f"descriptions must be {width} wide, got {tensors['descriptions'].shape[1]}")
        if (len(tensors["lengths"]), len(tensors["center"])) not in ((0, 0), (slices, width)):
            raise ValueError(f"lengths and center must be {slices} and {width} long, or both empty")

    def renumbered(self, encoded: EncodedScan, ids: Mapping[int, int]) -> EncodedScan:
        """Return the scan with other organ ids; background stays background."""
        known = {BACKGROUND: BACKGROUND, **ids}
        prototypes = [{known[organ]: some for organ, some in shown.items()} for shown in encoded.prototypes]
        return replace(encoded, prototypes=prototypes)

    def describe(self, features: Features, slices: Sequence[int], depth: int) -> Tensor:
        """Describe slices by unit vectors ``(S, E)``; the dot product of two is their similarity.

        By likeness, the descriptions are centered on the scan's mean, so that they describe how its slices differ. A
        single slice is not centered, since nothing would be left.

        Args:
            features: The features of the slices.
            slices: Their numbers in the scan.
            depth: Slices of the scan.
        """
        if self.by == "height":
            # Points on a quarter circle: the closer two heights, the larger the dot product.
            angles = (features[0].new_tensor(slices) + 0.5) / depth * (math.pi / 2)
            return torch.stack([angles.cos(), angles.sin()], dim=1)
        parts = self._parts(features)
        return F.normalize(parts - parts.mean(dim=0) if len(parts) > 1 else parts, dim=1)

    def describe_query(self, features: Features, spread: float) -> tuple[Tensor, float]:
        """Describe the slices of a query.

        Args:
            features: The features of all its slices.
            spread: The spread of the annotated scans' slices; 0 if it is not known.

        Returns:
            The descriptions ``(Z, E)``, and the subtracted share of the mean, in [0, 1].
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
        """Return the lengths of the centered slices, and their center; both empty if slices are not centered."""
        if self.by == "height" or len(features) < 2:
            return features[0].new_zeros(0), features[0].new_zeros(0)
        parts = self._parts(features)
        return (parts - parts.mean(dim=0)).norm(dim=1), parts.mean(dim=0)

    def pool(self, sources: Mapping[int, Sequence[EncodedScan]], head: PrototypeHead) -> SliceSupport:
        """Combine the slices of all scans."""
        return SliceSupport(sources, self, head)


class _Group:
    """Organs with the same source scans, and all slices of these scans."""

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
        sources: For each organ the scans that show it. Only these contribute its background prototypes: another scan
            may show the organ without an annotation.
        matching: Describes slices.
        head: Scores the query.
    """

    def __init__(
        self, sources: Mapping[int, Sequence[EncodedScan]], matching: SliceMatching, head: PrototypeHead
    ) -> None:
        self.matching = matching
        self.head = head
        self.sources = sources
        # Organs with the same source scans share their slices and their background.
        shared: dict[tuple[int, ...], list[int]] = {}
        for organ, scans in sources.items():
            shared.setdefault(tuple(map(id, scans)), []).append(organ)
        self.groups = [_Group(organs, sources[organs[0]]) for organs in shared.values()]

    @property
    def organs(self) -> list[int]:
        """The ids of the organs, in the order of the margins."""
        return list(self.sources)

    def score(self, features: Features, extents: Extents | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Score each slice with the prototypes of the most similar annotated slices."""
        descriptions, share = self.matching.describe_query(features, self._spread())
        described = self.described(share)
        for z, (query, description) in enumerate(zip(features, descriptions, strict=True)):
            margins, best = self.margins(query, description, described)
            within = [_within(m, z, extents, organ) for m, organ in zip(margins, self.organs, strict=True)]
            yield torch.stack(within), best

    def _spread(self) -> float:
        """Return the mean spread of the slices of the annotated scans; 0 if one of them is unknown."""
        scans = {id(scan): scan for scans in self.sources.values() for scan in scans}.values()
        if not all(len(scan.center) for scan in scans):
            return 0.0
        return fmean(float(scan.lengths.square().mean()) for scan in scans)

    def described(self, share: float) -> list[Tensor]:
        """Return the descriptions of each group's slices, less a share of their scan's mean."""
        return [group.described(share) for group in self.groups]

    def margins(self, query: Tensor, description: Tensor, described: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Score one slice ``(D, h, w)``.

        Args:
            query: Its features.
            description: Its description, ``(E,)``.
            described: The descriptions of the annotated slices, from ``described``.

        Returns:
            The margins ``(O, h, w)``, each organ against background and all other organs, and the largest logit.
        """
        background, foreground = {}, {}
        for group, known in zip(self.groups, described, strict=True):
            slices = group.most_alike(known @ description, self.matching.slices)
            # Annotated organs that are not asked for count as background.
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
    """Set the margin to -1 outside of the organ's extent."""
    if extents is None:
        return margin
    extent = extents[organ]
    return margin if extent is not None and extent[0] <= z <= extent[1] else torch.full_like(margin, -1.0)
