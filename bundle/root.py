"""Where the bundle's own files lie: configs, weights and metadata, in a checkout and in an installed wheel."""

from __future__ import annotations

from pathlib import Path

INSTALLED = "shipped"
"""Folder of an installed package that holds ``configs/`` and ``models/``; a checkout has them beside the package."""


def bundle_root() -> Path:
    """Return the folder that holds ``configs/`` and ``models/``: what configs call ``bundle_root``."""
    package = Path(__file__).resolve().parent
    installed = package / INSTALLED
    return installed if installed.is_dir() else package.parent


def import_root() -> Path:
    """Return the folder that Python must search to import this very package."""
    return Path(__file__).resolve().parents[1]


def results_root(bundle_root: str | Path) -> str:
    """Return where the folder of results goes: the bundle's folder, or the working folder of one installed by pip.

    Args:
        bundle_root: The key of the config.
    """
    installed = Path(__file__).resolve().parent / INSTALLED
    return "." if Path(bundle_root).resolve() == installed else str(bundle_root)
