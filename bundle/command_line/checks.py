"""What a user sees of a mistake: misspelt keys are found, and errors end in one plain sentence."""

from __future__ import annotations

import ast
import difflib
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import yaml

from bundle.files import keep_alone

RUN_ARGUMENTS = {
    "run_id",
    "init_id",
    "final_id",
    "meta_file",
    "config_file",
    "logging_file",
    "tracking",
    "args_file",
    "workflow_name",
    "workflow_type",
    "properties_path",
    "help",
}
"""What ``monai.bundle run`` itself takes."""


EXPLAINED_ERRORS = (ValueError, FileNotFoundError, FloatingPointError)
"""What the bundle raises over a user's input."""


def refuse_counts(**counts: Any) -> None:
    """Raise if a number of things to do is not a whole number of at least 1.

    Raises:
        ValueError: With the name and the value of the first that is not.
    """
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {count!r}.")


def refuse_unknown_keys(argv: Sequence[str] | None = None) -> None:
    """Raise if a key of this command belongs to no config.

    MONAI takes any key, and ignores in silence one that nothing uses. Here a key is known if the first config file or
    an override that is shipped beside it has it, or if any of the files refers to it. Checked are the keys on the
    command line, in ``--args_file``, and in config files from elsewhere.

    Args:
        argv: The command's words; ``None`` takes this process's.

    Raises:
        ValueError: If there is an unknown key; the message names the nearest known one.
    """
    if argv is None and not _is_command():
        return
    given = _given_arguments(sys.argv if argv is None else argv)
    files = _config_files(given.get("config_file"))
    if not files:
        return  # not started by a command with a config
    configs = [yaml.safe_load(path.read_text()) or {} for path in files]
    texts = [path.read_text() for path in files] + [str(value) for value in given.values()]
    keys = [{_top(key) for key in config} for config in configs]
    shipped = [path.resolve().parent == files[0].resolve().parent for path in files]
    known = RUN_ARGUMENTS | _references(texts) | keys[0]
    known = known.union(*(names for names, ours in zip(keys, shipped, strict=True) if ours))
    _refuse(set(given) - known, known, "the command")
    for key, value in given.items():
        if str(value) in ("null", "None"):
            raise ValueError(
                f"--{key} {value} does not set null: MONAI reads a word, or ignores it. "
                f"Write --{key} '$None', in quotes."
            )
    for path, names in zip(files, keys, strict=True):
        _refuse(names - known, known, str(path))


def refuse_missing_device(device: Any) -> None:
    """Raise if there is no such device.

    Raises:
        ValueError: If it is no name of a device, or a GPU that PyTorch does not see.
    """
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be a name such as cpu or cuda:0, got {device!r}.") from error
    if wanted.type == "cuda" and (wanted.index or 0) >= (seen := torch.cuda.device_count()):
        raise ValueError(f"device {device} is not there: GPUs that PyTorch sees: {seen}. Use --device cpu.")


def keep_folder(folder: str | Path) -> None:
    """Let no other command write to a command's folder as long as this one runs.

    Raises:
        WriteError: If another command works in it, or it cannot be written to.
    """
    if _is_command() and os.environ.get("RANK", "0") == "0":  # of several processes, the first keeps it for all
        keep_alone(folder)


def switch(value: bool | str) -> bool:
    """Return a switch of a config, which may come from the command line as a word.

    Without it, ``--resume false`` would be the word "false", and a word counts as true.

    Raises:
        ValueError: If it is neither true nor false.
    """
    words = {"true": True, "false": False}
    if isinstance(value, bool):
        return value
    if str(value).lower() not in words:
        raise ValueError(f"a switch such as resume or amp must be true or false, got {value!r}.")
    return words[str(value).lower()]


def explain_errors() -> None:
    """From now on, let a bundle command that fails over its input end in one sentence instead of pages of traceback.

    Programming errors keep their traceback, and so does everything if the environment sets ``MONAI_DEBUG``. The exit
    code stays 1. Of several processes, the one is named.
    """
    if _is_command():
        sys.excepthook = _explain
        _quiet_decoders()


@contextmanager
def in_one_sentence() -> Iterator[None]:
    """Let a command that fails over its input, or is stopped, end in one sentence, with exit code 1.

    ``MONAI_DEBUG`` shows the traceback.
    """
    _quiet_decoders()
    try:
        yield
    except KeyboardInterrupt:
        sys.exit("stopped. The same command can be given again.")
    except (*EXPLAINED_ERRORS, OSError, ImportError, RuntimeError) as error:
        sentence = str(error) if isinstance(error, OSError) else sentence_of(error)
        if sentence is None or os.environ.get("MONAI_DEBUG"):
            raise
        sys.exit(f"error: {sentence}\n(MONAI_DEBUG=1 shows where it came from)")


def _quiet_decoders() -> None:
    """Keep MONAI from telling for every file that a GPU decoder of DICOM is not there."""
    logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")


def sentence_of(error: BaseException) -> str | None:
    """Return what a user should read of an error: the words of the bundle, or a wrong part of a config.

    MONAI wraps errors several times; this is the first cause. ``None``: a mistake in the program.
    """
    first: BaseException | None = error
    while first is not None and not isinstance(first, EXPLAINED_ERRORS):
        if mistake := _config_mistake(first):
            return mistake
        first = first.__cause__
    return None if first is None else str(first)


def _config_mistake(error: BaseException) -> str | None:
    """Say what is wrong with a part of a config: its ``_target_`` is not there, or does not take what it is given."""
    text = str(error)
    if isinstance(error, ModuleNotFoundError) and text.startswith("Cannot locate class"):
        return f"{text} Mend the _target_ in the config."
    found = re.match(r"Failed to instantiate component '([\w.]+)'", text)
    cause = error.__cause__
    # Below its own line the component has started, and the mistake is not the config's.
    if not found or not isinstance(cause, TypeError) or cause.__traceback__ is None or cause.__traceback__.tb_next:
        return None
    return f"the config's {found.group(1)} cannot be made: {cause}."


def _is_command() -> bool:
    """Tell whether this process is ``python -m monai.bundle`` or ``python -m bundle``, and no program that hosts us."""
    return Path(sys.argv[0]).parts[-2:] == ("bundle", "__main__.py")


def _explain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sentence = sentence_of(error)
    if sentence is None or os.environ.get("MONAI_DEBUG"):
        sys.__excepthook__(kind, error, trace)
    else:
        place = f" in process {os.environ['RANK']}" if os.environ.get("WORLD_SIZE", "1") != "1" else ""
        print(f"\nerror{place}: {sentence}\n(MONAI_DEBUG=1 shows where it came from)", file=sys.stderr)


def _refuse(unknown: Iterable[str], known: Iterable[str], place: str) -> None:
    for key in sorted(unknown):
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else "See the top of the config file for the keys there are."
        raise ValueError(f"unknown key {key!r} in {place}: no config has it and nothing refers to it. {hint}")


def _given_arguments(argv: Sequence[str]) -> dict[str, Any]:
    """Return the top-level keys that a command sets, with their values as text where they are."""
    given: dict[str, Any] = {}
    for place, word in enumerate(argv):
        if not re.match(r"--?[A-Za-z_+%]", word):
            continue
        name, _, value = word.lstrip("-").partition("=")
        if not value and place + 1 < len(argv) and not argv[place + 1].startswith("--"):
            value = argv[place + 1]
        given[_top(name.replace("-", "_"))] = value
    if given.get("args_file") and Path(given["args_file"]).is_file():
        from_file = yaml.safe_load(Path(given["args_file"]).read_text()) or {}  # JSON is YAML, too
        given = {_top(key): value for key, value in from_file.items()} | given
    return given


def _top(key: str) -> str:
    return re.split(r"::|#", key.lstrip("+%"))[0]


def _config_files(value: Any) -> list[Path]:
    if isinstance(value, str) and value.startswith("["):
        value = ast.literal_eval(value)
    names = value.split(",") if isinstance(value, str) else list(value or [])
    return [path for path in map(Path, names) if path.is_file()]


def _references(texts: Iterable[str]) -> set[str]:
    return {match for text in texts for match in re.findall(r"[@%]([A-Za-z_]\w*)", text)}
