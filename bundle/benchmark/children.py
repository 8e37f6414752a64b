"""Fresh processes, for what cannot be measured in a process that has done other work."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
from bundle.root import module_command


def run_child(module: str, settings: dict[str, Any], threads: int) -> dict[str, float]:
    """Run a module in a new process with its settings as JSON, and return the JSON that it prints last.

    The process imports this package, even if the working folder holds a folder named ``bundle``.

    Args:
        module: A module of this package.
        settings: The argument of its ``main``.
        threads: Threads of the process.

    Raises:
        ValueError: If the process fails; the message ends with its last lines of output.
    """
    done = subprocess.run(
        [*module_command(module), json.dumps(settings)],
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last = "\n  ".join(done.stderr.strip().splitlines()[-5:])
        raise ValueError(
            f"{module} must end with exit code 0, got {done.returncode} and this output:\n  {last}\n"
            "Fix the cause and rerun the command."
        )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def peak_megabytes() -> float:
    """Return the peak resident memory of this process, in MB of 10^6 bytes."""
    status = Path("/proc/self/status")
    if status.is_file():  # Linux, whose ru_maxrss starts from the parent process's
        lines = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024 / 1e6
    if sys.platform == "win32":
        return float(psutil.Process().memory_info().peak_wset) / 1e6
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def forget_peak() -> None:
    """Reset the peak to the memory that is resident now, where the system supports it (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
