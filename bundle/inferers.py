"""From annotated scans to the organs of another: support scans + query volume -> scores of every organ."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.utils import convert_to_tensor
from torch import Tensor

from bundle.keys import EXPLAINED, IMAGE, LABEL, ORGAN_IDS, SUPPORT
from bundle.networks.alpnet import ALPNet, reduce_mask, upsample
from bundle.transforms.slices import (
    chunks_by_position,
    chunks_of_extent,
    organ_slices,
    support_slices,
    to_network,
)

Protocol = Literal["volume", "paper"]

REMEMBERED_SCANS = 32
"""Support scans whose features are kept; about 3 MB an organ each at 256 x 256."""


@dataclass(frozen=True)
class EncodedOrgan:
    """One organ in one annotated scan.

    Attributes:
        chunks: Features ``(D, h, w)`` and soft mask ``(1, h, w)`` of the slice that stands for each chunk.
        extent: Where the organ begins and ends, as shares of the scan's height.
    """

    chunks: list[tuple[Tensor, Tensor]]
    extent: tuple[float, float]


@dataclass(frozen=True)
class OrganPrototypes:
    """What all annotated scans together tell of one organ.

    Attributes:
        chunks: Background ``(N, D)`` and foreground ``(M, D)`` prototypes of each chunk.
        extent: Where the organ begins and ends, as shares of a scan's height.
    """

    chunks: list[tuple[Tensor, Tensor]]
    extent: tuple[float, float]


class VolumeInferer(Inferer):
    """Segment whole volumes, all organs at once, from annotated scans.

    Each query slice is encoded once for all organs. The support slices are encoded once for all queries, as long as
    the network's weights and the support's files stay the same.

    Args:
        support: Annotated scans: a data set whose items hold ``image`` and ``label``, each ``(1, H, W, Z)``,
            preprocessed as the query is. Several scans are several shots. A query whose meta names scans of its own
            under ``support`` is segmented from those instead; they are read by ``support.read``.
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
        support: Any,
        organs: Mapping[str, int] | None = None,
        protocol: Protocol = "volume",
        chunks: int = 3,
        slice_batch: int = 8,
    ) -> None:
        if protocol not in ("volume", "paper"):
            raise ValueError(f"protocol must be 'volume' or 'paper', got {protocol!r}.")
        if chunks < 1 or slice_batch < 1:
            raise ValueError(f"chunks and slice_batch must be at least 1, got {chunks} and {slice_batch}.")
        if organs is not None:
            _check_organs(organs)
        self.support = support
        self.organs = organs
        self.protocol = protocol
        self.chunks = chunks
        self.slice_batch = slice_batch
        self._scans: list[Mapping[str, Any]] = []
        self._encoded: OrderedDict[Hashable, dict[int, EncodedOrgan]] = OrderedDict()

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
            ``(B, O, H, W, Z)``, foreground minus background logit of each organ: the organ is where it is above 0.
            It carries the meta of ``inputs`` and, under ``organ_ids``, the ids of the channels' organs, and under
            ``explained`` the mean of the larger logit, best organ, where the scan is brighter than its mean.

        Raises:
            ValueError: If the support holds no voxel of an organ, or the ``"paper"`` protocol gets no label.
        """
        if self.protocol == "paper" and label is None:
            raise ValueError("the 'paper' protocol needs the query's label; without one use protocol 'volume'.")
        meta = dict(getattr(inputs, "meta", {}))
        prototypes = self.prototypes(network, inputs.device, meta.get(SUPPORT))
        scores, explained = zip(
            *(
                self._segment(volume, network, prototypes, None if label is None else label[item])
                for item, volume in enumerate(inputs)
            ),
            strict=True,
        )
        meta[ORGAN_IDS] = torch.tensor([list(prototypes)] * len(inputs))
        meta[EXPLAINED] = torch.stack(explained)
        return MetaTensor(torch.stack(scores), meta=meta)

    def organ_ids(self) -> list[int]:
        """Return the ids of the organs of the config's support."""
        if self.organs is not None:
            return list(self.organs.values())
        ids = torch.cat([torch.unique(plain(scan[LABEL])) for scan in self.support_scans()]).unique()
        return [int(organ) for organ in ids if organ != 0]

    def organ_names(self) -> dict[str, int]:
        """Return the names and ids of the organs; those without a name are called ``organ_<id>``."""
        return dict(self.organs or {f"organ_{organ}": organ for organ in self.organ_ids()})

    def support_scans(self) -> list[Mapping[str, Any]]:
        """Return the annotated scans of the config, read once.

        Raises:
            ValueError: If there is none, or one cannot be used.
        """
        if not self._scans:
            if len(self.support) == 0:
                raise ValueError("there is no annotated scan. Give at least one image with its label map as support.")
            self._scans = [self.support[index] for index in range(len(self.support))]
        return self._scans

    def prototypes(
        self, network: ALPNet, device: torch.device, files: Sequence[Mapping[str, Any]] | None = None
    ) -> dict[int, OrganPrototypes]:
        """Pool the prototypes of every organ.

        Args:
            network: Its weights decide whether features that were computed before still hold.
            device: Where the query is.
            files: Annotated scans to use instead of the config's: ``image`` and ``label`` files, ``ids`` from values
                in the file to organ ids (or ``None``), and ``partial``, whether only some slices are annotated. An
                organ that a partial one shows is taken from partial ones alone.
        """
        version = self.version_of(network)
        scans: list[tuple[bool, dict[int, EncodedOrgan]]] = []
        if files:
            scans = [(bool(f.get("partial")), self._remembered(f, version, network, device)) for f in files]
        else:
            for number, scan in enumerate(self.support_scans()):
                key = (number, version)
                if key not in self._encoded:
                    self._remember(key, self._encode_scan(scan, network, device))
                scans.append((False, self._encoded[key]))
        wanted = self.organs.values() if self.organs else sorted({organ for _, encoded in scans for organ in encoded})
        if not wanted:
            raise ValueError("none of the annotated scans shows an organ. Annotate one.")
        return {organ: self._pool(organ, scans, network) for organ in wanted}

    @staticmethod
    def version_of(network: ALPNet) -> Hashable:
        """Return what changes whenever a weight of the network does."""
        tensors = [*network.parameters(), *network.buffers()]
        return tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)

    def _remembered(
        self, files: Mapping[str, Any], version: Hashable, network: ALPNet, device: torch.device
    ) -> dict[int, EncodedOrgan]:
        """Return a scan's features, encoding it only if its files or the weights changed since."""
        stamps = tuple((str(files[key]), os.stat(files[key]).st_mtime_ns) for key in (IMAGE, LABEL))
        ids = files.get("ids")
        key = (stamps, str(ids), version)
        if key not in self._encoded:
            scan = dict(self.support.read({IMAGE: files[IMAGE], LABEL: files[LABEL]}))
            if ids is not None:
                scan[LABEL] = _renumbered(plain(scan[LABEL]), ids)
            self._remember(key, self._encode_scan(scan, network, device))
        self._encoded.move_to_end(key)
        return self._encoded[key]

    def _remember(self, key: Hashable, encoded: dict[int, EncodedOrgan]) -> None:
        self._encoded[key] = encoded
        while len(self._encoded) > max(REMEMBERED_SCANS, len(self._scans)):
            self._encoded.popitem(last=False)

    @torch.no_grad()
    def _encode_scan(self, scan: Mapping[str, Any], network: ALPNet, device: torch.device) -> dict[int, EncodedOrgan]:
        """Encode the slices that stand for each organ of a scan; a slice that stands for several is encoded once."""
        image, label = (plain(scan[key]).to(device) for key in (IMAGE, LABEL))
        shown = {int(organ): organ_slices(label, int(organ)) for organ in torch.unique(label) if organ != 0}
        chosen = {organ: support_slices(slices, self.chunks) for organ, slices in shown.items()}
        needed = sorted({z for slices in chosen.values() for z in slices})
        features: dict[int, Tensor] = {}
        for start in range(0, len(needed), self.slice_batch):
            batch = needed[start : start + self.slice_batch]
            features |= dict(zip(batch, network.encoder(to_network(image[..., batch])), strict=True))
        depth = image.shape[-1]
        encoded = {}
        for organ, slices in chosen.items():
            masks = torch.stack([label[..., z] == organ for z in slices])[None].float()
            reduced = reduce_mask(masks, features[slices[0]])[0]
            extent = (shown[organ][0] / depth, (shown[organ][-1] + 1) / depth)
            encoded[organ] = EncodedOrgan([(features[z], m) for z, m in zip(slices, reduced, strict=True)], extent)
        return encoded

    @torch.no_grad()
    def _pool(
        self, organ: int, scans: Sequence[tuple[bool, dict[int, EncodedOrgan]]], network: ALPNet
    ) -> OrganPrototypes:
        shown = [(partial, encoded[organ]) for partial, encoded in scans if organ in encoded]
        if not shown:
            raise ValueError(
                f"{self._name(organ)} (id {organ}) has no voxel in any of the {len(scans)} support label maps. "
                "Annotate it, or take it out of organs."
            )
        drawn = [encoded for partial, encoded in shown if partial]
        shots = drawn or [encoded for _, encoded in shown]
        chunks = []
        for chunk in range(self.chunks):
            features, masks = zip(*(shot.chunks[chunk] for shot in shots), strict=True)
            chunks.append(network.prototypes(torch.stack(features), torch.stack(masks)))
        begin, end = (sum(ends) / len(ends) for ends in zip(*(shot.extent for shot in shots), strict=True))
        return OrganPrototypes(chunks, (begin, end))

    def _name(self, organ: int) -> str:
        names = [name for name, value in (self.organs or {}).items() if value == organ]
        return names[0] if names else f"organ_{organ}"

    @torch.no_grad()
    def _segment(
        self, volume: Tensor, network: ALPNet, prototypes: dict[int, OrganPrototypes], label: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        depth = volume.shape[-1]
        plans = [self._plan(organ, prototype, depth, label) for organ, prototype in prototypes.items()]
        scores = torch.empty(len(plans), *volume.shape[1:], device=volume.device)
        query = plain(volume)
        nearest: list[Tensor] = []
        for start in range(0, depth, self.slice_batch):
            images = to_network(query[..., start : start + self.slice_batch])
            features = network.encoder(images)
            body = F.interpolate(images[:, :1], size=features.shape[-2:], mode="area")[:, 0] > 0
            best = features.new_zeros(body.shape)
            for channel, plan in enumerate(plans):
                logits = torch.stack([self._logits(network, q, plan[start + k]) for k, q in enumerate(features)])
                margin = upsample(logits[:, 1:] - logits[:, :1], images)[:, 0]
                scores[channel, ..., start : start + len(logits)] = margin.movedim(0, -1).float()
                best = torch.maximum(best, logits.amax(dim=1))
            nearest.append(best[body])
        return scores, torch.cat(nearest).mean().float()[None]

    def _plan(
        self, organ: int, prototype: OrganPrototypes, depth: int, label: Tensor | None
    ) -> list[tuple[Tensor, Tensor] | None]:
        """Return the prototypes to use for each slice, ``None`` where the organ is not looked for."""
        if self.protocol == "volume":
            return [prototype.chunks[chunk] for chunk in chunks_by_position(depth, prototype.extent, self.chunks)]
        slices = organ_slices(plain(label), organ)
        if not slices:
            return [None] * depth
        first, last = slices[0], slices[-1]
        chunks = chunks_of_extent(depth, first, last, self.chunks)
        return [prototype.chunks[chunk] if first <= z <= last else None for z, chunk in enumerate(chunks)]

    def _logits(self, network: ALPNet, query: Tensor, prototypes: tuple[Tensor, Tensor] | None) -> Tensor:
        """Return the logits ``(2, h, w)`` of a slice; where the organ is not looked for, background leads by 1."""
        if prototypes is None:
            nothing = query.new_zeros(2, *query.shape[-2:])
            nothing[0] = 1.0
            return nothing
        return network.score(query, *prototypes)


def _check_organs(organs: Any) -> None:
    ids = list(organs.values()) if isinstance(organs, Mapping) else []
    whole = all(isinstance(organ, int) and not isinstance(organ, bool) and organ > 0 for organ in ids)
    if not ids or not whole or len(set(ids)) < len(ids):
        raise ValueError(
            f"organs must give each organ's name an id of its own, a whole number above 0, such as {{liver: 1}}, got "
            f"{organs!r}."
        )


def _renumbered(label: Tensor, ids: Mapping[Any, int]) -> Tensor:
    """Replace the values of a label map by organ ids; values that are not listed become 0."""
    result = torch.zeros_like(label)
    for value, organ in ids.items():
        result[label == int(value)] = organ
    return result


def plain(tensor: Any) -> Tensor:
    """Drop the meta: networks and arithmetic are faster without."""
    return convert_to_tensor(tensor, track_meta=False)
