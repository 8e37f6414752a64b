"""Settings 1 and 2 of the field: may a slice that shows an organ of the test be learned from? (paper, section 4.1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch

from bundle.data.loading import Scan, read_scan
from bundle.keys import IMAGE, LABEL
from bundle.provenance import file_records
from bundle.transforms.slices import shows_organ

Setting = Literal[1, 2, "legacy_all"]


def checked_setting(setting: Any) -> Setting:
    """Return a setting.

    Raises:
        ValueError: If there is no such setting.
    """
    if setting not in (1, 2, "legacy_all") or isinstance(setting, bool):
        raise ValueError(f"setting must be 1, 2 or 'legacy_all', got {setting!r}.")
    known: Setting = setting
    return known


class SliceExclusion:
    """Slices of the training scans that are not learned from.

    Setting 1 keeps all: the organs of the test may appear, though unlabeled. Setting 2 removes a slice that shows
    ANY of them, as the paper does. ``"legacy_all"`` removes a slice only if it shows ALL of them, as the code of
    later papers does under the name of setting 2: most slices with test organs stay (docs/method.md).

    Args:
        setting: 1, 2 or ``"legacy_all"``.
        test_organs: Names of the organs that must not be seen; none in setting 1.
        organs: Names and ids of the organs in the label maps.
        labels: The label map of each training image.
        transform: Gives ``label (1, H, W, Z)`` on the network's grid from a scan's files.

    Raises:
        ValueError: If the setting is unknown, or its test organs are missing, unknown or not wanted.
    """

    def __init__(
        self,
        setting: Setting,
        test_organs: Sequence[str] | None,
        organs: Mapping[str, int],
        labels: Mapping[str, str],
        transform: Callable[[Any], Any],
    ) -> None:
        self.setting = checked_setting(setting)
        names = [test_organs] if isinstance(test_organs, str) else list(test_organs or [])
        if unknown := [name for name in names if name not in organs]:
            raise ValueError(f"test_organs must be among organs ({', '.join(organs)}), got {', '.join(unknown)}.")
        if setting == 1 and names:
            raise ValueError("setting 1 leaves no slice out, so it takes no test_organs. Set setting to 2.")
        if setting != 1 and not names:
            raise ValueError(
                f"setting {setting} leaves out slices that show organs of the test: name them in test_organs, such as "
                f"[{', '.join(list(organs)[:2])}]."
            )
        self.organs = [organs[name] for name in names]
        self.names = names
        self.labels = labels
        self.transform = transform

    def made_with(self) -> dict[str, Any]:
        """Return what decides which slices are left out: the labels by their content, and settings."""
        labels = file_records(self.labels.values())
        return {"setting": self.setting, "test_organs": self.names, "organs": self.organs, "labels": labels}

    def of(self, scans: Sequence[Scan]) -> list[np.ndarray]:
        """Decide for every slice of every scan, and print how many each rule removes.

        Returns:
            For each scan a boolean array ``(Z,)``, true where a slice is left out.

        Raises:
            ValueError: If a scan has no label map.
            ScanError: If a scan cannot be read.
        """
        shown = [self._shown(scan) for scan in scans]
        by_rule: dict[str, list[np.ndarray]] = {
            "any": [np.asarray(organs.any(axis=0)) for organs in shown],
            "all": [np.asarray(organs.all(axis=0)) for organs in shown],
        }
        counts = {rule: sum(int(slices.sum()) for slices in removed) for rule, removed in by_rule.items()}
        rule = "all" if self.setting == "legacy_all" else "any"
        print(
            f"setting {self.setting}, test organs {', '.join(self.names)}: {counts[rule]} of "
            f"{sum(organs.shape[1] for organs in shown)} training slices are left out (they show any of the organs: "
            f"{counts['any']}, all of them: {counts['all']})",
            flush=True,
        )
        return by_rule[rule]

    def _shown(self, scan: Scan) -> np.ndarray:
        """Return whether each test organ has a voxel in each slice, ``(O, Z)``."""
        label = self.labels.get(str(scan[IMAGE]))
        if label is None:
            raise ValueError(
                f"{scan[IMAGE]} has no label map, so nobody knows which of its slices show an organ of the test. "
                "Take it out, or use setting 1."
            )
        volume = torch.as_tensor(read_scan({IMAGE: scan[IMAGE], LABEL: label}, self.transform)[LABEL])
        return np.stack([np.asarray(shows_organ(volume, organ)) for organ in self.organs])
