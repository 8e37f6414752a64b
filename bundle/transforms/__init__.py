"""Transforms: files to volumes, volumes to slices, slices to superpixels and views, scores to masks."""

from bundle.transforms.augmentation import Augmentation
from bundle.transforms.checks import CheckLabeld, CheckVolumed
from bundle.transforms.intensity import ClipTopd, Standardized, WindowCTd, read_statistics, statistics_file
from bundle.transforms.masks import LabelToMasksd, ScoresToLabeld, ScoresToMasksd
from bundle.transforms.padding import CropPaddingd
from bundle.transforms.probabilities import AddProbabilitiesd
from bundle.transforms.refinement import AssessScoresd, GuidedScoresd, LargestComponentsd, SmoothAcrossSlicesd
from bundle.transforms.superpixels import Superpixelsd, Supervoxelsd, felzenszwalb_superpixels, slic_superpixels
from bundle.transforms.volumes import FitSlicesd, RestoreGridd, SliceLayoutd

__all__ = [
    "AddProbabilitiesd",
    "AssessScoresd",
    "Augmentation",
    "CheckLabeld",
    "CheckVolumed",
    "ClipTopd",
    "CropPaddingd",
    "FitSlicesd",
    "GuidedScoresd",
    "LabelToMasksd",
    "LargestComponentsd",
    "RestoreGridd",
    "ScoresToLabeld",
    "ScoresToMasksd",
    "SliceLayoutd",
    "SmoothAcrossSlicesd",
    "Standardized",
    "Superpixelsd",
    "Supervoxelsd",
    "WindowCTd",
    "felzenszwalb_superpixels",
    "read_statistics",
    "slic_superpixels",
    "statistics_file",
]
