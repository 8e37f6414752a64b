"""Where the bundle's own files are: configs, weights and metadata, in a checkout and in an installed wheel."""

from __future__ import annotations

import sys
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


def module_command(module: str) -> list[str]:
    """Return the words that run a module in a new process, as ``python -m`` does, but for its import path.

    The process imports this package, even if the working folder holds a package of the same name, which ``python -m``
    finds first.

    Args:
        module: A module, or a package with ``__main__``; its own arguments come after the words.
    """
    run = f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    return [sys.executable, "-c", f"import runpy, sys; sys.path[0] = {str(import_root())!r}; {run}"]
