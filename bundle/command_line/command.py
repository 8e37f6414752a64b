"""The keys of a command, checked against the configs that it reads: misspelt ones are refused before any work.

config files + keys of the command  ->  nothing, or one sentence with the nearest known name

Programs that host the bundle, such as a server, have their own options, which are not checked.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bundle.command_line.configs import read_config
from bundle.command_line.errors import is_command
from bundle.command_line.values import check_literals, check_values, is_expression
from bundle.command_line.words import nearest, read_words

# Options of ``monai.bundle run`` itself.
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

TOP = "See the top of the config file for its keys."


def check_command(argv: Sequence[str] | None = None) -> None:
    """Raise if a key of this process's command belongs to no config; programs that host the bundle are not checked.

    Args:
        argv: The words of the command, with the program first; ``None`` takes this process's.

    Raises:
        ValueError: If a key is unknown, at the top or in a part of the config, or set to a null that MONAI ignores; the
            message suggests the nearest known key.
    """
    if argv is None and not is_command():
        return
    keys = read_words((sys.argv if argv is None else argv)[1:], texts=True).keys
    if args_file := keys.get("args_file"):
        keys = {**read_config(Path(str(args_file))), **keys}
    files = _config_files(keys.get("config_file"))
    if files:  # a command without a config has no keys to check
        refuse_unknown_keys(files, keys, RUN_ARGUMENTS)
        _refuse_lost_nulls(keys)
        check_merged(files, {key: value for key, value in keys.items() if key not in RUN_ARGUMENTS})


def refuse_unknown_keys(files: Sequence[Path], keys: Mapping[str, Any], further: Iterable[str] = ()) -> None:
    """Raise if a key belongs to no config.

    MONAI accepts any key, and silently ignores one that nothing uses. Here a key is known if it is in the first config
    file or in a shipped override, or if any of the files refers to it.

    Args:
        files: The config files, in order.
        keys: Keys that the command sets; ``a#b`` or ``a::b`` is a part of ``a``.
        further: Other known names.

    Raises:
        ValueError: If a file cannot be read, or there is an unknown key.
    """
    configs = [read_config(path) for path in files]
    names = [{_top(key) for key in config} for config in configs]
    shipped = [path.resolve().parent == files[0].resolve().parent for path in files]
    texts = [path.read_text(encoding="utf-8") for path in files] + [str(value) for value in keys.values()]
    known = {*further, *_references(texts), *names[0]}
    known = known.union(*(mine for mine, ours in zip(names, shipped, strict=True) if ours))
    _refuse({_top(key) for key in keys} - known, known, "the command")
    for path, mine in zip(files, names, strict=True):
        _refuse(mine - known, known, str(path))


def check_merged(files: Sequence[Path], keys: Mapping[str, Any]) -> None:
    """Raise if a key names no part of the merged config, or a value is of the wrong kind.

    Args:
        files: The config files, in order.
        keys: Keys that the command sets; each may be a part, as ``train#trainer#max_epochs``.

    Raises:
        ValueError: If a key names no part, a part's ``_target_`` does not accept it, or a value breaks its rule.
    """
    from bundle.command_line.parts import check_components, merged  # imports MONAI

    config = merged(files, keys)
    check_literals(config)
    if isinstance(config.get("device"), str) and not is_expression(config["device"]):
        check_values(device=config["device"])
    check_components(config)


def _refuse_lost_nulls(keys: Mapping[str, Any]) -> None:
    for key, value in keys.items():
        if value in (None, "null"):
            raise ValueError(
                f"--{key} null does not set null: MONAI reads a text, or ignores it. Write --{key} '$None', in quotes."
            )


def _refuse(unknown: Iterable[str], known: Iterable[str], place: str) -> None:
    for key in sorted(unknown):
        hint = nearest(key, known, TOP)
        raise ValueError(f"unknown key {key!r} in {place}: no config has it and nothing refers to it. {hint}")


def _top(key: str) -> str:
    return re.split(r"::|#", key.lstrip("+%"))[0]


def _config_files(value: Any) -> list[Path]:
    if isinstance(value, str) and value.startswith("["):
        value = ast.literal_eval(value)
    names = value.split(",") if isinstance(value, str) else list(value or [])
    return [path for path in map(Path, names) if path.is_file()]


def _references(texts: Iterable[str]) -> set[str]:
    return {match for text in texts for match in re.findall(r"[@%]([A-Za-z_]\w*)", text)}
