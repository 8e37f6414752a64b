"""Intensities: what a modality's numbers mean, brought to what the network expects.

CT: window in HU -> [0, 255] -> training-set statistics      MR: clip at the top -> z-score of the volume
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.transforms import MapTransform

from bundle.transforms.reference import standardize

Data = dict[Hashable, Any]


class WindowCTd(MapTransform):
    """Clip CT volumes to a window and scale the window to [0, 255].

    The window itself is scaled, not what the volume happens to hold of it, so that a number means the
    same tissue in every scan (docs/method.md).

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
            raise ValueError(f"a CT window needs low < high, got low {low} and high {high} HU.")
        self.low, self.high = low, high

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        """Return ``data`` with its volumes in [0, 255].

        Raises:
            ValueError: If nothing of the volume varies inside the window.
        """
        result = dict(data)
        for key in self.key_iterator(data):
            volume = (data[key].clamp(self.low, self.high) - self.low) * (255 / (self.high - self.low))
            if bool(volume.min() == volume.max()):
                raise ValueError(
                    f"nothing varies inside the CT window [{self.low:g}, {self.high:g}] HU: the volume holds "
                    f"{float(data[key].min()):g} to {float(data[key].max()):g}. Is it CT, and in HU?"
                )
            result[key] = volume
        return result


class ClipTopd(MapTransform):
    """Clip MR volumes from above at a percentile of their own, against a few very bright voxels.

    Args:
        keys: MR volumes.
        percentile: In (0, 100]; 100 changes nothing.

    Raises:
        ValueError: If the percentile is out of range.
    """

    def __init__(self, keys: KeysCollection, percentile: float = 99.5) -> None:
        super().__init__(keys)
        if not 0 < percentile <= 100:
            raise ValueError(f"percentile must be in (0, 100], got {percentile}.")
        self.percentile = percentile

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        """Return ``data`` with its volumes clipped."""
        result = dict(data)
        for key in self.key_iterator(data):
            limit = float(np.percentile(np.asarray(data[key]), self.percentile))
            # A volume that is nearly all background would be clipped to a constant.
            result[key] = data[key].clamp_max(limit) if limit > float(data[key].min()) else data[key]
        return result


def statistics_file(statistics: str, weights: str | Path | None) -> str | None:
    """Return where the training set's intensity statistics are: ``intensity.json`` beside the trained weights.

    Args:
        statistics: ``"volume"`` (each scan's own, there is no file) or ``"training_set"``.
        weights: The file of the trained weights; ``None`` for an untrained network.

    Raises:
        ValueError: If ``statistics`` is neither.
    """
    if statistics not in ("volume", "training_set"):
        raise ValueError(f"statistics must be 'volume' or 'training_set', got {statistics!r}. Set one of them.")
    if statistics == "volume" or weights is None:
        return None
    return str(Path(weights).parent / "intensity.json")


class Standardized(MapTransform):
    """Subtract the mean and divide by the standard deviation: z-score.

    Args:
        keys: Volumes.
        statistics: ``None`` uses each volume's own numbers (MR). A JSON file of training writes the training
            set's, ``{"mean": .., "std": ..}`` (CT); a dictionary gives them directly.
    """

    def __init__(self, keys: KeysCollection, statistics: str | Path | Mapping[str, float] | None = None) -> None:
        super().__init__(keys)
        self.statistics = statistics

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        """Return ``data`` with its volumes at mean 0 and standard deviation 1.

        Raises:
            FileNotFoundError: If the statistics file does not exist.
            ValueError: If a volume is constant.
        """
        result = dict(data)
        mean, std = self._numbers()
        for key in self.key_iterator(data):
            volume = data[key]
            own = np.asarray(volume)
            if mean is None and own.std() == 0:
                raise ValueError(
                    f"what is left of the scan on the network's grid is constant ({own.flat[0]:g}). Check spacing and "
                    "slice_size: the crop about the center may have missed the body."
                )
            result[key] = standardize(volume, own.mean() if mean is None else mean, own.std() if std is None else std)
        return result

    def _numbers(self) -> tuple[float | None, float | None]:
        if self.statistics is None:
            return None, None
        if isinstance(self.statistics, Mapping):
            return float(self.statistics["mean"]), float(self.statistics["std"])
        path = Path(self.statistics)
        if not path.is_file():
            raise FileNotFoundError(
                f"no intensity statistics at {path}. Training on CT writes them beside model.pt; copy that file too, "
                "or give the numbers as {'mean': .., 'std': ..}."
            )
        numbers = json.loads(path.read_text(encoding="utf-8"))
        return float(numbers["mean"]), float(numbers["std"])
