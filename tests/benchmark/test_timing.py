"""Works are compared in turn, and the warm-up does not count."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from bundle.benchmark import timing
from bundle.benchmark.timing import seconds_of, side_by_side


class FakeClock:
    """A clock that stands still, but for what works do to it."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def work(self, *seconds: float) -> Callable[[], None]:
        """Return something that takes so long the first time, then so long, and so on."""
        left = list(seconds)

        def take() -> None:
            self.now += left.pop(0)

        return take


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    fake = FakeClock()
    monkeypatch.setattr(timing.time, "perf_counter", fake)
    return fake


def test_seconds_are_medians_without_the_warm_up(clock: FakeClock) -> None:
    works = {"short": clock.work(50, 3, 1, 8), "long": clock.work(0, 10, 30, 20)}
    assert side_by_side(works, repeats=3) == {"short": 3, "long": 20}


def test_everything_is_done_in_turn() -> None:
    done: list[str] = []
    side_by_side({name: lambda name=name: done.append(name) for name in "abc"}, repeats=2)
    assert "".join(done) == "abcabcabc"


def test_what_is_left_to_a_gpu_is_waited_for_before_and_after(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", clock.work(1000, 7))
    assert seconds_of(clock.work(2)) == 9
