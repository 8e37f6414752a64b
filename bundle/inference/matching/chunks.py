"""The paper's matching: one support slice for each chunk of an organ's extent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from bundle.inference.matching.base import Encode, Extents, Features, Matching, Support, check_tensors
from bundle.networks.alpnet import PrototypeHead, reduce_mask
from bundle.transforms.annotated import IGNORED
from bundle.transforms.slices import chunks_by_position, chunks_of_extent, organ_slices, organs_of, support_slices
from torch import Tensor


@dataclass(frozen=True)
class EncodedOrgan:
    """One organ in one annotated scan.

    Attributes:
        chunks: Features ``(D, h, w)`` and soft mask ``(1, h, w)`` of the slice that represents each chunk.
        extent: Where the organ begins and ends, as shares of the scan's height.
    """

    chunks: list[tuple[Tensor, Tensor]]
    extent: tuple[float, float]


@dataclass(frozen=True)
class OrganPrototypes:
    """The prototypes of one organ, from all annotated scans together.

    Attributes:
        chunks: Background ``(N, D)`` and foreground ``(M, D)`` prototypes of each chunk.
        extent: Where the organ begins and ends, as shares of a scan's height.
    """

    chunks: list[tuple[Tensor, Tensor]]
    extent: tuple[float, float]


class ChunkMatching(Matching):
    """One support slice for each chunk of an organ's extent (paper, section 4.2; Roy et al. 2020).

    Each organ is segmented alone; everything else is its background. Without the query's truth, query slices are
    assigned to chunks by relative height.

    Args:
        chunks: Number of chunks of the extent, 3 in the paper.

    Raises:
        ValueError: If ``chunks`` is below 1.
    """

    def __init__(self, chunks: int = 3) -> None:
        if chunks < 1:
            raise ValueError(f"chunks must be at least 1, got {chunks}. The paper uses 3.")
        self.chunks = chunks

    def encode(
        self, label: Tensor, encode: Encode, head: PrototypeHead, annotated: Sequence[int] | None = None
    ) -> dict[int, EncodedOrgan]:
        """Encode the slices that represent each organ's chunks; a slice of several organs is encoded once.

        These slices show the organ, so they are annotated.

        Raises:
            ValueError: If one of them holds ignored voxels.
        """
        shown = {organ: organ_slices(label, organ) for organ in organs_of(label)}
        chosen = {organ: support_slices(slices, self.chunks) for organ, slices in shown.items()}
        needed = sorted({z for slices in chosen.values() for z in slices})
        if needed and bool((label[..., needed] == IGNORED).any()):
            raise ValueError(
                "the paper's matching cannot ignore voxels of a slice that shows an organ. Use SliceMatching, or "
                "annotate these slices completely."
            )
        features = dict(zip(needed, encode(needed), strict=True)) if needed else {}
        depth = label.shape[-1]
        encoded = {}
        for organ, slices in chosen.items():
            masks = torch.stack([label[..., z] == organ for z in slices])[None].float()
            reduced = reduce_mask(masks, features[slices[0]])[0]
            extent = (shown[organ][0] / depth, (shown[organ][-1] + 1) / depth)
            encoded[organ] = EncodedOrgan([(features[z], m) for z, m in zip(slices, reduced, strict=True)], extent)
        return encoded

    def settings(self) -> dict[str, Any]:
        """Return the number of chunks."""
        return super().settings() | {"chunks": self.chunks}

    def to_tensors(self, encoded: Mapping[int, EncodedOrgan]) -> dict[str, Tensor]:
        """Return the features of the slices, each once, and for each organ its slices with their masks.

        These are not prototypes yet: several scans are pooled together.
        """
        slices: dict[int, int] = {}
        features: list[Tensor] = []
        tensors = {}
        for organ, kept in encoded.items():
            for feature, _ in kept.chunks:
                if id(feature) not in slices:
                    slices[id(feature)] = len(features)
                    features.append(feature)
            tensors[f"organ_{organ}.slices"] = torch.tensor([slices[id(feature)] for feature, _ in kept.chunks])
            tensors[f"organ_{organ}.masks"] = torch.stack([mask for _, mask in kept.chunks])
            tensors[f"organ_{organ}.extent"] = torch.tensor(kept.extent, dtype=torch.float64)
        return tensors | {"features": torch.stack(features)}

    def from_tensors(self, tensors: Mapping[str, Tensor]) -> dict[int, EncodedOrgan]:
        """Return the encoded organs from the tensors of ``to_tensors``."""
        organs = self._checked_organs(tensors)
        features = list(tensors["features"])
        encoded = {}
        for organ in organs:
            slices, masks, extent = (tensors[f"organ_{organ}.{part}"] for part in ("slices", "masks", "extent"))
            begin, end = extent.tolist()
            chunks = [(features[place], mask) for place, mask in zip(slices.tolist(), masks, strict=True)]
            encoded[organ] = EncodedOrgan(chunks, (begin, end))
        return encoded

    def _checked_organs(self, tensors: Mapping[str, Tensor]) -> list[int]:
        """Return the ids of the organs in a file's tensors."""
        ids = [name.removeprefix("organ_").removesuffix(".slices") for name in tensors if name.endswith(".slices")]
        if not all(organ.isdecimal() for organ in ids):
            raise ValueError(f"the tensors of organs must have whole numbers in their names, got {', '.join(tensors)}")
        shapes: dict[str, tuple[int | None, ...]] = {"features": (None, None, None, None)}
        height, width = tensors["features"].shape[-2:] if "features" in tensors else (None, None)
        for organ in ids:
            shapes[f"organ_{organ}.slices*"] = (self.chunks,)
            shapes[f"organ_{organ}.masks"] = (self.chunks, 1, height, width)
            shapes[f"organ_{organ}.extent"] = (2,)
        check_tensors(tensors, shapes)
        for organ in ids:
            slices, (begin, end) = tensors[f"organ_{organ}.slices"], tensors[f"organ_{organ}.extent"].tolist()
            if not bool(((slices >= 0) & (slices < len(tensors["features"]))).all()) or not 0 <= begin < end <= 1:
                raise ValueError(f"slices and extent of organ {organ} must lie within the scan")
        return sorted(map(int, ids))

    def renumbered(self, encoded: Mapping[int, EncodedOrgan], ids: Mapping[int, int]) -> dict[int, EncodedOrgan]:
        """Return the scan with other organ ids."""
        return {ids[organ]: kept for organ, kept in encoded.items()}

    def pool(self, sources: Mapping[int, Sequence[Mapping[int, EncodedOrgan]]], head: PrototypeHead) -> ChunkSupport:
        """Pool each chunk over all scans: each scan is one shot."""
        organs = {}
        for organ, scans in sources.items():
            shots = [scan[organ] for scan in scans]
            chunks = []
            for chunk in range(self.chunks):
                features, masks = zip(*(shot.chunks[chunk] for shot in shots), strict=True)
                chunks.append(head.prototypes(torch.stack(features), torch.stack(masks)))
            begin, end = (sum(ends) / len(ends) for ends in zip(*(shot.extent for shot in shots), strict=True))
            organs[organ] = OrganPrototypes(chunks, (begin, end))
        return ChunkSupport(organs, head)


class ChunkSupport(Support):
    """Prototypes of each chunk of each organ.

    Args:
        organs: The prototypes of each organ, by id.
        head: Scores the query.
    """

    def __init__(self, organs: Mapping[int, OrganPrototypes], head: PrototypeHead) -> None:
        self.prototypes = organs
        self.head = head

    @property
    def organs(self) -> list[int]:
        """The ids of the organs, in the order of the margins."""
        return list(self.prototypes)

    def score(self, features: Features, extents: Extents | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Score each slice with the prototypes of its chunk."""
        plans = [self._plan(organ, len(features), extents) for organ in self.organs]
        for z, query in enumerate(features):
            logits = torch.stack([self._logits(query, plan[z]) for plan in plans])
            yield logits[:, 1] - logits[:, 0], logits.amax(dim=(0, 1)).clamp(min=0)

    def _plan(self, organ: int, depth: int, extents: Extents | None) -> list[tuple[Tensor, Tensor] | None]:
        """Return the prototypes for each slice, ``None`` outside of the organ's extent."""
        prototype = self.prototypes[organ]
        parts = len(prototype.chunks)
        if extents is None:
            return [prototype.chunks[chunk] for chunk in chunks_by_position(depth, prototype.extent, parts)]
        if (extent := extents[organ]) is None:
            return [None] * depth
        first, last = extent
        chunks = chunks_of_extent(depth, first, last, parts)
        return [prototype.chunks[chunk] if first <= z <= last else None for z, chunk in enumerate(chunks)]

    def _logits(self, query: Tensor, prototypes: tuple[Tensor, Tensor] | None) -> Tensor:
        """Return the logits ``(2, h, w)`` of a slice; where the organ is not looked for, background leads by 1."""
        if prototypes is None:
            nothing = query.new_zeros(2, *query.shape[-2:])
            nothing[0] = 1.0
            return nothing
        return self.head.score(query, *prototypes)
