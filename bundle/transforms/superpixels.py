"""Pseudo-labels: divide each slice into superpixels, or the volume into supervoxels, and keep those inside the body.

    image (1, H, W, Z)   ->   superpixels (1, H, W, Z), int16, 0 = outside the body

A pseudo-label method is a function of one slice: see ``SliceSegmenter``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from scipy.ndimage import binary_fill_holes
from skimage.filters import threshold_triangle
from skimage.measure import label as connected_components
from skimage.segmentation import felzenszwalb, slic
from torch import Tensor

# Maps a slice ``(H, W)``, float64, to ids from 0, ``(H, W)``. Write one to add a pseudo-label method.
SliceSegmenter = Callable[[np.ndarray], np.ndarray]

Numbering = Literal["consecutive", "reference"]


def felzenszwalb_superpixels(
    image: np.ndarray, min_size: int = 400, sigma: float = 1.0, scale: float = 1.0
) -> np.ndarray:
    """Segment a slice by Felzenszwalb's graph method, as in the paper for CT and MR.

    Intensities are far larger than ``scale / 255``, so ``min_size`` alone determines the result.

    Args:
        image: One slice, ``(H, W)``, in HU or raw MR units (not normalized).
        min_size: Smallest superpixel, pixels.
        sigma: Standard deviation of the Gaussian that smooths the slice first, pixels.
        scale: Felzenszwalb's scale: higher values give larger segments.

    Returns:
        Superpixel ids from 0, ``(H, W)``, in the raster order of their first pixels.
    """
    return felzenszwalb(image, scale=scale, sigma=sigma, min_size=min_size)


def slic_superpixels(image: np.ndarray, size: int = 400, compactness: float = 0.1) -> np.ndarray:
    """Segment a slice by SLIC: superpixels of similar size, rounder than Felzenszwalb's.

    Args:
        image: One slice, ``(H, W)``; its 1st and 99th percentile are first mapped to 0 and 1.
        size: Approximate size of a superpixel, pixels.
        compactness: Weight of distance against intensity; higher values give squares.

    Returns:
        Superpixel ids from 0, ``(H, W)``.
    """
    segments = max(2, round(image.size / size))
    return slic(_unit_range(image), segments, compactness, start_label=0, channel_axis=None)


def body_mask(image: np.ndarray, threshold: float) -> np.ndarray:
    """Find the body in a slice: the largest component above the threshold, holes filled.

    Args:
        image: One slice, ``(H, W)``.
        threshold: Only pixels above it may be body, in the image's units.

    Returns:
        ``(H, W)`` bool; all false if no pixel is above the threshold.
    """
    pieces = connected_components(image > threshold, connectivity=2)
    if pieces.max() == 0:
        return np.zeros(image.shape, dtype=bool)
    largest = np.bincount(pieces.ravel())[1:].argmax() + 1
    return binary_fill_holes(pieces == largest)


def number_superpixels(segments: np.ndarray, body: np.ndarray, numbering: Numbering = "consecutive") -> np.ndarray:
    """Turn segments and a body mask into superpixel ids.

    Args:
        segments: Ids from 0, ``(H, W)``.
        body: ``(H, W)`` bool.
        numbering: ``"consecutive"`` numbers the segments with a pixel in the body from 1, without gaps.
            ``"reference"`` is the authors' rule: segment 0 is lost, the last id is raised by one, and segments outside
            the body leave gaps (docs/method.md).

    Returns:
        ``(H, W)`` int16 ids, 0 outside the body.

    Raises:
        ValueError: If the numbering is unknown.
    """
    if numbering == "reference":
        last = segments.max()
        ids = np.where((segments == last) & (last > 0), last + 1, segments)
        return (ids * body).astype(np.int16)
    if numbering != "consecutive":
        raise ValueError(
            f"numbering must be 'consecutive' or 'reference', got {numbering!r}. The default is consecutive."
        )
    inside = np.where(body, segments + 1, 0)
    is_present = np.bincount(inside.ravel()) > 0
    is_present[0] = False
    return np.cumsum(is_present).astype(np.int16)[inside]


class PseudoLabelsd(MapTransform):
    """Base class: write the pseudo-labels of ``data[key]`` to ``data[output_key]``.

    Args:
        keys: Image volumes, each ``(1, H, W, Z)``, not normalized.
        body_threshold: Intensities at or below it are outside the body. ``None`` finds one for each volume
            by the triangle method, which suits scans with a large dark background.
        output_key: Where the ``(1, H, W, Z)`` ids go.
    """

    def __init__(self, keys: KeysCollection, body_threshold: float | None, output_key: str) -> None:
        super().__init__(keys)
        self.body_threshold = body_threshold
        self.output_key = output_key

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        """Return ``data`` with the pseudo-labels of its images added.

        Raises:
            ValueError: If a volume has more than one channel.
        """
        result = dict(data)
        for key in self.key_iterator(data):
            result[self.output_key] = self.segment_volume(data[key])
        return result

    def segment_volume(self, volume: Tensor) -> Tensor:
        """Return the ``(1, H, W, Z)`` int16 ids of a volume of the same shape, 0 outside the body."""
        raise NotImplementedError

    def _threshold(self, image: np.ndarray) -> float:
        return float(threshold_triangle(image)) if self.body_threshold is None else self.body_threshold


class Superpixelsd(PseudoLabelsd):
    """Write the superpixels of ``data[key]`` to ``data[output_key]``, slice by slice.

    Args:
        keys: Image volumes, each ``(1, H, W, Z)``, not normalized.
        segmenter: Maps one slice ``(H, W)`` to ids from 0. Several, such as one for each scale, are used in turn from
            slice to slice: neighboring slices look alike, so each region is segmented by all of them.
        body_threshold: See ``PseudoLabelsd``.
        numbering: How ids are assigned; see ``number_superpixels``.
        output_key: Where the ``(1, H, W, Z)`` superpixels go.
    """

    def __init__(
        self,
        keys: KeysCollection,
        segmenter: SliceSegmenter | Sequence[SliceSegmenter] = felzenszwalb_superpixels,
        body_threshold: float | None = None,
        numbering: Numbering = "consecutive",
        output_key: str = "superpixels",
    ) -> None:
        super().__init__(keys, body_threshold, output_key)
        self.segmenters = [segmenter] if callable(segmenter) else list(segmenter)
        if not self.segmenters:
            raise ValueError("segmenter must name at least one pseudo-label method, got an empty list. Add one.")
        self.numbering = numbering

    def segment_volume(self, volume: Tensor) -> Tensor:
        """Return the ``(1, H, W, Z)`` int16 superpixels of a volume of the same shape."""
        image = _single_channel(volume)
        threshold = self._threshold(image)
        slices = [self._segment_slice(image[..., z], threshold, z) for z in range(image.shape[-1])]
        return torch.as_tensor(np.stack(slices, axis=-1)[None])

    def _segment_slice(self, image: np.ndarray, threshold: float, z: int) -> np.ndarray:
        segments = self.segmenters[z % len(self.segmenters)](np.ascontiguousarray(image))
        return number_superpixels(segments, body_mask(image, threshold), self.numbering)


class Supervoxelsd(PseudoLabelsd):
    """Write the supervoxels of ``data[key]`` to ``data[output_key]``: SLIC in three dimensions.

    A supervoxel has the same id in all its slices, so that the query of an episode can be another slice than the
    support; see ``query_distance`` of ``EpisodeDataset``.

    Args:
        keys: Image volumes, each ``(1, H, W, Z)``, not normalized.
        size: Approximate size of a supervoxel in each slice, pixels.
        slices: Approximate number of slices of a supervoxel.
        compactness: Weight of distance against intensity; higher values give boxes.
        body_threshold: See ``PseudoLabelsd``.
        output_key: Where the ``(1, H, W, Z)`` supervoxels go.

    Raises:
        ValueError: If a size is below 1.
    """

    def __init__(
        self,
        keys: KeysCollection,
        size: int = 1600,
        slices: int = 3,
        compactness: float = 0.1,
        body_threshold: float | None = None,
        output_key: str = "superpixels",
    ) -> None:
        super().__init__(keys, body_threshold, output_key)
        if size < 1 or slices < 1:
            raise ValueError(
                f"size and slices of a supervoxel must be at least 1, got {size} and {slices}. Raise them."
            )
        self.size, self.slices, self.compactness = size, slices, compactness

    def segment_volume(self, volume: Tensor) -> Tensor:
        """Return the ``(1, H, W, Z)`` int16 supervoxels of a volume of the same shape."""
        image = _single_channel(volume)
        threshold = self._threshold(image)
        body = np.stack([body_mask(image[..., z], threshold) for z in range(image.shape[-1])], axis=-1)
        # With this spacing, a supervoxel of equal extent along all axes has the requested size.
        spacing = (1.0, 1.0, self.size**0.5 / self.slices)
        segments = min(max(2, round(image.size / (self.size * self.slices))), np.iinfo(np.int16).max - 1)
        ids = slic(
            *(_unit_range(image), segments, self.compactness),
            sigma=(1.0, 1.0, 0.0),
            spacing=spacing,
            start_label=0,
            channel_axis=None,
        )
        return torch.as_tensor(number_superpixels(ids, body)[None])


def _single_channel(volume: Tensor) -> np.ndarray:
    if volume.ndim != 4 or volume.shape[0] != 1:
        raise ValueError(f"a volume must be (1, H, W, Z), got {tuple(volume.shape)}. Give a single channel.")
    return np.asarray(volume[0], dtype=np.float64)


def _unit_range(image: np.ndarray) -> np.ndarray:
    """Return intensities with the 1st percentile at 0 and the 99th at 1; 0 everywhere in a flat image."""
    low, high = np.percentile(image, [1, 99])
    return np.clip((image - low) / (high - low), 0, 1) if high > low else np.zeros_like(image)
