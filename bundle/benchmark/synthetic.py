"""Synthetic scans: noise with one bright blob for each organ. They hold no medical data."""

from __future__ import annotations

import math
from pathlib import Path

import nibabel
import numpy as np
import torch
from torch import Tensor

# Share of the slices at either end of a scan that shows no organ.
EMPTY = 0.1


def blob_scan(size: int, slices: int, organs: int, seed: int) -> dict[str, Tensor]:
    """Make a scan with its label map.

    The blobs lie side by side in a square. Each is a ball, cut off at the ends of the scan, whose position varies a
    little between scans.

    Args:
        size: Rows and columns of a slice.
        slices: Slices of the scan.
        organs: Number of blobs; their ids start at 1.
        seed: Random seed of noise and positions.

    Returns:
        ``image``, float32 of mean 0 and standard deviation 1, and ``label``, uint8; each ``(1, H, W, Z)``.

    Raises:
        ValueError: If a blob has less than 8 pixels along each side, or a scan has no slice.
    """
    side = size / math.ceil(organs**0.5)
    if side < 8 or slices < 1:
        raise ValueError(
            f"a synthetic scan needs 8 pixels along each side of every organ, and one slice, got {organs} organs in "
            f"{size} x {size} pixels and {slices} slices. Choose fewer organs or a larger size."
        )
    random = np.random.default_rng([seed, size, slices, organs])
    rows, columns = np.indices((size, size), dtype=np.float32)
    heights = np.linspace(-1, 1, slices) if slices > 1 else np.zeros(1)
    image = random.standard_normal((size, size, slices), dtype=np.float32)
    label = np.zeros((size, size, slices), dtype=np.uint8)
    for organ in range(1, organs + 1):
        row, column = divmod(organ - 1, math.ceil(organs**0.5))
        place = np.array([row + 0.5, column + 0.5]) * side + random.uniform(-0.06, 0.06, 2) * side
        distance = np.hypot(rows - place[0], columns - place[1])
        for z in np.flatnonzero(np.abs(heights) <= 1 - 2 * EMPTY):
            mask = distance < 0.42 * side * math.sqrt(1 - heights[z] ** 2 / 2)
            label[mask, z] = organ
            image[mask, z] = 0.5 * image[mask, z] + 2 + 4 * organ / organs
    image = (image - image.mean()) / image.std()
    return {"image": torch.from_numpy(image)[None], "label": torch.from_numpy(label)[None]}


def write_scan(scan: dict[str, Tensor], folder: Path, name: str) -> dict[str, str]:
    """Write a scan as ``<folder>/images/<name>.nii.gz`` and ``labels/<name>.nii.gz``, and return their paths."""
    files = {}
    for key, values in (("image", (100 * scan["image"] + 1000).to(torch.int16)), ("label", scan["label"])):
        path = folder / f"{key}s" / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(values[0].numpy(), np.diag([1.5, 1.5, 5.0, 1.0])), path)
        files[key] = str(path)
    return files
