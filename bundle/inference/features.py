"""Features of a volume's slices, held in memory or, for a large volume, in a temporary file."""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

# Most bytes of features held in memory, enough for 128 slices of 256 x 256; larger volumes use a file.
FEATURES_IN_MEMORY = 1 << 27


def kept_features(batches: Iterator[Tensor], slices: int) -> Tensor | Sequence[Tensor]:
    """Keep the features of all slices.

    Args:
        batches: Batches of slices' features, each ``(S, D, h, w)``, in order.
        slices: Total number of slices, Z.

    Returns:
        A tensor ``(Z, D, h, w)``, channels last. On a CPU, if it would be larger than ``FEATURES_IN_MEMORY``, a
        sequence that reads the features ``(D, h, w)`` of each slice from a file.

    Raises:
        ValueError: If the disk has no room for the file.
    """
    first = next(batches)
    size = slices * first[0].nbytes
    if first.device.type == "cpu" and size > FEATURES_IN_MEMORY:
        return _FeatureFile(first, batches)
    features = first.new_empty(slices, *first.shape[1:]).to(memory_format=torch.channels_last)
    place = 0
    for batch in itertools.chain([first], batches):
        features[place : place + len(batch)] = batch
        place += len(batch)
    return features


class _FeatureFile(Sequence[Tensor]):
    """Features of slices in a temporary file, which is removed together with this object.

    The file is read, not memory-mapped: mapped pages count as memory of the process (295 MB for one pass over 315 MB
    of features, against 3 MB), and writing to a map kills the process if the disk is full.

    Raises:
        ValueError: If the folder for temporary files is full.
    """

    def __init__(self, first: Tensor, others: Iterator[Tensor]) -> None:
        self._shape = first[0].movedim(0, -1).shape  # (h, w, D)
        self._dtype = first.dtype
        self._file = tempfile.TemporaryFile()  # noqa: SIM115, it lives as long as this object
        self._slices = 0
        for batch in itertools.chain([first], others):
            try:
                self._file.write(batch.movedim(1, -1).contiguous().numpy().tobytes())
                self._file.flush()
            except OSError as error:
                raise ValueError(
                    f"the features of a large volume need a temporary file, but {tempfile.gettempdir()} cannot hold it "
                    f"({error.strerror}). Free space there, or set TMPDIR to another folder."
                ) from error
            self._slices += len(batch)

    def __len__(self) -> int:
        return self._slices

    def __getitem__(self, z: Any) -> Any:
        """Return the features ``(D, h, w)`` of slice ``z``."""
        if not -self._slices <= z < self._slices:
            raise IndexError(z)
        size = math.prod(self._shape) * self._dtype.itemsize
        self._file.seek(z % self._slices * size)
        content = bytearray(self._file.read(size))
        return torch.frombuffer(content, dtype=self._dtype).reshape(self._shape).movedim(-1, 0)
