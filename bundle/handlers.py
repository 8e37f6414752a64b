"""What happens around a training run: progress, checkpoints, scalars and pictures, a stop when the loss breaks."""

from __future__ import annotations

import csv
import logging
import os
import pickle
import random
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines import Evaluator
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from bundle import ranks
from bundle.files import written_whole
from bundle.keys import IMAGE, LABEL, SUPPORT_IMAGE, SUPPORT_MASK
from bundle.visuals import episode_picture

logger = logging.getLogger(__name__)


def loss_of(output: Any) -> float:
    """Return the loss of an iteration from an engine's output."""
    loss = (output[0] if isinstance(output, list) else output)["loss"]
    return float(loss.detach() if isinstance(loss, torch.Tensor) else loss)


class MeanLoss:
    """Put the mean loss of all processes in place of this one's: what log, bar and ``StopOnBrokenLoss`` then see."""

    def attach(self, engine: Engine) -> None:
        """Follow every iteration; attach it before the handlers that look at the loss."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Replace the loss of this iteration."""
        output: Any = engine.state.output
        output["loss"] = ranks.mean_of_all(output["loss"])


class ProgressBar:
    """A bar over all steps of a run, with the mean loss of the last ones where there is a loss.

    Of several processes, the first draws its own.

    Args:
        description: What stands before the bar.
        show_loss: Whether the engine's output has a loss.
        unit: What one step is called.
    """

    def __init__(self, description: str, show_loss: bool = False, unit: str = "step") -> None:
        self.description = description
        self.show_loss = show_loss
        self.unit = unit
        self._bar: tqdm[Any] | None = None
        self._losses: deque[float] = deque(maxlen=50)

    def attach(self, engine: Engine) -> None:
        """Follow the engine."""
        if not ranks.is_first():
            return
        engine.add_event_handler(Events.EPOCH_STARTED, self.open)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.move)
        engine.add_event_handler(Events.COMPLETED | Events.EXCEPTION_RAISED, self.close)

    def open(self, engine: Engine) -> None:
        """Draw the bar, once, at the step that the run starts from."""
        if self._bar is None:
            state: Any = engine.state
            # An evaluator counts epochs of the trainer, and runs one.
            epochs = 1 if isinstance(engine, Evaluator) else state.max_epochs
            self._bar = tqdm(
                total=state.epoch_length * epochs,
                initial=state.iteration,
                desc=self.description,
                unit=self.unit,
                mininterval=2.0,  # a long training's log goes to files as often as to a screen
            )

    def move(self, engine: Engine) -> None:
        """Move by one step."""
        if self._bar is not None:
            if self.show_loss:
                self._losses.append(loss_of(engine.state.output))
                self._bar.set_postfix(loss=f"{np.mean(self._losses):.3f}", refresh=False)
            self._bar.update(1)

    def close(self, engine: Engine, *problem: BaseException) -> None:
        """Leave the bar as it is; a problem goes on its way."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if problem:
            raise problem[0]


class StopOnBrokenLoss:
    """End a training whose loss is NaN or infinite; ``Checkpoints`` looks at the weights."""

    def attach(self, engine: Engine) -> None:
        """Watch every iteration."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Check the loss of this iteration.

        Raises:
            FloatingPointError: If it is NaN or infinite.
        """
        loss = loss_of(engine.state.output)
        if not np.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} at step {engine.state.iteration}. Lower the learning rate, or switch amp off."
            )


class Checkpoints:
    """Save a training so that it can go on exactly, and its weights when it is done.

    ``last.pt`` is written every ``every`` steps and at the end, ``step_<n>.pt`` every ``keep_every`` steps: each
    holds network, optimizer, schedule, step and random states, and is written beside its place and renamed, so a
    kill leaves the one before. ``weights_file`` is the network's plain state dictionary, written at the end. Of
    several processes the first reads and writes; a training goes on with any number of them.

    Args:
        folder: Where checkpoints go.
        weights_file: Where the trained weights go.
        network: What is trained.
        optimizer: Its optimizer.
        lr_scheduler: Its schedule.
        sampler: Counts the episodes; it is set to the first one that was not learned from yet.
        batch_size: Episodes a step, of all processes together.
        every: Steps between two ``last.pt``.
        keep_every: Steps between checkpoints that are kept; 0 keeps none.
        resume: Go on from ``last.pt`` where there is one, instead of starting anew.
        settings: What must be as it was for a training to go on: it is kept in the checkpoint and compared.
    """

    def __init__(
        self,
        folder: str | Path,
        weights_file: str | Path,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        lr_scheduler: Any,
        sampler: Any,
        batch_size: int = 1,
        every: int = 100,
        keep_every: int = 0,
        resume: bool = False,
        settings: dict[str, Any] | None = None,
    ) -> None:
        if every < 1 or keep_every < 0:
            raise ValueError(f"checkpoints need every >= 1 and keep_every >= 0 steps, got {every} and {keep_every}.")
        self.folder, self.weights_file = Path(folder), Path(weights_file)
        self.parts = {"network": network, "optimizer": optimizer, "lr_scheduler": lr_scheduler}
        self.sampler, self.batch_size = sampler, batch_size
        self.every, self.keep_every, self.resume = every, keep_every, resume
        self.settings = dict(settings or {})

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return self.folder / "last.pt"

    def attach(self, engine: Engine) -> None:
        """Load when the engine starts, save while it runs."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=self.every), self.save)
        if self.keep_every:
            engine.add_event_handler(Events.ITERATION_COMPLETED(every=self.keep_every), self.keep)
        engine.add_event_handler(Events.COMPLETED, self.finish)

    def start(self, engine: Engine) -> None:
        """Go on from the last checkpoint, or set an old one aside."""
        # What the first process finds counts for all, also where the others do not see its files.
        if ranks.from_first(self.resume and self.last.is_file()):
            self.restore(engine)
            logger.info("resumed %s at step %d", self.last, engine.state.iteration)
        elif not ranks.is_first():
            return
        elif self.resume:
            logger.warning("there is no %s to resume from; starting at step 0", self.last)
        elif self.last.is_file():
            aside = self.folder / "last_of_previous_run.pt"
            os.replace(self.last, aside)
            logger.warning("starting anew; the checkpoint of an earlier run is now %s (resume=true goes on)", aside)

    def restore(self, engine: Engine) -> None:
        """Set everything to what ``last.pt`` holds.

        Raises:
            ValueError: If the checkpoint is of another network, or of another batch size.
        """
        state = ranks.from_first(self._read() if ranks.is_first() else {})
        try:
            for name, part in self.parts.items():
                part.load_state_dict(state[name])
        except (RuntimeError, KeyError, ValueError) as error:
            raise ValueError(
                f"{self.last} does not fit this training: {error}. Set the keys that changed back, or resume to false."
            ) from error
        engine.state.iteration = state["step"]
        engine.state.epoch = state["step"] // engine.state.epoch_length
        self.sampler.start = state["step"] * self.batch_size
        if state["scaler"] is not None and engine.scaler is not None:  # type: ignore[attr-defined]
            engine.scaler.load_state_dict(state["scaler"])  # type: ignore[attr-defined]
        _set_random_states(state["random"], self._device())

    def _read(self) -> dict[str, Any]:
        """Return what ``last.pt`` holds, if it is of this training."""
        try:
            state: dict[str, Any] = torch.load(self.last, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(
                f"{self.last} cannot be read ({type(error).__name__}). Copy a kept step_<n>.pt over it, or set resume "
                "to false."
            ) from error
        if state["batch_size"] != self.batch_size:
            raise ValueError(
                f"{self.last} was made with batch_size {state['batch_size']}, not {self.batch_size}: the episodes "
                "would not go on where they stopped. Set batch_size back, or resume to false."
            )
        before = state.get("settings", {})
        if changed := [
            f"{key} was {before[key]}, is {now}" for key, now in self.settings.items() if before.get(key, now) != now
        ]:
            raise ValueError(
                f"{self.last} is of a training with other settings: {', '.join(changed)}. Set them back, or resume to "
                "false."
            )
        return state

    def _device(self) -> torch.device:
        return next((p.device for p in self.parts["network"].parameters()), torch.device("cpu"))

    def save(self, engine: Engine) -> None:
        """Write ``last.pt``."""
        self._write(engine, self.last)

    def keep(self, engine: Engine) -> None:
        """Write a checkpoint that stays."""
        self._write(engine, self.folder / f"step_{engine.state.iteration}.pt")

    def finish(self, engine: Engine) -> None:
        """Write ``last.pt`` and the trained weights."""
        self.save(engine)
        if ranks.is_first():
            save_atomically(_to_cpu(self.parts["network"].state_dict()), self.weights_file)
            print(f"trained weights: {self.weights_file}")

    def _write(self, engine: Engine, path: Path) -> None:
        self._refuse_broken_weights(engine)
        if ranks.is_first():
            save_atomically(self._state(engine), path)

    def _refuse_broken_weights(self, engine: Engine) -> None:
        # The loss that was checked is of before the last update.
        broken = [name for name, p in self.parts["network"].named_parameters() if not bool(torch.isfinite(p).all())]
        if broken:
            raise FloatingPointError(
                f"{len(broken)} weights are not finite at step {engine.state.iteration}, {broken[0]} among them; "
                "nothing was saved over the checkpoint before. Lower the learning rate."
            )

    def _state(self, engine: Engine) -> dict[str, Any]:
        scaler = getattr(engine, "scaler", None)
        return {
            **{name: _to_cpu(part.state_dict()) for name, part in self.parts.items()},
            "scaler": None if scaler is None else scaler.state_dict(),
            "step": engine.state.iteration,
            "batch_size": self.batch_size,
            "settings": self.settings,
            "random": _random_states(self._device()),
        }


def save_atomically(state: Any, path: Path) -> None:
    """Write a file beside its place, then rename it: it is there whole, or not at all."""
    # Through a file of Python's: of a path, PyTorch does not say that the disk is full.
    with written_whole(path) as unfinished, unfinished.open("wb") as file:
        torch.save(state, file)


def _to_cpu(state: Any) -> Any:
    if isinstance(state, torch.Tensor):
        return state.detach().cpu()
    if isinstance(state, dict):
        return {key: _to_cpu(value) for key, value in state.items()}
    return [_to_cpu(value) for value in state] if isinstance(state, list) else state


def _random_states(device: torch.device) -> dict[str, Any]:
    """Return the state of every generator; the processes of a run draw alike, so the first one's are everybody's."""
    _, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002
    version, numbers, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state(device)] if device.type == "cuda" else [],
        "numpy": [torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss],
        "python": [version, list(numbers), gauss_next],
    }


def _set_random_states(states: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(states["torch"])
    if states["cuda"] and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"][0], device)
    keys, *rest = states["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    version, numbers, gauss_next = states["python"]
    random.setstate((version, tuple(numbers), gauss_next))


class TrainingLog:
    """Write the loss and the learning rate of every step, as CSV and for TensorBoard, and some episodes as pictures.

    Of several processes, the first writes.

    Args:
        folder: Where ``training.csv`` and TensorBoard's files go.
        optimizer: Knows the learning rate.
        every: Steps that a row averages over.
        pictures_every: Steps between two pictures; 0 for none.
    """

    def __init__(
        self, folder: str | Path, optimizer: torch.optim.Optimizer, every: int = 20, pictures_every: int = 500
    ) -> None:
        if every < 1 or pictures_every < 0:
            raise ValueError(f"the log needs every >= 1 and pictures_every >= 0, got {every} and {pictures_every}.")
        self.folder = Path(folder)
        self.optimizer = optimizer
        self.every = every
        self.pictures_every = pictures_every
        self._losses: list[float] = []
        self._writer: SummaryWriter | None = None

    def attach(self, engine: Engine) -> None:
        """Follow the engine."""
        if not ranks.is_first():
            return
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.record)
        if self.pictures_every:
            engine.add_event_handler(Events.ITERATION_COMPLETED(every=self.pictures_every), self.picture)
        engine.add_event_handler(Events.COMPLETED, self.close)

    def start(self, engine: Engine) -> None:
        """Open the files, and drop the rows of steps that are about to be made again."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._writer = SummaryWriter(str(self.folder), purge_step=engine.state.iteration)
        path = self.folder / "training.csv"
        rows = list(csv.reader(path.open(newline=""))) if path.is_file() else []
        kept = [row for row in rows[1:] if int(row[0]) <= engine.state.iteration]
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["step", "loss", "learning_rate"], *kept])

    def record(self, engine: Engine) -> None:
        """Note the loss of this step."""
        self._losses.append(loss_of(engine.state.output))
        step = engine.state.iteration
        if step % self.every == 0:
            loss, rate = float(np.mean(self._losses)), self.optimizer.param_groups[0]["lr"]
            self._losses = []
            with (self.folder / "training.csv").open("a", newline="") as file:
                csv.writer(file).writerow([step, f"{loss:.6f}", f"{rate:.6g}"])
            if self._writer is not None:
                self._writer.add_scalar("train/loss", loss, step)
                self._writer.add_scalar("train/learning_rate", rate, step)

    def picture(self, engine: Engine) -> None:
        """Draw the first episode of this step: support with its mask, query with truth and prediction."""
        state: Any = engine.state
        batch, logits = state.batch, state.output["pred"][0]
        episode = {key: batch[key][0].detach().cpu() for key in (IMAGE, LABEL, SUPPORT_IMAGE, SUPPORT_MASK)}
        drawn = episode_picture(episode, logits[0].detach().argmax(dim=0).cpu())
        if self._writer is not None:
            self._writer.add_image("train/support, query, prediction", drawn, engine.state.iteration, dataformats="HWC")

    def close(self, engine: Engine) -> None:
        """Finish TensorBoard's file."""
        if self._writer is not None:
            self._writer.close()
