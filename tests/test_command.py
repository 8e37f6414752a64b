"""Tests of ``bundle.__main__``, besides those of ``test_workflows`` that run it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["transformers", "torch.distributed.optim"])
def test_what_is_not_used_is_not_imported_and_can_be(name: str) -> None:
    code = (
        "import importlib, sys\n"
        "import bundle.__main__\n"
        f"print({name!r} in sys.modules)\n"
        f"print(importlib.import_module({name!r}).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False", name]
