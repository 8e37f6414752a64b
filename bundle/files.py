"""Files that are there whole, or not at all, and folders that one command at a time writes to."""

from __future__ import annotations

import atexit
import csv
import errno
import hashlib
import json
import os
import platform
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

UNFINISHED = ".tmp-"
"""How the names of files and folders begin that are still written."""

ABANDONED_AFTER = 24 * 3600
"""Seconds after which nobody writes to an unfinished file or folder any more; writing one takes seconds."""

FULL = (errno.ENOSPC, errno.EDQUOT)

FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR)

_held: dict[Path, ExitStack] = {}
"""Folders that this process keeps until its end."""


class WriteError(ValueError):
    """A file that cannot be written; the message names it, the reason and what to do."""


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a path beside ``path`` to write to, and rename it when that is done; what fails leaves the old file alone.

    The path given is no other writer's, and ends as ``path`` does, for writers that go by the suffix. Missing folders
    are made. What killed processes left in the folder is removed.

    Raises:
        WriteError: If the file cannot be written, or the disk is full.
    """
    unfinished = path.with_name(f"{unfinished_prefix()}{path.name[-100:]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path.parent)
        yield unfinished
        os.replace(unfinished, path)
    except OSError as error:
        if str(error.filename) not in ("None", *map(str, (path, unfinished, *path.parents))):
            raise  # over another file, such as the one that is copied
        raise WriteError(f"{path} cannot be written ({error.strerror or error}). {advice(error)}") from error
    finally:
        with suppress(OSError):  # renamed, or never begun
            unfinished.unlink()


def advice(error: OSError) -> str:
    """Return what to do about an error of writing."""
    if error.errno in FULL:
        return "Free space there, or choose a folder on another disk, and rerun the command."
    if error.errno in FORBIDDEN:
        return "Choose a folder that can be written to."
    return "Fix the cause and rerun the command."


def unfinished_prefix() -> str:
    """Return how the name of a file begins that this process writes now, and no other: machine, process, a number."""
    return f"{UNFINISHED}{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}-"


def remove_abandoned(folder: Path, alone: bool = False) -> None:
    """Remove what killed processes of this machine had begun in a folder, and what is older than a day.

    Args:
        folder: The folder.
        alone: Nobody else writes there, so that all that is unfinished is removed.
    """
    for path in folder.glob(f"{UNFINISHED}*"):
        with suppress(OSError):  # its process, or another one that cleans, was faster
            if alone or _is_of_the_dead(path) or time.time() - path.lstat().st_mtime > ABANDONED_AFTER:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _is_of_the_dead(path: Path) -> bool:
    machine, _, rest = path.name.removeprefix(UNFINISHED).partition("-")
    process = rest.partition("-")[0]
    if machine != _machine() or not process.isdigit() or os.name != "posix":
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except OSError:  # it lives, and is somebody else's
        return False
    return False


def _machine() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:6]


@contextmanager
def alone_in(folder: Path, lock_file: Path | None = None) -> Iterator[None]:
    """Keep a folder from other commands meanwhile.

    Args:
        folder: The folder; it is made if missing, unless it is locked by a file elsewhere.
        lock_file: What locks it, ``.lock`` in it if ``None``; it is gone afterwards.

    Raises:
        WriteError: If another command works in it, or it cannot be written to.
    """
    place = lock_file or folder / ".lock"
    lock = FileLock(place, timeout=0)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise WriteError(
            f"another command works in {folder}, and results must not be mixed. Wait for it, or choose another folder."
        ) from error
    except OSError as error:
        raise WriteError(f"{folder} cannot be written to ({error.strerror or error}). {advice(error)}") from error
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no open file
            place.unlink()
        lock.release()


def keep_alone(folder: str | Path) -> None:
    """Keep a folder from other commands until this process ends; as often as it likes.

    Raises:
        WriteError: If another command works in it, or it cannot be written to.
    """
    place = Path(folder).resolve()
    if place not in _held:
        stack = ExitStack()
        stack.enter_context(alone_in(place))
        _held[place] = stack
        atexit.register(stack.close)


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


def read_json(path: Path, advice: str, needed: Sequence[str] = ()) -> dict[str, Any]:
    """Return the mapping that a JSON file holds.

    Args:
        path: The file.
        advice: What to do about a file that cannot be used, for the message.
        needed: Names that must be in it.

    Raises:
        ValueError: If the file is damaged, holds no mapping, or lacks a name.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}): it is damaged. {advice}") from error
    if not isinstance(found, dict) or not found.keys() >= set(needed):
        names = f" with {', '.join(needed)}" if needed else ""
        raise ValueError(f"{path} must hold a mapping{names}, got {str(found)[:80]!r}. {advice}")
    return found


def safe_name(name: str) -> str:
    """Return a name for a file or a folder: ``name`` where it is one, else without what leads to another place.

    Names that differ stay different: where a character is replaced, some digits of a hash are added.
    """
    plain = re.sub(r"[^\w+\-. ]", "_", name).strip(". ")
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


# Numbers begin with a sign, too.
_FORMULA = re.compile(r"(?!'*[+-]?[\d.]+(e[+-]?\d+)?$)'*[=+\-@\t\r]")
_QUOTED = re.compile("'" + _FORMULA.pattern)
