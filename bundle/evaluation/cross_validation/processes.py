"""Processes that work side by side, share cores and GPUs, and end together."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bundle.distributed import available_cores


class Processes:
    """The commands that run at present, so that they can be stopped together."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def run_all(self, commands: Iterator[list[str]], folder: Path, slot: int, jobs: int) -> bool:
        """Run commands one after the other, their output in ``log.txt``; return whether all ended well."""
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "log.txt").open("ab") as log:
            return all(self._run(command, log, _environment(slot, jobs)) for command in commands)

    def _run(self, command: list[str], log: Any, environment: dict[str, str]) -> bool:
        with self._lock:
            if self._stopped:
                return False
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )
            self._running.add(process)
        code = process.wait()
        with self._lock:
            self._running.discard(process)
        return code == 0

    def stop(self, grace: float = 10.0) -> None:
        """End what runs, and start nothing more.

        Args:
            grace: Seconds after which a process that ignores the request to end is killed.
        """
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for process in running:
            process.terminate()
        deadline = time.monotonic() + grace
        for process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()


def _die_with_parent() -> None:
    """Let Linux kill this process when the one that started it is gone, even if that was killed itself."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _environment(slot: int, jobs: int) -> dict[str, str]:
    """Share cores and GPUs among the units: threads that the user has set stay, and of GPUs each unit sees one."""
    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // jobs)))
    if (count := torch.cuda.device_count()) > 1:
        # The names may be indices or UUIDs, those that a cluster gave this job.
        given = [name.strip() for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
        environment["CUDA_VISIBLE_DEVICES"] = (given or [str(gpu) for gpu in range(count)])[slot % count]
    return environment


def default_jobs(units: int) -> int:
    """Return how many units to run at the same time: one a GPU, or one a core."""
    return max(1, min(units, torch.cuda.device_count() or available_cores()))


@contextmanager
def ending_together() -> Iterator[None]:
    """Let a request to terminate end this process as Ctrl-C does, so that what it started ends with it."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
