"""Intensities: map a modality's values to the range that the network expects.

CT: window in HU -> [0, 255] -> training-set statistics      MR: clip at the top -> z-score of the volume
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from bundle.transforms.reference import standardize
from bundle.transforms.superpixels import body_mask
from monai.config import KeysCollection
from monai.transforms import MapTransform
from skimage.filters import threshold_triangle

Data = dict[Hashable, Any]

EXAMPLE = '{"mean": 60.0, "std": 70.0}'

logger = logging.getLogger(__name__)
# The voxels that a statistic is computed over: the whole volume; those above its minimum, which excludes padding; or
# those of the body, in each slice the largest component above a threshold, holes filled.
Region = Literal["volume", "scan", "body"]

# Standard deviation of a normal distribution, in median absolute deviations.
NORMAL_MAD = 1.4826


def values_of(volume: np.ndarray, region: Region) -> np.ndarray:
    """Return the values of a region.

    Args:
        volume: ``(1, H, W, Z)``.
        region: ``"volume"``, ``"scan"`` or ``"body"``. The body's threshold is found by the triangle method, on the
            voxels above the minimum.

    Returns:
        The values, flattened; those of the whole volume if the region would be empty or constant.
    """
    scan = volume[volume > volume.min()]
    if region == "volume" or scan.size == 0 or scan.min() == scan.max():
        return volume.ravel()
    if region == "scan":
        return scan
    threshold = float(threshold_triangle(scan))
    body = np.stack([body_mask(volume[0, ..., z], threshold) for z in range(volume.shape[-1])], axis=-1)
    return volume[0][body] if body.any() else volume.ravel()


def _check_region(region: str) -> None:
    if region not in get_args(Region):
        raise ValueError(f"region must be 'volume', 'scan' or 'body', got {region!r}. The default is volume.")


class WindowCTd(MapTransform):
    """Clip CT volumes to a window and scale the window to [0, 255].

    The whole window is scaled, not the volume's own range within it, so that a value means the same tissue in every
    scan (docs/method.md).

    Args:
        keys: CT volumes in HU.
        low: Lower end of the window, HU.
        high: Upper end of the window, HU.

    Raises:
        ValueError: If the window is empty.
    """

    def __init__(self, keys: KeysCollection, low: float = -125.0, high: float = 275.0) -> None:
        super().__init__(keys)
        if low >= high:
            raise ValueError(f"a CT window needs low < high, got low {low} and high {high} HU. Swap them.")
        self.low, self.high = low, high

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        """Return ``data`` with its volumes in [0, 255].

        Raises:
            ValueError: If the volume is constant inside the window.
        """
        result = dict(data)
        for key in self.key_iterator(data):
            volume = (data[key].clamp(self.low, self.high) - self.low) * (255 / (self.high - self.low))
            if bool(volume.min() == volume.max()):
                raise ValueError(
                    f"a CT volume must vary inside the window [{self.low:g}, {self.high:g}] HU, got values from "
                    f"{float(data[key].min()):g} to {float(data[key].max()):g}. Is it CT, and in HU?"
                )
            result[key] = volume
        return result


class ClipTopd(MapTransform):
    """Clip MR volumes from above at one of their own percentiles, against a few very bright voxels.

    Args:
        keys: MR volumes.
        percentile: In (0, 100]; 100 changes nothing.
        region: The voxels that the percentile is computed over; the authors use the whole volume.

    Raises:
        ValueError: If the percentile is out of range, or the region is unknown.
    """

    def __init__(self, keys: KeysCollection, percentile: float = 99.5, region: Region = "volume") -> None:
        super().__init__(keys)
        if not 0 < percentile <= 100:
            raise ValueError(f"percentile must be in (0, 100], got {percentile}. The default is 99.5.")
        _check_region(region)
        self.percentile = percentile
        self.region = region

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        """Return ``data`` with its volumes clipped."""
        result = dict(data)
        for key in self.key_iterator(data):
            limit = float(np.percentile(values_of(np.asarray(data[key]), self.region), self.percentile))
            # A volume of almost only background would otherwise be clipped to a constant.
            result[key] = data[key].clamp_max(limit) if limit > float(data[key].min()) else data[key]
        return result


def statistics_file(statistics: str, weights: str | Path | None, needed: bool = True) -> str | None:
    """Return the file of the training set's intensity statistics: ``intensity.json`` next to the trained weights.

    Args:
        statistics: ``"volume"`` (each scan's own statistics, no file) or ``"training_set"``.
        weights: The file of the trained weights; ``None`` for an untrained network.
        needed: If false and the file is missing, each scan is standardized by its own statistics, with a warning: the
            weights were trained otherwise, such as the shipped ones.

    Raises:
        ValueError: If ``statistics`` is neither.
    """
    if statistics not in ("volume", "training_set"):
        raise ValueError(f"statistics must be 'volume' or 'training_set', got {statistics!r}. Set one of them.")
    if statistics == "volume" or weights is None:
        return None
    path = Path(weights).parent / "intensity.json"
    if not needed and not path.is_file():
        logger.warning("there is no %s: each scan is standardized by its own mean and standard deviation", path)
        return None
    return str(path)


class Standardized(MapTransform):
    """Bring volumes to a common scale: z-score, or median and median absolute deviation.

    Args:
        keys: Volumes ``(1, H, W, Z)``.
        statistics: ``None`` uses each volume's own statistics (MR). A JSON file, written by training, holds those of
            the training set, ``{"mean": .., "std": ..}`` (CT); a dictionary gives them directly. The other settings
            are then not used.
        method: ``"zscore"`` subtracts the mean and divides by the standard deviation, as in the paper. ``"robust"``
            uses the median and 1.4826 times the median absolute deviation, which a few very bright voxels do not move.
        region: The voxels that the statistics are computed over; the paper uses the whole volume.
        center: The new mean or median.
        spread: The new standard deviation. Robust statistics of the body with center 0.3 and spread 0.7 give about the
            range of the z-score, on which the network was trained.

    Raises:
        ValueError: If the method or the region is unknown, or ``spread`` is not above 0.
    """

    def __init__(
        self,
        keys: KeysCollection,
        statistics: str | Path | Mapping[str, float] | None = None,
        method: Literal["zscore", "robust"] = "zscore",
        region: Region = "volume",
        center: float = 0.0,
        spread: float = 1.0,
    ) -> None:
        super().__init__(keys)
        if method not in ("zscore", "robust"):
            raise ValueError(f"method must be 'zscore' or 'robust', got {method!r}. The default is zscore.")
        _check_region(region)
        if not spread > 0:
            raise ValueError(f"spread must be above 0, got {spread}. The default is 1.")
        self.statistics = statistics
        self.method, self.region = method, region
        self.center, self.spread = center, spread

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        """Return ``data`` with its volumes at ``center`` and ``spread``.

        Raises:
            FileNotFoundError: If the statistics file does not exist.
            ValueError: If a volume is constant, or half of the region is one value and the method is robust.
        """
        result = dict(data)
        mean, std = self._numbers()
        for key in self.key_iterator(data):
            if mean is not None:
                result[key] = standardize(data[key], mean, std)
                continue
            result[key] = standardize(data[key], *self._own(np.asarray(data[key]))) * self.spread + self.center
        return result

    def _own(self, volume: np.ndarray) -> tuple[float, float]:
        """Return the center and the spread of a volume's region."""
        if volume.min() == volume.max():
            raise ValueError(
                f"the scan must vary on the network's grid, but every voxel is {volume.flat[0]:g}. Check spacing and "
                "slice_size: the crop around the center may have missed the body."
            )
        values = values_of(volume, self.region)
        if self.method == "zscore":
            return values.mean(), values.std()
        median = np.median(values)
        deviation = NORMAL_MAD * np.median(np.abs(values - median))
        if deviation == 0:
            raise ValueError(
                f"the median absolute deviation must be above 0, but half of the voxels are {median:g}. "
                "Set the standardization's method to zscore."
            )
        return median, deviation

    def _numbers(self) -> tuple[float | None, float | None]:
        numbers = read_statistics(self.statistics)
        return (None, None) if numbers is None else (numbers["mean"], numbers["std"])


def read_statistics(source: str | Path | Mapping[str, float] | None) -> dict[str, float] | None:
    """Return the mean and the standard deviation of a training set.

    Args:
        source: A JSON file written by training, ``{"mean": .., "std": ..}``, or the numbers; ``None`` gives ``None``.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If a number is missing or not finite, or the standard deviation is not above 0.
    """
    if source is None:
        return None
    if not isinstance(source, Mapping) and not Path(source).is_file():
        raise FileNotFoundError(
            f"no intensity statistics at {source}. Training on CT writes them next to model.pt; copy that file too, "
            "or give the numbers as --statistics_file \"{'mean': 60.0, 'std': 70.0}\"."
        )
    try:
        given = source if isinstance(source, Mapping) else json.loads(Path(source).read_text(encoding="utf-8"))
        numbers = {name: float(given[name]) for name in ("mean", "std")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{source} must hold mean and std as numbers, such as {EXAMPLE}. Train again, or give both."
        ) from error
    if not all(map(math.isfinite, numbers.values())) or numbers["std"] <= 0:
        raise ValueError(f"mean and std must be finite and std above 0, got {numbers} from {source}. Train again.")
    return numbers
