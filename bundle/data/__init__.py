"""Data: a study's scans, their slices and superpixels, and the episodes made of them."""

from bundle.data.episodes import EpisodeDataset, EpisodeSampler
from bundle.data.exclusion import SliceExclusion
from bundle.data.loading import ScanDataset, ScanError, SupportPixel, read_scan, report_problems, usable_scans
from bundle.data.study import Study, find_scans, find_support, fold_of, list_scans, open_study, scan_name

__all__ = [
    "EpisodeDataset",
    "EpisodeSampler",
    "ScanDataset",
    "ScanError",
    "SliceExclusion",
    "Study",
    "SupportPixel",
    "find_scans",
    "find_support",
    "fold_of",
    "list_scans",
    "open_study",
    "read_scan",
    "report_problems",
    "scan_name",
    "usable_scans",
]
