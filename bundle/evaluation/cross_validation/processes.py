"""Processes that run in parallel, share cores and GPUs, and are stopped together."""

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
    """The running commands, so that they can be stopped together."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def run_all(self, commands: Iterator[list[str]], folder: Path, slot: int, jobs: int) -> bool:
        """Run commands in turn, with their output in ``log.txt``; return whether all succeeded."""
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
        """Stop all running commands, and start no more.

        Args:
            grace: Seconds after which a process that has not ended is killed.
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
    """Let Linux kill this process when its parent ends, even if the parent was killed."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _environment(slot: int, jobs: int) -> dict[str, str]:
    """Share cores and GPUs among the units: each sees one GPU; a number of threads that the user set stays."""
    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // jobs)))
    if (count := torch.cuda.device_count()) > 1:
        # A cluster may have given this job indices or UUIDs.
        given = [name.strip() for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
        environment["CUDA_VISIBLE_DEVICES"] = (given or [str(gpu) for gpu in range(count)])[slot % count]
    return environment


def default_jobs(units: int) -> int:
    """Return how many units to run at the same time: one per GPU, or else one per core."""
    return max(1, min(units, torch.cuda.device_count() or available_cores()))


@contextmanager
def ending_together() -> Iterator[None]:
    """Handle SIGTERM like Ctrl-C, so that child processes are stopped, too."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
