"""For tests of several processes: one that believes in the others, and what real ones do to themselves."""

from __future__ import annotations

import os
import signal
from typing import Any

import ignite.distributed as idist
import pytest
from bundle import distributed
from ignite.engine import Engine, Events


def become(
    monkeypatch: pytest.MonkeyPatch, rank: int, processes: int, others: dict[int, list[Any]] | None = None
) -> None:
    """Let this process believe to be one of several; ``others`` is what they hand over, by rank."""

    def gather(lists: list[list[Any]], own: list[Any]) -> None:
        lists[:] = [own if other == rank else (others or {})[other] for other in range(processes)]

    monkeypatch.setattr(distributed.idist, "get_rank", lambda: rank)
    monkeypatch.setattr(distributed.idist, "get_world_size", lambda: processes)
    monkeypatch.setattr(distributed.idist, "barrier", lambda: None)
    monkeypatch.setattr(distributed.dist, "all_gather_object", gather)
    monkeypatch.setattr(distributed.dist, "broadcast_object_list", lambda values, src: None)
    monkeypatch.setattr(distributed.dist, "broadcast", lambda tensor, src: None)


def kill_one(engine: Engine, rank: int, step: int) -> None:
    """Let the process of this rank kill itself when it begins a step; configs name it."""

    def kill(_: Any) -> None:
        if idist.get_rank() == rank:
            os.kill(os.getpid(), signal.SIGKILL)

    engine.add_event_handler(Events.ITERATION_STARTED(once=step), kill)
