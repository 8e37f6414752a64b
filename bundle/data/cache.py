"""Preprocessed slices and superpixels on disk: computed once, in parallel, read by memory map.

One folder an entry: ``image.npy`` float32 and ``superpixels.npy`` int16, both ``(Z, H, W)``, and ``entry.json``.
Its name is a hash of the image file's content and of the transform's parameters, so a changed file or a
changed parameter is a new entry. An entry is written beside its place and renamed, so it is whole or absent.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import json
import os
import shutil
import tempfile
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from bundle.data.loading import Scan, ScanError, read_scan
from bundle.keys import IMAGE, SUPERPIXELS

FORMAT = 1
"""Raise it when the content of an entry changes its meaning."""


@dataclass(frozen=True)
class CachedScan:
    """One scan's slices.

    Attributes:
        name: The image file's name.
        image: Slices, not standardized, float32 ``(Z, H, W)``, memory-mapped.
        superpixels: Their superpixel ids, int16 ``(Z, H, W)``, memory-mapped.
        mean: Mean over all voxels.
        variance: Population variance over all voxels.
    """

    name: str
    image: np.ndarray
    superpixels: np.ndarray
    mean: float
    variance: float


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
        num_workers: Processes that compute; ``None`` means one a core.

    Returns:
        One entry a scan, in their order.

    Raises:
        ScanError: If a scan cannot be used. Entries that were finished stay.
        ValueError: If the cache folder cannot be written to.
    """
    cache = _writable(Path(cache_dir))
    work = _Fill(scans, transform, cache)
    workers = min((os.cpu_count() or 1) if num_workers is None else num_workers, len(scans))
    loader = DataLoader(work, batch_size=None, num_workers=workers, generator=torch.Generator(device="cpu"))
    entries = list(tqdm(loader, total=len(scans), desc="superpixels", unit="scan"))
    if problems := [problem for _, problem in entries if problem]:
        raise ScanError("\n  ".join(problems))
    return [_open(cache / entry) for entry, _ in entries]


def _writable(cache: Path) -> Path:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".tmp-"):
            pass
    except OSError as error:
        raise ValueError(
            f"the cache folder {cache} cannot be written to ({error.strerror}). Set cache_dir to one that can."
        ) from error
    return cache


class _Fill(Dataset[tuple[str, str]]):
    """Makes the entry of each scan: a data set only to borrow the loader's processes.

    An item is the entry's name and what is wrong with the scan, ``""`` if nothing is.
    """

    def __init__(self, scans: Sequence[Scan], transform: Callable[[Any], Any], cache: Path) -> None:
        self.scans, self.transform, self.cache = scans, transform, cache
        self.description = describe(transform)

    def __len__(self) -> int:
        return len(self.scans)

    def __getitem__(self, index: int) -> tuple[str, str]:
        scan = self.scans[index]
        entry = entry_name(scan, self.description)
        if not (self.cache / entry).is_dir():
            try:
                volumes = read_scan({IMAGE: scan[IMAGE]}, self.transform)
            except ScanError as error:
                return entry, str(error)
            _write(self.cache / entry, scan, volumes)
        return entry, ""


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
    unfinished = Path(tempfile.mkdtemp(dir=entry.parent, prefix=".tmp-"))
    try:
        np.save(unfinished / "image.npy", image)
        np.save(unfinished / "superpixels.npy", superpixels)
        (unfinished / "entry.json").write_text(json.dumps(numbers))
        unfinished.rename(entry)
    except OSError:
        if not entry.is_dir():  # else another process was first, with the same content
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _open(entry: Path) -> CachedScan:
    numbers = json.loads((entry / "entry.json").read_text())
    return CachedScan(
        name=numbers["source"],
        image=np.load(entry / "image.npy", mmap_mode="r"),
        superpixels=np.load(entry / "superpixels.npy", mmap_mode="r"),
        mean=numbers["mean"],
        variance=numbers["variance"],
    )


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
