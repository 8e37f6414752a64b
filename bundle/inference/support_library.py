"""The annotated scans: read once, and encoded once for each state of the network's weights."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bundle.data.names import name_of_scan, scan_name
from bundle.data.organ_masks import stated_names
from bundle.inference.encoded_scans import AnnotatedScan, EncodedScans, PrototypeFolder, size_of
from bundle.inference.matching import Features, Matching, Support
from bundle.inference.organ_names import common_names, names_of_labels, new_ids, unnamed
from bundle.inference.organ_shapes import OrganShape, shapes_of
from bundle.inference.prototype_files import PrototypeRecord, read_prototypes, refuse_other_making, write_prototypes
from bundle.inference.slice_encoder import SliceEncoder, version_of
from bundle.keys import IMAGE, LABEL, ORGAN_NAMES, SCAN_NAME
from bundle.networks.alpnet import ALPNet, PrototypeHead
from bundle.provenance import content_hash, describe, fingerprint
from bundle.transforms.annotated import (
    IGNORED,
    Annotated,
    AnnotatedSlices,
    annotated_slices,
    checked_annotated,
    mark_ignored,
)
from bundle.transforms.masks import plain
from bundle.transforms.notices import intensity_profile
from bundle.transforms.slices import organs_of
from monai.data import MetaTensor
from monai.utils import ImageMetaKey
from torch import Tensor

logger = logging.getLogger(__name__)

NO_ORGAN = "none of the annotated scans shows an organ. Annotate an organ in at least one scan."


class SupportLibrary:
    """Annotated scans from a data set, from files of prototypes, or from files that a query names.

    Args:
        support: A data set whose items hold ``image`` and ``label``, each ``(1, H, W, Z)``, preprocessed as queries
            are; ``support.read`` reads the files that a query names.
        encode: Encodes slices.
        matching: Decides what is kept of a scan.
        head: Pools in place of the network's own head; ``None`` means the network's.
        organs: Names and ids of the organs. ``None`` takes every id of the label maps.
        prototypes: Files of prototypes, each with annotated scans that were encoded before.
        preprocessing: The preprocessing of the scans, by name.
        annotated: Which slices of the label maps are annotated; see ``annotated_slices``.
        ignore_value: The value of voxels that are neither organ nor background in the label files; ``None``: there is
            none.

    Attributes:
        stored_in: Folder that keeps the encoded scans of the data set from one run to the next; ``None`` keeps none.
    """

    def __init__(
        self,
        support: Any,
        encode: SliceEncoder,
        matching: Matching,
        head: PrototypeHead | None = None,
        organs: Mapping[str, int] | None = None,
        prototypes: Sequence[Path] = (),
        preprocessing: Mapping[str, Any] | None = None,
        annotated: Annotated = "all",
        ignore_value: int | None = None,
    ) -> None:
        self.support = support
        self.stored_in: Path | None = None
        self.encode = encode
        self.matching = matching
        self.head = head
        self.organs = organs
        self.prototypes = list(prototypes)
        self.preprocessing = describe(preprocessing or {}, code=False)
        self.annotated = checked_annotated(annotated)
        self.ignore_value = ignore_value
        self._scans: list[Mapping[str, Any]] = []
        self._records: list[PrototypeRecord] = []
        self._names: dict[str, int] = {}
        self._encoded = EncodedScans()
        self._folder = PrototypeFolder(self._read_kept, self._write_kept)
        self._encoded_with: Hashable = None

    def scans(self) -> list[Mapping[str, Any]]:
        """Return the annotated scans of the data set, read once. Scans of files of prototypes are not among them.

        Raises:
            ValueError: If there is neither an annotated scan nor a file of prototypes, or a scan cannot be used.
        """
        if not self._scans:
            if len(self.support) == 0 and not self.prototypes:
                raise ValueError("there is no annotated scan. Give at least one image with its label map as support.")
            self._scans = [self._marked(self.support[index]) for index in range(len(self.support))]
        return self._scans

    def organ_names(self) -> dict[str, int]:
        """Return the names and ids of the organs; an organ without a name is called ``organ_<id>``."""
        if self.organs is not None:
            return dict(self.organs)
        if not self._names:  # asked for several times per query, and unique values of a volume take long
            self._names = self._found_names()
        return dict(self._names)

    def _found_names(self) -> dict[str, int]:
        shown = {organ for scan in self.scans() for organ in organs_of(plain(scan[LABEL]))}
        named = names_of_labels([getattr(scan[LABEL], "meta", {}).get(ORGAN_NAMES, {}) for scan in self.scans()], shown)
        return common_names([named, *(record.organs for record in self._file_records())], sorted(shown))

    def pool(self, network: ALPNet, device: torch.device, files: Sequence[Mapping[str, Any]] | None = None) -> Support:
        """Pool the annotated scans into one support, ready to score slices.

        Args:
            network: The trained network; scans that were encoded with other weights are encoded again.
            device: The device of the query.
            files: See ``encoded``. An organ that is annotated in some slices of the query itself is taken from there
                alone. A finished label of the query is not used, since the prediction would only repeat it.

        Raises:
            ValueError: If an organ that is asked for is in no scan.
        """
        scans = [scan for scan in self.encoded(network, device, files) if scan.encoded is not None]
        shown = sorted({organ for scan in scans for organ in scan.encoded})
        wanted = list(self.organs.values()) if self.organs else shown
        if not wanted:
            raise ValueError(NO_ORGAN)
        sources = {organ: self._sources(organ, scans) for organ in wanted}
        encoded = {organ: [scan.encoded for scan in some] for organ, some in sources.items()}
        support = self.matching.pool(encoded, self._head(network))
        support.shapes = {o: [scan.shapes[o] for scan in some if o in scan.shapes] for o, some in sources.items()}
        support.profiles = [scan.profile for scan in scans]
        return support

    def encoded(
        self, network: ALPNet, device: torch.device, files: Sequence[Mapping[str, Any]] | None = None
    ) -> list[AnnotatedScan]:
        """Encode annotated scans, or return them from the cache.

        Args:
            network: The trained network; scans that were encoded with other weights are encoded again.
            device: The device of the query.
            files: Annotated scans to use instead of the library's own: ``image`` and ``label`` files, ``ids`` that map
                values in the file to organ ids (or ``None``), ``annotated`` (default: the library's), ``own``, whether
                it is the query itself, and ``stored_in``, a folder that stores its encoded form.

        Raises:
            ValueError: If a scan cannot be used.
        """
        self._forget_other_weights((version_of(network), str(device)))
        if not files:
            return self._own(network, device)
        return [self._named(entry, network, device) for entry in files]

    def tried(
        self, network: ALPNet, device: torch.device, files: Sequence[Mapping[str, Any]]
    ) -> list[AnnotatedScan | ValueError | FileNotFoundError]:
        """Encode annotated scans like ``encoded``; a scan that cannot be used is replaced by its error."""
        self._forget_other_weights((version_of(network), str(device)))
        found: list[AnnotatedScan | ValueError | FileNotFoundError] = []
        for entry in files:
            try:
                found.append(self._named(entry, network, device))
            except (ValueError, FileNotFoundError) as error:
                found.append(error)
        return found

    def report(self, network: ALPNet, device: torch.device) -> None:
        """Print how many slices of each annotated scan count as annotated."""
        for scan, found in zip(self.scans(), self.encoded(network, device), strict=False):
            print(f"annotated scan {_file_name(scan[IMAGE])}: {found.taken} count as annotated", flush=True)

    def save(self, path: str | Path, network: ALPNet, device: torch.device | str = "cpu") -> None:
        """Write the encoded scans to a file of prototypes, without their images.

        Args:
            path: The file, ending in ``.safetensors``; a ``.json`` file next to it describes the content.
            network: The trained network; it is put in eval mode.
            device: Where to encode.

        Raises:
            ValueError: If there is no annotated scan, or none of them shows an organ.
            WriteError: If the file cannot be written.
        """
        network.eval()
        scans = self.encoded(network, torch.device(device))
        names = [_file_name(scan[IMAGE]) for scan in self._scans]
        names += [scan["name"] for record in self._file_records() for scan in record.scans]
        kept = [(name, scan) for name, scan in zip(names, scans, strict=True) if list(scan.encoded)]
        if not kept:
            raise ValueError(NO_ORGAN)
        if len(kept) < len(scans):
            logger.warning(
                "%d of %d annotated scans show no organ and are left out", len(scans) - len(kept), len(scans)
            )
        organs = self._organs_to_save(scans)
        tensors = [
            {key: tensor.cpu() for key, tensor in self.matching.to_tensors(scan.encoded).items()} for _, scan in kept
        ]
        about = [_to_record(name, scan, organs) for name, scan in kept]
        write_prototypes(path, tensors, PrototypeRecord(organs, about, self._made_with(network)))

    def _organs_to_save(self, scans: Sequence[AnnotatedScan]) -> dict[str, int]:
        """Return the names and ids of the organs in the scans; every organ that is asked for must be among them."""
        shown = {organ for scan in scans for organ in scan.encoded}
        for organ in (self.organs or {}).values():
            self._sources(organ, scans)
        names = {organ: unnamed(organ) for organ in sorted(shown)}
        for record in self._file_records():
            ids = new_ids(record.organs, self.organ_names())
            names |= {ids[organ]: name for name, organ in record.organs.items()}
        names |= {organ: name for name, organ in self.organ_names().items()}
        return {name: organ for organ, name in names.items() if organ in shown}

    # --- where scans come from ---------------------------------------------------------------------------------

    def _own(self, network: ALPNet, device: torch.device) -> list[AnnotatedScan]:
        """Return the encoded scans of the data set, and those of the files of prototypes."""
        own = [
            self._encoded.get(number, partial(self._stored, number, scan, network, device), _never_forgotten)
            for number, scan in enumerate(self.scans())
        ]
        for file in self.prototypes:
            own += self._encoded.get(file, partial(self._read, file, network, device), _never_forgotten)
        return own

    def _stored(self, number: int, scan: Mapping[str, Any], network: ALPNet, device: torch.device) -> AnnotatedScan:
        """Return the encoded form of a scan of the data set, from ``stored_in`` if it is there."""
        encode = partial(self._encode_scan, scan, network, device)
        if self.stored_in is None:
            return encode()
        files = self.support.data[number]
        settings = {"ids": None, "annotated": self.annotated, "ignore_value": self.ignore_value}
        made_from = partial(self._made_from, files, settings, network, device)
        return self._folder.get(self.stored_in, name_of_scan(files), made_from, encode)

    def _made_from(
        self, files: Mapping[str, Any], settings: Mapping[str, Any], network: ALPNet, device: torch.device
    ) -> dict[str, Any]:
        """Return everything that determines the encoded form of a scan."""
        hashes = {key: content_hash(files[key]) for key in (IMAGE, LABEL)}
        names = {ORGAN_NAMES: named} if (named := stated_names(files[LABEL])) else {}
        return {**self._made_with(network), **hashes, **names, **settings, "device": str(device)}

    def _named(self, files: Mapping[str, Any], network: ALPNet, device: torch.device) -> AnnotatedScan:
        """Return the encoded form of a scan that a query names; it is encoded again if its files changed."""
        annotated = checked_annotated(files.get("annotated") or self.annotated)
        paths = {key: str(files[key]) for key in (IMAGE, LABEL)}
        settings = {"ids": files.get("ids"), "annotated": annotated, "ignore_value": self.ignore_value}

        def encode() -> AnnotatedScan:
            return self._encode_files({**files, "annotated": annotated}, network, device)

        def find() -> AnnotatedScan:
            made_from = partial(self._made_from, paths, settings, network, device)
            return self._folder.get(files.get("stored_in"), scan_name(paths[IMAGE]), made_from, encode)

        stamps = tuple((path, os.stat(path).st_mtime_ns) for path in paths.values())
        own = bool(files.get("own"))
        known: AnnotatedScan = self._encoded.get((stamps, str(settings), own), find, self._size)
        # The stored form is the same for every query; whether a finished label is the query's own is not.
        is_answer = own and known.taken is not None and known.taken.taken == "all"
        return replace(known, own=own, encoded=None if is_answer else known.encoded)

    def _encode_files(self, files: Mapping[str, Any], network: ALPNet, device: torch.device) -> AnnotatedScan:
        scan = self._marked(self.support.read({IMAGE: files[IMAGE], LABEL: files[LABEL]}))
        taken, ids = annotated_slices(plain(scan[LABEL]), files["annotated"]), files.get("ids")
        if files.get("own") and taken.taken == "all":
            return AnnotatedScan(None, taken=taken)
        left_out = tuple(v for v in organs_of(plain(scan[LABEL])) if ids is not None and str(v) not in ids)
        if ids is not None:
            scan[LABEL] = _renumbered(scan[LABEL], ids)
        return replace(self._encode_scan(scan, network, device, taken), left_out=left_out)

    def _marked(self, scan: Mapping[str, Any]) -> dict[str, Any]:
        return {**scan, LABEL: mark_ignored(scan[LABEL], self.ignore_value)}

    def _read_kept(self, path: Path, made_with: Mapping[str, Any]) -> AnnotatedScan:
        (tensors,), record = read_prototypes(path, made_with["device"])
        refuse_other_making(path, record, made_with)
        ids = {organ: organ for organ in record.organs.values()}
        (about,) = record.scans
        scan = _from_file(path, tensors, about, self.matching, record.organs, ids)
        taken = AnnotatedSlices(tuple(about["slices"]), about["depth"], about["taken"])
        return replace(scan, taken=taken, left_out=tuple(about["left_out"]))

    def _write_kept(self, path: Path, name: str, scan: AnnotatedScan, made_with: dict[str, Any]) -> None:
        organs = {unnamed(organ): organ for organ in scan.encoded}
        taken = {} if scan.taken is None else asdict(scan.taken)
        about = _to_record(name, scan, organs) | taken | {"left_out": scan.left_out}
        tensors = {key: tensor.cpu() for key, tensor in self.matching.to_tensors(scan.encoded).items()}
        write_prototypes(path, [tensors], PrototypeRecord(organs, [about], made_with))

    def _read(self, file: Path, network: ALPNet, device: torch.device) -> list[AnnotatedScan]:
        scans, record = read_prototypes(file, device)
        refuse_other_making(file, record, self._made_with(network))
        ids = new_ids(record.organs, self.organ_names())
        return [
            _from_file(file, tensors, about, self.matching, record.organs, ids)
            for tensors, about in zip(scans, record.scans, strict=True)
        ]

    @torch.no_grad()
    def _encode_scan(
        self, scan: Mapping[str, Any], network: ALPNet, device: torch.device, taken: AnnotatedSlices | None = None
    ) -> AnnotatedScan:
        taken = annotated_slices(plain(scan[LABEL]), self.annotated) if taken is None else taken
        image, label = (plain(scan[key]).to(device) for key in (IMAGE, LABEL))

        def encode(slices: Sequence[int]) -> Features:
            return self.encode(image[..., slices], network)

        encoded = self.matching.encode(label, encode, self._head(network), taken.slices)
        shapes = shapes_of(scan[LABEL], taken.taken == "drawn" or len(taken.slices) < taken.depth)
        return AnnotatedScan(encoded, shapes, intensity_profile(image), taken)

    def _sources(self, organ: int, scans: Sequence[AnnotatedScan]) -> list[AnnotatedScan]:
        """Return the scans that contribute prototypes of an organ."""
        shown = [scan for scan in scans if organ in scan.encoded]
        if not shown:
            raise ValueError(
                f"{self._name(organ)} (id {organ}) has no voxel in any of the {len(scans)} support label maps. "
                "Annotate it, or remove it from organs."
            )
        return [scan for scan in shown if scan.own] or shown

    # --- caches ------------------------------------------------------------------------------------------------

    def _forget_other_weights(self, encoded_with: Hashable) -> None:
        if encoded_with != self._encoded_with:
            self._encoded.clear()
            self._encoded_with = encoded_with

    def _size(self, scan: AnnotatedScan) -> int:
        if scan.encoded is None or not list(scan.encoded):
            return 1
        return size_of(self.matching.to_tensors(scan.encoded))

    def _file_records(self) -> list[PrototypeRecord]:
        """Return the records of the files of prototypes, read only once: names are needed for every scan."""
        if not self._records:
            self._records = [read_prototypes(file)[1] for file in self.prototypes]
        return self._records

    def _made_with(self, network: ALPNet) -> dict[str, Any]:
        head = self._head(network)
        return {
            "encoder": fingerprint(network.encoder),
            "pooling": {name: describe(getattr(head, name), code=False) for name in ("foreground", "background")},
            "matching": self.matching.settings(),
            "preprocessing": self.preprocessing,
        }

    def _head(self, network: ALPNet) -> PrototypeHead:
        return network if self.head is None else self.head

    def _name(self, organ: int) -> str:
        names = [name for name, value in (self.organs or {}).items() if value == organ]
        return names[0] if names else unnamed(organ)


def _from_file(
    file: Path,
    tensors: Mapping[str, Tensor],
    about: Mapping[str, Any],
    matching: Matching,
    organs: Mapping[str, int],
    ids: Mapping[int, int],
) -> AnnotatedScan:
    """Return a scan of a file of prototypes, its organs renumbered by ``ids``."""
    try:
        encoded = matching.from_tensors(tensors)
        if not set(encoded) <= set(ids):
            raise ValueError(f"its scans hold the organs {sorted(encoded)}, its record has {sorted(ids)}")
    except ValueError as error:
        raise ValueError(
            f"the prototypes {file} are damaged: {error}. Make them again with `python -m bundle encoding`."
        ) from error
    shapes = {
        ids[organs[name]]: OrganShape(int(components), *(math.nan if number is None else number for number in others))
        for name, (components, *others) in about["shapes"].items()
    }
    return AnnotatedScan(matching.renumbered(encoded, ids), shapes, torch.tensor(about["profile"]))


def _to_record(name: str, scan: AnnotatedScan, organs: Mapping[str, int]) -> dict[str, Any]:
    """Return the part of a file's record that describes a scan."""
    shown = [organ for organ, value in organs.items() if value in scan.encoded]
    shapes = {
        organ: [shape.components, *map(_to_number, (shape.milliliters, shape.thickness))]
        for organ in shown
        if (shape := scan.shapes.get(organs[organ])) is not None
    }
    return {"name": name, "organs": shown, "shapes": shapes, "profile": scan.profile.tolist()}


def _to_number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 3)


def _never_forgotten(_: Any) -> int:
    return 0


def _file_name(image: Tensor) -> str:
    """Return the name of a scan, or that of the file that it was read from, or ``""`` if there is none."""
    meta = getattr(image, "meta", {})
    return str(meta.get(SCAN_NAME) or Path(str(meta.get(ImageMetaKey.FILENAME_OR_OBJ, ""))).name)


def _renumbered(label: Tensor, ids: Mapping[Any, int]) -> Tensor:
    """Replace the values of a label map by organ ids; other values become 0, and ignored voxels stay ignored."""
    values = plain(label)
    result = torch.where(values == IGNORED, values, torch.zeros_like(values))
    for value, organ in ids.items():
        result[values == int(value)] = organ
    return MetaTensor(result, meta=label.meta) if isinstance(label, MetaTensor) else result
