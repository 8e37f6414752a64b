"""Outputs of the authors' code, to test against.

A compact part lies in ``tests/golden`` and is tested in every clone. The full set is used instead where it
is found: in the folder that ``ALPNET_GOLDEN`` names, or beside the checkout.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

COMPACT = Path(__file__).parent / "golden"
FULL = Path(os.environ.get("ALPNET_GOLDEN", Path(__file__).parents[2] / "shared" / "reference" / "golden"))


def golden_folder() -> Path:
    """Return the full set's folder where there is one, else the compact one."""
    return FULL if FULL.is_dir() else COMPACT


def golden_json(name: str) -> Any:
    """Return an index; the compact set holds every index whole."""
    return json.loads((golden_folder() / name).read_text())


def golden_arrays(name: str, *needed: str) -> dict[str, np.ndarray]:
    """Return the arrays of a file, or skip the test if the compact set does without them."""
    path = golden_folder() / name
    if not path.is_file():
        pytest.skip(f"{name} is in the full golden set only; set ALPNET_GOLDEN to its folder")
    arrays = dict(np.load(path))
    if missing := [key for key in needed if key not in arrays]:
        pytest.skip(f"{missing} of {name} are in the full golden set only; set ALPNET_GOLDEN to its folder")
    return arrays
