"""The interface of every matching and every support."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from bundle.inference.organ_shapes import OrganShape
from bundle.networks.alpnet import PrototypeHead
from torch import Tensor

# Features ``(D, h, w)`` of each slice of a volume, in order; also a tensor ``(Z, D, h, w)``.
Features = Tensor | Sequence[Tensor]

# Maps slice numbers to the features of these slices.
Encode = Callable[[Sequence[int]], Features]

# First and last slice of each organ in the query; ``None`` if the query does not show the organ.
Extents = Mapping[int, tuple[int, int] | None]


class Support(ABC):
    """All annotated scans together, ready to score slices.

    Attributes:
        shapes: For each organ its shape in each scan that contributes prototypes of it.
        profiles: The intensity profiles of the scans; see ``bundle.transforms.notices``.
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
            features: The features of all its slices. They may be in a file, so read them one by one.
            extents: In the paper's protocol the true extent of each organ; outside of it, the organ is background.

        Yields:
            For each slice the margins ``(O, h, w)``, foreground minus background logit of each organ, and the largest
            logit of any class ``(h, w)``.
        """


class Matching(ABC):
    """A way to use annotated scans as support."""

    @abstractmethod
    def encode(self, label: Tensor, encode: Encode, head: PrototypeHead, annotated: Sequence[int] | None = None) -> Any:
        """Encode the part of an annotated scan that does not depend on the query.

        Args:
            label: Organ ids ``(1, H, W, Z)``, on the device; ``IGNORED`` voxels are neither organ nor background.
            encode: Returns the features of its slices.
            head: Pools the prototypes.
            annotated: The annotated slices, in order; the others are unknown. ``None`` means all slices.

        Returns:
            A container of the scan's organ ids: it supports ``organ in encoded`` and iteration.
        """

    @abstractmethod
    def pool(self, sources: Mapping[int, Sequence[Any]], head: PrototypeHead) -> Support:
        """Pool several encoded scans into one support.

        Args:
            sources: For each organ the encoded scans that show it, at least one.
            head: Pools and scores.
        """

    def renumbered(self, encoded: Any, ids: Mapping[int, int]) -> Any:
        """Return an encoded scan with other organ ids; ``ids`` maps each of its ids to the new one."""
        raise NotImplementedError(f"{type(self).__name__} cannot renumber organs. Implement renumbered.")

    def settings(self) -> dict[str, Any]:
        """Return the settings that ``encode`` depends on: prototypes with equal settings can be used together."""
        return {"kind": type(self).__name__}

    def to_tensors(self, encoded: Any) -> dict[str, Tensor]:
        """Return an encoded scan as named tensors, to be written to a file."""
        raise NotImplementedError(f"{type(self).__name__} cannot write encoded scans to files. Implement to_tensors.")

    def from_tensors(self, tensors: Mapping[str, Tensor]) -> Any:
        """Return an encoded scan from the tensors of ``to_tensors``.

        Raises:
            ValueError: If the tensors are invalid.
        """
        raise NotImplementedError(
            f"{type(self).__name__} cannot read encoded scans from files. Implement from_tensors."
        )


def check_tensors(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int | None, ...]]) -> None:
    """Check names, shapes and types of the tensors of a scan.

    Args:
        tensors: The tensors of a file.
        shapes: The required shapes, by name; ``None`` is any size. Names ending in ``*`` hold whole numbers.

    Raises:
        ValueError: If a tensor is missing, unexpected, of another shape or of another type.
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
