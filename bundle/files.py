"""Files that are there whole, or not at all."""

from __future__ import annotations

import csv
import hashlib
import os
import re
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
    """Write a table beside its place, then rename it. A name that a spreadsheet would compute is quoted with ``'``."""
    quoted = (["'" + cell if _FORMULA.match(cell) else cell for cell in row] for row in rows)
    with written_whole(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(quoted)


def read_csv(path: Path) -> list[list[str]]:
    """Return the rows of a table that ``write_csv`` wrote, names as they were given."""
    with path.open(newline="", encoding="utf-8") as file:
        return [[cell[1:] if _QUOTED.match(cell) else cell for cell in row] for row in csv.reader(file)]


def safe_name(name: str) -> str:
    """Return a name for a file or a folder: ``name`` where it is one, else without what leads to another place.

    Names that differ stay different: where a character is replaced, some digits of a hash are added.
    """
    plain = re.sub(r"[^\w+\-. ]", "_", name).strip(". ")
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


# Numbers begin with a sign, too.
_FORMULA = re.compile(r"(?!'*[+-]?[\d.]+(e[+-]?\d+)?$)'*[=+\-@\t\r]")
_QUOTED = re.compile("'" + _FORMULA.pattern)
