"""Transforms: files to volumes, volumes to slices, slices to superpixels and views."""

from bundle.transforms.augmentation import Augmentation
from bundle.transforms.intensity import ClipTopd, Standardized, WindowCTd
from bundle.transforms.masks import LabelToMasksd, ScoresToLabeld, ScoresToMasksd
from bundle.transforms.superpixels import Superpixelsd, felzenszwalb_superpixels
from bundle.transforms.volumes import CheckLabeld, CheckVolumed, FitSlicesd, RestoreGridd, SliceLayoutd

__all__ = [
    "Augmentation",
    "CheckLabeld",
    "CheckVolumed",
    "ClipTopd",
    "FitSlicesd",
    "LabelToMasksd",
    "RestoreGridd",
    "ScoresToLabeld",
    "ScoresToMasksd",
    "SliceLayoutd",
    "Standardized",
    "Superpixelsd",
    "WindowCTd",
    "felzenszwalb_superpixels",
]
