"""What every test may use; ``pytest --device cuda`` makes the tensors of the network tests on a GPU."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the caller choose the device."""
    parser.addoption("--device", default="cpu", help="device that tensors and modules are made on")


@pytest.fixture(autouse=True)
def seeded_device(request: pytest.FixtureRequest) -> Iterator[None]:
    """Seed, and make every tensor of the test on the chosen device."""
    torch.manual_seed(0)
    with torch.device(request.config.getoption("--device")):
        yield


@pytest.fixture(autouse=True)
def open_logs() -> Iterator[None]:
    """Remove the handlers that a config gave to loggers within a test: their stream, pytest's, is closed after it."""
    yield
    for logger in (logging.root, *logging.root.manager.loggerDict.values()):
        for handler in list(getattr(logger, "handlers", ())):
            if isinstance(logger, logging.Logger) and getattr(getattr(handler, "stream", None), "closed", False):
                logger.removeHandler(handler)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Let torch compute in one thread, for the modules that ask for it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
