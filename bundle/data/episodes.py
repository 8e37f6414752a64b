"""Episodes: a slice and one of its superpixels -> support views and a query view (paper, section 3.1).

Episode ``i`` is a function of the seed and ``i`` alone, so that workers, their number and a resumed run
change nothing.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import ignite.distributed as idist
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from bundle import distributed
from bundle.data.cache import CachedScan, cached_scans
from bundle.data.exclusion import SliceExclusion
from bundle.data.loading import Scan
from bundle.files import written_whole
from bundle.keys import IMAGE, LABEL, SUPPORT_IMAGE, SUPPORT_MASK
from bundle.provenance import file_records
from bundle.transforms.augmentation import Augmentation

IdRule = Literal["present", "reference"]
Statistics = Literal["volume", "training_set"]

View = tuple[np.ndarray, np.ndarray]
"""A slice and a mask, each ``(H, W)``."""

ATTEMPTS = 100
"""Draws before an episode is given up; even a hundred in a row fail only if hardly any superpixel is usable."""


class EpisodeDataset(Dataset[dict[str, Tensor]]):
    """Episodes from unlabelled scans.

    Args:
        data: The scans' files; labels are never read.
        transform: Gives ``image``, not standardized, and ``superpixels`` from a scan's files.
        cache_dir: Where slices and superpixels are kept.
        seed: Of all draws.
        shots: Support views of an episode, K >= 1.
        augmentation: How views are made.
        id_rule: ``"present"`` draws among the superpixels of the slice that have ``min_area`` pixels;
            ``"reference"`` draws ``1 .. largest id - 1`` whether the id exists or not, as the authors' code does.
        min_area: Least foreground and least background of each view, pixels. The ``"reference"`` rule has none.
        statistics: Whose mean and standard deviation standardize a slice: its volume's (MR), or those of all
            training scans together (CT).
        statistics_file: With ``"training_set"``, where the two numbers are written, for inference.
        channels: Copies of a slice, for encoders that want color.
        num_workers: Processes that compute superpixels; ``None`` means one a core.
        more_data: Further scans; one that ``data`` has is not taken twice.
        exclusion: Which slices not to learn from (setting 2); ``None`` takes all (setting 1).
        query_distance: The query is drawn among the slices up to so many away that show the same id with ``min_area``
            pixels; for supervoxels, whose ids mean the same in all slices of a scan. 0, the paper, takes the support's
            own slice.

    Raises:
        ValueError: If there is no scan, no slice with a usable superpixel, or a setting is out of range.
        ScanError: If a scan cannot be used.
    """

    def __init__(
        self,
        data: Sequence[Scan],
        transform: Callable[[Any], Any],
        cache_dir: str | Path,
        seed: int = 0,
        shots: int = 1,
        augmentation: Augmentation | None = None,
        id_rule: IdRule = "present",
        min_area: int = 64,
        statistics: Statistics = "volume",
        statistics_file: str | Path | None = None,
        channels: int = 3,
        num_workers: int | None = None,
        more_data: Sequence[Scan] = (),
        exclusion: SliceExclusion | None = None,
        query_distance: int = 0,
    ) -> None:
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ValueError(f"seed must be a whole number from 0, got {seed!r}.")
        _check_settings(shots, id_rule, min_area, statistics, query_distance)
        self.data = list({str(scan[IMAGE]): {IMAGE: scan[IMAGE]} for scan in [*data, *more_data]}.values())
        if not self.data:
            raise ValueError("there is no scan to train on. Check dataset_dir, and fold if it is set.")
        self.transform = transform
        self.seed, self.shots, self.channels = seed, shots, channels
        self.augmentation = Augmentation() if augmentation is None else augmentation
        self.id_rule, self.min_area, self.statistics = id_rule, min_area, statistics
        self.query_distance = query_distance
        self.scans = cached_scans(self.data, transform, cache_dir, num_workers)
        self.numbers = _standardization(self.scans, statistics)
        if statistics == "training_set" and statistics_file is not None:
            _write_statistics(Path(statistics_file), *self.numbers[0])
        self.exclusion = exclusion if exclusion is not None and exclusion.organs else None
        self.slices = self._usable_slices(None if self.exclusion is None else self.exclusion.of(self.data))
        self._usable = {(scan, z): ids for scan, z, ids in self.slices}

    def made_with(self) -> dict[str, Any]:
        """Return what decides which episodes there are, in their order: files by their content, and settings."""
        names = ("seed", "shots", "channels", "id_rule", "min_area", "query_distance", "statistics")
        parts = {name: getattr(self, name) for name in (*names, "transform", "augmentation", "exclusion")}
        return {"scans": file_records(scan[IMAGE] for scan in self.data), **parts}

    def __len__(self) -> int:
        """Return the number of usable slices; any index from 0 is a valid episode."""
        return len(self.slices)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Make episode ``index``.

        Returns:
            ``image (C, H, W)`` and ``label (1, H, W)``, the query; ``support_image (K, C, H, W)`` and
            ``support_mask (K, 1, H, W)``. Images are standardized float32, masks float32 in {0, 1}.

        Raises:
            RuntimeError: If no draw gives views with enough foreground and background.
        """
        random = np.random.default_rng([self.seed, index])
        for _ in range(ATTEMPTS):
            support, query = self._draw(random)
            views = [self._view(random, *support) for _ in range(self.shots)] + [self._view(random, *query)]
            if self.id_rule == "reference" or all(self._is_usable(mask) for _, mask in views):
                return self._as_tensors(views)
        raise RuntimeError(
            f"episode {index}: {ATTEMPTS} draws gave no view with {self.min_area} pixels of foreground and of "
            "background. Choose larger superpixels, a weaker augmentation or a smaller min_area."
        )

    def _draw(self, random: np.random.Generator) -> tuple[View, View]:
        """Return slice and mask of the support and of the query."""
        scan, z, ids = self.slices[int(random.integers(len(self.slices)))]
        chosen = int(ids[int(random.integers(len(ids)))])
        support = self._slice(scan, z, chosen)
        if not self.query_distance:
            return support, support
        near = range(z - self.query_distance, z + self.query_distance + 1)
        showing = [other for other in near if chosen in self._usable.get((scan, other), ())]
        return support, self._slice(scan, showing[int(random.integers(len(showing)))], chosen)

    def _slice(self, scan: int, z: int, chosen: int) -> View:
        mean, std = self.numbers[scan]
        image = (self.scans[scan].image[z] - mean) / std
        return image, (self.scans[scan].superpixels[z] == chosen).astype(np.uint8)

    def _view(self, random: np.random.Generator, image: np.ndarray, mask: np.ndarray) -> View:
        return self.augmentation.apply(self.augmentation.draw(random, *image.shape), image, mask)

    def _is_usable(self, mask: np.ndarray) -> bool:
        return self.min_area <= int(mask.sum()) <= mask.size - self.min_area

    def _as_tensors(self, views: list[View]) -> dict[str, Tensor]:
        images = torch.from_numpy(np.stack([image for image, _ in views]).astype(np.float32))
        images = images[:, None].repeat(1, self.channels, 1, 1)
        masks = torch.from_numpy(np.stack([mask for _, mask in views]).astype(np.float32))[:, None]
        # The supports come first, as in the authors' code.
        return {IMAGE: images[-1], LABEL: masks[-1], SUPPORT_IMAGE: images[:-1], SUPPORT_MASK: masks[:-1]}

    def _usable_slices(self, excluded: list[np.ndarray] | None) -> list[tuple[int, int, np.ndarray]]:
        """Return (scan, slice, drawable ids) of each slice that has one and is not excluded."""
        found = []
        for number, scan in enumerate(self.scans):
            for z, superpixels in enumerate(scan.superpixels):
                if excluded is not None and excluded[number][z]:
                    continue
                areas = np.bincount(superpixels.ravel())
                if self.id_rule == "reference":
                    ids = np.arange(1, len(areas) - 1)
                else:
                    fits = (areas >= self.min_area) & (areas <= superpixels.size - self.min_area)
                    ids = np.flatnonzero(fits[1:]) + 1
                if len(ids):
                    found.append((number, z, ids))
        if not found:
            raise ValueError(
                f"no slice of the {len(self.scans)} scans has a superpixel of at least {self.min_area} pixels in the "
                "body. Lower the body threshold (a wrong one puts all voxels outside the body), the superpixels' "
                "min_size or min_area; in setting 2 name fewer test organs."
            )
        return found


def _check_settings(shots: int, id_rule: str, min_area: int, statistics: str, query_distance: int) -> None:
    if isinstance(shots, bool) or not isinstance(shots, int) or shots < 1:
        raise ValueError(f"shots must be a whole number of support views, at least 1, got {shots!r}.")
    if min_area < 1:
        raise ValueError(f"min_area must be at least 1 pixel, got {min_area}.")
    if id_rule not in ("present", "reference"):
        raise ValueError(f"id_rule must be 'present' or 'reference', got {id_rule!r}.")
    if statistics not in ("volume", "training_set"):
        raise ValueError(f"statistics must be 'volume' or 'training_set', got {statistics!r}.")
    if query_distance < 0:
        raise ValueError(f"query_distance must be a number of slices, at least 0, got {query_distance}.")


def _standardization(scans: Sequence[CachedScan], statistics: str) -> list[tuple[float, float]]:
    """Return the mean and the standard deviation to use for each scan."""
    if statistics == "volume":
        return [(scan.mean, scan.variance**0.5) for scan in scans]
    sizes = np.array([scan.image.size for scan in scans], dtype=float)
    means = np.array([scan.mean for scan in scans])
    variances = np.array([scan.variance for scan in scans])
    mean = float((sizes * means).sum() / sizes.sum())
    # Of all voxels together: the mean of the variances and the variance of the means.
    variance = float((sizes * (variances + (means - mean) ** 2)).sum() / sizes.sum())
    return [(mean, variance**0.5)] * len(scans)


def _write_statistics(path: Path, mean: float, std: float) -> None:
    if distributed.is_first():
        with written_whole(path) as unfinished:
            unfinished.write_text(json.dumps({"mean": mean, "std": std}), encoding="utf-8")
    idist.barrier()  # nobody reads it before


class EpisodeSampler(Sampler[int]):
    """Count episodes 0, 1, 2, ... without end; a resumed run starts where the other was stopped.

    Several processes take turns: of ``P``, the one of rank ``r`` has ``start + r``, ``start + r + P``, ... With a batch
    that all have equally many of, step ``s`` learns from the same episodes however many processes there are.

    Args:
        start: First episode.
    """

    def __init__(self, start: int = 0) -> None:
        self.start = start

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.start + idist.get_rank(), idist.get_world_size())
