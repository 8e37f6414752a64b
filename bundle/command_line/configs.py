"""The shipped configs, with which everything is built that a user would get; files are read with errors in words."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from monai.bundle import ConfigParser

from bundle.root import bundle_root

ROOT = bundle_root()
"""The bundle's folder, with its configs."""


def config_path(name: str) -> Path:
    """Find a config by its name in ``configs/``, with or without ``.yaml``, or by its path.

    A file of the working folder with the name of a shipped config does not take its place; ``./<name>`` does.

    Raises:
        ValueError: If there is none; the message lists those there are.
    """
    shipped = [ROOT / "configs" / f"{name}.yaml", ROOT / "configs" / name]
    for path in [Path(name), *shipped] if "/" in name or os.sep in name else [*shipped, Path(name)]:
        if path.is_file():
            return path.resolve()
    known = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
    raise ValueError(f"there is no config {name}. Give a path, or one of {', '.join(known)}.")


def config_paths(*names: Any) -> list[Path]:
    """Find configs that are named one by one, in a list, or in a text with commas between; ``None`` names none.

    Raises:
        ValueError: If one is no text, or is not there.
    """
    found: list[Path] = []
    for given in names:
        each = [] if given is None else given.split(",") if isinstance(given, str) else given
        if not isinstance(each, list | tuple) or not all(isinstance(name, str) and name for name in each):
            raise ValueError(f"configs must be names or paths with commas between, got {given!r}. Write ./name for 5.")
        found += [config_path(name) for name in each]
    return found


def read_config(path: Path) -> dict[str, Any]:
    """Read a config file: a mapping in YAML or JSON.

    Raises:
        ValueError: If it is no such file; the message names it.
    """
    if path.suffix.lower() not in (".yaml", ".yml", ".json"):
        raise ValueError(f"a config must end in .yaml, .yml or .json, got {path}. Rename it.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML, too
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the config {path} cannot be read ({reason}). Correct the file.") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        came = "nothing" if content is None else f"a {type(content).__name__}"
        raise ValueError(f"the config {path} must hold keys and their values, got {came}. Write max_epochs: 5.")
    return content


def parsed(names: Sequence[str], keys: dict[str, Any], **objects: Any) -> ConfigParser:
    """Read a config, and overrides after it.

    Args:
        names: Names or paths, such as ``["inference", "preset_paper"]``.
        keys: What to change in it, such as ``{"network_def::encoder::depth": 101}``.
        **objects: What expressions (``"$name"``) of ``keys`` may name.

    Raises:
        ValueError: If there is no such config.
    """
    from monai.bundle import ConfigParser  # here, so that a command's manual is shown without waiting for it

    parser = ConfigParser(globals=objects)
    parser.read_config([str(config_path(name)) for name in names])
    parser.update({"bundle_root": str(ROOT), **keys})
    return parser
