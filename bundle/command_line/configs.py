"""The shipped configs: found by name, read with errors in plain words, and parsed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from monai.bundle import ConfigParser

from bundle.root import bundle_root

# The bundle's folder, which holds ``configs/``.
ROOT = bundle_root()


def config_path(name: str) -> Path:
    """Find a config by its name in ``configs/``, with or without ``.yaml``, or by its path.

    A shipped config takes precedence over a file of that name in the working folder, which is ``./<name>``.

    Raises:
        ValueError: If there is no such config; the message lists the shipped ones.
    """
    shipped = [ROOT / "configs" / f"{name}.yaml", ROOT / "configs" / name]
    for path in [Path(name), *shipped] if "/" in name or os.sep in name else [*shipped, Path(name)]:
        if path.is_file():
            return path.resolve()
    known = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
    raise ValueError(f"there is no config {name}. Give a path, or one of {', '.join(known)}.")


def config_paths(*names: Any) -> list[Path]:
    """Find configs that are given one by one, in a list, or as a text with commas between; ``None`` gives none.

    Raises:
        ValueError: If a name is not a text, or there is no such config.
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
        ValueError: If it cannot be read as one; the message states the path.
    """
    if path.suffix.lower() not in (".yaml", ".yml", ".json"):
        raise ValueError(f"a config must end in .yaml, .yml or .json, got {path}. Rename it.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is valid YAML
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the config {path} cannot be read ({reason}). Correct the file.") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        came = "nothing" if content is None else f"a {type(content).__name__}"
        raise ValueError(f"the config {path} must hold keys and their values, got {came}. Write max_epochs: 5.")
    return content


def parsed(names: Sequence[str], keys: dict[str, Any], **objects: Any) -> ConfigParser:
    """Read a config and the overrides after it.

    Args:
        names: Names or paths, such as ``["inference", "preset_paper"]``.
        keys: Keys to set, such as ``{"network_def::encoder::depth": 101}``.
        **objects: Objects that expressions (``"$name"``) in ``keys`` may use.

    Raises:
        ValueError: If there is no such config.
    """
    from monai.bundle import ConfigParser  # here, so that --help does not wait for it

    parser = ConfigParser(globals=objects)
    parser.read_config([str(config_path(name)) for name in names])
    parser.update({"bundle_root": str(ROOT), **keys})
    return parser
