"""MONAI's Dice is the authors': sums over the slices of a scan, the mean over scans."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from monai.metrics import DiceMetric

from tests.golden_data import golden_arrays, golden_json


def test_dice_equals_the_authors() -> None:
    arrays, golden = golden_arrays("metric.npz"), golden_json("eval_protocol.json")["metric"]
    places = [re.fullmatch(r"pred_l(\d+)_s(\d+)_z(\d+)", key) for key in arrays]
    labels, scans, _ = (sorted({int(p[group]) for p in places if p}) for group in (1, 2, 3))
    metric = DiceMetric(ignore_empty=False)
    for scan in scans:
        masks = {}
        for kind in ("pred", "gt"):
            volumes = []
            for label in labels:
                slices = [p.string for p in places if p and (int(p[1]), int(p[2])) == (label, scan)]
                volumes.append(np.stack([arrays[name.replace("pred", kind)] for name in slices], axis=-1))
            masks[kind] = torch.tensor(np.stack(volumes)).float()[None]
        metric(masks["pred"], masks["gt"])
    raw = metric.get_buffer().numpy()
    assert raw == pytest.approx(np.array(golden["rawDice"]), abs=1e-6)
    assert raw.mean(axis=0) == pytest.approx(golden["classDice"], abs=1e-6)
