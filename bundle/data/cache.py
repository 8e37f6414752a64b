"""The cache of preprocessed slices and superpixels: computed once, in parallel, and read by memory map.

Each entry is a folder with ``image.npy`` float32 and ``superpixels.npy`` int16, both ``(Z, H, W)``, and ``entry.json``.
Its name is a hash of the image file's content, the transform's parameters and code, and the libraries' versions, so a
change of any of them makes a new entry. An entry is written whole or not at all; unfinished entries of killed processes
are removed.
"""

from __future__ import annotations

import functools
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from bundle import distributed
from bundle.data.loading import Scan, ScanError, read_scan
from bundle.files import remove_abandoned, unfinished_prefix
from bundle.keys import IMAGE, SUPERPIXELS
from bundle.provenance import content_hash, describe, digest, library_versions
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

# Raise it when the content of an entry changes its meaning.
FORMAT = 2


class CacheError(ValueError):
    """A cache folder that cannot be used; the message names the folder, the reason and the remedy."""


# The name of an entry, and the error that prevented it, if any.
_Made = tuple[str, ValueError | None]


@dataclass(frozen=True)
class CachedScan:
    """One scan's slices. Only their location is pickled for other processes, not the slices themselves.

    Attributes:
        entry: The folder of the cache entry.
        name: The image file's name.
        mean: Mean over all voxels.
        variance: Population variance over all voxels.
    """

    entry: Path
    name: str
    mean: float
    variance: float

    @functools.cached_property
    def image(self) -> np.ndarray:
        """Slices, not standardized, float32 ``(Z, H, W)``, memory-mapped."""
        return np.load(self.entry / "image.npy", mmap_mode="r")

    @functools.cached_property
    def superpixels(self) -> np.ndarray:
        """Their superpixel ids, int16 ``(Z, H, W)``, memory-mapped."""
        return np.load(self.entry / "superpixels.npy", mmap_mode="r")

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def cached_scans(
    scans: Sequence[Scan], transform: Callable[[Any], Any], cache_dir: str | Path, num_workers: int | None = None
) -> list[CachedScan]:
    """Return the slices of all scans; see ``tried_scans``.

    Raises:
        ScanError: If a scan cannot be used; the message names all of them. Finished entries stay.
        CacheError: If the cache folder cannot be written to, or is full, or an entry is damaged.
    """
    found = tried_scans(scans, transform, cache_dir, num_workers)
    if problems := [scan for scan in found if isinstance(scan, ScanError)]:
        raise ScanError("\n  ".join(map(str, problems)))
    return [scan for scan in found if isinstance(scan, CachedScan)]


def tried_scans(
    scans: Sequence[Scan], transform: Callable[[Any], Any], cache_dir: str | Path, num_workers: int | None = None
) -> list[CachedScan | ScanError]:
    """Return the slices of all scans, computing those that are not in the cache.

    Args:
        scans: The scans' files.
        transform: Makes ``image`` and ``superpixels``, each ``(1, H, W, Z)``, from a scan's files.
        cache_dir: Folder of the entries; it is made if missing.
        num_workers: Worker processes; ``None`` means one per core. With several processes in a run, each has this many
            workers and computes its share of the scans.

    Returns:
        One entry for each scan, in the same order; the error in place of a scan that cannot be used.

    Raises:
        CacheError: If the cache folder cannot be written to, or is full, or an entry is damaged.
    """
    cache = _writable(Path(cache_dir))
    work = _Fill(scans, transform, cache)
    if not distributed.alone():
        # Each process makes its share. Errors are returned below, where every process goes through all entries.
        _made(work, distributed.own_share(scans), num_workers)
        idist.barrier()
    entries = _made(work, range(len(scans)), num_workers)
    for _, problem in entries:
        if isinstance(problem, CacheError):
            raise problem
    return [problem if isinstance(problem, ScanError) else _open(cache / entry) for entry, problem in entries]


def _made(work: _Fill, share: range, num_workers: int | None) -> list[_Made]:
    """Return the items of a share, up to the first that cannot be written, since the next would fail too."""
    cores = max(distributed.available_cores() // idist.get_nproc_per_node(), 1)
    workers = min(cores if num_workers is None else num_workers, len(share))
    random = torch.Generator(device="cpu")
    loader = DataLoader(work, batch_size=None, sampler=share, num_workers=workers, generator=random)
    entries = []
    for item in tqdm(loader, total=len(share), desc="superpixels", unit="scan", disable=not distributed.is_first()):
        entries.append(item)
        if isinstance(item[1], CacheError):
            break
    return entries


def _writable(cache: Path) -> Path:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=unfinished_prefix()):
            pass
    except OSError as error:
        raise _unwritable(cache, error) from error
    remove_abandoned(cache)
    return cache


def _unwritable(cache: Path, error: OSError) -> CacheError:
    return CacheError(
        f"the cache folder {cache} cannot be written to ({error.strerror}). Set cache_dir to another folder, or "
        "free space there; finished entries are kept."
    )


class _Fill(Dataset[_Made]):
    """Makes the entry of each scan; it is a data set only to use the loader's worker processes.

    An item is the entry's name and the error that prevented it, or ``None``. Errors are returned, because the loader
    would add its worker's traceback to the message of a raised one.
    """

    def __init__(self, scans: Sequence[Scan], transform: Callable[[Any], Any], cache: Path) -> None:
        self.scans, self.transform, self.cache = scans, transform, cache
        self.description = digest(describe(transform))

    def __len__(self) -> int:
        return len(self.scans)

    def __getitem__(self, index: int) -> _Made:
        scan = self.scans[index]
        entry = entry_name(scan, self.description)
        if not (self.cache / entry).is_dir():
            try:
                _write(self.cache / entry, scan, read_scan({IMAGE: scan[IMAGE]}, self.transform))
            except (ScanError, CacheError) as error:
                return entry, error
        return entry, None


def entry_name(scan: Scan, description: str) -> str:
    """Return the name of a scan's entry: the hash of its image's content and of everything that shapes the result."""
    made_with = {"format": FORMAT, "content": content_hash(scan[IMAGE]), "transform": description}
    return digest(made_with | library_versions(), length=32)


def _write(entry: Path, scan: Scan, volumes: Mapping[str, Any]) -> None:
    image = np.ascontiguousarray(np.moveaxis(np.asarray(volumes[IMAGE][0], dtype=np.float32), -1, 0))
    superpixels = np.ascontiguousarray(np.moveaxis(np.asarray(volumes[SUPERPIXELS][0], dtype=np.int16), -1, 0))
    exact = image.astype(np.float64)
    numbers = {"source": Path(scan[IMAGE]).name, "mean": float(exact.mean()), "variance": float(exact.var())}
    unfinished = None
    try:
        unfinished = Path(tempfile.mkdtemp(dir=entry.parent, prefix=unfinished_prefix()))
        (unfinished / "image.npy").write_bytes(_in_npy(image))
        (unfinished / "superpixels.npy").write_bytes(_in_npy(superpixels))
        (unfinished / "entry.json").write_bytes(json.dumps(numbers).encode())
        unfinished.rename(entry)
    except OSError as error:
        if not entry.is_dir():  # otherwise another process was first, with the same content
            raise _unwritable(entry.parent, error) from error
    finally:
        if unfinished is not None:
            shutil.rmtree(unfinished, ignore_errors=True)


def _in_npy(array: np.ndarray) -> memoryview:
    # Through memory: when NumPy writes to a file, it does not notice that the disk has no room for the last bytes.
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getbuffer()


def _open(entry: Path) -> CachedScan:
    try:
        numbers = json.loads((entry / "entry.json").read_text(encoding="utf-8"))
        scan = CachedScan(entry, numbers["source"], numbers["mean"], numbers["variance"])
        if scan.image.shape != scan.superpixels.shape:  # opens both, so that a damaged file is named here
            raise ValueError(f"slices {scan.image.shape}, superpixels {scan.superpixels.shape}")
        return scan
    except (OSError, ValueError, KeyError) as error:  # not from a killed process, but possible after a power cut
        raise CacheError(
            f"the cache entry {entry} is damaged ({type(error).__name__}: {error}). Remove that folder; the next run "
            "computes it again."
        ) from error
