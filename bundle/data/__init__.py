"""Data: scans, their slices and superpixels, and the episodes made from them."""

from bundle.data.episodes import EpisodeDataset, EpisodeSampler
from bundle.data.exclusion import SliceExclusion
from bundle.data.loading import ScanDataset, ScanError, SupportPixel, read_scan, report_problems, usable_scans
from bundle.data.names import name_of_scan, scan_name
from bundle.data.reader import FileError, ScanReader
from bundle.data.scans import Split, dataset_name, files_of, find_scans, find_support, fold_of, list_scans, open_split
from bundle.data.survey import check_support, survey

__all__ = [
    "EpisodeDataset",
    "EpisodeSampler",
    "FileError",
    "ScanDataset",
    "ScanError",
    "ScanReader",
    "SliceExclusion",
    "Split",
    "SupportPixel",
    "check_support",
    "dataset_name",
    "files_of",
    "find_scans",
    "find_support",
    "fold_of",
    "list_scans",
    "name_of_scan",
    "open_split",
    "read_scan",
    "report_problems",
    "scan_name",
    "survey",
    "usable_scans",
]
