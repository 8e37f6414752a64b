"""Files that are there whole, or not at all."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path


class WriteError(ValueError):
    """A file that cannot be written; the message names it, the reason and what to do."""


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a path beside ``path`` to write to, and rename it when that is done; what fails leaves the old file alone.

    The path given ends as ``path`` does, for writers that go by the suffix. Missing folders are made.

    Raises:
        WriteError: If the folder cannot be written to, or is full.
    """
    unfinished = path.with_name(f".tmp-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        os.replace(unfinished, path)
    except OSError as error:
        raise WriteError(
            f"{path} cannot be written ({error.strerror or error}). Free space there, or choose a folder that can be "
            "written to."
        ) from error
    finally:
        with suppress(OSError):  # renamed, or never begun
            unfinished.unlink()


def text_of(path: str | Path | None, missing: str) -> str:
    """Return what a text file holds; ``missing`` where there is none."""
    return Path(path).read_text(encoding="utf-8") if path is not None and Path(path).is_file() else missing


def file_name(path: str | Path | None) -> str:
    """Return a file's name without its folder; ``"none"`` for no file."""
    return "none" if path is None else Path(path).name


def write_csv(path: Path, rows: Sequence[Sequence[str]]) -> None:
    """Write a table beside its place, then rename it."""
    with written_whole(path) as unfinished, unfinished.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
