"""From an annotated scan to the organs of another: support scans + query volume -> scores of every organ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.utils import convert_to_tensor
from torch import Tensor

from bundle.keys import IMAGE, LABEL
from bundle.networks.alpnet import ALPNet, reduce_mask, upsample
from bundle.transforms.slices import (
    chunks_by_position,
    chunks_of_extent,
    organ_slices,
    support_slices,
    to_network,
)

Protocol = Literal["volume", "paper"]


@dataclass(frozen=True)
class OrganPrototypes:
    """What the support tells of one organ.

    Attributes:
        chunks: Background ``(N, D)`` and foreground ``(M, D)`` prototypes of each chunk.
        extent: Where the organ begins and ends, as shares of a scan's height.
    """

    chunks: list[tuple[Tensor, Tensor]]
    extent: tuple[float, float]


class VolumeInferer(Inferer):
    """Segment whole volumes, all organs at once, from annotated scans.

    Each query slice is encoded once for all organs, and the support slices once for all queries as long as
    the network's weights stay the same.

    Args:
        support: Annotated scans: anything indexable whose items hold ``image`` and ``label``, each
            ``(1, H, W, Z)``, preprocessed as the query is. Several scans are several shots.
        organs: Names and ids of the organs. ``None`` takes every id of the support's labels.
        protocol: ``"volume"`` uses no truth of the query: its slices find their chunk by relative height.
            ``"paper"`` takes each organ's first and last slice from the query's label, finds the chunk by
            them, and scores nothing outside (docs/method.md).
        chunks: Parts of an organ's extent, 3 in the paper.
        slice_batch: Slices that are encoded at once.

    Raises:
        ValueError: If a setting is out of range.
    """

    def __init__(
        self,
        support: Sequence[Mapping[str, Any]],
        organs: Mapping[str, int] | None = None,
        protocol: Protocol = "volume",
        chunks: int = 3,
        slice_batch: int = 8,
    ) -> None:
        if protocol not in ("volume", "paper"):
            raise ValueError(f"protocol must be 'volume' or 'paper', got {protocol!r}.")
        if chunks < 1 or slice_batch < 1:
            raise ValueError(f"chunks and slice_batch must be at least 1, got {chunks} and {slice_batch}.")
        self.support = support
        self.organs = organs
        self.protocol = protocol
        self.chunks = chunks
        self.slice_batch = slice_batch
        self._scans: list[Mapping[str, Any]] = []
        self._encoded: tuple[Any, dict[int, OrganPrototypes]] | None = None

    def __call__(  # type: ignore[override]
        self, inputs: Tensor, network: ALPNet, *args: Any, label: Tensor | None = None, **kwargs: Any
    ) -> MetaTensor:
        """Score every organ in every voxel.

        Args:
            inputs: Query volumes ``(B, 1, H, W, Z)``.
            network: The trained network; it is used as it is, so set it to eval mode.
            *args: Not used.
            label: The queries' organ ids, ``(B, 1, H, W, Z)``; read by the ``"paper"`` protocol only.
            **kwargs: Not used.

        Returns:
            ``(B, O, H, W, Z)``, foreground minus background logit of each organ, in the order of
            ``organ_ids()``: the organ is where it is above 0. It carries the meta of ``inputs``.

        Raises:
            ValueError: If the support holds no voxel of an organ, or the ``"paper"`` protocol gets no label.
        """
        if self.protocol == "paper" and label is None:
            raise ValueError("the 'paper' protocol needs the query's label; without one use protocol 'volume'.")
        prototypes = self.prototypes(network, inputs.device)
        scores = [
            self._segment(volume, network, prototypes, None if label is None else label[item])
            for item, volume in enumerate(inputs)
        ]
        return MetaTensor(torch.stack(scores), meta=getattr(inputs, "meta", None))

    def organ_ids(self) -> list[int]:
        """Return the ids of the organs, in the order of the scores' channels."""
        if self.organs is not None:
            return list(self.organs.values())
        ids = torch.cat([torch.unique(_plain(scan[LABEL])) for scan in self.support_scans()]).unique()
        return [int(organ) for organ in ids if organ != 0]

    def organ_names(self) -> dict[str, int]:
        """Return the names and ids of the organs; those without a name are called ``organ_<id>``."""
        return dict(self.organs or {f"organ_{organ}": organ for organ in self.organ_ids()})

    def prototypes(self, network: ALPNet, device: torch.device) -> dict[int, OrganPrototypes]:
        """Encode the support, or return what was encoded with the very same weights."""
        version = [(parameter.data_ptr(), parameter._version) for parameter in network.parameters()]
        version += [(buffer.data_ptr(), buffer._version) for buffer in network.buffers()]
        if self._encoded is None or self._encoded[0] != version:
            scans = [{key: _plain(scan[key]).to(device) for key in (IMAGE, LABEL)} for scan in self.support_scans()]
            with torch.no_grad():
                encoded = {organ: self._encode_organ(organ, scans, network) for organ in self.organ_ids()}
            self._encoded = (version, encoded)
        return self._encoded[1]

    def support_scans(self) -> list[Mapping[str, Any]]:
        """Return the annotated scans, read once.

        Raises:
            ValueError: If there is none, or one cannot be used.
        """
        if not self._scans:
            if len(self.support) == 0:
                raise ValueError("there is no annotated scan. Give at least one image with its label map as support.")
            self._scans = [self.support[index] for index in range(len(self.support))]
        return self._scans

    def _encode_organ(self, organ: int, scans: list[dict[str, Tensor]], network: ALPNet) -> OrganPrototypes:
        shown = [(scan, organ_slices(scan[LABEL], organ)) for scan in scans]
        shown = [(scan, slices) for scan, slices in shown if slices]
        if not shown:
            raise ValueError(
                f"{self._name(organ)} (id {organ}) has no voxel in any of the {len(scans)} support label maps. "
                "Annotate it, or take it out of organs."
            )
        chosen = [support_slices(slices, self.chunks) for _, slices in shown]
        chunks = []
        for chunk in range(self.chunks):
            shots = [(scan, slices[chunk]) for (scan, _), slices in zip(shown, chosen, strict=True)]
            images = torch.cat([to_network(scan[IMAGE][..., z, None]) for scan, z in shots])
            masks = torch.stack([scan[LABEL][..., z] == organ for scan, z in shots])
            features = network.encoder(images)
            chunks.append(network.prototypes(features, reduce_mask(masks[None].float(), features)[0]))
        extents = [(slices[0] / d, (slices[-1] + 1) / d) for scan, slices in shown for d in [scan[LABEL].shape[-1]]]
        begin, end = (sum(ends) / len(ends) for ends in zip(*extents, strict=True))
        return OrganPrototypes(chunks, (begin, end))

    def _name(self, organ: int) -> str:
        return next(name for name, value in self.organ_names().items() if value == organ)

    @torch.no_grad()
    def _segment(
        self, volume: Tensor, network: ALPNet, prototypes: dict[int, OrganPrototypes], label: Tensor | None
    ) -> Tensor:
        depth = volume.shape[-1]
        plans = [self._plan(organ, prototype, depth, label) for organ, prototype in prototypes.items()]
        scores = torch.empty(len(plans), *volume.shape[1:], device=volume.device)
        plain = _plain(volume)
        for start in range(0, depth, self.slice_batch):
            images = to_network(plain[..., start : start + self.slice_batch])
            features = network.encoder(images)
            for channel, plan in enumerate(plans):
                margins = [self._margin(network, query, plan[start + offset]) for offset, query in enumerate(features)]
                scores[channel, ..., start : start + len(margins)] = (
                    upsample(torch.stack(margins), images)[:, 0].movedim(0, -1).float()
                )
        return scores

    def _plan(
        self, organ: int, prototype: OrganPrototypes, depth: int, label: Tensor | None
    ) -> list[tuple[Tensor, Tensor] | None]:
        """Return the prototypes to use for each slice, ``None`` where the organ is not looked for."""
        if self.protocol == "volume":
            return [prototype.chunks[chunk] for chunk in chunks_by_position(depth, prototype.extent, self.chunks)]
        slices = organ_slices(_plain(label), organ)
        if not slices:
            return [None] * depth
        first, last = slices[0], slices[-1]
        chunks = chunks_of_extent(depth, first, last, self.chunks)
        return [prototype.chunks[chunk] if first <= z <= last else None for z, chunk in enumerate(chunks)]

    def _margin(self, network: ALPNet, query: Tensor, prototypes: tuple[Tensor, Tensor] | None) -> Tensor:
        """Return how far foreground leads over background, ``(1, h, w)``."""
        if prototypes is None:
            return query.new_full((1, *query.shape[-2:]), -1.0)
        background, foreground = network.score(query, *prototypes)
        return (foreground - background)[None]


def _plain(tensor: Any) -> Tensor:
    """Drop the meta: networks and arithmetic are faster without."""
    return convert_to_tensor(tensor, track_meta=False)
