"""Checkpoints: a training can go on exactly where it was stopped."""

from __future__ import annotations

import functools
import logging
import math
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from torch import nn
from torch.optim.lr_scheduler import SequentialLR

from bundle import distributed
from bundle.provenance import changes, describe, library_versions
from bundle.tensor_files import read_tensors, write_tensors

logger = logging.getLogger(__name__)

CONTENT = ("scaler", "step", "planned", "made_with", "random")
"""What a checkpoint holds besides network, optimizer and schedule."""

ANEW = "or set resume to false to start anew."


# Not ignite's Checkpoint with DiskSaver: that leaves the temporary file of a killed writer for ever, says of a full
# disk what PyTorch says, and checks neither settings nor content, so all below but the event handlers would stay.
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
        settings: What shapes the weights besides network, optimizer and schedule, by name: numbers, the loss, the data
            set, ... It is kept in the checkpoint and compared, all of it, when a training goes on.
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

    @functools.cached_property
    def made_with(self) -> dict[str, Any]:
        """All that shapes the weights, as it is before the first step."""
        parts = {name: describe(part, weights=False) for name, part in self.parts.items()}
        return {"versions": library_versions(), **describe(self.settings), "batch_size": self.batch_size, **parts}

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
        if distributed.is_first():
            _ = self.made_with
        if engine.state.iteration:  # a further round of federated learning goes on with what is in memory
            self.sampler.start = engine.state.iteration * self.batch_size
            return
        # What the first process finds counts for all, also where the others do not see its files.
        if distributed.from_first(self.resume and self.last.is_file()):
            self.restore(engine)
            logger.info("resumed %s at step %d", self.last, engine.state.iteration)
        elif not distributed.is_first():
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
            ValueError: If the checkpoint is damaged, or of a training with other settings, or if the schedule would
                start again.
        """
        state = distributed.from_first(self._read(_planned(engine)) if distributed.is_first() else {})
        try:
            for name, part in self.parts.items():
                part.load_state_dict(state[name])
        except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{self.last} does not fit this training: {error}. Set the keys that changed back, {ANEW}"
            ) from error
        engine.state.iteration = state["step"]
        engine.state.epoch = state["step"] // engine.state.epoch_length
        self.sampler.start = state["step"] * self.batch_size
        if state["scaler"] is not None and engine.scaler is not None:  # type: ignore[attr-defined]
            engine.scaler.load_state_dict(state["scaler"])  # type: ignore[attr-defined]
        _set_random_states(state["random"], self._device())

    def _read(self, planned: int) -> dict[str, Any]:
        """Return what ``last.pt`` holds, if it is of this training."""
        state = read_tensors(self.last, f"Copy a kept step_<n>.pt over it, {ANEW}")
        if missing := [name for name in (*self.parts, *CONTENT) if name not in state]:
            raise ValueError(
                f"{self.last} must hold what a training goes on with, but has no {', '.join(missing)}. Copy a kept "
                f"step_<n>.pt over it, {ANEW}"
            )
        if changed := changes(state["made_with"], self.made_with):
            raise ValueError(f"{self.last} is of a training with other settings: {changed}. Set them back, {ANEW}")
        end = _end_of(self.parts["lr_scheduler"])
        if state["planned"] <= end < planned:
            raise ValueError(
                f"{self.last} is of a training whose learning rate comes to its end at step {end}, and must not go on "
                f"to step {planned}, where it would have risen again. Set max_epochs back, or start anew with "
                "a longer schedule (resume false)."
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
        if distributed.is_first():
            write_tensors(_to_cpu(self.parts["network"].state_dict()), self.weights_file)
            print(f"trained weights: {self.weights_file}", flush=True)

    def _write(self, engine: Engine, path: Path) -> None:
        self._refuse_broken_weights(engine)
        if distributed.is_first():
            write_tensors(self._state(engine), path)

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
            "planned": _planned(engine),
            "made_with": self.made_with,
            "random": _random_states(self._device()),
        }


def _planned(engine: Engine) -> int:
    """Return how many steps a training is to have."""
    return int(engine.state.max_epochs or 0) * int(engine.state.epoch_length or 0)


def _end_of(schedule: Any) -> float:
    """Return the step at which a schedule has done what it was made for: a cosine rises again after it."""
    if isinstance(schedule, SequentialLR):
        return schedule._milestones[-1] + _end_of(schedule._schedulers[-1])
    return getattr(schedule, "T_max", math.inf)


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
