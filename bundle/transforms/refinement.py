"""Refinement: organ scores of a volume -> better scores. The config may drop or add steps of this signature.

Scores ``(O, H, W, Z)`` are logits, foreground minus background of each organ: above 0 inside the organ.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from bundle.keys import IMAGE, LEAST_CONFIDENT, NOTICES, QUALITY, SUPPORT_COMPONENTS, SUPPORT_THICKNESS
from bundle.transforms.components import largest_components
from bundle.transforms.confidence import least_confident_slice
from bundle.transforms.masks import each_organ_mask, plain
from bundle.transforms.notices import SCAN, expected_organs, milliliters_of, organ_notices, scan_notices
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

Data = dict[Hashable, Any]


class RefineScoresd(MapTransform):
    """Base class of steps that change the values of scores and nothing else.

    Args:
        keys: Scores.
        inplace: Whether to overwrite the given scores, so that a large volume's are in memory only once.
    """

    def __init__(self, keys: KeysCollection, inplace: bool = False) -> None:
        super().__init__(keys)
        self.inplace = inplace

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        """Return ``data`` with refined scores."""
        result = dict(data)
        for key in self.key_iterator(data):
            scores = plain(data[key]) if self.inplace else plain(data[key]).clone()
            meta = data[key].meta if isinstance(data[key], MetaTensor) else None
            self.refine(scores, data, meta)
            result[key] = scores if meta is None else MetaTensor(scores, meta=meta)
        return result

    def refine(self, scores: Tensor, data: Mapping[Hashable, Any], meta: Mapping[Any, Any] | None) -> None:
        """Change ``scores (O, H, W, Z)`` in place.

        Args:
            scores: The scores of one volume.
            data: The volume's other entries.
            meta: The meta of the scores; ``None`` if they are a plain tensor.
        """
        raise NotImplementedError


class SmoothAcrossSlicesd(RefineScoresd):
    """Average each slice's scores with its neighbors': few organs begin and end within one slice.

    Args:
        keys: Scores.
        weight: Weight of each of the two neighbors, in [0, 1/3]; the slice itself has the rest.
        limit: The averages are clipped to plus and minus this, in logits, > 0.
        inplace: See ``RefineScoresd``.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(self, keys: KeysCollection, weight: float = 0.25, limit: float = 6.0, inplace: bool = False) -> None:
        super().__init__(keys, inplace)
        if not 0 <= weight <= 1 / 3:
            raise ValueError(
                f"weight, the share of each neighboring slice, must be in [0, 1/3], got {weight}. The default is 0.25."
            )
        if limit <= 0:
            raise ValueError(f"limit must be above 0 logits, got {limit}. The default is 6.")
        self.weight = weight
        self.limit = limit

    def refine(self, scores: Tensor, data: Mapping[Hashable, Any], meta: Mapping[Any, Any] | None) -> None:
        """Smooth the scores; the first and the last slice are their own neighbors."""
        last = scores.shape[-1] - 1
        below = scores[..., 0].clone()
        for z in range(last + 1):
            here = scores[..., z].clone()
            smooth = (1 - 2 * self.weight) * here
            smooth.add_(below, alpha=self.weight).add_(scores[..., min(z + 1, last)], alpha=self.weight)
            scores[..., z] = smooth.clamp_(-self.limit, self.limit)
            below = here


class GuidedScoresd(RefineScoresd):
    """Align scores with the edges of the image, slice by slice: the guided filter (He et al. 2013).

    Features, and so the borders of scores, have an eighth of the image's resolution; the filter restores borders that
    the image shows. In each window the scores become a linear function of the intensities. A thin organ would be
    averaged away in it: its scores are left as they are.

    Args:
        keys: Scores.
        image: Key of the standardized image ``(1, H, W, Z)`` on the same grid.
        radius: Radius of the window, which is ``2 * radius + 1`` pixels wide; >= 1.
        flatness: Variance of intensities, in squared standard deviations of the scan, below which a window counts as
            flat, and scores in it are only averaged; > 0.
        min_thickness: Organs that are thinner in the annotated scans, in pixels of a slice, are not filtered; 0 filters
            all.
        inplace: See ``RefineScoresd``.

    Raises:
        ValueError: If a number is out of range, or the image lies on another grid than the scores.
    """

    def __init__(
        self,
        keys: KeysCollection,
        image: str = IMAGE,
        radius: int = 8,
        flatness: float = 0.03,
        min_thickness: float = 13.0,
        inplace: bool = False,
    ) -> None:
        super().__init__(keys, inplace)
        if radius < 1 or flatness <= 0:
            raise ValueError(
                f"radius must be at least 1 pixel and flatness above 0, got {radius} and {flatness}. "
                "The defaults are 8 and 0.03."
            )
        self.image = image
        self.radius = radius
        self.flatness = flatness
        self.min_thickness = min_thickness

    def refine(self, scores: Tensor, data: Mapping[Hashable, Any], meta: Mapping[Any, Any] | None) -> None:
        """Filter one slice at a time: the window means of a whole volume would need many times its memory."""
        image = plain(data[self.image])
        if image.shape[1:] != scores.shape[1:]:
            raise ValueError(
                f"{self.image} must be on the grid of the scores, {list(scores.shape[1:])}, got "
                f"{list(image.shape[1:])}. Filter before the scores are resampled."
            )
        mean = _WindowMean(scores[0, ..., 0], self.radius)
        thick = self._thick(len(scores), meta or {})
        for z in range(scores.shape[-1] if thick else 0):
            scores[thick, ..., z] = self._filtered(image[..., z].to(scores), scores[thick, ..., z], mean)

    def _thick(self, organs: int, meta: Mapping[Any, Any]) -> list[int]:
        """Return the places of the organs to filter; one whose thickness is not known is among them."""
        known = torch.as_tensor(meta.get(SUPPORT_THICKNESS, [math.nan] * organs)).flatten().tolist()
        return [place for place, thickness in enumerate(known) if not thickness < self.min_thickness]

    def _filtered(self, guide: Tensor, scores: Tensor, mean: _WindowMean) -> Tensor:
        """Filter ``scores (O, H, W)`` with ``guide (1, H, W)``."""
        mean_guide, mean_scores = mean(guide), mean(scores)
        covariance = mean(guide * scores) - mean_guide * mean_scores
        variance = mean(guide * guide) - mean_guide * mean_guide
        slope = covariance / (variance.clamp(min=0) + self.flatness)
        return mean(slope) * guide + mean(mean_scores - slope * mean_guide)


class _WindowMean:
    """The mean of each window of a slice, over the window's pixels inside the slice.

    It multiplies by a band matrix along each axis, which is twice as fast as pooling at 256 x 256.

    Args:
        like: A slice ``(H, W)``.
        radius: Radius of the window, pixels.
    """

    def __init__(self, like: Tensor, radius: int) -> None:
        self.rows, self.columns = (self._band(like, size, radius) for size in like.shape)

    @staticmethod
    def _band(like: Tensor, size: int, radius: int) -> Tensor:
        place = torch.arange(size, device=like.device)
        band = ((place[:, None] - place).abs() <= radius).to(like.dtype)
        return band / band.sum(dim=1, keepdim=True)

    def __call__(self, values: Tensor) -> Tensor:
        """Average ``values (C, H, W)``."""
        return self.rows @ (values @ self.columns.T)


class LargestComponentsd(RefineScoresd):
    """Keep the largest connected components of each organ, in 3-D; elsewhere its score becomes negative.

    Args:
        keys: Scores.
        num_components: Components to keep of each organ, >= 1; ``None`` keeps as many as in the annotated scans, which
            the scores' meta states, or one.
        overlap: See ``ScoresToMasksd``.
        inplace: See ``RefineScoresd``.

    Raises:
        ValueError: If ``num_components`` is below 1.
    """

    def __init__(
        self, keys: KeysCollection, num_components: int | None = None, overlap: bool = False, inplace: bool = False
    ) -> None:
        super().__init__(keys, inplace)
        if num_components is not None and num_components < 1:
            raise ValueError(
                f"num_components must be at least 1, got {num_components}. Drop this transform to keep all components."
            )
        self.num_components = num_components
        self.overlap = overlap

    def refine(self, scores: Tensor, data: Mapping[Hashable, Any], meta: Mapping[Any, Any] | None) -> None:
        """Make scores negative outside of the kept components."""
        stray = torch.zeros_like(scores[0], dtype=torch.bool)
        numbers = self._numbers(len(scores), meta or {})
        for own, mask, number in zip(scores, each_organ_mask(scores, self.overlap), numbers, strict=True):
            removed = mask & ~largest_components(mask, number)
            _make_negative(own, removed.nonzero(as_tuple=True))
            stray |= removed
        if not self.overlap:  # a removed component must not go to the second best organ
            places = stray.nonzero(as_tuple=True)  # once for all organs: they are few voxels of many
            for own in scores:
                _make_negative(own, places)

    def _numbers(self, organs: int, meta: Mapping[Any, Any]) -> list[int]:
        if self.num_components is not None:
            return [self.num_components] * organs
        return [int(n) for n in torch.as_tensor(meta.get(SUPPORT_COMPONENTS, [1] * organs)).flatten()]


class AssessScoresd(MapTransform):
    """Estimate the quality of each organ's mask without any truth, and add notices about doubtful masks.

    The median probability of a mask's voxels is written to the scores' meta under ``quality``, ``(O,)`` in [0.5, 1], or
    0 for an organ that was not found. Masks with low values should be checked; the value is no Dice
    (docs/annotate_one.md shows how well it ranks masks). The sentences of ``bundle.transforms.notices`` are written
    under ``notices``, and each organ's slice of the lowest confidence under ``least_confident``, ``(O, 4)``: see
    ``least_confident_slice``.

    Args:
        keys: Refined scores.
        overlap: See ``ScoresToMasksd``.
        least_explained: Similarity of a scan to the annotated ones (``explained``), in logits, below which a notice
            calls it unlike them. It depends on network and head; ``None`` skips this check.
    """

    def __init__(self, keys: KeysCollection, overlap: bool = False, least_explained: float | None = None) -> None:
        super().__init__(keys)
        self.overlap = overlap
        self.least_explained = least_explained

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        """Return ``data`` with the estimate in its scores' meta."""
        result = dict(data)
        for key in self.key_iterator(data):
            scores = plain(data[key])
            meta = dict(getattr(data[key], "meta", {})) | self._assessed(data[key], scores)
            result[key] = MetaTensor(scores, meta=meta)
        return result

    def _assessed(self, volume: Tensor, scores: Tensor) -> dict[str, Any]:
        quality, least = [], []
        notices = {SCAN: scan_notices(getattr(volume, "meta", {}), self.least_explained)}
        masks = each_organ_mask(scores, self.overlap)
        for own, mask, expected in zip(scores, masks, expected_organs(volume), strict=True):
            places = mask.nonzero(as_tuple=True)
            inside = own[places]
            quality.append(float(inside.median().sigmoid()) if len(inside) else 0.0)
            least.append(least_confident_slice(inside.sigmoid(), places[2], volume))
            milliliters = milliliters_of(len(inside), volume)
            notices[expected.organ] = organ_notices(mask, milliliters, expected)
        said = {organ: sentences for organ, sentences in notices.items() if sentences}
        return {QUALITY: torch.tensor(quality), LEAST_CONFIDENT: torch.tensor(least), NOTICES: said}


def _make_negative(own: Tensor, where: tuple[Tensor, ...]) -> None:
    own[where] = -own[where].abs()
