"""Find misspelt keys: MONAI takes any key on the command line, and ignores in silence what nothing uses."""

from __future__ import annotations

import ast
import difflib
import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

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


def refuse_unknown_keys(argv: Sequence[str] | None = None) -> None:
    """Raise if a key of this command belongs to no config.

    A key is known if the first config file has it, or if any of the config files refers to it. Checked are the keys
    on the command line, in ``--args_file``, and in the config files after the first.

    Args:
        argv: The command's words; ``None`` takes this process's.

    Raises:
        ValueError: If there is an unknown key; the message names the nearest known one.
    """
    given = _given_arguments(sys.argv if argv is None else argv)
    files = _config_files(given.get("config_file"))
    if not files:
        return  # not started by a command with a config
    configs = [yaml.safe_load(path.read_text()) or {} for path in files]
    texts = [path.read_text() for path in files] + [str(value) for value in given.values()]
    known = set(configs[0]) | RUN_ARGUMENTS | _references(texts)
    _refuse(set(given) - known, known, "the command")
    for path, config in zip(files[1:], configs[1:], strict=True):
        _refuse({_top(key) for key in config} - known, known, str(path))


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
        given |= {_top(key): value for key, value in json.loads(Path(given["args_file"]).read_text()).items()}
    return given


def _top(key: str) -> str:
    return re.split(r"::|#", key.lstrip("+%"))[0]


def _config_files(value: Any) -> list[Path]:
    if isinstance(value, str) and value.startswith("["):
        value = ast.literal_eval(value)
    names = [value] if isinstance(value, str) else list(value or [])
    return [path for path in map(Path, names) if path.is_file()]


def _references(texts: Iterable[str]) -> set[str]:
    return {match for text in texts for match in re.findall(r"[@%]([A-Za-z_]\w*)", text)}
