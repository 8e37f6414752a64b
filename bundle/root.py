"""Where the bundle's own files are: configs, weights and metadata, in a checkout and in an installed wheel."""

from __future__ import annotations

from pathlib import Path

# Subfolder of an installed package with ``configs/`` and ``models/``; a checkout has them next to the package.
INSTALLED = "shipped"


def bundle_root() -> Path:
    """Return the folder that holds ``configs/`` and ``models/``, called ``bundle_root`` in configs."""
    package = Path(__file__).resolve().parent
    installed = package / INSTALLED
    return installed if installed.is_dir() else package.parent


def import_root() -> Path:
    """Return the folder that must be on Python's path to import this package."""
    return Path(__file__).resolve().parents[1]


def results_root(bundle_root: str | Path) -> str:
    """Return where results go: the bundle's folder or, if it is installed by pip, the working folder.

    Args:
        bundle_root: The key of the config.
    """
    installed = Path(__file__).resolve().parent / INSTALLED
    return "." if Path(bundle_root).resolve() == installed else str(bundle_root)
