"""Encoded annotated scans: kept in memory up to a size, and on disk under a hash of what they were made with."""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from bundle.inference import prototype_files
from bundle.inference.organ_shapes import Shapes
from bundle.provenance import digest
from bundle.transforms.annotated import AnnotatedSlices
from torch import Tensor

logger = logging.getLogger(__name__)

# Bytes of encoded scans in memory: with SliceMatching about 100 scans of 35 slices of 256 x 256.
MEMORY = 1 << 30

# Files kept on disk for one scan: each correction of its label leaves an old one behind.
KEPT_STATES = 3


@dataclass(frozen=True)
class AnnotatedScan:
    """An annotated scan after encoding.

    Attributes:
        encoded: The result of ``Matching.encode``; ``None`` for a finished label of the query itself.
        shapes: The shapes of its organs, by id.
        profile: Its intensity profile; see ``intensity_profile``.
        taken: Which of its slices are annotated; ``None`` if it came from a file of prototypes.
        own: Whether it is the query itself.
        left_out: Values of its label map that belong to no organ.
    """

    encoded: Any
    shapes: Shapes = field(default_factory=dict)
    profile: Tensor = field(default_factory=lambda: torch.zeros(0))
    taken: AnnotatedSlices | None = None
    own: bool = False
    left_out: tuple[int, ...] = ()


class EncodedScans:
    """Encoded scans in memory; the least recently used ones are dropped when the total exceeds a limit.

    Args:
        max_bytes: The limit.
    """

    def __init__(self, max_bytes: int = MEMORY) -> None:
        self.max_bytes = max_bytes
        self._kept: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def clear(self) -> None:
        """Drop all scans."""
        self._kept.clear()

    def get(self, key: Hashable, make: Callable[[], Any], size: Callable[[Any], int]) -> Any:
        """Return the entry of a key, making it if there is none.

        Args:
            key: Identifies what the entry is made from.
            make: Makes the entry.
            size: Returns how many bytes of the limit an entry takes; 0 for one that is never dropped.
        """
        if key not in self._kept:
            made = make()
            self._kept[key] = (made, size(made))
        self._kept.move_to_end(key)
        found, _ = self._kept[key]
        self._drop_oldest()
        return found

    def _drop_oldest(self) -> None:
        size = sum(size for _, size in self._kept.values())
        for key in [key for key, (_, own) in self._kept.items() if own]:
            if size <= self.max_bytes:
                return
            size -= self._kept.pop(key)[1]


class PrototypeFolder:
    """Encoded scans on disk: files of prototypes, named by a hash of what they were made with.

    Args:
        read: Reads a scan from a file and compares its record; raises a ``ValueError`` if they differ.
        write: Writes a scan to a file, with its name and its record.
    """

    def __init__(
        self,
        read: Callable[[Path, Mapping[str, Any]], AnnotatedScan],
        write: Callable[[Path, str, AnnotatedScan, dict[str, Any]], None],
    ) -> None:
        self.read = read
        self.write = write

    def get(
        self,
        folder: str | Path | None,
        name: str,
        made_with: Callable[[], Mapping[str, Any]],
        make: Callable[[], AnnotatedScan],
    ) -> AnnotatedScan:
        """Return a scan from its file, or make it and write the file.

        Args:
            folder: Where the files are; with ``None``, nothing is read or written.
            name: The scan's name, with which its files begin.
            made_with: Returns everything that determines the result.
            make: Encodes the scan.
        """
        if folder is None or prototype_files.safetensors is None:
            return make()
        made_from = json.loads(json.dumps(made_with()))
        key = digest(made_from)
        path = Path(folder) / f"{name}-{key}.safetensors"
        found = self._found(path, made_from)
        if found is None:
            found = make()
            self._keep(path, name, found, made_from)
        return found

    def _found(self, path: Path, made_with: Mapping[str, Any]) -> AnnotatedScan | None:
        if not path.is_file():
            return None
        try:
            return self.read(path, made_with)
        except ValueError as error:
            logger.warning("%s The scan will be encoded again.", error)
            return None

    def _keep(self, path: Path, name: str, scan: AnnotatedScan, made_with: dict[str, Any]) -> None:
        if scan.encoded is None or not list(scan.encoded):
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.write(path, name, scan, made_with)
            self._remove_old(path.parent, name)
        except OSError as error:
            logger.warning(
                "%s cannot be written (%s), so the next run will encode the scan again.", path, error.strerror
            )

    def _remove_old(self, folder: Path, name: str) -> None:
        own = [path for path in folder.glob("*.safetensors") if path.stem.rpartition("-")[0] == name]
        for path in sorted(own, key=lambda path: path.stat().st_mtime_ns)[:-KEPT_STATES]:
            path.unlink(missing_ok=True)
            path.with_suffix(".json").unlink(missing_ok=True)


def size_of(tensors: Mapping[str, Tensor]) -> int:
    """Return the total bytes of some tensors."""
    return sum(tensor.nbytes for tensor in tensors.values())
