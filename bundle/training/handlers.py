"""Handlers of a training run: progress bar, log, scalars and pictures, and a stop if the loss is not finite."""

from __future__ import annotations

import csv
import logging
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bundle import distributed
from bundle.evaluation.visuals import episode_picture
from bundle.keys import IMAGE, LABEL, SUPPORT_IMAGE, SUPPORT_MASK
from ignite.engine import Engine, Events
from monai.engines import Evaluator
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

logger = logging.getLogger(__name__)


def loss_of(output: Any) -> float:
    """Return the loss of an iteration from an engine's output."""
    loss = _one(output)["loss"]
    return float(loss.detach() if isinstance(loss, torch.Tensor) else loss)


def _one(output: Any) -> Any:
    return output[0] if isinstance(output, list) else output


class MeanLoss:
    """Replace this process's loss by the mean over all processes, for log, bar and ``StopOnBrokenLoss``.

    The output becomes a list of one dictionary, as MONAI's own handlers (MLflow) expect it.
    """

    def attach(self, engine: Engine) -> None:
        """Register for every iteration; attach it before the handlers that read the loss."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Replace the loss of this iteration."""
        state: Any = engine.state
        output = state.output
        output["loss"] = distributed.mean_of_all(output["loss"])
        state.output = [output]


class ProgressBar:
    """A progress bar over all steps of a run, with the mean loss of the last 50 steps if there is a loss.

    With several processes, only the first one draws a bar.

    Args:
        description: The text in front of the bar.
        show_loss: Whether the engine's output has a loss.
        unit: The name of one step.
    """

    def __init__(self, description: str, show_loss: bool = False, unit: str = "step") -> None:
        self.description = description
        self.show_loss = show_loss
        self.unit = unit
        self._bar: tqdm[Any] | None = None
        self._losses: deque[float] = deque(maxlen=50)

    def attach(self, engine: Engine) -> None:
        """Register the bar's events."""
        if not distributed.is_first():
            return
        engine.add_event_handler(Events.EPOCH_STARTED, self.open)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.move)
        engine.add_event_handler(Events.COMPLETED | Events.EXCEPTION_RAISED, self.close)

    def open(self, engine: Engine) -> None:
        """Draw the bar once, starting at the run's first step."""
        if self._bar is None:
            state: Any = engine.state
            # An evaluator counts the trainer's epochs, but runs only one itself.
            epochs = 1 if isinstance(engine, Evaluator) else state.max_epochs
            self._bar = tqdm(
                total=state.epoch_length * epochs,
                initial=state.iteration,
                desc=self.description,
                unit=self.unit,
                mininterval=2.0,  # the output of a long training often goes to a file
            )

    def move(self, engine: Engine) -> None:
        """Advance by one step."""
        if self._bar is not None:
            if self.show_loss:
                self._losses.append(loss_of(engine.state.output))
                self._bar.set_postfix(loss=f"{np.mean(self._losses):.3f}", refresh=False)
            self._bar.update(1)

    def close(self, engine: Engine, *problem: BaseException) -> None:
        """Close the bar; an exception is raised again."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if problem:
            raise problem[0]


class StopOnBrokenLoss:
    """Stop a training whose loss is NaN or infinite; ``Checkpoints`` checks the weights."""

    def attach(self, engine: Engine) -> None:
        """Register for every iteration."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Check the loss of this iteration.

        Raises:
            FloatingPointError: If it is NaN or infinite.
        """
        loss = loss_of(engine.state.output)
        if not np.isfinite(loss):
            raise FloatingPointError(
                f"the loss must be finite, got {loss} at step {engine.state.iteration}. Lower the learning rate, or "
                "switch amp off."
            )


class TrainingLog:
    """Write the loss and the learning rate as CSV and for TensorBoard, and some episodes as pictures.

    With several processes, only the first one writes.

    Args:
        folder: Where ``training.csv`` and TensorBoard's files go.
        optimizer: Holds the learning rate.
        every: Steps averaged in each row of the CSV file.
        pictures_every: Steps between two pictures; 0 for none.
        first_picture: Step of the first picture.
        curve_every: Steps averaged in each TensorBoard value.

    Raises:
        ValueError: If a number of steps is out of range.
    """

    def __init__(
        self,
        folder: str | Path,
        optimizer: torch.optim.Optimizer,
        every: int = 20,
        pictures_every: int = 500,
        first_picture: int = 50,
        curve_every: int = 5,
    ) -> None:
        if min(every, first_picture, curve_every) < 1 or pictures_every < 0:
            raise ValueError(
                "the log needs every, first_picture and curve_every >= 1 and pictures_every >= 0, "
                f"got {every}, {first_picture}, {curve_every} and {pictures_every}. Correct the one out of range."
            )
        self.folder = Path(folder)
        self.optimizer = optimizer
        self.every, self.curve_every = every, curve_every
        self.pictures_every, self.first_picture = pictures_every, first_picture
        self._losses: deque[float] = deque(maxlen=max(every, curve_every))
        self._writer: SummaryWriter | None = None

    def attach(self, engine: Engine) -> None:
        """Register the log's events."""
        if not distributed.is_first():
            return
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.record)
        if self.pictures_every:
            engine.add_event_handler(Events.ITERATION_COMPLETED(event_filter=self._has_picture), self.picture)
        engine.add_event_handler(Events.COMPLETED, self.close)

    def _has_picture(self, _: Engine, step: int) -> bool:
        return step == self.first_picture or step % self.pictures_every == 0

    def start(self, engine: Engine) -> None:
        """Open the files, and remove the rows of steps that will be repeated."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._losses.clear()
        self._writer = SummaryWriter(str(self.folder), purge_step=engine.state.iteration)
        path = self.folder / "training.csv"
        rows = list(csv.reader(path.open(newline="", encoding="utf-8"))) if path.is_file() else []
        kept = [row for row in rows[1:] if int(row[0]) <= engine.state.iteration]
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["step", "loss", "learning_rate"], *kept])

    def record(self, engine: Engine) -> None:
        """Record the loss and the learning rate of this step."""
        self._losses.append(loss_of(engine.state.output))
        step, rate = engine.state.iteration, self.optimizer.param_groups[0]["lr"]
        if step % self.every == 0:
            with (self.folder / "training.csv").open("a", newline="", encoding="utf-8") as file:
                csv.writer(file).writerow([step, f"{self._mean_loss(self.every):.6f}", f"{rate:.6g}"])
        if step % self.curve_every == 0 and self._writer is not None:
            self._writer.add_scalar("train/loss", self._mean_loss(self.curve_every), step)
            self._writer.add_scalar("train/learning_rate", rate, step)

    def _mean_loss(self, steps: int) -> float:
        return float(np.mean(list(self._losses)[-steps:]))

    def picture(self, engine: Engine) -> None:
        """Draw the first episode of this step: support with mask, query with truth and prediction."""
        state: Any = engine.state
        batch, logits = state.batch, _one(state.output)["pred"][0]
        episode = {key: batch[key][0].detach().cpu() for key in (IMAGE, LABEL, SUPPORT_IMAGE, SUPPORT_MASK)}
        drawn = episode_picture(episode, logits[0].detach().argmax(dim=0).cpu())
        if self._writer is not None:
            self._writer.add_image("train/support, query, prediction", drawn, engine.state.iteration, dataformats="HWC")

    def close(self, engine: Engine) -> None:
        """Close TensorBoard's file."""
        if self._writer is not None:
            self._writer.close()
