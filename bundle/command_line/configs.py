"""The shipped configs, with which everything is built that a user would get."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

ROOT = Path(__file__).resolve().parents[2]
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


def parsed(names: Sequence[str], keys: dict[str, Any], **objects: Any) -> ConfigParser:
    """Read a config, and overrides after it.

    Args:
        names: Names or paths, such as ``["inference", "preset_paper"]``.
        keys: What to change in it, such as ``{"network_def::encoder::depth": 101}``.
        **objects: What expressions (``"$name"``) of ``keys`` may name.

    Raises:
        ValueError: If there is no such config.
    """
    parser = ConfigParser(globals=objects)
    parser.read_config([str(config_path(name)) for name in names])
    parser.update({"bundle_root": str(ROOT), **keys})
    return parser
