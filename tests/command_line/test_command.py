"""Tests of ``bundle.__main__``, besides those of ``test_workflows`` that run it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_transformers_is_not_imported_and_can_be() -> None:
    code = "import sys, bundle.__main__; print('transformers' in sys.modules); import transformers; print('imported')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False", "imported"]
