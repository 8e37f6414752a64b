"""What every matching and every support has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from bundle.networks.alpnet import PrototypeHead

Features = Tensor | Sequence[Tensor]
"""Features ``(D, h, w)`` of each slice of a volume, in order; a tensor ``(Z, D, h, w)`` is one."""

Encode = Callable[[Sequence[int]], Features]
"""Features of the slices that are asked for."""

Extents = Mapping[int, tuple[int, int] | None]
"""First and last slice of each organ in the query, ``None`` for an organ that it does not have."""


class Support(ABC):
    """What all annotated scans together tell of the organs, ready to score slices."""

    @property
    @abstractmethod
    def organs(self) -> list[int]:
        """The ids of the organs, in the order of the margins."""

    @abstractmethod
    def score(self, features: Features, extents: Extents | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Score the slices of a query.

        Args:
            features: Of all its slices. They may lie in a file: take one after the other.
            extents: In the paper's protocol the true extents: an organ is not looked for outside of its own.

        Yields:
            For each slice the margins ``(O, h, w)``, foreground minus background logit of each organ, and the largest
            logit of any class ``(h, w)``.
        """


class Matching(ABC):
    """A way to use annotated scans."""

    @abstractmethod
    def encode(self, label: Tensor, encode: Encode, head: PrototypeHead, partial: bool = False) -> Any:
        """Keep of an annotated scan what does not depend on the query.

        Args:
            label: Organ ids ``(1, H, W, Z)``, on the device.
            encode: Gives the features of its slices.
            head: Pools.
            partial: Slices without any organ count as not annotated.

        Returns:
            Something that tells by ``organ in it`` whether it shows an organ, and iterates over their ids.
        """

    @abstractmethod
    def pool(self, sources: Mapping[int, Sequence[Any]], head: PrototypeHead) -> Support:
        """Put together what several scans tell.

        Args:
            sources: For each organ what ``encode`` kept of the scans that show it, at least one.
            head: Pools and scores.
        """

    def settings(self) -> dict[str, Any]:
        """Return what ``encode`` depends on: prototypes of equal settings can be used together."""
        return {"kind": type(self).__name__}

    def to_tensors(self, encoded: Any) -> dict[str, Tensor]:
        """Return what ``encode`` kept as named tensors, to write it to a file."""
        raise NotImplementedError(f"{type(self).__name__} cannot keep annotated scans in files.")

    def from_tensors(self, tensors: Mapping[str, Tensor]) -> Any:
        """Return what ``encode`` kept from the tensors of ``to_tensors``."""
        raise NotImplementedError(f"{type(self).__name__} cannot keep annotated scans in files.")
