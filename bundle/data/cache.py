"""Preprocessed slices and superpixels on disk: computed once, in parallel, read by memory map.

One folder an entry: ``image.npy`` float32 and ``superpixels.npy`` int16, both ``(Z, H, W)``, and ``entry.json``.
Its name is a hash of the image file's content and of the transform's parameters, so a changed file or a
changed parameter is a new entry. An entry is written beside its place and renamed, so it is whole or absent; what a
killed process was writing is removed after a day.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import io
import json
import shutil
import tempfile
import time
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from bundle import distributed
from bundle.data.loading import Scan, ScanError, read_scan
from bundle.keys import IMAGE, SUPERPIXELS

FORMAT = 1
"""Raise it when the content of an entry changes its meaning."""

UNFINISHED = ".tmp-"
"""How the names of entries begin that are still written."""

ABANDONED_AFTER = 24 * 3600
"""Seconds after which nobody writes to an unfinished entry any more; writing one takes seconds."""


class CacheError(ValueError):
    """A cache folder that cannot be used; the message names the folder, the reason and what to do."""


_Made = tuple[str, ValueError | None]
"""The name of an entry, and why it could not be made."""


@dataclass(frozen=True)
class CachedScan:
    """One scan's slices. What goes to another process is where they lie, and not the slices.

    Attributes:
        entry: The folder that they lie in.
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
    scans: Sequence[Scan],
    transform: Callable[[Any], Any],
    cache_dir: str | Path,
    num_workers: int | None = None,
) -> list[CachedScan]:
    """Return the slices of all scans, computing those that are not in the cache yet.

    Args:
        scans: The scans' files.
        transform: Gives ``image`` and ``superpixels``, each ``(1, H, W, Z)``, from a scan's files.
        cache_dir: Where entries are kept; made if missing.
        num_workers: Processes that compute; ``None`` means one a core. Of several processes of a run, each has so many,
            and computes its share of the scans.

    Returns:
        One entry a scan, in their order.

    Raises:
        ScanError: If a scan cannot be used. Entries that were finished stay.
        CacheError: If the cache folder cannot be written to, or is full, or an entry is damaged.
    """
    cache = _writable(Path(cache_dir))
    work = _Fill(scans, transform, cache)
    if not distributed.alone():
        # Each process makes its share. What went wrong is said below, where every one of them looks at all.
        _made(work, distributed.own_share(scans), num_workers)
        idist.barrier()
    entries = _made(work, range(len(scans)), num_workers)
    problems = [problem for _, problem in entries if problem]
    if problems and isinstance(problems[-1], CacheError):
        raise problems[-1]
    if problems:
        raise ScanError("\n  ".join(map(str, problems)))
    return [_open(cache / entry) for entry, _ in entries]


def _made(work: _Fill, share: range, num_workers: int | None) -> list[_Made]:
    """Return the items of a share; none after one that could not be written, since the next could not either."""
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
        with tempfile.TemporaryDirectory(dir=cache, prefix=UNFINISHED):
            pass
    except OSError as error:
        raise _unwritable(cache, error) from error
    _remove_abandoned(cache)
    return cache


def _unwritable(cache: Path, error: OSError) -> CacheError:
    return CacheError(
        f"the cache folder {cache} cannot be written to ({error.strerror}). Set cache_dir to one that can, or "
        "free space there; what was finished is kept."
    )


def _remove_abandoned(cache: Path) -> None:
    """Remove what processes that were killed had begun; younger ones may still be written."""
    for path in cache.glob(f"{UNFINISHED}*"):
        with contextlib.suppress(OSError):  # its process, or another one that cleans, was faster
            if time.time() - path.stat().st_mtime > ABANDONED_AFTER:
                shutil.rmtree(path)


class _Fill(Dataset[_Made]):
    """Makes the entry of each scan: a data set only to borrow the loader's processes.

    An item is the entry's name and what stopped it from being made, ``None`` if nothing did. Errors are items since
    the loader would put its process's traceback into the message of one that is raised.
    """

    def __init__(self, scans: Sequence[Scan], transform: Callable[[Any], Any], cache: Path) -> None:
        self.scans, self.transform, self.cache = scans, transform, cache
        self.description = describe(transform)

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
    """Return the name of a scan's entry: the hash of its image's content and of all that makes the result."""
    content = hashlib.sha256()
    path = Path(scan[IMAGE])
    if path.is_file():  # a missing file is reported where it is read
        with path.open("rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                content.update(block)
    content.update(f"format {FORMAT}, skimage {version('scikit-image')}, {description}".encode())
    return content.hexdigest()[:32]


def _write(entry: Path, scan: Scan, volumes: Mapping[str, Any]) -> None:
    image = np.ascontiguousarray(np.moveaxis(np.asarray(volumes[IMAGE][0], dtype=np.float32), -1, 0))
    superpixels = np.ascontiguousarray(np.moveaxis(np.asarray(volumes[SUPERPIXELS][0], dtype=np.int16), -1, 0))
    exact = image.astype(np.float64)
    numbers = {"source": Path(scan[IMAGE]).name, "mean": float(exact.mean()), "variance": float(exact.var())}
    unfinished = None
    try:
        unfinished = Path(tempfile.mkdtemp(dir=entry.parent, prefix=UNFINISHED))
        (unfinished / "image.npy").write_bytes(_in_npy(image))
        (unfinished / "superpixels.npy").write_bytes(_in_npy(superpixels))
        (unfinished / "entry.json").write_bytes(json.dumps(numbers).encode())
        unfinished.rename(entry)
    except OSError as error:
        if not entry.is_dir():  # else another process was first, with the same content
            raise _unwritable(entry.parent, error) from error
    finally:
        if unfinished is not None:
            shutil.rmtree(unfinished, ignore_errors=True)


def _in_npy(array: np.ndarray) -> memoryview:
    # NumPy writes files itself, and does not notice if the disk has no room for the last bytes.
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getbuffer()


def _open(entry: Path) -> CachedScan:
    try:
        numbers = json.loads((entry / "entry.json").read_text())
        scan = CachedScan(entry, numbers["source"], numbers["mean"], numbers["variance"])
        if scan.image.shape != scan.superpixels.shape:  # both are opened here, where a damaged file is named
            raise ValueError(f"slices {scan.image.shape}, superpixels {scan.superpixels.shape}")
        return scan
    except (OSError, ValueError, KeyError) as error:  # no process leaves it so; a disk that lost power may
        raise CacheError(
            f"the entry {entry} of the cache is damaged ({type(error).__name__}: {error}). Remove that folder; the "
            "next run makes it again."
        ) from error


def describe(thing: Any) -> str:
    """Spell out a transform and all its parameters, so that equal texts mean equal results.

    Random states, which a deterministic transform carries unused, are left out.
    """
    if isinstance(thing, functools.partial):
        return f"partial({describe(thing.func)}, {describe(thing.args)}, {describe(thing.keywords)})"
    if isinstance(thing, types.MethodType):
        return f"{describe(thing.__func__)} of {describe(thing.__self__)}"
    if isinstance(thing, types.FunctionType):
        return _describe_function(thing)
    if isinstance(thing, type | types.BuiltinFunctionType):
        return f"{thing.__module__}.{thing.__qualname__}"
    if isinstance(thing, torch.Tensor):
        return f"tensor {describe(thing.detach().cpu().numpy())}"
    if isinstance(thing, np.ndarray):
        return f"{thing.dtype} {thing.shape} {hashlib.sha256(np.ascontiguousarray(thing).tobytes()).hexdigest()}"
    if isinstance(thing, np.random.RandomState):
        return "random state"
    return _describe_container(thing)


def _describe_function(function: types.FunctionType) -> str:
    """Tell a function by its name, its source and what it closes over."""
    code = function.__code__
    plain = [constant for constant in code.co_consts if isinstance(constant, str | int | float | None)]
    source = f"{code.co_code.hex()} {code.co_names} {plain!r}"
    with contextlib.suppress(OSError):  # typed into an interpreter
        source += inspect.getsource(function)
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    digest = hashlib.sha256(source.encode()).hexdigest()[:16]
    return f"{function.__module__}.{function.__qualname__} {digest} {describe(cells)}"


def _describe_container(thing: Any) -> str:
    if isinstance(thing, Mapping):
        return "{" + ", ".join(f"{key!r}: {describe(thing[key])}" for key in sorted(thing, key=str)) + "}"
    if isinstance(thing, set | frozenset):
        return "{" + ", ".join(sorted(describe(item) for item in thing)) + "}"
    if isinstance(thing, list | tuple):
        return "[" + ", ".join(describe(item) for item in thing) + "]"
    plain = isinstance(thing, str | int | float | complex | bool | bytes | Path | type(None))
    if plain or not hasattr(thing, "__dict__"):
        return repr(thing)
    return f"{describe(type(thing))}({describe(vars(thing))})"
