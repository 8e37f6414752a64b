"""The shipped configs, with which everything is built that a user would get."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from monai.bundle import ConfigParser

from bundle.benchmark.children import ROOT


def parsed(names: Sequence[str], keys: dict[str, Any], **objects: Any) -> ConfigParser:
    """Read a config, and overrides after it.

    Args:
        names: Such as ``["inference.yaml", "preset_paper.yaml"]``.
        keys: What to change in it, such as ``{"network_def::encoder::depth": 101}``.
        **objects: What expressions (``"$name"``) of ``keys`` may name.
    """
    parser = ConfigParser(globals=objects)
    parser.read_config([str(ROOT / "configs" / name) for name in names])
    parser.update({"bundle_root": str(ROOT), **keys})
    return parser
