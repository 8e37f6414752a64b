"""What every matching and every support has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import Tensor

from bundle.inference.organ_shapes import OrganShape
from bundle.networks.alpnet import PrototypeHead

Features = Tensor | Sequence[Tensor]
"""Features ``(D, h, w)`` of each slice of a volume, in order; a tensor ``(Z, D, h, w)`` is one."""

Encode = Callable[[Sequence[int]], Features]
"""Features of the slices that are asked for."""

Extents = Mapping[int, tuple[int, int] | None]
"""First and last slice of each organ in the query, ``None`` for an organ that it does not have."""


class Support(ABC):
    """All annotated scans together, ready to score slices.

    Attributes:
        shapes: For each organ its shape in each of the scans that it is taken from.
        profiles: Of the scans' intensities; see ``bundle.transforms.notices``.
    """

    shapes: Mapping[int, Sequence[OrganShape]] = MappingProxyType({})
    profiles: Sequence[Tensor] = ()

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
    def encode(self, label: Tensor, encode: Encode, head: PrototypeHead, annotated: Sequence[int] | None = None) -> Any:
        """Keep of an annotated scan what does not depend on the query.

        Args:
            label: Organ ids ``(1, H, W, Z)``, on the device; ``IGNORED`` voxels are neither organ nor background.
            encode: Gives the features of its slices.
            head: Pools.
            annotated: The annotated slices, in order; nothing is known of the others. ``None``: all are.

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

    def renumbered(self, encoded: Any, ids: Mapping[int, int]) -> Any:
        """Return what ``encode`` kept with other organ ids: each id by ``ids``, which has all of them."""
        raise NotImplementedError(f"{type(self).__name__} cannot give organs other ids.")

    def settings(self) -> dict[str, Any]:
        """Return what ``encode`` depends on: prototypes of equal settings can be used together."""
        return {"kind": type(self).__name__}

    def to_tensors(self, encoded: Any) -> dict[str, Tensor]:
        """Return what ``encode`` kept as named tensors, to write it to a file."""
        raise NotImplementedError(f"{type(self).__name__} cannot keep annotated scans in files.")

    def from_tensors(self, tensors: Mapping[str, Tensor]) -> Any:
        """Return what ``encode`` kept from the tensors of ``to_tensors``.

        Raises:
            ValueError: If they are not such tensors.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot keep annotated scans in files.")


def check_tensors(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int | None, ...]]) -> None:
    """Check names, shapes and types of the tensors of a scan.

    Args:
        tensors: What a file holds.
        shapes: What it must hold, by name; ``None`` is any size. Names that end in ``*`` are whole numbers.

    Raises:
        ValueError: If a tensor is missing, left over, of another shape or of another type.
    """
    wanted = {name.rstrip("*"): (shape, name.endswith("*")) for name, shape in shapes.items()}
    if set(tensors) != set(wanted):
        raise ValueError(f"there must be the tensors {', '.join(wanted)}, got {', '.join(tensors) or 'none'}")
    for name, (shape, whole) in wanted.items():
        tensor = tensors[name]
        fits = tensor.ndim == len(shape) and all(s in (None, n) for s, n in zip(shape, tensor.shape, strict=True))
        if not fits or tensor.is_floating_point() == whole:
            kind = "whole numbers" if whole else "floating point"
            raise ValueError(f"{name} must be {shape} of {kind}, got {tuple(tensor.shape)} of {tensor.dtype}")
