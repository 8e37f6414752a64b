"""Slices per second of computing superpixels into the cache, beside scikit-image's share of the work alone."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bundle.benchmark.results import Result
from bundle.benchmark.timing import side_by_side
from bundle.command_line.checks import check_positive_integers
from bundle.command_line.configs import parsed
from bundle.data import list_scans
from bundle.data.cache import cached_scans
from bundle.data.phantoms import write_phantoms
from bundle.keys import IMAGE
from skimage.segmentation import felzenszwalb


def measure(
    dataset_dir: str | None = None, scans: int = 4, slices: int = 12, size: int = 256, repeats: int = 3, seed: int = 0
) -> Result:
    """Measure one and two processes that fill an empty cache, and Felzenszwalb's method on the same slices.

    Args:
        dataset_dir: Folder of scans to use in place of phantoms.
        scans: Number of scans.
        slices: Slices of a phantom.
        size: Rows and columns of a slice.
        repeats: Counted rounds, after one warm-up round.
        seed: Random seed of the phantoms.

    Raises:
        ValueError: If a number is out of range.
    """
    check_positive_integers(scans=scans, slices=slices, size=size, repeats=repeats)
    min_size = max(1, 400 * size**2 // 256**2)
    keys = {"slice_size": [size, size], "superpixel_size": min_size}
    transform = parsed(["train.yaml"], keys).get_parsed_content("train::preprocessing")
    with tempfile.TemporaryDirectory() as folder:
        if dataset_dir is None:
            phantom = {"unlabeled": scans, "labeled": 0, "size": (size, size, slices), "seed": seed}
            found = list_scans(write_phantoms(Path(folder) / "phantom", **phantom))
        else:
            found = list_scans(dataset_dir)[:scans]
        images = [{IMAGE: scan[IMAGE]} for scan in found]
        with tempfile.TemporaryDirectory(dir=folder) as cache:
            entries = cached_scans(images, transform, cache, 0)
            cut = [slice_image.astype(np.float64) for entry in entries for slice_image in entry.image]
        works = {
            "one": lambda: _fill(images, transform, folder, 0),
            "two": lambda: _fill(images, transform, folder, 2),
            "alone": lambda: [felzenszwalb(image, 1.0, 1.0, min_size) for image in cut],
        }
        seconds = side_by_side(works, repeats, "superpixels")
    return Result("superpixels", {"slices": len(cut)}, _values(seconds, len(cut)))


def _fill(images: Sequence[Mapping[str, Any]], transform: Any, folder: str, workers: int) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        cached_scans(images, transform, cache, workers)


def _values(seconds: Mapping[str, float], slices: int) -> dict[str, float]:
    return {
        "1 process, slices/s": slices / seconds["one"],
        "2 processes, slices/s": slices / seconds["two"],
        "scikit-image alone, slices/s": slices / seconds["alone"],
        "1 process / scikit-image alone, time": seconds["one"] / seconds["alone"],
        "2 processes / 1 process, speed": seconds["one"] / seconds["two"],
    }
