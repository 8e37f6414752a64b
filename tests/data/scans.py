"""Small scans on disk, and transforms that read them in a millisecond."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np


def write_nifti(path: Path, volume: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """Write a volume; the default affine is flipped, anisotropic and off center."""
    if affine is None:
        affine = np.array([[-1.5, 0, 0, 20.0], [0, 2.0, 0, -30.0], [0, 0, 4.0, 7.0], [0, 0, 0, 1.0]])
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(volume, affine), path)
    return path


def noise_volume(seed: int = 0, shape: tuple[int, int, int] = (10, 14, 5)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1000, shape).astype(np.int16)


def write_arrays(path: Path, image: np.ndarray, superpixels: np.ndarray) -> dict[str, str]:
    """Write a scan that ``StoredScan`` reads: image and superpixels ``(H, W, Z)`` in one file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.savez(file, image=image, superpixels=superpixels)
    return {"image": str(path)}


class StoredScan:
    """Read what ``write_arrays`` wrote.

    Args:
        factor: What the image is multiplied by.
        log: A file that gets a line for each call, from whichever process.
    """

    def __init__(self, factor: float = 1.0, log: Path | None = None) -> None:
        self.factor = factor
        self.log = log

    def __call__(self, scan: Mapping[str, Any]) -> dict[str, np.ndarray]:
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(f"{scan['image']}\n")
        with np.load(scan["image"]) as arrays:
            return {"image": self.factor * arrays["image"][None], "superpixels": arrays["superpixels"][None]}
