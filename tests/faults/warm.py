"""Start commands from a process that has imported everything, so that a kill hits their work and not their imports.

python -m tests.faults.warm reads a line of JSON for each command or question, and answers with a number.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
IMPORTED = [
    *("bundle.command_line.quick_monai", "bundle.data", "bundle.evaluation.handlers", "bundle.inference.resume"),
    *("bundle.inference.volume_inferer", "bundle.monai_label", "bundle.training.checkpoints"),
]

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


class Warm:
    """Commands of the bundle, each in a process and a session of its own."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "log.txt"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.warm"],
            cwd=ROOT,
            env=os.environ | ENVIRONMENT | {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _ask(self, **question: Any) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(question), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def start(self, *words: object) -> int:
        """Start a command, and return its process."""
        return self._ask(start=[str(word) for word in words], log=str(self.log))

    def wait(self, process: int) -> int:
        """Wait for the end of a command, and return its exit code, below 0 for a signal."""
        return self._ask(wait=process)

    def said(self, *words: object) -> tuple[int, str]:
        """Run a command to its end; return its exit code and what it said."""
        self.log.unlink(missing_ok=True)
        return self.wait(self.start(*words)), self.log.read_text(encoding="utf-8")

    def run(self, *words: object) -> float:
        """Run a command to its end, which must be a good one; return its seconds."""
        begin = time.perf_counter()
        code = self.wait(self.start(*words))
        assert code == 0, self.log.read_text()[-4000:]
        return time.perf_counter() - begin

    def killed(self, seconds: float, *words: object) -> bool:
        """Kill a command after some seconds, and all that it leaves behind ends; return whether it ran until then."""
        process = self.start(*words)
        time.sleep(seconds)
        os.kill(process, signal.SIGKILL)
        code = self.wait(process)
        assert code in (0, -signal.SIGKILL), self.log.read_text()[-4000:]
        assert gone(process), f"processes outlive the killed {words[0]}"
        return code != 0

    def close(self) -> None:
        """End the process that starts the others."""
        self.process.communicate()


def gone(session: int, within: float = 60) -> bool:
    """Tell whether every process of a session ends; loaders ask every five seconds whether their parent lives."""
    deadline = time.monotonic() + within
    while subprocess.run(["pgrep", "--session", str(session)], stdout=subprocess.DEVNULL, check=False).returncode == 0:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def main() -> None:
    """Answer until nobody asks any more."""
    for name in IMPORTED:
        importlib.import_module(name)
    from bundle.__main__ import main as command
    from tests.faults.superpixels import fill_cache

    for line in sys.stdin:
        question = json.loads(line)
        if "wait" in question:
            print(os.waitstatus_to_exitcode(os.waitpid(question["wait"], 0)[1]), flush=True)
            continue
        process = os.fork()
        if process == 0:
            _become(question["log"])
            sys.argv = [str(ROOT / "bundle" / "__main__.py"), *question["start"]]
            verb, *words = question["start"]
            fill_cache(*words) if verb == "superpixels" else command([verb, *words])
            return
        print(process, flush=True)


def _become(log: str) -> None:
    """Have a session and streams of one's own."""
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream, target in ((os.open(os.devnull, os.O_RDONLY), 0), (output, 1), (output, 2)):
        os.dup2(stream, target)
    sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115, it stays open


if __name__ == "__main__":
    main()
