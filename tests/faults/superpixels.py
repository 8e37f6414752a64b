"""The superpixels of a study, computed by two loaders of one process."""

from __future__ import annotations

from pathlib import Path

from bundle.data.cache import cached_scans
from bundle.data.reader import ScanReader
from bundle.transforms import FitSlicesd, SliceLayoutd, Superpixelsd, felzenszwalb_superpixels
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged


def fill_cache(study: str, cache: str) -> None:
    """Fill a cache as a training does, without the training."""
    steps = [LoadImaged("image", reader=ScanReader), EnsureChannelFirstd("image"), SliceLayoutd("image")]
    steps += [FitSlicesd("image", size=(64, 64)), Superpixelsd("image", segmenter=felzenszwalb_superpixels)]
    scans = [{"image": str(path)} for path in sorted(Path(study, "images").glob("*.nii.gz"))]
    cached_scans(scans, Compose(steps), cache, num_workers=2)
