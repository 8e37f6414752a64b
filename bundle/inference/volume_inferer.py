"""From annotated scans to the organs of another: support scans + query volume -> scores of every organ."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.utils import ImageMetaKey
from torch import Tensor, nn

from bundle.inference.features import kept_features
from bundle.inference.matching import ChunkMatching, Extents, Features, Matching, Support
from bundle.inference.prototype_files import (
    PrototypeRecord,
    fingerprint,
    read_prototypes,
    refuse_other_making,
    settings_of,
    write_prototypes,
)
from bundle.keys import EXPLAINED, IMAGE, LABEL, ORGAN_IDS, OWN_MARGINS, SUPPORT
from bundle.networks.alpnet import ALPNet, PrototypeHead, upsample
from bundle.transforms.masks import plain
from bundle.transforms.slices import organ_slices, organs_of, to_network

Protocol = Literal["volume", "paper"]
Precision = Literal["float32", "bfloat16"]

REMEMBERED_SCANS = 32
"""Support scans that are kept encoded; at 256 x 256 about 3 MB an organ each, or 0.3 MB a slice (SliceMatching)."""


class VolumeInferer(Inferer):
    """Segment whole volumes, all organs at once, from annotated scans.

    Each query slice is encoded once for all organs. The support slices are encoded once for all queries, as long as
    the network's weights and the support's files stay the same.

    Args:
        support: Annotated scans: a data set whose items hold ``image`` and ``label``, each ``(1, H, W, Z)``,
            preprocessed as the query is. Several scans are several shots. A query whose meta names scans of its own
            under ``support`` is segmented from those instead; they are read by ``support.read``.
        organs: Names and ids of the organs. ``None`` takes every id of the support's labels.
        protocol: ``"volume"`` uses no truth of the query. ``"paper"`` takes each organ's first and last slice from
            the query's label, and scores nothing outside (docs/method.md).
        matching: Which annotated slices speak for which slice of the query; ``None`` is the paper's.
        head: Pools and scores in place of the network's own head; ``None`` is the network's.
        slice_batch: Slices that are encoded at once.
        prototypes: Files of annotated scans that were encoded before (``save_prototypes``), with or in place of
            ``support``.
        preprocessing: What was done to the scans, by name. Files of prototypes tell it, and are only used where it is
            the same.
        precision: Of the encoder: ``"float32"``, or ``"bfloat16"`` where the device is fast at it.

    Raises:
        ValueError: If a setting is out of range.
    """

    def __init__(
        self,
        support: Any,
        organs: Mapping[str, int] | None = None,
        protocol: Protocol = "volume",
        matching: Matching | None = None,
        head: PrototypeHead | None = None,
        slice_batch: int = 8,
        prototypes: str | Path | Sequence[str | Path] | None = None,
        preprocessing: Mapping[str, Any] | None = None,
        precision: Precision = "float32",
    ) -> None:
        if precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision must be 'float32' or 'bfloat16', got {precision!r}.")
        if protocol not in ("volume", "paper"):
            raise ValueError(f"protocol must be 'volume' or 'paper', got {protocol!r}.")
        if slice_batch < 1:
            raise ValueError(f"slice_batch must be at least 1, got {slice_batch}.")
        if organs is not None:
            _check_organs(organs)
        self.support = support
        self.organs = organs
        self.protocol = protocol
        self.matching = ChunkMatching() if matching is None else matching
        self.head = None if head is None else head.eval()
        self.slice_batch = slice_batch
        files = [prototypes] if isinstance(prototypes, str | Path) else prototypes or []
        self.prototypes = [Path(file) for file in files]
        self.preprocessing = settings_of(preprocessing or {})
        self.precision = precision
        self._scans: list[Mapping[str, Any]] = []
        self._records: list[PrototypeRecord] = []
        self._encoded: OrderedDict[Hashable, Any] = OrderedDict()
        self._fast: tuple[Hashable, nn.Module] | None = None

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
            ``explained`` the mean of the larger logit, best organ, where the scan is brighter than its mean; and under
            ``own_margins`` what ``Support.own_margins`` tells, if it does.

        Raises:
            ValueError: If the support holds no voxel of an organ, or the ``"paper"`` protocol gets no label.
        """
        if self.protocol == "paper" and label is None:
            raise ValueError("the 'paper' protocol needs the query's label; without one use protocol 'volume'.")
        meta = dict(getattr(inputs, "meta", {}))
        shown = self.pool(network, inputs.device, meta.get(SUPPORT))
        organs = shown.organs
        extents: list[Extents | None] = [None] * len(inputs)
        if self.protocol == "paper" and label is not None:
            extents = [_extents(organs, plain(truth)) for truth in label]
        scores, explained = zip(
            *(
                self.score(volume, self.encode(plain(volume), network), shown, known)
                for volume, known in zip(inputs, extents, strict=True)
            ),
            strict=True,
        )
        meta[ORGAN_IDS] = torch.tensor([organs] * len(inputs))
        meta[EXPLAINED] = torch.stack(explained)
        if (own := shown.own_margins()) is not None:
            meta[OWN_MARGINS] = torch.tensor([own] * len(inputs))
        return MetaTensor(scores[0][None] if len(scores) == 1 else torch.stack(scores), meta=meta)

    def organ_ids(self) -> list[int]:
        """Return the ids of the organs of the config's support."""
        return sorted(self.organ_names().values()) if self.organs is None else list(self.organs.values())

    def organ_names(self) -> dict[str, int]:
        """Return the names and ids of the organs; those without a name are called ``organ_<id>``."""
        if self.organs is not None:
            return dict(self.organs)
        named = {organ: name for record in self._file_records() for name, organ in record.organs.items()}
        shown = {organ for scan in self.support_scans() for organ in organs_of(plain(scan[LABEL]))}
        return {named.get(organ, f"organ_{organ}"): organ for organ in sorted(shown | set(named))}

    def support_scans(self) -> list[Mapping[str, Any]]:
        """Return the annotated scans of the config, read once; those of files of prototypes have no image.

        Raises:
            ValueError: If there is none and no file of prototypes either, or one cannot be used.
        """
        if not self._scans:
            if len(self.support) == 0 and not self.prototypes:
                raise ValueError("there is no annotated scan. Give at least one image with its label map as support.")
            self._scans = [self.support[index] for index in range(len(self.support))]
        return self._scans

    def pool(self, network: ALPNet, device: torch.device, files: Sequence[Mapping[str, Any]] | None = None) -> Support:
        """Put together what the annotated scans tell of every organ.

        Args:
            network: Its weights decide whether what was computed before still holds.
            device: Where the query is.
            files: Annotated scans to use instead of the config's: ``image`` and ``label`` files, ``ids`` from values
                in the file to organ ids (or ``None``), and ``partial``, whether only some slices are annotated. An
                organ that a partial one shows is taken from partial ones alone.
        """
        version = self.version_of(network)
        scans: list[tuple[bool, Any]] = []
        if files:
            scans = [(bool(f.get("partial")), self._remembered(f, version, network, device)) for f in files]
        else:
            scans = [(False, encoded) for encoded in self._own_scans(version, network, device)]
        wanted = list(self.organs.values()) if self.organs else sorted({organ for _, scan in scans for organ in scan})
        if not wanted:
            raise ValueError("none of the annotated scans shows an organ. Annotate one.")
        return self.matching.pool({o: self._sources(o, scans) for o in wanted}, self._head(network))

    def _own_scans(self, version: Hashable, network: ALPNet, device: torch.device) -> list[Any]:
        """Return the encoded scans of the config, and those of its files of prototypes."""
        for number, scan in enumerate(self.support_scans()):
            if (number, version) not in self._encoded:
                self._remember((number, version), self._encode_scan(scan, network, device))
        for file in self.prototypes:
            if (file, version) not in self._encoded:
                self._encoded[file, version] = self._read(file, network, device)
        own = [self._encoded[number, version] for number in range(len(self._scans))]
        return own + [scan for file in self.prototypes for scan in self._encoded[file, version]]

    def _file_records(self) -> list[PrototypeRecord]:
        """Return what the files of prototypes tell of themselves, read once: names are asked for with every scan."""
        if not self._records:
            self._records = [read_prototypes(file)[1] for file in self.prototypes]
        return self._records

    def _read(self, file: Path, network: ALPNet, device: torch.device) -> list[Any]:
        scans, record = read_prototypes(file, device)
        refuse_other_making(file, record, self._made_with(network))
        return [self.matching.from_tensors(tensors) for tensors in scans]

    def _made_with(self, network: ALPNet) -> dict[str, Any]:
        head = self._head(network)
        return {
            "encoder": fingerprint(network.encoder),
            "pooling": {"foreground": settings_of(head.foreground), "background": settings_of(head.background)},
            "matching": self.matching.settings(),
            "preprocessing": self.preprocessing,
        }

    def save_prototypes(self, path: str | Path, network: ALPNet, device: torch.device | str = "cpu") -> None:
        """Write what the annotated scans tell to a file that stands for them, without their images.

        Args:
            path: The file, ending in ``.safetensors``; a ``.json`` beside it says what it holds.
            network: The trained network.
            device: Where to encode.

        Raises:
            ValueError: If there is no annotated scan, or none of them shows an organ.
        """
        network.eval()
        device = torch.device(device)
        encoded = self._own_scans(self.version_of(network), network, device)
        names = [_file_name(scan[IMAGE]) for scan in self._scans]
        names += [scan["name"] for record in self._file_records() for scan in record.scans]
        organs = {name: organ for name, organ in self.organ_names().items() if any(organ in scan for scan in encoded)}
        if not organs:
            raise ValueError("none of the annotated scans shows an organ. Annotate one.")
        scans = [{key: tensor.cpu() for key, tensor in self.matching.to_tensors(scan).items()} for scan in encoded]
        shown = [
            {"name": name, "organs": [organ for organ, value in organs.items() if value in scan]}
            for name, scan in zip(names, encoded, strict=True)
        ]
        write_prototypes(path, scans, PrototypeRecord(organs, shown, self._made_with(network)))

    def _sources(self, organ: int, scans: Sequence[tuple[bool, Any]]) -> list[Any]:
        """Return the scans to take an organ from."""
        shown = [(partial, encoded) for partial, encoded in scans if organ in encoded]
        if not shown:
            raise ValueError(
                f"{self._name(organ)} (id {organ}) has no voxel in any of the {len(scans)} support label maps. "
                "Annotate it, or take it out of organs."
            )
        drawn = [encoded for partial, encoded in shown if partial]
        return drawn or [encoded for _, encoded in shown]

    def _head(self, network: ALPNet) -> PrototypeHead:
        return network if self.head is None else self.head

    @staticmethod
    def version_of(network: ALPNet) -> Hashable:
        """Return what changes whenever a weight of the network does."""
        tensors = [*network.parameters(), *network.buffers()]
        return tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)

    def _remembered(self, files: Mapping[str, Any], version: Hashable, network: ALPNet, device: torch.device) -> Any:
        """Return an encoded scan, encoding it only if its files or the weights changed since."""
        stamps = tuple((str(files[key]), os.stat(files[key]).st_mtime_ns) for key in (IMAGE, LABEL))
        ids = files.get("ids")
        partial = bool(files.get("partial"))
        key = (stamps, str(ids), partial, version)
        if key not in self._encoded:
            scan = dict(self.support.read({IMAGE: files[IMAGE], LABEL: files[LABEL]}))
            if ids is not None:
                scan[LABEL] = _renumbered(plain(scan[LABEL]), ids)
            self._remember(key, self._encode_scan(scan, network, device, partial))
        self._encoded.move_to_end(key)
        return self._encoded[key]

    def _remember(self, key: Hashable, encoded: Any) -> None:
        self._encoded[key] = encoded
        while len(self._encoded) > max(REMEMBERED_SCANS, len(self._scans)):
            self._encoded.popitem(last=False)

    @torch.no_grad()
    def _encode_scan(
        self, scan: Mapping[str, Any], network: ALPNet, device: torch.device, partial: bool = False
    ) -> Any:
        image, label = (plain(scan[key]).to(device) for key in (IMAGE, LABEL))

        def encode(slices: Sequence[int]) -> Features:
            return self.encode(image[..., slices], network)

        return self.matching.encode(label, encode, self._head(network), partial)

    def _features(self, volume: Tensor, network: ALPNet) -> Iterator[Tensor]:
        """Encode the slices of ``volume (1, H, W, Z)``, some at once: batches ``(S, D, h, w)``."""
        # Channels last is what convolutions are fastest with, on CPUs and GPUs.
        for z in range(0, volume.shape[-1], self.slice_batch):
            images = to_network(volume[..., z : z + self.slice_batch]).to(memory_format=torch.channels_last)
            coarser = torch.autocast(volume.device.type, torch.bfloat16)
            with coarser if self.precision == "bfloat16" else nullcontext():
                features = self._encoder(network)(images)
            yield features.float()

    def _encoder(self, network: ALPNet) -> nn.Module:
        """Return the encoder, or what it has made of itself for inference with its present weights."""
        make = getattr(network.encoder, "for_inference", None)
        if make is None or network.encoder.training:
            return network.encoder
        version = self.version_of(network)
        if self._fast is None or self._fast[0] != version:
            self._fast = (version, make())
        return self._fast[1]

    def _name(self, organ: int) -> str:
        names = [name for name, value in (self.organs or {}).items() if value == organ]
        return names[0] if names else f"organ_{organ}"

    @torch.no_grad()
    def encode(self, volume: Tensor, network: ALPNet) -> Features:
        """Encode the slices of ``volume (1, H, W, Z)``."""
        return kept_features(self._features(volume, network), volume.shape[-1])

    @torch.no_grad()
    def score(
        self, volume: Tensor, features: Features, support: Support, extents: Extents | None = None
    ) -> tuple[Tensor, Tensor]:
        """Score a scan that is encoded already.

        Args:
            volume: The scan, ``(1, H, W, Z)``.
            features: Its slices, as ``encode`` returns them.
            support: As ``pool`` returns it.
            extents: First and last slice of each organ, in the ``"paper"`` protocol.

        Returns:
            The scores ``(O, H, W, Z)``, and ``(1,)`` what ``explained`` is; see ``__call__``.
        """
        query = plain(volume)
        # Slice by slice into its place: a second copy of a large volume's scores would be all that memory holds.
        scores = query.new_empty(query.shape[-1], len(support.organs), *query.shape[1:3], dtype=torch.float32)
        nearest = []
        for z, (margins, best) in enumerate(support.score(features, extents)):
            scores[z] = upsample(margins[None], query[:, None, :, :, z])[0]
            body = F.interpolate(query[None, ..., z], size=best.shape, mode="area")[0, 0] > 0
            nearest.append(best[body])
        return scores.movedim(0, -1), torch.cat(nearest).mean().float()[None]


def _file_name(image: Tensor) -> str:
    """Return the name of the file that a volume was read from, "" if it was not."""
    return Path(str(getattr(image, "meta", {}).get(ImageMetaKey.FILENAME_OR_OBJ, ""))).name


def _extents(organs: Sequence[int], label: Tensor) -> Extents:
    """Return the first and the last slice of each organ in ``label (1, H, W, Z)``."""
    shown = {organ: organ_slices(label, organ) for organ in organs}
    return {organ: (slices[0], slices[-1]) if slices else None for organ, slices in shown.items()}


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
