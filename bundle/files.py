"""Files that are written whole or not at all, and folders that one command at a time writes to."""

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
from io import StringIO
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

# Prefix of the names of unfinished files and folders.
UNFINISHED = ".tmp-"

# Seconds after which an unfinished file or folder counts as abandoned; writing one takes seconds.
ABANDONED_AFTER = 24 * 3600

FULL = (errno.ENOSPC, errno.EDQUOT)

FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR)

# Folders that this process has locked until it ends.
_held: dict[Path, ExitStack] = {}


class WriteError(ValueError):
    """A file that cannot be written; the message names the file, the reason and the remedy."""


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder, and rename it to ``path`` at the end; on failure the old file stays.

    The temporary path is unique and has the suffix of ``path``, since some writers go by the suffix. Missing folders
    are made. Unfinished files of killed processes are removed from the folder.

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
            raise  # about another file, such as the source of a copy
        raise WriteError(f"{path} cannot be written ({error.strerror or error}). {advice(error)}") from error
    finally:
        with suppress(OSError):  # renamed, or never created
            unfinished.unlink()


def advice(error: OSError) -> str:
    """Return the remedy for a write error."""
    if error.errno in FULL:
        return "Free space there, or choose a folder on another disk, and rerun the command."
    if error.errno in FORBIDDEN:
        return "Choose a folder that can be written to."
    return "Fix the cause and rerun the command."


def unfinished_prefix() -> str:
    """Return a unique prefix for an unfinished file of this process: machine, process id and a random number."""
    return f"{UNFINISHED}{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}-"


def remove_abandoned(folder: Path, alone: bool = False) -> None:
    """Remove the unfinished files of this machine's killed processes, and all that are older than a day.

    Args:
        folder: The folder.
        alone: Whether no other process writes there; then every unfinished file is removed.
    """
    for path in folder.glob(f"{UNFINISHED}*"):
        with suppress(OSError):  # another process removed it first
            if alone or _process_has_ended(path) or time.time() - path.lstat().st_mtime > ABANDONED_AFTER:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _process_has_ended(path: Path) -> bool:
    machine, _, rest = path.name.removeprefix(UNFINISHED).partition("-")
    process = rest.partition("-")[0]
    if machine != _machine() or not process.isdigit() or os.name != "posix":
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except OSError:  # it runs, as another user
        return False
    return False


def _machine() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:6]


@contextmanager
def alone_in(folder: Path, lock_file: Path | None = None) -> Iterator[None]:
    """Lock a folder against other commands.

    Args:
        folder: The folder; it is made if missing, unless ``lock_file`` lies elsewhere.
        lock_file: The lock file; ``None`` means ``.lock`` in the folder. It is removed at the end.

    Raises:
        WriteError: If another command has locked it, or it cannot be written to.
    """
    place = lock_file or folder / ".lock"
    lock = FileLock(place, timeout=0)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise WriteError(
            f"another command is writing to {folder}, and results must not be mixed. Wait until it ends, or choose "
            "another folder."
        ) from error
    except OSError as error:
        raise WriteError(f"{folder} cannot be written to ({error.strerror or error}). {advice(error)}") from error
    try:
        yield
    finally:
        with suppress(OSError):  # Windows cannot remove an open file
            place.unlink()
        lock.release()


def keep_alone(folder: str | Path) -> None:
    """Lock a folder against other commands until this process ends; locking it again does nothing.

    Raises:
        WriteError: If another command has locked it, or it cannot be written to.
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
    """Write a CSV table whole or not at all; a cell that a spreadsheet takes for a formula is quoted with ``'``."""
    with written_whole(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(_quoted(rows))


def append_csv(path: Path, rows: Sequence[Sequence[str]]) -> None:
    """Append rows to a table from ``write_csv``, in one go.

    Raises:
        WriteError: If they cannot be written, or the disk is full.
    """
    lines = StringIO(newline="")
    csv.writer(lines).writerows(_quoted(rows))
    try:
        with path.open("ab", buffering=0) as file:
            file.write(lines.getvalue().encode())
    except OSError as error:
        raise WriteError(f"{path} cannot be written ({error.strerror or error}). {advice(error)}") from error


def _quoted(rows: Sequence[Sequence[str]]) -> Iterator[list[str]]:
    for row in rows:
        yield ["'" + cell if _FORMULA.match(cell) else cell for cell in row]


def read_csv(path: Path) -> list[list[str]]:
    """Return the rows of a table from ``write_csv``, with its quotes removed."""
    with path.open(newline="", encoding="utf-8") as file:
        return [[cell[1:] if _QUOTED.match(cell) else cell for cell in row] for row in csv.reader(file)]


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file for people and ``read_json``; see ``written_whole``."""
    with written_whole(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


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
    """Return a valid name for a file or a folder: ``name`` itself, or with unsafe characters replaced.

    Different names stay different: if a character is replaced, some digits of a hash are appended.
    """
    plain = re.sub(r"[^\w+\-. ]", "_", name).strip(". ")
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


# A number may begin with a sign, and is no formula.
_FORMULA = re.compile(r"(?!'*[+-]?[\d.]+(e[+-]?\d+)?$)'*[=+\-@\t\r]")
_QUOTED = re.compile("'" + _FORMULA.pattern)
