"""Settings 1 and 2: whether training may use slices that show a test organ (paper, section 4.1)."""

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
    """Return the setting, checked.

    Raises:
        ValueError: If the setting is unknown.
    """
    if setting not in (1, 2, "legacy_all") or isinstance(setting, bool):
        raise ValueError(f"setting must be 1, 2 or 'legacy_all', got {setting!r}. The default is 1.")
    known: Setting = setting
    return known


class SliceExclusion:
    """Slices of the training scans that are excluded from training.

    Setting 1 keeps all slices: test organs may appear, though unlabeled. Setting 2 removes a slice that shows ANY of
    them, as in the paper. ``"legacy_all"`` removes a slice only if it shows ALL of them, which the code of later papers
    calls setting 2: most slices with test organs stay (docs/method.md).

    Args:
        setting: 1, 2 or ``"legacy_all"``.
        test_organs: Names of the organs that training must not see; none in setting 1.
        organs: Names and ids of the organs in the label maps.
        labels: The label map of each training image.
        transform: Makes ``label (1, H, W, Z)`` on the network's grid from a scan's files.

    Raises:
        ValueError: If the setting is unknown, or test organs are missing, unknown or given in setting 1.
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
            raise ValueError(
                f"test_organs must be among organs ({', '.join(organs)}), got {', '.join(unknown)}. Correct the names."
            )
        if setting == 1 and names:
            raise ValueError(
                f"setting 1 excludes no slice and takes no test_organs, got {', '.join(names)}. Set setting to 2."
            )
        if setting != 1 and not names:
            raise ValueError(
                f"setting {setting} excludes slices that show test organs, got none. Name them in test_organs, such as "
                f"[{', '.join(list(organs)[:2])}]."
            )
        self.organs = [organs[name] for name in names]
        self.names = names
        self.labels = labels
        self.transform = transform

    def made_with(self) -> dict[str, Any]:
        """Return everything that determines the excluded slices: the labels by their content, and settings."""
        labels = file_records(self.labels.values())
        return {"setting": self.setting, "test_organs": self.names, "organs": self.organs, "labels": labels}

    def of(self, scans: Sequence[Scan]) -> list[np.ndarray]:
        """Decide for every slice of every scan, and print how many slices each rule removes.

        Returns:
            For each scan a boolean array ``(Z,)``, true for excluded slices.

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
            f"{sum(organs.shape[1] for organs in shown)} training slices are excluded (slices with any of the organs: "
            f"{counts['any']}, with all of them: {counts['all']})",
            flush=True,
        )
        return by_rule[rule]

    def _shown(self, scan: Scan) -> np.ndarray:
        """Return whether each test organ has a voxel in each slice, ``(O, Z)``."""
        label = self.labels.get(str(scan[IMAGE]))
        if label is None:
            raise ValueError(
                f"every training scan needs a label map to find the slices to exclude, but {scan[IMAGE]} has none. "
                "Remove the scan, or use setting 1."
            )
        volume = torch.as_tensor(read_scan({IMAGE: scan[IMAGE], LABEL: label}, self.transform)[LABEL])
        return np.stack([np.asarray(shows_organ(volume, organ)) for organ in self.organs])
