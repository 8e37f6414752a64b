"""Episodes: a slice and one of its superpixels -> support views and a query view (paper, section 3.1).

Episode ``i`` depends only on the seed and ``i``, so that the number of workers and resuming change nothing.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import ignite.distributed as idist
import numpy as np
import torch
from bundle import distributed
from bundle.data.cache import CachedScan, tried_scans
from bundle.data.exclusion import SliceExclusion
from bundle.data.loading import Scan, ScanError
from bundle.data.reader import FileError, look_at
from bundle.files import written_whole
from bundle.keys import IMAGE, LABEL, SUPPORT_IMAGE, SUPPORT_MASK
from bundle.provenance import file_records
from bundle.transforms.augmentation import Augmentation
from torch import Tensor
from torch.utils.data import Dataset, Sampler

IdRule = Literal["present", "reference"]
Statistics = Literal["volume", "training_set"]

# A slice and a mask, each ``(H, W)``.
View = tuple[np.ndarray, np.ndarray]

logger = logging.getLogger(__name__)

# Draws for an episode before it fails; a hundred in a row fail only if hardly any superpixel is usable.
ATTEMPTS = 100


class EpisodeDataset(Dataset[dict[str, Tensor]]):
    """Episodes from unlabelled scans.

    Args:
        data: The scans' files; labels are never read.
        transform: Makes ``image``, not standardized, and ``superpixels`` from a scan's files.
        cache_dir: Folder of the cache of slices and superpixels.
        seed: Seed of all draws, >= 0.
        shots: Support views of an episode, K >= 1.
        augmentation: Makes the views; ``None`` uses the paper's ranges.
        id_rule: ``"present"`` draws among the superpixels of the slice that have ``min_area`` pixels;
            ``"reference"`` draws from ``1 .. largest id - 1`` whether the id exists or not, as in the authors' code.
        min_area: Least foreground and least background of each view, pixels. The ``"reference"`` rule has no minimum.
        statistics: Which mean and standard deviation standardize a slice: those of its volume (MR), or those of all
            training scans together (CT).
        statistics_file: With ``"training_set"``, the file to write both numbers to, for inference.
        channels: Copies of a slice, for encoders of color images.
        num_workers: Processes that compute superpixels; ``None`` means one per core.
        more_data: Further scans; those that are already in ``data`` are skipped.
        exclusion: Which slices not to learn from (setting 2); ``None`` uses all (setting 1).
        query_distance: The query is drawn among slices at most this far away that show the same id with ``min_area``
            pixels; for supervoxels, whose ids are the same in all slices of a scan. With 0, as in the paper, the query
            is the support's own slice.

    Attributes:
        problems: Why some scans were left out, a line each: headers are read before any superpixels are computed,
            voxels with them.

    Raises:
        ValueError: If there is no scan, no slice with a usable superpixel, or a setting is out of range.
        ScanError: If no scan can be used, or its label map is needed (setting 2) and cannot be read.
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
        _check_settings(seed, shots, id_rule, min_area, statistics, query_distance)
        scans, self.problems = _with_headers(_distinct_images([*data, *more_data]))
        self.seed, self.shots, self.channels = seed, shots, channels
        self.transform = transform
        self.augmentation = Augmentation() if augmentation is None else augmentation
        self.id_rule, self.min_area = id_rule, min_area
        self.query_distance, self.statistics = query_distance, statistics
        self.data, self.scans = self._usable_scans(scans, tried_scans(scans, transform, cache_dir, num_workers))
        self.numbers = _standardization(self.scans, statistics, statistics_file)
        self.exclusion = exclusion if exclusion is not None and exclusion.organs else None
        self.slices = self._usable_slices()
        self._usable = {(scan, z): ids for scan, z, ids in self.slices}

    def _usable_scans(
        self, scans: Sequence[Scan], found: Sequence[CachedScan | ScanError]
    ) -> tuple[list[Scan], list[CachedScan]]:
        """Return the scans that can be used, and their slices; name the others."""
        self.problems += _named(str(error) for error in found if isinstance(error, ScanError))
        used = [(scan, slices) for scan, slices in zip(scans, found, strict=True) if isinstance(slices, CachedScan)]
        if not used:
            raise ScanError("no scan can be used to train on:\n  " + "\n  ".join(self.problems))
        return [scan for scan, _ in used], [slices for _, slices in used]

    def made_with(self) -> dict[str, Any]:
        """Return everything that determines the episodes and their order: files by their content, and settings."""
        names = ("seed", "shots", "channels", "id_rule", "min_area", "query_distance", "statistics")
        parts = {name: getattr(self, name) for name in (*names, "transform", "augmentation", "exclusion")}
        return {"scans": file_records(scan[IMAGE] for scan in self.data), **parts}

    def __len__(self) -> int:
        """Return the number of usable slices; every index from 0 on is a valid episode."""
        return len(self.slices)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Make episode ``index``.

        Returns:
            ``image (C, H, W)`` and ``label (1, H, W)`` of the query; ``support_image (K, C, H, W)`` and
            ``support_mask (K, 1, H, W)``. Images are standardized float32, masks float32 in {0, 1}.

        Raises:
            RuntimeError: If no draw has enough foreground and background.
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
        """Draw slice and mask of the support and of the query."""
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

    def _usable_slices(self) -> list[tuple[int, int, np.ndarray]]:
        """Return (scan, slice, drawable ids) of each slice that has such ids and is not excluded."""
        excluded = None if self.exclusion is None else self.exclusion.of(self.data)
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


def _check_settings(seed: int, shots: int, id_rule: str, min_area: int, statistics: str, query_distance: int) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be a whole number from 0, got {seed!r}. Set it to 1234, for example.")
    if isinstance(shots, bool) or not isinstance(shots, int) or shots < 1:
        raise ValueError(f"shots must be a whole number of support views, at least 1, got {shots!r}. The paper uses 1.")
    if min_area < 1:
        raise ValueError(f"min_area must be at least 1 pixel, got {min_area}. The default is 64.")
    if id_rule not in ("present", "reference"):
        raise ValueError(f"id_rule must be 'present' or 'reference', got {id_rule!r}. The default is present.")
    if statistics not in ("volume", "training_set"):
        raise ValueError(f"statistics must be 'volume' or 'training_set', got {statistics!r}. Take volume for MR.")
    if query_distance < 0:
        raise ValueError(f"query_distance must be at least 0 slices, got {query_distance}. The paper uses 0.")


def _distinct_images(scans: Sequence[Scan]) -> list[Scan]:
    images: list[Scan] = list({str(scan[IMAGE]): {IMAGE: scan[IMAGE]} for scan in scans}.values())
    if not images:
        raise ValueError("there is no scan to train on. Check dataset_dir, and fold if it is set.")
    return images


def _with_headers(scans: Sequence[Scan]) -> tuple[list[Scan], list[str]]:
    """Return the scans whose headers can be read, and what is wrong with the others, which is named at once."""
    usable, problems = [], []
    for scan in scans:
        try:
            look_at(scan[IMAGE])
            usable.append(scan)
        except FileError as error:
            problems.append(str(error))
    return usable, _named(problems)


def _named(problems: Iterable[str]) -> list[str]:
    """Log problems of scans, once for all processes, and return them."""
    found = list(problems)
    for problem in found if distributed.is_first() else []:
        logger.error("cannot use %s", problem)
    return found


def _standardization(
    scans: Sequence[CachedScan], statistics: str, file: str | Path | None
) -> list[tuple[float, float]]:
    """Return the mean and the standard deviation for each scan; those of the training set go to the file."""
    if statistics == "volume":
        return [(scan.mean, scan.variance**0.5) for scan in scans]
    sizes = np.array([scan.image.size for scan in scans], dtype=float)
    means = np.array([scan.mean for scan in scans])
    variances = np.array([scan.variance for scan in scans])
    mean = float((sizes * means).sum() / sizes.sum())
    # The variance over all voxels: the mean of the variances plus the variance of the means.
    variance = float((sizes * (variances + (means - mean) ** 2)).sum() / sizes.sum())
    if file is not None:
        _write_statistics(Path(file), mean, variance**0.5)
    return [(mean, variance**0.5)] * len(scans)


def _write_statistics(path: Path, mean: float, std: float) -> None:
    if distributed.is_first():
        with written_whole(path) as unfinished:
            unfinished.write_text(json.dumps({"mean": mean, "std": std}), encoding="utf-8")
    idist.barrier()  # no process reads it earlier


class EpisodeSampler(Sampler[int]):
    """Count episodes 0, 1, 2, ... without end; a resumed run continues where the previous one stopped.

    With ``P`` processes, rank ``r`` gets ``start + r``, ``start + r + P``, ... If the batch is divided equally among
    them, step ``s`` uses the same episodes for any number of processes.

    Args:
        start: First episode.
    """

    def __init__(self, start: int = 0) -> None:
        self.start = start

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.start + idist.get_rank(), idist.get_world_size())
