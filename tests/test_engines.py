"""Tests of ``bundle.engines``."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Engine

from bundle.engines import PrepareEpisode, PrepareScan, ValidateAtEnds


def test_an_episode_is_sorted_into_input_target_and_support() -> None:
    batch = {name: torch.rand(1, 2) for name in ("image", "label", "support_image", "support_mask")}
    image, target, arguments, support = PrepareEpisode()(batch)
    assert image is not None
    assert torch.equal(image, batch["image"])
    assert arguments == ()
    for part, names in ((target, ("label", "support_mask")), (support, ("support_image", "support_mask"))):
        assert set(part) == set(names)
        assert all(torch.equal(part[name], batch[name]) for name in names)


def test_a_scan_goes_with_its_label_where_it_has_one() -> None:
    batch = {"image": torch.rand(1, 2), "label": torch.rand(1, 2)}
    image, label, _, more = PrepareScan()(batch)
    assert torch.equal(image, batch["image"])
    assert label is not None
    assert torch.equal(label, batch["label"])
    assert torch.equal(more["label"], batch["label"])
    assert PrepareScan()({"image": batch["image"]})[1:] == (None, (), {"label": None})


class Validator:
    """Remembers for which epochs it was asked."""

    def __init__(self, scans: int = 3) -> None:
        self.state = SimpleNamespace(epoch_length=scans)
        self.epochs: list[int] = []

    def run(self, epoch: int) -> None:
        self.epochs.append(epoch)


def train(validator: Any, epochs: int, resumed_at: int = 0) -> None:
    engine = Engine(lambda *_: None)
    ValidateAtEnds(validator, interval=2).attach(engine)
    if resumed_at:
        engine.load_state_dict({"iteration": resumed_at, "epoch_length": 4, "max_epochs": epochs})
    engine.run([0] * 4, max_epochs=epochs)


@pytest.mark.parametrize(("epochs", "expected"), [(3, [0, 3]), (4, [0])])
def test_training_is_validated_before_and_after(epochs: int, expected: list[int]) -> None:
    validator = Validator()
    train(validator, epochs)
    assert validator.epochs == expected  # after an even number of epochs ValidationHandler does it


def test_a_resumed_training_is_not_validated_at_its_start() -> None:
    validator = Validator()
    train(validator, epochs=3, resumed_at=6)
    assert validator.epochs == [3]


def test_without_annotated_scans_it_is_said_that_there_is_no_dice(capsys: pytest.CaptureFixture[str]) -> None:
    train(Validator(scans=0), epochs=1)
    assert "no annotated scan besides the support" in capsys.readouterr().out
