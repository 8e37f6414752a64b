"""Processes that run in parallel share cores and GPUs, and are stopped together."""

from __future__ import annotations

import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from bundle.evaluation.cross_validation.processes import Processes, default_jobs, ending_together


def python(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def test_commands_run_one_after_the_other_into_one_log(tmp_path: Path) -> None:
    assert Processes().run_all(iter([python("print(1)"), python("print(2)")]), tmp_path / "unit", slot=0, jobs=1)
    assert (tmp_path / "unit" / "log.txt").read_text() == "1\n2\n"
    assert Processes().run_all(iter([python("print(3)")]), tmp_path / "unit", slot=0, jobs=1)
    assert (tmp_path / "unit" / "log.txt").read_text() == "1\n2\n3\n"


def test_nothing_runs_after_a_command_that_failed(tmp_path: Path) -> None:
    commands = iter([python("raise SystemExit(3)"), python("print('never')")])
    assert not Processes().run_all(commands, tmp_path, slot=0, jobs=1)
    assert "never" not in (tmp_path / "log.txt").read_text()


SHOW = python("import os; print(os.environ['OMP_NUM_THREADS'], os.environ.get('CUDA_VISIBLE_DEVICES'))")


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("bundle.evaluation.cross_validation.processes.available_cores", lambda: 8)


@pytest.mark.usefixtures("eight_cores")
def test_cores_and_gpus_are_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    Processes().run_all(iter([SHOW]), tmp_path, slot=3, jobs=4)
    assert (tmp_path / "log.txt").read_text() == "2 1\n"
    assert default_jobs(units=5) == 2
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert default_jobs(units=5) == 5
    assert default_jobs(units=10) == 8


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(
    ("given", "seen"), [("4,6", ["4", "6", "4"]), ("GPU-8932, GPU-5555", ["GPU-8932", "GPU-5555", "GPU-8932"])]
)
def test_units_share_the_gpus_that_the_cluster_gave(
    given: str, seen: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for slot in range(3):
        Processes().run_all(iter([SHOW]), tmp_path, slot, jobs=3)
    assert (tmp_path / "log.txt").read_text().splitlines() == [f"2 {gpu}" for gpu in seen]


@pytest.mark.usefixtures("eight_cores")
def test_the_only_gpu_stays_the_only_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    Processes().run_all(iter([SHOW]), tmp_path, slot=1, jobs=2)
    assert (tmp_path / "log.txt").read_text() == "4 7\n"


def test_what_the_user_has_set_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    Processes().run_all(iter([python("import os; print(os.environ['OMP_NUM_THREADS'])")]), tmp_path, slot=0, jobs=2)
    assert (tmp_path / "log.txt").read_text() == "5\n"


def test_stopping_ends_what_runs_and_starts_nothing_more(tmp_path: Path) -> None:
    processes, results = Processes(), []
    commands = iter([python("import time; print('on', flush=True); time.sleep(60)"), python("print('never')")])
    thread = threading.Thread(target=lambda: results.append(processes.run_all(commands, tmp_path, 0, 1)))
    thread.start()
    while not ((tmp_path / "log.txt").is_file() and (tmp_path / "log.txt").read_text()):
        time.sleep(0.02)
    processes.stop()
    thread.join(timeout=10)
    assert results == [False]
    assert (tmp_path / "log.txt").read_text() == "on\n"


def test_a_process_that_ignores_the_request_to_end_is_killed(tmp_path: Path) -> None:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(60)"
    processes, results = Processes(), []
    thread = threading.Thread(target=lambda: results.append(processes.run_all(iter([python(deaf)]), tmp_path, 0, 1)))
    thread.start()
    while not ((tmp_path / "log.txt").is_file() and (tmp_path / "log.txt").read_text()):
        time.sleep(0.02)
    processes.stop(grace=0.2)
    thread.join(timeout=10)
    assert results == [False]


def test_a_request_to_terminate_ends_as_ctrl_c_does() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), ending_together():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
