"""Tests of ``bundle.training.engines``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bundle import distributed
from bundle.data import ScanError
from bundle.evaluation.metrics import OrganDice
from bundle.inference.engines import PrepareScan, ScanEvaluator
from bundle.training.engines import PrepareEpisode, ValidateAtEnds
from ignite.engine import Engine, Events
from monai.data import DataLoader
from monai.handlers import MeanDice
from tests.processes import become
from torch import nn


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
        self.scans = scans
        self.epochs: list[int] = []

    def run(self, epoch: int) -> None:
        self.epochs.append(epoch)


def train(validator: Any, epochs: int, resumed_at: int = 0) -> None:
    engine = Engine(lambda *_: None)
    if resumed_at:
        engine.add_event_handler(Events.STARTED, go_on, resumed_at)
    ValidateAtEnds(validator, interval=2).attach(engine)
    engine.run([0] * 4, max_epochs=epochs)


def go_on(engine: Engine, step: int) -> None:
    """Do as ``Checkpoints`` does."""
    engine.state.iteration, engine.state.epoch = step, step // 4


@pytest.mark.parametrize(("epochs", "expected"), [(3, [0, 3]), (4, [0])])
def test_training_is_validated_before_and_after(epochs: int, expected: list[int]) -> None:
    validator = Validator()
    train(validator, epochs)
    assert validator.epochs == expected  # after an even number of epochs ValidationHandler does it


@pytest.mark.parametrize(
    ("epochs", "resumed_at", "expected"),
    [
        (3, 12, [3]),  # all steps were done; epoch 3 is no multiple of the interval
        (4, 16, [4]),  # all steps were done; the evaluation of epoch 4 may not have been
        (5, 16, [4, 5]),
        (3, 8, [2, 3]),
        (3, 9, [3]),  # stopped within an epoch
    ],
)
def test_a_resumed_training_repeats_the_evaluation_at_which_it_may_have_been_stopped(
    epochs: int, resumed_at: int, expected: list[int]
) -> None:
    validator = Validator()
    train(validator, epochs=epochs, resumed_at=resumed_at)
    assert validator.epochs == expected


def test_without_annotated_scans_it_is_said_that_there_is_no_dice(capsys: pytest.CaptureFixture[str]) -> None:
    train(Validator(scans=0), epochs=1)
    assert "besides the support, there is no annotated scan" in capsys.readouterr().out


class Scans(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Scan ``i`` is of ``i``."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"image": torch.full((1, 2, 2), float(index))}


def evaluator(scans: int) -> tuple[ScanEvaluator, list[Any]]:
    """An evaluator, and what happens in it: its events, and the numbers of its scans."""
    dataset, seen = Scans(scans), []
    loader = DataLoader(dataset, batch_size=1, sampler=distributed.own_share(dataset))
    made = ScanEvaluator(
        device=torch.device("cpu"), val_data_loader=loader, network=nn.BatchNorm2d(1), prepare_batch=PrepareScan()
    )
    made.inferer = lambda image, network, label: seen.append(int(image[0, 0, 0, 0]))
    for event in (Events.STARTED, Events.EPOCH_STARTED, Events.EPOCH_COMPLETED, Events.COMPLETED):
        made.add_event_handler(event, lambda engine, name: seen.append((name, engine.state.epoch)), event.name)
    return made, seen


def test_an_evaluator_alone_segments_every_scan() -> None:
    made, seen = evaluator(3)
    made.run(4)
    assert seen == [("STARTED", 3), ("EPOCH_STARTED", 4), 0, 1, 2, ("EPOCH_COMPLETED", 4), ("COMPLETED", 4)]


def test_a_scan_that_cannot_be_read_is_passed_over_and_told_at_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made, seen = evaluator(3)
    readable = Scans.__getitem__
    broken = {"problem": "b.nii.gz: the file is empty."}
    monkeypatch.setattr(Scans, "__getitem__", lambda self, index: broken if index == 1 else readable(self, index))
    made.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: seen.append(list(engine.state.batch)))
    made.run(1)
    assert [scan for scan in seen if isinstance(scan, int)] == [0, 2]
    assert seen.count([]) == 1, "handlers see that there was no scan"
    assert "cannot use b.nii.gz: the file is empty." in caplog.text
    with pytest.raises(
        ScanError, match=r"2 scans could not be used; all others are finished:\n  a: gone\.\n  b\.nii\.gz: the"
    ):
        made.report_problems(["a: gone."])


def test_an_evaluator_among_others_segments_its_share_with_the_first_ones_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    become(monkeypatch, 1, 2)
    made, seen = evaluator(4)
    monkeypatch.setattr(distributed.dist, "broadcast", lambda buffer, src: seen.append((src, len(seen))))
    made.run(1)
    assert seen[:3] == [(0, 0), (0, 1), (0, 2)]  # the buffers of batch norm
    assert [scan for scan in seen[3:] if isinstance(scan, int)] == [1, 3]
    assert made.scans == 4


def test_an_evaluator_without_a_scan_starts_and_ends_with_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    become(monkeypatch, 1, 2)
    made, seen = evaluator(1)
    made.run(5)
    assert seen == [("STARTED", 5), ("EPOCH_STARTED", 5), ("EPOCH_COMPLETED", 5), ("COMPLETED", 5)]
    assert made.scans == 1


def test_where_there_is_no_scan_at_all_there_is_nothing_to_measure() -> None:
    made, seen = evaluator(0)
    made.run(2)
    assert seen == [("STARTED", 2), ("COMPLETED", 2)]


def dice_of(metric: MeanDice, *cases: tuple[list[float], list[float]]) -> Any:
    """Return a metric's mean and rows after scans whose organs' masks are of one voxel each."""
    engine = Engine(lambda _, case: [torch.tensor(masks)[None, :, None] for masks in case])
    metric.attach(engine, "dice")
    engine.run(list(cases))
    return engine.state.metrics["dice"], engine.state.metric_details["dice"]


def test_the_dice_of_organs_is_monais() -> None:
    cases = [([1.0, 0.0], [1.0, 1.0]), ([1.0, 1.0], [0.0, 1.0])]
    expected, rows = dice_of(MeanDice(), *cases)
    mean, found = dice_of(OrganDice(organs=["liver", "spleen"]), *cases)
    assert mean == expected == 0.75
    torch.testing.assert_close(found, rows, equal_nan=True)


def test_the_engine_gets_the_dice_of_each_organ_that_a_scan_has() -> None:
    engine = Engine(lambda _, case: [torch.tensor(masks)[None, :, None] for masks in case])
    OrganDice(organs=["liver", "spleen"]).attach(engine, "dice")
    engine.run([([1.0, 0.0], [1.0, 0.0]), ([0.0, 0.0], [1.0, 0.0])])
    assert engine.state.metrics == {"dice": 0.5, "dice_liver": 0.5}
    assert engine.state.metric_details["dice"][:, 1].isnan().all()


def test_without_a_scan_the_dice_has_a_row_of_nothing_every_time() -> None:
    metric, engine = OrganDice(organs=["liver", "spleen"]), Engine(lambda *_: None)
    metric.attach(engine, "dice")
    for _ in range(2):
        for event in (Events.STARTED, Events.EPOCH_STARTED, Events.EPOCH_COMPLETED, Events.COMPLETED):
            engine.fire_event(event)
        assert engine.state.metric_details["dice"].shape == (1, 2)
        assert engine.state.metric_details["dice"].isnan().all()


def test_a_row_of_nothing_is_gone_where_there_is_a_scan_again() -> None:
    metric = OrganDice(organs=["liver", "spleen"])
    metric.attach(Engine(lambda *_: None), "dice")
    metric.compute()
    metric.reset()
    metric.update([torch.ones(1, 2, 1), torch.ones(1, 2, 1)])
    assert metric.compute() == 1
    assert metric.metric_fn.get_buffer().tolist() == [[1, 1]]
    metric.reset()
    metric.compute()
    assert metric.metric_fn.get_buffer().isnan().all()
