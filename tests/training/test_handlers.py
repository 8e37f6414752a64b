"""Checkpoints from which a training goes on exactly, its log, its bar, and its stop over a broken loss."""

from __future__ import annotations

import csv
import pickle
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from bundle import distributed
from bundle.data import EpisodeSampler
from bundle.training import checkpoints, handlers
from bundle.training.checkpoints import Checkpoints
from bundle.training.handlers import MeanLoss, ProgressBar, StopOnBrokenLoss, TrainingLog, loss_of
from ignite.engine import Engine, Events
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tests.processes import become
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

EPOCHS, EPOCH_LENGTH = 3, 4


class Points(Dataset[Tensor]):
    """Point ``i`` is a function of ``i``."""

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor([np.sin(index), np.cos(3 * index), 1.0], dtype=torch.float32)


class Training:
    """A linear network that learns from points with momentum and a schedule, two points a step."""

    def __init__(
        self,
        folder: Path,
        outputs: int = 2,
        batch_size: int = 2,
        momentum: float = 0.9,
        gamma: float = 0.5,
        **settings: Any,
    ) -> None:
        torch.manual_seed(0)
        self.network = nn.Linear(3, outputs)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.1, momentum=momentum)
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, step_size=2, gamma=gamma)
        self.sampler = EpisodeSampler()
        self.loader = DataLoader(Points(), batch_size=batch_size, sampler=self.sampler)
        self.engine = Engine(self.step)
        self.engine.add_event_handler(Events.ITERATION_COMPLETED, lambda _: self.schedule.step())
        self.checkpoints = Checkpoints(
            folder / "checkpoints",
            folder / "models" / "model.pt",
            self.network,
            self.optimizer,
            self.schedule,
            self.sampler,
            batch_size=batch_size,
            **({"every": 1} | settings),
        )
        self.checkpoints.attach(self.engine)

    def step(self, engine: Engine, batch: Tensor) -> dict[str, Tensor]:
        loss = (self.network(batch) - 1).pow(2).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.detach()}

    def run(self, stop_after: int | None = None) -> Training:
        if stop_after is None:
            self.engine.run(self.loader, max_epochs=EPOCHS, epoch_length=EPOCH_LENGTH)
        else:
            self.engine.add_event_handler(Events.ITERATION_COMPLETED(once=stop_after), power_cut)
            with pytest.raises(InterruptedError):
                self.engine.run(self.loader, max_epochs=EPOCHS, epoch_length=EPOCH_LENGTH)
        return self

    def begin_and_save(self) -> None:
        """Save before the first step, with the weights of the start."""
        self.engine.add_event_handler(Events.STARTED, self.checkpoints.save)
        self.begin()

    def begin(self) -> Training:
        """Start and stop before the first step."""
        self.engine.add_event_handler(Events.STARTED, power_cut)
        with pytest.raises(InterruptedError):
            self.engine.run(self.loader, max_epochs=EPOCHS, epoch_length=EPOCH_LENGTH)
        return self


def power_cut(engine: Engine) -> None:
    raise InterruptedError


def losses_engine(start: int = 0, losses: dict[int, float] | None = None) -> Engine:
    """An engine whose loss is the number of the step, or what ``losses`` say; it goes on from step ``start``."""
    engine = Engine(lambda engine, _: {"loss": (losses or {}).get(engine.state.iteration, engine.state.iteration)})

    def go_on(engine: Engine) -> None:
        engine.state.iteration = start
        engine.state.epoch = start // EPOCH_LENGTH

    engine.add_event_handler(Events.STARTED, go_on)
    return engine


def run_losses(engine: Engine, epochs: int = EPOCHS) -> None:
    engine.run([0] * EPOCH_LENGTH, max_epochs=epochs, epoch_length=EPOCH_LENGTH)


@pytest.mark.parametrize("output", [{"loss": torch.tensor(2.5)}, [{"loss": 2.5}, {"loss": 2.5}]])
def test_the_loss_is_found_in_collated_and_in_decollated_output(output: Any) -> None:
    assert loss_of(output) == 2.5


def test_the_loss_of_a_training_step_is_taken_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert loss_of([{"loss": torch.tensor(2.5, requires_grad=True)}]) == 2.5


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_broken_loss_ends_the_training_before_it_is_saved(tmp_path: Path, loss: float) -> None:
    engine = losses_engine(losses={3: loss})
    StopOnBrokenLoss().attach(engine)
    with pytest.raises(
        FloatingPointError, match=f"the loss must be finite, got {loss} at step 3. Lower the learning rate"
    ):
        run_losses(engine)
    assert engine.state.iteration == 3


def test_a_finite_loss_goes_on() -> None:
    engine = losses_engine()
    StopOnBrokenLoss().attach(engine)
    run_losses(engine)
    assert engine.state.iteration == EPOCHS * EPOCH_LENGTH


@pytest.mark.parametrize("stop_after", [3, 4, 9])
def test_a_resumed_training_ends_with_the_very_same_weights(tmp_path: Path, stop_after: int) -> None:
    whole = Training(tmp_path / "whole").run()
    Training(tmp_path / "cut").run(stop_after)
    resumed = Training(tmp_path / "cut", resume=True).run()
    assert resumed.engine.state.iteration == EPOCHS * EPOCH_LENGTH
    torch.testing.assert_close(resumed.network.state_dict(), whole.network.state_dict(), rtol=0, atol=0)


def test_resuming_restores_network_momentum_and_schedule(tmp_path: Path) -> None:
    cut = Training(tmp_path).run(stop_after=3)
    resumed = Training(tmp_path, resume=True).begin()
    torch.testing.assert_close(resumed.network.state_dict(), cut.network.state_dict(), rtol=0, atol=0)
    momentum, expected = (training.optimizer.state_dict()["state"] for training in (resumed, cut))
    torch.testing.assert_close(momentum, expected, rtol=0, atol=0)
    assert momentum[0]["momentum_buffer"].abs().sum() > 0
    # Halved once in three steps.
    assert resumed.schedule.get_last_lr() == [0.05]
    assert resumed.schedule.last_epoch == 3


@pytest.mark.parametrize("stop_after", [3, 8])
def test_resuming_restores_the_step_and_the_next_episode(tmp_path: Path, stop_after: int) -> None:
    Training(tmp_path).run(stop_after)
    resumed = Training(tmp_path, resume=True).begin()
    assert resumed.engine.state.iteration == stop_after
    assert resumed.engine.state.epoch == stop_after // EPOCH_LENGTH
    assert resumed.sampler.start == 2 * stop_after


def test_resuming_restores_the_random_states(tmp_path: Path) -> None:
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    random.seed(3)
    np.random.normal()  # noqa: NPY002  (leaves a second one waiting)
    Training(tmp_path).run(stop_after=2)
    expected = torch.rand(1).item(), np.random.normal(), random.random()  # noqa: NPY002
    Training(tmp_path, resume=True).begin()
    assert (torch.rand(1).item(), np.random.normal(), random.random()) == expected  # noqa: NPY002


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    Training(tmp_path).run(stop_after=2)
    with pytest.raises(ValueError, match=r"last\.pt was made with other settings: network::settings was "):
        Training(tmp_path, outputs=5, resume=True).run()


def test_a_checkpoint_of_another_batch_size_is_refused(tmp_path: Path) -> None:
    Training(tmp_path).run(stop_after=2)
    with pytest.raises(ValueError, match=r"with other settings: batch_size was 2, is 3\. Set them back"):
        Training(tmp_path, batch_size=3, resume=True).run()


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda _: b"", "it is empty"),
    "truncated": (lambda content: content[: len(content) // 2], "it is truncated or damaged"),
    "flipped": (lambda content: flipped(content), "it is damaged .*checksum"),
    "pointer": (lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
    "pickle": (lambda _: pickle.dumps(print), "it holds something other than tensors"),
    "text": (lambda _: b"hello", "it holds something other than tensors"),
}


def flipped(content: bytes) -> bytes:
    """Turn one bit of the weights' numbers."""
    numbers = Training(Path()).network.weight.detach().numpy().tobytes()[:8]
    place = content.index(numbers)
    return content[:place] + bytes([content[place] ^ 64]) + content[place + 1 :]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_said_in_one_sentence(tmp_path: Path, damage: str) -> None:
    Training(tmp_path).begin_and_save()
    last = tmp_path / "checkpoints" / "last.pt"
    act, words = DAMAGES[damage]
    last.write_bytes(act(last.read_bytes()))
    with pytest.raises(ValueError, match=rf"last\.pt cannot be read .*{words}.*Copy a kept step_<n>\.pt"):
        Training(tmp_path, resume=True).run()


@pytest.mark.parametrize("name", ["network", "step", "random", "made_with"])
def test_a_checkpoint_without_a_part_is_refused_with_its_name(tmp_path: Path, name: str) -> None:
    Training(tmp_path).run(stop_after=2)
    last = tmp_path / "checkpoints" / "last.pt"
    state = torch.load(last, weights_only=True)
    del state[name]
    torch.save(state, last)
    with pytest.raises(
        ValueError, match=rf"last\.pt must hold the complete state of a training, but lacks {name}\. Copy"
    ):
        Training(tmp_path, resume=True).run()


class Loss:
    """A loss with a weight."""

    def __init__(self, weight: float) -> None:
        self.weight = weight


CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "setting": ({"settings": {"fold": 0}}, {"settings": {"fold": 1}}, "fold was 0, is 1"),
    "new": ({}, {"settings": {"fold": 1}}, "fold was not set, is 1"),
    "loss": ({"settings": {"loss": Loss(0.5)}}, {"settings": {"loss": Loss(1.0)}}, "loss::weight was 0.5, is 1.0"),
    "optimizer": ({}, {"momentum": 0.5}, "optimizer::groups::0::momentum was 0.9, is 0.5"),
    "schedule": ({}, {"gamma": 0.9}, "lr_scheduler::gamma was 0.5, is 0.9"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_whatever_shapes_the_weights_must_be_as_it_was(tmp_path: Path, case: str) -> None:
    before, now, words = CHANGES[case]
    Training(tmp_path, **before).run(stop_after=2)
    Training(tmp_path, resume=True, **before).begin()
    with pytest.raises(ValueError, match=rf"last\.pt was made with other settings: {words}\. Set"):
        Training(tmp_path, resume=True, **now).run()


def cosine(training: Training, steps: int, warm_up: int = 0) -> Training:
    """Give a training a cosine schedule, after a warm-up."""
    optimizer, schedulers = training.optimizer, torch.optim.lr_scheduler
    made: Any = schedulers.CosineAnnealingLR(optimizer, T_max=steps)
    if warm_up:
        first = schedulers.ConstantLR(optimizer, 0.1, warm_up)
        made = schedulers.SequentialLR(optimizer, [first, made], [warm_up])
    training.schedule = training.checkpoints.parts["lr_scheduler"] = made
    return training


@pytest.mark.parametrize("warm_up", [0, 3])
def test_a_finished_cosine_does_not_rise_again(tmp_path: Path, warm_up: int) -> None:
    end = EPOCHS * EPOCH_LENGTH
    cosine(Training(tmp_path), end - warm_up, warm_up).run()
    cosine(Training(tmp_path, resume=True), end - warm_up, warm_up).run()
    more = cosine(Training(tmp_path, resume=True), end - warm_up, warm_up)
    with pytest.raises(ValueError, match=f"ends at step {end}, and training must not continue to step {end + 4}"):
        more.engine.run(more.loader, max_epochs=EPOCHS + 1, epoch_length=EPOCH_LENGTH)


def test_a_cosine_that_was_to_rise_again_from_the_start_goes_on(tmp_path: Path) -> None:
    whole = cosine(Training(tmp_path / "whole"), 6).run()
    cosine(Training(tmp_path / "cut"), 6).run(stop_after=5)
    resumed = cosine(Training(tmp_path / "cut", resume=True), 6).run()
    torch.testing.assert_close(resumed.network.state_dict(), whole.network.state_dict(), rtol=0, atol=0)


def test_starting_anew_sets_the_old_checkpoint_aside(tmp_path: Path) -> None:
    Training(tmp_path).run(stop_after=2)
    content = (tmp_path / "checkpoints" / "last.pt").read_bytes()
    anew = Training(tmp_path).begin()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last_of_previous_run.pt"]
    assert (tmp_path / "checkpoints" / "last_of_previous_run.pt").read_bytes() == content
    assert (anew.engine.state.iteration, anew.sampler.start) == (0, 0)


def test_a_further_round_of_the_same_engine_goes_on(tmp_path: Path) -> None:
    """As ``MonaiAlgo`` trains: it calls the trainer again, with more epochs."""
    training = Training(tmp_path).run()
    steps = EPOCHS * EPOCH_LENGTH
    training.engine.run(training.loader, max_epochs=EPOCHS + 1, epoch_length=EPOCH_LENGTH)
    assert not (tmp_path / "checkpoints" / "last_of_previous_run.pt").exists()
    assert training.sampler.start == 2 * steps
    assert training.engine.state.iteration == steps + EPOCH_LENGTH


def test_resuming_without_a_checkpoint_starts_at_the_beginning(tmp_path: Path) -> None:
    whole, resumed = Training(tmp_path / "a").run(), Training(tmp_path / "b", resume=True).run()
    torch.testing.assert_close(resumed.network.state_dict(), whole.network.state_dict(), rtol=0, atol=0)


def test_the_trained_weights_are_a_plain_state_dictionary(tmp_path: Path) -> None:
    training = Training(tmp_path).run()
    weights = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    torch.testing.assert_close(weights, dict(training.network.state_dict()), rtol=0, atol=0)


def test_an_interrupted_training_leaves_no_trained_weights(tmp_path: Path) -> None:
    Training(tmp_path).run(stop_after=5)
    assert not (tmp_path / "models").exists()


def test_checkpoints_are_kept_as_often_as_asked(tmp_path: Path) -> None:
    Training(tmp_path, every=100, keep_every=5).run()
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["last.pt", "step_10.pt", "step_5.pt"]
    steps = {name: torch.load(tmp_path / "checkpoints" / name, weights_only=True)["step"] for name in names}
    assert steps == {"last.pt": 12, "step_5.pt": 5, "step_10.pt": 10}


@pytest.mark.parametrize("settings", [{"every": 0}, {"keep_every": -1}])
def test_checkpoint_intervals_out_of_range_are_refused(tmp_path: Path, settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="checkpoints need every >= 1 and keep_every >= 0"):
        Training(tmp_path, **settings)


def log_of(folder: Path, **settings: Any) -> TrainingLog:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.01)
    return TrainingLog(folder, optimizer, **({"every": 2, "pictures_every": 0} | settings))


def rows_of(folder: Path) -> list[list[str]]:
    with (folder / "training.csv").open(newline="") as file:
        return list(csv.reader(file))


def test_the_log_has_the_mean_loss_of_its_steps_and_the_learning_rate(tmp_path: Path) -> None:
    engine = losses_engine()
    log_of(tmp_path).attach(engine)
    run_losses(engine, epochs=1)
    assert rows_of(tmp_path) == [
        ["step", "loss", "learning_rate"],
        ["2", "1.500000", "0.01"],
        ["4", "3.500000", "0.01"],
    ]
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_tensorboard_has_a_mean_loss_before_step_20_and_a_picture_before_step_100(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    monkeypatch.setattr(TrainingLog, "picture", lambda _, engine: drawn.append(engine.state.iteration))
    engine = losses_engine()
    TrainingLog(tmp_path, SimpleNamespace(param_groups=[{"lr": 0.01}])).attach(engine)
    run_losses(engine, epochs=15)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")][:2] == [(5, 3.0), (10, 8.0)]
    assert drawn == [50]


def test_a_resumed_log_has_every_step_once(tmp_path: Path) -> None:
    for start, losses in ((0, {6: 66.0, 8: 88.0}), (4, {})):
        engine = losses_engine(start, losses)
        log_of(tmp_path).attach(engine)
        run_losses(engine, epochs=2)
    assert [row[:2] for row in rows_of(tmp_path)[1:]] == [
        ["2", "1.500000"],
        ["4", "3.500000"],
        ["6", "5.500000"],
        ["8", "7.500000"],
    ]


def test_a_training_that_starts_anew_starts_a_new_log(tmp_path: Path) -> None:
    for epochs in (2, 1):
        engine = losses_engine()
        log_of(tmp_path).attach(engine)
        run_losses(engine, epochs)
    assert [row[0] for row in rows_of(tmp_path)] == ["step", "2", "4"]


def test_the_log_draws_support_query_and_prediction_side_by_side(tmp_path: Path) -> None:
    drawn: list[tuple[tuple[int, ...], int]] = []
    log = log_of(tmp_path, pictures_every=500)
    log._writer = SimpleNamespace(add_image=lambda _, picture, step, **__: drawn.append((picture.shape, step)))
    batch = {
        "image": torch.rand(2, 3, 6, 10),
        "label": torch.ones(2, 1, 6, 10),
        "support_image": torch.rand(2, 1, 3, 6, 10),
        "support_mask": torch.ones(2, 1, 1, 6, 10),
    }
    output = {"pred": (torch.rand(2, 2, 6, 10, requires_grad=True), torch.rand(2, 2, 6, 10))}
    log.picture(SimpleNamespace(state=SimpleNamespace(batch=batch, output=output, iteration=500)))
    assert drawn == [((6, 3 * 10 + 2 * 4, 3), 500)]


@pytest.mark.parametrize("settings", [{"every": 0}, {"pictures_every": -1}, {"first_picture": 0}, {"curve_every": 0}])
def test_log_intervals_out_of_range_are_refused(tmp_path: Path, settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="the log needs every, first_picture and curve_every >= 1"):
        log_of(tmp_path, **settings)


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every bar that is opened."""
    opened: list[Any] = []
    tqdm = handlers.tqdm

    def keep(*args: Any, **settings: Any) -> Any:
        opened.append(tqdm(*args, **settings))
        return opened[-1]

    monkeypatch.setattr(handlers, "tqdm", keep)
    return opened


@pytest.mark.parametrize("start", [0, 4, 6])
def test_the_bar_ends_full_wherever_the_run_started(bars: list[Any], start: int) -> None:
    engine = losses_engine(start)
    ProgressBar("training", show_loss=True).attach(engine)
    run_losses(engine)
    assert [(bar.initial, bar.n, bar.total) for bar in bars] == [(start, 12, 12)]


def test_the_bar_shows_the_mean_loss(bars: list[Any]) -> None:
    engine = losses_engine()
    ProgressBar("training", show_loss=True).attach(engine)
    run_losses(engine, epochs=1)
    assert bars[0].postfix == "loss=2.500"


def test_the_bar_is_closed_at_the_end_and_opened_anew_for_the_next_run(bars: list[Any]) -> None:
    bar = ProgressBar("evaluation")
    for _ in range(2):
        engine = losses_engine()
        bar.attach(engine)
        run_losses(engine)
    assert [bar.disable for bar in bars] == [True, True]


def test_the_bar_is_closed_over_an_error_and_the_error_goes_on(bars: list[Any]) -> None:
    engine = losses_engine(losses={3: float("nan")})
    StopOnBrokenLoss().attach(engine)
    ProgressBar("training").attach(engine)
    with pytest.raises(FloatingPointError, match="at step 3"):
        run_losses(engine)
    assert bars[0].disable


def test_log_and_stop_see_the_mean_loss_of_all_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    become(monkeypatch, 0, 2)
    monkeypatch.setattr(distributed.idist, "all_reduce", lambda loss: loss + 10)
    engine = Engine(lambda engine, _: {"loss": torch.tensor(float(engine.state.iteration), requires_grad=True)})
    for handler in (MeanLoss(), log_of(tmp_path)):
        handler.attach(engine)
    run_losses(engine, epochs=1)
    assert [row[1] for row in rows_of(tmp_path)[1:]] == ["5.750000", "6.750000"]


def test_another_process_draws_no_bar_and_writes_no_log(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bars: list[Any]
) -> None:
    become(monkeypatch, 1, 2)
    engine = losses_engine()
    for handler in (ProgressBar("training", show_loss=True), log_of(tmp_path)):
        handler.attach(engine)
    run_losses(engine)
    assert bars == []
    assert not list(tmp_path.iterdir())


def test_another_process_writes_no_checkpoint_and_no_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    become(monkeypatch, 1, 2)
    Training(tmp_path, keep_every=2).run()
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out == ""


def test_another_process_sets_no_checkpoint_aside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Training(tmp_path).run(stop_after=2)
    become(monkeypatch, 1, 2)
    Training(tmp_path).begin()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.pt"]


def test_another_process_goes_on_with_what_the_first_one_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cut = Training(tmp_path / "first").run(stop_after=3)
    sent = [True, torch.load(tmp_path / "first" / "checkpoints" / "last.pt", weights_only=True)]
    become(monkeypatch, 1, 2)
    monkeypatch.setattr(
        distributed.dist, "broadcast_object_list", lambda values, src: values.__setitem__(0, sent.pop(0))
    )
    resumed = Training(tmp_path / "no folder of its own", resume=True).begin()
    torch.testing.assert_close(resumed.network.state_dict(), cut.network.state_dict(), rtol=0, atol=0)
    assert (resumed.engine.state.iteration, resumed.sampler.start) == (3, 6)


def test_broken_weights_end_every_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    become(monkeypatch, 1, 2)
    training = Training(tmp_path)
    with torch.no_grad():
        training.network.weight.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match="weights must be finite, but 1 are not at step 0, such as weight"):
        training.checkpoints.save(training.engine)


def test_the_random_state_of_a_gpu_is_that_of_the_networks_own(monkeypatch: pytest.MonkeyPatch) -> None:
    state, asked, given = torch.zeros(4, dtype=torch.uint8), [], []
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: asked.append(device) or state)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: given.append((state, device)))
    random_states = checkpoints._random_states(torch.device("cuda", 1))
    checkpoints._set_random_states(random_states, torch.device("cuda", 2))
    checkpoints._set_random_states(random_states, torch.device("cpu"))
    assert asked == [torch.device("cuda", 1)]
    assert given == [(state, torch.device("cuda", 2))]
