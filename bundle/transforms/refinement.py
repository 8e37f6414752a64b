"""Refinement: organ scores of a volume -> better scores. Each step has that signature: the config can drop or add one.

Scores ``(O, H, W, Z)`` are logits, foreground minus background of each organ: the organ is where its score is above 0.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.transforms.utils import get_largest_connected_component_mask
from torch import Tensor

from bundle.keys import IMAGE, OWN_MARGINS, QUALITY
from bundle.transforms.masks import organ_masks, plain

Data = dict[Hashable, Any]


class SmoothAcrossSlicesd(MapTransform):
    """Average each slice's scores with its neighbors': an organ seldom begins and ends in one slice.

    Args:
        keys: Scores.
        weight: Of each of the two neighbors, in [0, 1/3]; the slice itself has the rest.
        limit: The averages are cut off at plus and minus this, in logits: beyond it nothing is more certain.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(self, keys: KeysCollection, weight: float = 0.25, limit: float = 6.0) -> None:
        super().__init__(keys)
        if not 0 <= weight <= 1 / 3:
            raise ValueError(f"weight must be in [0, 1/3], the share of each neighboring slice, got {weight}.")
        if limit <= 0:
            raise ValueError(f"limit must be above 0 logits, got {limit}.")
        self.weight = weight
        self.limit = limit

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        """Return ``data`` with smoothed scores; the first and the last slice are their own neighbors."""
        result = dict(data)
        for key in self.key_iterator(data):
            scores = plain(data[key])
            smooth = (1 - 2 * self.weight) * scores
            for here, neighbor in (
                (slice(1, None), slice(None, -1)),
                (slice(None, -1), slice(1, None)),
                (slice(1), slice(1)),
                (slice(-1, None), slice(-1, None)),
            ):
                smooth[..., here].add_(scores[..., neighbor], alpha=self.weight)  # no further copy of the volume
            result[key] = _like(data[key], smooth.clamp_(-self.limit, self.limit))
        return result


class GuidedScoresd(MapTransform):
    """Let scores follow the edges of the image, slice by slice: the guided filter (He et al. 2013).

    Features have an eighth of the image's resolution, and so have the borders of scores; the filter brings back those
    that the image shows. In each window the scores become a linear function of the intensities.

    Args:
        keys: Scores.
        image: Key of the standardized image ``(1, H, W, Z)`` on the same grid.
        radius: Of the window, which is ``2 * radius + 1`` pixels wide.
        flatness: Variance of intensities, in standard deviations of the scan squared, below which a window is flat and
            scores in it are only averaged; > 0.

    Raises:
        ValueError: If a number is out of range, or the image lies on another grid than the scores.
    """

    def __init__(self, keys: KeysCollection, image: str = IMAGE, radius: int = 8, flatness: float = 0.03) -> None:
        super().__init__(keys)
        if radius < 1 or flatness <= 0:
            raise ValueError(f"radius must be at least 1 pixel and flatness above 0, got {radius} and {flatness}.")
        self.image = image
        self.radius = radius
        self.flatness = flatness

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        """Return ``data`` with filtered scores."""
        result = dict(data)
        for key in self.key_iterator(data):
            scores = plain(data[key])
            image = plain(data[self.image]).to(scores)
            if image.shape[1:] != scores.shape[1:]:
                raise ValueError(
                    f"{self.image} must be on the grid of the scores, {list(scores.shape[1:])}, got "
                    f"{list(image.shape[1:])}."
                )
            # A slice at a time: the window's sums of a whole volume would need many times its memory.
            slices = [self._filtered(image[..., z], scores[..., z]) for z in range(scores.shape[-1])]
            result[key] = _like(data[key], torch.stack(slices, dim=-1))
        return result

    def _filtered(self, guide: Tensor, scores: Tensor) -> Tensor:
        """Filter ``scores (O, H, W)`` with ``guide (1, H, W)``."""
        mean_guide, mean_scores = self._mean(guide), self._mean(scores)
        covariance = self._mean(guide * scores) - mean_guide * mean_scores
        variance = self._mean(guide * guide) - mean_guide * mean_guide
        slope = covariance / (variance.clamp(min=0) + self.flatness)
        return self._mean(slope) * guide + self._mean(mean_scores - slope * mean_guide)

    def _mean(self, values: Tensor) -> Tensor:
        """Average ``values (C, H, W)`` in each window, over the pixels that it has inside the slice."""
        width = 2 * self.radius + 1
        rows = F.avg_pool2d(values, (width, 1), 1, (self.radius, 0), count_include_pad=False)
        return F.avg_pool2d(rows, (1, width), 1, (0, self.radius), count_include_pad=False)


class LargestComponentsd(MapTransform):
    """Keep the largest connected parts of each organ, in 3-D; elsewhere its score becomes negative.

    Args:
        keys: Scores.
        parts: Parts to keep of each organ; more than 1 for targets in several parts.
        overlap: If true, each organ is where its own score is above 0. If false, a voxel belongs to its best organ
            only, as in a label map.

    Raises:
        ValueError: If ``parts`` is below 1.
    """

    def __init__(self, keys: KeysCollection, parts: int = 1, overlap: bool = False) -> None:
        super().__init__(keys)
        if parts < 1:
            raise ValueError(f"parts must be at least 1, got {parts}. Take this transform out to keep all parts.")
        self.parts = parts
        self.overlap = overlap

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        """Return ``data`` with scores that are positive in the kept parts only."""
        result = dict(data)
        for key in self.key_iterator(data):
            scores = plain(data[key]).clone()
            masks = organ_masks(scores, self.overlap)
            kept = torch.stack([self._largest(mask) for mask in masks])
            removed = masks & ~kept
            if not self.overlap:  # what was an organ's stray part is not the second best organ's
                removed = removed.any(dim=0, keepdim=True).expand_as(scores)
            scores[removed] = -scores[removed].abs()
            result[key] = _like(data[key], scores)
        return result

    def _largest(self, mask: Tensor) -> Tensor:
        if not mask.any():
            return mask
        kept = get_largest_connected_component_mask(mask[None], connectivity=1, num_components=self.parts)
        return plain(kept)[0].bool()


class PresenceGated(MapTransform):
    """Leave out an organ that is found with too little evidence: the scan does not show it.

    Evidence is the median score of the voxels that would be the organ. It is compared with that of the organ's voxels
    in the annotated scans, each slice scored by the others; where that is not known (a single annotated slice) nothing
    is left out. It costs true organs in scans that look unlike the annotated one, so no preset has it
    (docs/annotate_one.md).

    Args:
        keys: Scores of ``VolumeInferer``; their meta tells the margins of the support, if the matching is a
            ``SliceMatching`` with ``measure_own``.
        share: Of the support's evidence that is enough, in [0, 1].
        overlap: As of ``LargestComponentsd``.

    Raises:
        ValueError: If ``share`` is out of range.
    """

    def __init__(self, keys: KeysCollection, share: float = 0.3, overlap: bool = False) -> None:
        super().__init__(keys)
        if not 0 <= share <= 1:
            raise ValueError(f"share must be in [0, 1], of the evidence that the annotated scans have, got {share}.")
        self.share = share
        self.overlap = overlap

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        """Return ``data`` with negative scores of the organs that are left out.

        Raises:
            ValueError: If the margins of the support were not measured.
        """
        result = dict(data)
        for key in self.key_iterator(data):
            if OWN_MARGINS not in getattr(data[key], "meta", {}):
                raise ValueError("PresenceGated needs bundle.matching.SliceMatching with measure_own: true.")
            scores = plain(data[key]).clone()
            enough = self.share * torch.as_tensor(data[key].meta[OWN_MARGINS]).flatten()
            for own, mask, least in zip(scores, organ_masks(scores, self.overlap), enough.tolist(), strict=True):
                if mask.any() and float(own[mask].median()) < least:
                    own.copy_(-own.abs())
            result[key] = _like(data[key], scores)
        return result


class AssessScoresd(MapTransform):
    """Estimate how good each organ's mask is, without any truth: the median probability of its voxels.

    It is written to the scores' meta under ``quality``, ``(O,)`` in [0.5, 1], or 0 for an organ that was not found. Low
    values point to masks that should be looked at; it is no Dice (docs/annotate_one.md tells how well it ranks).

    Args:
        keys: Scores, refined.
        overlap: As of ``LargestComponentsd``.
    """

    def __init__(self, keys: KeysCollection, overlap: bool = False) -> None:
        super().__init__(keys)
        self.overlap = overlap

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        """Return ``data`` with the estimate in its scores' meta."""
        result = dict(data)
        for key in self.key_iterator(data):
            scores = plain(data[key])
            masks = organ_masks(scores, self.overlap)
            quality = [
                float(own[m].median().sigmoid()) if m.any() else 0.0 for own, m in zip(scores, masks, strict=True)
            ]
            meta = dict(getattr(data[key], "meta", {})) | {QUALITY: torch.tensor(quality)}
            result[key] = MetaTensor(scores, meta=meta)
        return result


def _like(source: Any, scores: Tensor) -> Tensor:
    return MetaTensor(scores, meta=source.meta) if isinstance(source, MetaTensor) else scores
