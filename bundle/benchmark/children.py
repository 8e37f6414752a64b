"""Processes of their own, for what a process that has done other things cannot measure."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from bundle.root import import_root


def run_child(module: str, settings: dict[str, Any], threads: int) -> dict[str, float]:
    """Run a module with its settings as JSON in a process of its own, and return the JSON of its last line.

    The package is this one, whatever folder called ``bundle`` the working folder may hold.

    Args:
        module: A module of this package.
        settings: What it is told.
        threads: Threads of its arithmetic.

    Raises:
        ValueError: If it fails; the message has the end of what it said.
    """
    start = (
        f"import runpy, sys; sys.path[0] = {str(import_root())!r}; runpy.run_module({module!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", start, json.dumps(settings)],
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last = "\n  ".join(done.stderr.strip().splitlines()[-5:])
        raise ValueError(f"{module} ended with exit code {done.returncode}, after it said:\n  {last}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def peak_megabytes() -> float:
    """Return the largest resident memory that this process ever had, MB of 10^6 bytes."""
    status = Path("/proc/self/status")
    if status.is_file():  # of Linux: ru_maxrss there begins with that of the process that started this one
        lines = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024 / 1e6
    if sys.platform == "win32":
        return float(psutil.Process().memory_info().peak_wset) / 1e6
    import resource  # Windows has none

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def forget_peak() -> None:
    """Let ``peak_megabytes`` count from what is resident now, where the system can do that (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
