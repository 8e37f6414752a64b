"""Segment a volume from annotated scans: support scans + query volume -> scores of every organ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from bundle.inference.matching import ChunkMatching, Extents, Features, Matching, Support
from bundle.inference.organ_shapes import range_of_volumes, typical_components, typical_thickness
from bundle.inference.slice_encoder import Precision, SliceEncoder
from bundle.inference.support_library import SupportLibrary
from bundle.keys import (
    EXPLAINED,
    INTENSITY_DISTANCE,
    ORGAN_IDS,
    SUPPORT,
    SUPPORT_COMPONENTS,
    SUPPORT_MILLILITERS,
    SUPPORT_THICKNESS,
)
from bundle.networks.alpnet import ALPNet, PrototypeHead, upsample
from bundle.transforms.annotated import Annotated
from bundle.transforms.masks import plain
from bundle.transforms.notices import intensity_profile
from bundle.transforms.slices import organ_slices
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor

Protocol = Literal["volume", "paper"]


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
        matching: Decides which annotated slices contribute prototypes for each query slice; ``None`` means the paper's.
        head: Pools and scores in place of the network's own head; ``None`` means the network's.
        slice_batch: Slices that are encoded at once, >= 1.
        prototypes: Files of prototypes (``save_prototypes``), in addition to or in place of ``support``.
        preprocessing: The preprocessing of the scans, by name. Files of prototypes record it, and are refused if theirs
            differs.
        precision: The encoder's precision: ``"float32"``, or ``"bfloat16"`` on a device that is fast at it.
        annotated: Which slices of the support's label maps are annotated; see ``annotated_slices``.
        ignore_value: The value of voxels that are neither organ nor background in the label files; ``None``: there is
            none.

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
        annotated: Annotated = "all",
        ignore_value: int | None = None,
    ) -> None:
        if protocol not in ("volume", "paper"):
            raise ValueError(f"protocol must be 'volume' or 'paper', got {protocol!r}. The default is volume.")
        if organs is not None:
            _check_organs(organs, ignore_value)
        self.organs, self.protocol = organs, protocol
        self.matching = ChunkMatching() if matching is None else matching
        self.head = None if head is None else head.eval()
        self.encode = SliceEncoder(slice_batch, precision)
        files = [prototypes] if isinstance(prototypes, str | Path) else prototypes or []
        settings = ([Path(file) for file in files], preprocessing, annotated, ignore_value)
        self.library = SupportLibrary(support, self.encode, self.matching, self.head, organs, *settings)

    def __call__(  # type: ignore[override]
        self, inputs: Tensor, network: ALPNet, *args: Any, label: Tensor | None = None, **kwargs: Any
    ) -> MetaTensor:
        """Score every organ in every voxel.

        Args:
            inputs: Query volumes ``(B, 1, H, W, Z)``.
            network: The trained network, in eval mode; the mode is not changed here.
            *args: Not used.
            label: The queries' organ ids, ``(B, 1, H, W, Z)``; read by the ``"paper"`` protocol only.
            **kwargs: Not used.

        Returns:
            Scores ``(B, O, H, W, Z)``: foreground minus background logit of each organ, above 0 inside the organ. They
            carry the meta of ``inputs`` and in addition ``organ_ids``, the organ id of each channel; ``explained``,
            the mean over the body (brighter than the scan's mean) of the largest logit of any class;
            ``support_components``, ``support_milliliters`` and ``support_thickness``, the organs' shapes in the
            annotated scans; and ``intensity_distance``, the mean distance between the quantiles of the intensities and
            those of the most similar annotated scan.

        Raises:
            ValueError: If the support holds no voxel of an organ, or the ``"paper"`` protocol gets no label.
        """
        if self.protocol == "paper" and label is None:
            raise ValueError("the 'paper' protocol needs the query's label, got none. Set protocol to 'volume'.")
        meta = dict(getattr(inputs, "meta", {}))
        support = self.pool(network, inputs.device, meta.get(SUPPORT))
        extents: list[Extents | None] = [None] * len(inputs)
        if self.protocol == "paper" and label is not None:
            extents = [_extents(support.organs, plain(truth)) for truth in label]
        scored = [
            self.score(volume, self.encode(plain(volume), network), support, known)
            for volume, known in zip(inputs, extents, strict=True)
        ]
        scores, explained = zip(*scored, strict=True)
        distances = torch.stack([_intensity_distance(plain(volume), support) for volume in inputs])
        meta |= about_support(support, len(inputs)) | {EXPLAINED: torch.stack(explained), INTENSITY_DISTANCE: distances}
        return MetaTensor(scores[0][None] if len(scores) == 1 else torch.stack(scores), meta=meta)

    def organ_names(self) -> dict[str, int]:
        """Return the names and ids of the organs; an organ without a name is called ``organ_<id>``."""
        return self.library.organ_names()

    def support_scans(self) -> list[Mapping[str, Any]]:
        """Return the annotated scans of the config; see ``SupportLibrary.scans``."""
        return self.library.scans()

    def pool(self, network: ALPNet, device: torch.device, files: Sequence[Mapping[str, Any]] | None = None) -> Support:
        """Pool the annotated scans into one support; see ``SupportLibrary.pool``."""
        return self.library.pool(network, device, files)

    def save_prototypes(self, path: str | Path, network: ALPNet, device: torch.device | str = "cpu") -> None:
        """Write the encoded support to a file; see ``SupportLibrary.save``."""
        self.library.save(path, network, device)

    @torch.no_grad()
    def score(
        self, volume: Tensor, features: Features, support: Support, extents: Extents | None = None
    ) -> tuple[Tensor, Tensor]:
        """Score a scan that is already encoded.

        Args:
            volume: The scan, ``(1, H, W, Z)``.
            features: The features of its slices, from ``encode``.
            support: The support, from ``pool``.
            extents: First and last slice of each organ, in the ``"paper"`` protocol.

        Returns:
            The scores ``(O, H, W, Z)``, and ``explained``, ``(1,)``; see ``__call__``.
        """
        query = plain(volume)
        # Written slice by slice: a second copy of a large volume's scores might not fit into memory.
        scores = query.new_empty(query.shape[-1], len(support.organs), *query.shape[1:3], dtype=torch.float32)
        nearest = []
        for z, (margins, best) in enumerate(support.score(features, extents)):
            scores[z] = upsample(margins[None], query[:, None, :, :, z])[0]
            body = F.interpolate(query[None, ..., z], size=best.shape, mode="area")[0, 0] > 0
            nearest.append((best, body))
        return scores.movedim(0, -1), _mean_in_body(nearest)


def _mean_in_body(nearest: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the mean over the body, ``(1,)``; over the whole scan if no voxel is above 0.

    The latter happens if a scan is standardized by the training set's mean and darker everywhere.
    """
    values = torch.cat([best[body] for best, body in nearest])
    return (values if len(values) else torch.stack([best for best, _ in nearest])).mean().float()[None]


def _intensity_distance(volume: Tensor, support: Support) -> Tensor:
    """Return the distance of the intensities to the most similar annotated scan's, ``(1,)``; NaN if none is known."""
    own = intensity_profile(volume)
    distances = [(own - profile).abs().mean() for profile in support.profiles]
    return torch.stack(distances).amin()[None] if distances else torch.full((1,), torch.nan)


def about_support(support: Support, scans: int) -> dict[str, Tensor]:
    """Return the meta of scores that describes the support, the same for each scan of a batch."""
    shapes = [support.shapes.get(organ, ()) for organ in support.organs]
    return {
        ORGAN_IDS: torch.tensor([support.organs] * scans),
        SUPPORT_COMPONENTS: torch.tensor([[typical_components(some) for some in shapes]] * scans),
        SUPPORT_MILLILITERS: torch.tensor([[range_of_volumes(some) for some in shapes]] * scans),
        SUPPORT_THICKNESS: torch.tensor([[typical_thickness(some) for some in shapes]] * scans),
    }


def _extents(organs: Sequence[int], label: Tensor) -> Extents:
    """Return the first and the last slice of each organ in ``label (1, H, W, Z)``."""
    shown = {organ: organ_slices(label, organ) for organ in organs}
    return {organ: (slices[0], slices[-1]) if slices else None for organ, slices in shown.items()}


def _check_organs(organs: Any, ignore_value: int | None) -> None:
    ids = list(organs.values()) if isinstance(organs, Mapping) else []
    whole = all(isinstance(organ, int) and not isinstance(organ, bool) and organ > 0 for organ in ids)
    if not ids or not whole or len(set(ids)) < len(ids):
        raise ValueError(
            f"organs must give each organ's name its own id, a whole number above 0, got {organs!r}. "
            "Write, for example, {liver: 1, spleen: 2}."
        )
    if ignore_value in ids:
        raise ValueError(
            f"organs has the id {ignore_value}, but ignore_value marks it as neither organ nor background. Set "
            "ignore_value to another value, or to null."
        )
