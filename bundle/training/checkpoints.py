"""Checkpoints: training resumes exactly where it stopped."""

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
from bundle import distributed
from bundle.provenance import changes, describe, library_versions
from bundle.tensor_files import read_tensors, write_tensors
from ignite.engine import Engine, Events
from torch import nn
from torch.optim.lr_scheduler import SequentialLR

logger = logging.getLogger(__name__)

# What a checkpoint holds besides network, optimizer and schedule.
CONTENT = ("scaler", "step", "planned", "made_with", "random")

ANEW = "or set resume to false to start over."


# Not ignite's Checkpoint with DiskSaver: it never removes the temporary file of a killed writer, repeats PyTorch's
# unclear message over a full disk, and compares neither settings nor content; only the event handlers would be saved.
class Checkpoints:
    """Save checkpoints from which training resumes exactly, and the weights at the end.

    ``last.pt`` is written every ``every`` steps and at the end, ``step_<n>.pt`` every ``keep_every`` steps. Each holds
    network, optimizer, schedule, step and random states, and is written whole or not at all, so that a killed process
    leaves the previous one intact. ``weights_file`` is the network's plain state dictionary, written at the end. With
    several processes, the first one reads and writes; training may resume with a different number of them.

    Args:
        folder: Where checkpoints go.
        weights_file: Where the trained weights go.
        network: The network to train.
        optimizer: Its optimizer.
        lr_scheduler: Its learning-rate schedule.
        sampler: Counts the episodes; on resume it is set to the first unused one.
        batch_size: Episodes in a step, of all processes together.
        every: Steps between two writes of ``last.pt``.
        keep_every: Steps between checkpoints that are kept; 0 keeps none.
        resume: Whether to continue from ``last.pt`` if it exists, instead of starting over.
        settings: Everything else that shapes the weights, by name: numbers, the loss, the data set, ... It is stored
            in the checkpoint, and every entry is compared on resume.

    Raises:
        ValueError: If ``every`` or ``keep_every`` is out of range.
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
            raise ValueError(
                f"checkpoints need every >= 1 and keep_every >= 0 steps, got {every} and {keep_every}. "
                "Set checkpoint_interval and keep_interval."
            )
        self.folder, self.weights_file = Path(folder), Path(weights_file)
        self.parts = {"network": network, "optimizer": optimizer, "lr_scheduler": lr_scheduler}
        self.sampler, self.batch_size = sampler, batch_size
        self.every, self.keep_every, self.resume = every, keep_every, resume
        self.settings = dict(settings or {})

    @functools.cached_property
    def made_with(self) -> dict[str, Any]:
        """Everything that shapes the weights, described before the first step."""
        parts = {name: describe(part, weights=False) for name, part in self.parts.items()}
        return {"versions": library_versions(), **describe(self.settings), "batch_size": self.batch_size, **parts}

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return self.folder / "last.pt"

    def attach(self, engine: Engine) -> None:
        """Load a checkpoint when the engine starts, and save while it runs."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=self.every), self.save)
        if self.keep_every:
            engine.add_event_handler(Events.ITERATION_COMPLETED(every=self.keep_every), self.keep)
        engine.add_event_handler(Events.COMPLETED, self.finish)

    def start(self, engine: Engine) -> None:
        """Continue from the last checkpoint, or rename an old one."""
        if distributed.is_first():
            _ = self.made_with
        if engine.state.iteration:  # a further round of federated learning continues from memory
            self.sampler.start = engine.state.iteration * self.batch_size
            return
        # The first process decides for all, since the others may not see its files.
        if distributed.from_first(self.resume and self.last.is_file()):
            self.restore(engine)
            logger.info("resumed %s at step %d", self.last, engine.state.iteration)
        elif not distributed.is_first():
            return
        elif self.resume:
            logger.warning("there is no checkpoint %s to resume from; starting at step 0", self.last)
        elif self.last.is_file():
            aside = self.folder / "last_of_previous_run.pt"
            os.replace(self.last, aside)
            logger.warning(
                "starting over; the checkpoint of an earlier run is now %s (resume=true continues it)", aside
            )

    def restore(self, engine: Engine) -> None:
        """Restore the complete state from ``last.pt``.

        Raises:
            ValueError: If the checkpoint is damaged or was made with other settings, or if the schedule would restart.
        """
        state = distributed.from_first(self._read(_planned(engine)) if distributed.is_first() else {})
        try:
            for name, part in self.parts.items():
                part.load_state_dict(state[name])
        except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{self.last} does not fit this training: {error}. Set the changed keys back, {ANEW}"
            ) from error
        engine.state.iteration = state["step"]
        engine.state.epoch = state["step"] // engine.state.epoch_length
        self.sampler.start = state["step"] * self.batch_size
        if state["scaler"] is not None and engine.scaler is not None:  # type: ignore[attr-defined]
            engine.scaler.load_state_dict(state["scaler"])  # type: ignore[attr-defined]
        _set_random_states(state["random"], self._device())

    def _read(self, planned: int) -> dict[str, Any]:
        """Return the content of ``last.pt``, if it belongs to this training."""
        state = read_tensors(self.last, f"Copy a kept step_<n>.pt over it, {ANEW}")
        if missing := [name for name in (*self.parts, *CONTENT) if name not in state]:
            raise ValueError(
                f"{self.last} must hold the complete state of a training, but lacks {', '.join(missing)}. Copy a kept "
                f"step_<n>.pt over it, {ANEW}"
            )
        if changed := changes(state["made_with"], self.made_with):
            raise ValueError(f"{self.last} was made with other settings: {changed}. Set them back, {ANEW}")
        end = _end_of(self.parts["lr_scheduler"])
        if state["planned"] <= end < planned:
            raise ValueError(
                f"the schedule of {self.last} ends at step {end}, and training must not continue to step {planned}, "
                "where the learning rate would have risen again. Set max_epochs back, or start over with a longer "
                "schedule (resume false)."
            )
        return state

    def _device(self) -> torch.device:
        return next((p.device for p in self.parts["network"].parameters()), torch.device("cpu"))

    def save(self, engine: Engine) -> None:
        """Write ``last.pt``."""
        self._write(engine, self.last)

    def keep(self, engine: Engine) -> None:
        """Write a checkpoint that is kept."""
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
        # The checked loss was computed before the last update.
        broken = [name for name, p in self.parts["network"].named_parameters() if not bool(torch.isfinite(p).all())]
        if broken:
            raise FloatingPointError(
                f"weights must be finite, but {len(broken)} are not at step {engine.state.iteration}, such as "
                f"{broken[0]}; the previous checkpoint is kept. Lower the learning rate."
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
    """Return the planned number of steps of a training."""
    return int(engine.state.max_epochs or 0) * int(engine.state.epoch_length or 0)


def _end_of(schedule: Any) -> float:
    """Return the step at which a schedule ends; after it, a cosine would rise again."""
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
    """Return the states of all random generators; all processes draw the same numbers, so the first's states do."""
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
