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


def output_folder(bundle_root: str | Path, name: str) -> str:
    """Return where results go: in the bundle's folder, or in the working folder where the bundle is installed by pip.

    Args:
        bundle_root: The key of the config.
        name: The folder of results in it.
    """
    installed = Path(__file__).resolve().parent / INSTALLED
    return name if Path(bundle_root).resolve() == installed else f"{bundle_root}/{name}"
