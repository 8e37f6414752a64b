"""Pseudo-labels: cut each slice into superpixels, and keep those that lie in the body.

    image (1, H, W, Z)   ->   superpixels (1, H, W, Z), int16, 0 = outside the body

A pseudo-label method is a function of one slice: see ``SliceSegmenter``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Literal

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from scipy.ndimage import binary_fill_holes
from skimage.filters import threshold_triangle
from skimage.measure import label as connected_components
from skimage.segmentation import felzenszwalb
from torch import Tensor

SliceSegmenter = Callable[[np.ndarray], np.ndarray]
"""A slice ``(H, W)``, float64, to a map of ids from 0, ``(H, W)``. To add a pseudo-label method, write one."""

Numbering = Literal["consecutive", "reference"]


def felzenszwalb_superpixels(
    image: np.ndarray, min_size: int = 400, sigma: float = 1.0, scale: float = 1.0
) -> np.ndarray:
    """Cut a slice by Felzenszwalb's graph method, as the paper does for CT and MR.

    Intensities are far larger than ``scale / 255``, so ``min_size`` alone decides the result.

    Args:
        image: One slice, ``(H, W)``, in HU or raw MR units (not normalized).
        min_size: Smallest superpixel, in pixels.
        sigma: Width of the Gaussian that smooths the slice first, in pixels.
        scale: Felzenszwalb's preference for large segments.

    Returns:
        Superpixel ids from 0, ``(H, W)``, in the raster order of their first pixels.
    """
    return felzenszwalb(image, scale=scale, sigma=sigma, min_size=min_size)


def body_mask(image: np.ndarray, threshold: float) -> np.ndarray:
    """Find the body in a slice: the largest piece above the threshold, its holes filled.

    Args:
        image: One slice, ``(H, W)``.
        threshold: Pixels above it may be body, in the image's units.

    Returns:
        ``(H, W)`` bool; all false if no pixel passes.
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
        numbering: ``"consecutive"`` numbers the segments that have a pixel in the body from 1, without gaps.
            ``"reference"`` is the authors' rule: segment 0 is lost, the last id is one higher than its
            place, and segments that lie outside the body leave gaps (docs/method.md).

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
        raise ValueError(f"numbering must be 'consecutive' or 'reference', got {numbering!r}.")
    present, ids = np.unique(np.where(body, segments + 1, 0), return_inverse=True)
    ids = ids.reshape(segments.shape) + (present[0] != 0)
    return ids.astype(np.int16)


class Superpixelsd(MapTransform):
    """Write the superpixels of ``data[key]`` to ``data[output_key]``, slice by slice.

    Args:
        keys: Image volumes, each ``(1, H, W, Z)``, not normalized.
        segmenter: Cuts one slice ``(H, W)`` into ids from 0.
        body_threshold: Intensities at or below it are outside the body. ``None`` finds one for the volume
            by the triangle method, which suits scans with much dark background.
        numbering: How ids are given: see ``number_superpixels``.
        output_key: Where the ``(1, H, W, Z)`` superpixels go.
    """

    def __init__(
        self,
        keys: KeysCollection,
        segmenter: SliceSegmenter = felzenszwalb_superpixels,
        body_threshold: float | None = None,
        numbering: Numbering = "consecutive",
        output_key: str = "superpixels",
    ) -> None:
        super().__init__(keys)
        self.segmenter = segmenter
        self.body_threshold = body_threshold
        self.numbering = numbering
        self.output_key = output_key

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        """Return ``data`` with the superpixels of its images added.

        Raises:
            ValueError: If a volume has more than one channel.
        """
        data = dict(data)
        for key in self.key_iterator(data):
            data[self.output_key] = self.segment_volume(data[key])
        return data

    def segment_volume(self, volume: Tensor) -> Tensor:
        """Return the ``(1, H, W, Z)`` int16 superpixels of a volume of the same shape."""
        if volume.ndim != 4 or volume.shape[0] != 1:
            raise ValueError(f"expected a single-channel volume (1, H, W, Z), got {tuple(volume.shape)}.")
        image = np.asarray(volume[0], dtype=np.float64)
        threshold = threshold_triangle(image) if self.body_threshold is None else self.body_threshold
        slices = [self._segment_slice(image[..., z], threshold) for z in range(image.shape[-1])]
        return torch.as_tensor(np.stack(slices, axis=-1)[None])

    def _segment_slice(self, image: np.ndarray, threshold: float) -> np.ndarray:
        segments = self.segmenter(np.ascontiguousarray(image))
        return number_superpixels(segments, body_mask(image, threshold), self.numbering)
