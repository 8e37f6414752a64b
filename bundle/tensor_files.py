"""PyTorch files (``.pt``): written whole or not at all, and every byte is checked when they are read."""

from __future__ import annotations

import io
import pickle
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from bundle.files import written_whole


def write_tensors(state: Any, path: Path) -> None:
    """Write a file whole or not at all.

    Raises:
        WriteError: If the file cannot be written, or the disk is full.
    """
    # Through memory: over a full disk, PyTorch's own message says only that an enforcement failed.
    content = io.BytesIO()
    torch.save(state, content)
    with written_whole(path) as unfinished:
        unfinished.write_bytes(content.getbuffer())


def read_tensors(path: Path, advice: str) -> dict[str, Any]:
    """Read a dictionary of tensors and plain values; nothing in the file is executed.

    PyTorch files are zip archives. The checksum of each record is compared here, since PyTorch skips that.

    Args:
        path: The file.
        advice: The remedy for a file that cannot be used, for the message.

    Raises:
        ValueError: If the file is damaged, or holds something else; the message says what was found.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as records:
                broken = records.testzip()
            if broken is not None:
                raise zipfile.BadZipFile(f"the checksum of its record {broken} is wrong")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, LookupError, pickle.UnpicklingError, *DAMAGED) as error:
        raise ValueError(f"{path} cannot be read as a PyTorch file: {_looks(path, error)}. {advice}") from error
    if not isinstance(state, Mapping):
        raise ValueError(f"{path} must hold a dictionary of tensors, got {type(state).__name__}. {advice}")
    return dict(state)


# What zipfile and pickle raise over invalid bytes, besides what they document.
DAMAGED = (zipfile.BadZipFile, zlib.error, NotImplementedError, AttributeError, TypeError, OSError)


def _looks(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        return "it is empty"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, so fetch the file itself with `git lfs pull`"
    if isinstance(error, zipfile.BadZipFile):
        return f"it is damaged ({error})"
    if start.startswith(b"PK"):
        return "it is truncated or damaged"
    return f"it holds something other than tensors and plain values ({type(error).__name__})"
