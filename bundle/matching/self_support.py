"""The query's own certain pixels as one more annotated scan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bundle.matching.base import Encode, Extents, Features, Matching, Support
from bundle.matching.slices import BACKGROUND, EncodedScan, SliceMatching, SliceSupport
from bundle.networks.alpnet import PrototypeHead


class SelfSupport(Matching):
    """Let the pixels of the query that are certain speak too: a second look with prototypes of the query itself.

    After a first pass the most certain pixels of each organ, and those that are certainly none, are pooled like one
    more annotated scan. An organ's second result counts only if it agrees with the first one, so that a bad first mask
    does not drift. No preset has it: docs/annotate_one.md tells what it brings.

    Args:
        matching: Makes the first pass, and pools.
        share: Of an organ's pixels that are certain enough, those of the largest margins, in (0, 1).
        rounds: Second looks, each from the one before.
        agreement: Dice of an organ's mask before and after a round, below which the round does not count.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(self, matching: SliceMatching, share: float = 0.3, rounds: int = 1, agreement: float = 0.7) -> None:
        if not 0 < share < 1 or rounds < 1 or not 0 <= agreement <= 1:
            raise ValueError(
                "share must be in (0, 1), rounds at least 1 and agreement in [0, 1], got "
                f"{share}, {rounds} and {agreement}."
            )
        self.matching = matching
        self.share, self.rounds, self.agreement = share, rounds, agreement

    def encode(self, label: Tensor, encode: Encode, head: PrototypeHead, partial: bool = False) -> EncodedScan:
        """Encode as the first pass does."""
        return self.matching.encode(label, encode, head, partial)

    def settings(self) -> dict[str, Any]:
        """Return what the first pass depends on."""
        return self.matching.settings()

    def to_tensors(self, encoded: EncodedScan) -> dict[str, Tensor]:
        """Keep what the first pass does."""
        return self.matching.to_tensors(encoded)

    def from_tensors(self, tensors: Mapping[str, Tensor]) -> EncodedScan:
        """Return what the first pass keeps."""
        return self.matching.from_tensors(tensors)

    def pool(self, sources: Mapping[int, Sequence[EncodedScan]], head: PrototypeHead) -> SecondLook:
        """Put the scans side by side; the query joins them when it is scored."""
        return SecondLook(sources, self, head)


class SecondLook(Support):
    """Scores that the query's own certain pixels took part in.

    Args:
        sources: As of ``SliceSupport``.
        settings: How many pixels, how often, and what agrees.
        head: Pools and scores.
    """

    def __init__(
        self, sources: Mapping[int, Sequence[EncodedScan]], settings: SelfSupport, head: PrototypeHead
    ) -> None:
        self.first = SliceSupport(sources, settings.matching, head)
        self.settings = settings

    @property
    def organs(self) -> list[int]:
        """The ids of the organs, in the order of the margins."""
        return self.first.organs

    def score(self, features: Features, extents: Extents | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Score all slices, then again."""
        margins, best = (torch.stack(parts) for parts in zip(*self.first.score(features, extents), strict=True))
        for _ in range(self.settings.rounds):
            support = self._joined(features, margins)
            again, best = (torch.stack(parts) for parts in zip(*support.score(features, extents), strict=True))
            before, after = (margins > 0).flatten(2), (again > 0).flatten(2)
            shared, both = (before & after).sum(dim=(0, 2)), before.sum(dim=(0, 2)) + after.sum(dim=(0, 2))
            agrees = 2 * shared >= self.settings.agreement * both
            margins = torch.where(agrees[None, :, None, None], again, margins)
        yield from zip(margins, best, strict=True)

    def _joined(self, features: Features, margins: Tensor) -> SliceSupport:
        """Return the support with the certain pixels of the query, given margins ``(Z, O, h, w)``."""
        head, matching = self.first.head, self.first.matching
        certain = torch.zeros_like(margins, dtype=torch.bool)
        for place in range(len(self.organs)):
            own = margins[:, place]
            if (found := own > 0).any():
                certain[:, place] = found & (own >= own[found].quantile(1 - self.settings.share))
        nowhere = margins.amax(dim=1)
        outside = nowhere < 0
        if outside.any():
            outside &= nowhere <= nowhere[outside].median()
        prototypes = []
        for feature, rest, masks in zip(features, outside, certain, strict=True):
            classes = (
                {BACKGROUND: head.background(feature[None], rest[None, None].to(feature.dtype))} if rest.any() else {}
            )
            for organ, mask in zip(self.organs, masks, strict=True):
                if mask.any():
                    classes[organ] = head.foreground(feature[None], mask[None, None].to(feature.dtype))
            prototypes.append(classes)
        descriptions = matching.describe(features, range(len(features)), len(features))
        query = EncodedScan(prototypes, descriptions, {}, *matching.center_of(features))
        joined = {organ: [*scans, query] for organ, scans in self.first.sources.items()}
        return SliceSupport(joined, matching, head)
