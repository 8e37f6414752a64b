"""What trials share: a process that starts commands at once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.faults.warm import Warm


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """Commands with a log and a folder for temporary files of their own."""
    warm = Warm(tmp_path_factory.mktemp("commands"))
    yield warm
    warm.close()
