"""Steps of the real trainer are timed in blocks, with their wait for the loader."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from bundle.benchmark import training
from bundle.benchmark.training import PREFETCHED, StepClock, measure
from ignite.engine import Engine
from torch import Tensor

pytestmark = pytest.mark.usefixtures("one_thread")


def test_steps_after_a_pause_do_not_count_and_the_pause_itself_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    seen: list[tuple[int, ...]] = []

    def step(engine: Engine, batch: Any) -> None:
        nonlocal now
        now += engine.state.iteration  # step n takes n seconds

    def pause(images: Tensor) -> None:
        nonlocal now
        now += 1000
        seen.append(tuple(images.shape))

    monkeypatch.setattr(training.time, "perf_counter", lambda: now)
    clock = StepClock(block=2, other=pause)
    engine = Engine(step)
    clock.attach(engine)
    engine.state.device = "cpu"
    batch = {"image": torch.zeros(4, 3, 8, 8), "support_image": torch.zeros(4, 2, 3, 8, 8)}
    engine.run([batch] * (2 * (PREFETCHED + 2) + 1), max_epochs=1)
    assert PREFETCHED == 3
    assert clock.steps == [4, 5, 9, 10]
    assert clock.others == [1000] * 4
    assert seen == [(12, 3, 8, 8)] * 4


def test_a_step_is_compared_with_the_encoder_on_its_own_images(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    run = training._EncoderAlone.__call__

    def see(self: Any, images: Tensor) -> None:
        assert self.encoder.training
        shapes.append(tuple(images.shape))
        run(self, images)
        assert all(parameter.grad is not None for parameter in self.encoder.parameters())

    monkeypatch.setattr(training._EncoderAlone, "__call__", see)
    result = measure("resnet18", batch_size=2, steps=1, repeats=1, size=64)
    assert shapes == [(4, 3, 64, 64)] * 2
    assert (result.benchmark, dict(result.case)) == ("training", {"encoder": "resnet18", "batch_size": 2})
    ours, alone = result.values["ours, s a step"], result.values["encoder alone, s a step"]
    assert result.values["ours / encoder alone"] == ours / alone
    assert result.values["ours, episodes/s"] == 2 * result.values["ours, steps/s"] == 2 / ours


def test_the_first_block_is_a_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = itertools.count()

    def fake(self: StepClock, engine: Engine) -> None:
        number = next(blocks)
        self.steps.append([50.0, 60.0, 1.0, 2.0, 9.0, 4.0][number % 6])
        self.others.append([70.0, 80.0, 0.5, 1.0, 1.0, 8.0][number % 6])

    monkeypatch.setattr(StepClock, "__call__", fake)
    monkeypatch.setattr(training, "PREFETCHED", 0)
    result = measure("resnet18", steps=2, repeats=2, size=64)
    assert next(blocks) == 6
    assert (result.values["ours, s a step"], result.values["encoder alone, s a step"]) == (3, 1)
    assert result.values["ours / encoder alone"] == 3


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"encoder": "vgg"}, "unknown encoder 'vgg'"),
        ({"batch_size": 0}, "batch_size must be a whole number"),
        ({"steps": 0}, "steps must be a whole number"),
    ],
)
def test_an_error_is_reported_in_plain_words(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure(**({"encoder": "resnet18"} | keys))
