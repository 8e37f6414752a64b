"""The authors' preprocessing, reproduced exactly: for parity, and to prepare data as for the paper.

Loading (``bundle.transforms.volumes``) does the same with MONAI's resampling; docs/method.md lists the differences.
Volumes here are arrays ``(H, W, Z)``, and spacings are in mm along the same axes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import map_coordinates


def resample(volume: np.ndarray, spacing: Sequence[float], new_spacing: Sequence[float]) -> np.ndarray:
    """Resample linearly to ``floor(n * old / new + 1)`` voxels along each axis; the first voxel stays in place.

    Args:
        volume: Any shape and type.
        spacing: Present voxel size along each axis.
        new_spacing: Wanted voxel size along each axis.

    Returns:
        The resampled volume in the same type: integers are truncated, not rounded. Voxels that lie half a voxel or
        more beyond the last original one are 0, so the last row, column or slice is often empty.
    """
    steps = list(zip(volume.shape, spacing, new_spacing, strict=True))
    axes = [np.arange(np.floor(n * old / new + 1)) * new / old for n, old, new in steps]
    places = np.meshgrid(*axes, indexing="ij")
    values = map_coordinates(volume.astype(np.float64), places, order=1, mode="nearest")
    for place, n in zip(places, volume.shape, strict=True):
        values[place >= n - 0.5] = 0
    return values.astype(volume.dtype)


def resample_label(label: np.ndarray, spacing: Sequence[float], new_spacing: Sequence[float]) -> np.ndarray:
    """Resample each organ's mask linearly and threshold it above one half; larger ids overwrite smaller ones."""
    organs = [int(value) for value in np.unique(label) if value != 0]
    masks = [resample((label == organ).astype(np.float64), spacing, new_spacing) for organ in organs]
    resampled = resample(np.zeros(label.shape), spacing, new_spacing)
    for organ, mask in zip(organs, masks, strict=True):
        resampled[mask > 0.5 + 1e-9] = organ  # exactly one half, up to rounding, does not count
    return resampled.astype(label.dtype)


def center_crop_or_pad(volume: np.ndarray, size: Sequence[int], fill: float | None = None) -> np.ndarray:
    """Crop or pad rows and columns around the center: output ``i`` is input ``i - ceil(size / 2) + n // 2``.

    Args:
        volume: ``(H, W, Z)``.
        size: Wanted rows and columns.
        fill: Value of the padding; ``None`` takes the volume's minimum.

    Returns:
        ``(size[0], size[1], Z)`` in the volume's type.
    """
    result = np.full((*size, volume.shape[-1]), volume.min() if fill is None else fill, dtype=volume.dtype)
    starts = [n // 2 - (wanted + 1) // 2 for n, wanted in zip(volume.shape, size, strict=False)]
    source = [slice(max(s, 0), min(s + w, n)) for s, w, n in zip(starts, size, volume.shape, strict=False)]
    target = [slice(old.start - s, old.stop - s) for s, old in zip(starts, source, strict=True)]
    result[tuple(target)] = volume[tuple(source)]
    return result


def clip_top(volume: np.ndarray, percentile: float = 99.5) -> np.ndarray:
    """Clip a volume from above at one of its percentiles; for an integer volume, the limit is truncated."""
    limit = np.percentile(volume, percentile)
    return np.minimum(volume, np.asarray(limit).astype(volume.dtype))


def window_ct(volume: np.ndarray, low: float = -125.0, high: float = 275.0) -> np.ndarray:
    """Clip HU to a window and scale the volume's own range to [0, 255], in double precision."""
    clipped = np.clip(volume.astype(np.float64), low, high)
    return (clipped - clipped.min()) / (clipped.max() - clipped.min()) * 255


def standardize(volume: np.ndarray, mean: float | None = None, std: float | None = None) -> np.ndarray:
    """Subtract the mean and divide by the population standard deviation: the volume's own, or those given."""
    mean = volume.mean() if mean is None else mean
    std = volume.std() if std is None else std
    return (volume - mean) / std
