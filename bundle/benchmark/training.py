"""Seconds per training step: the trainer of ``configs/train.yaml`` with its loader, beside the encoder alone."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from bundle.benchmark.inference import ENCODERS, build_network, refuse_unknown
from bundle.benchmark.results import Result
from bundle.benchmark.timing import seconds_of
from bundle.command_line.checks import check_positive_integers
from bundle.command_line.configs import parsed
from bundle.keys import IMAGE, SUPPORT_IMAGE
from ignite.engine import Engine, Events
from torch import Tensor, nn
from tqdm import tqdm

# Steps after a pause that are not counted: their batches were loaded during the pause.
PREFETCHED = 3


class StepClock:
    """Time the steps of a trainer in blocks, and after each block the same number of calls of something else.

    Args:
        block: Counted steps per block.
        other: What to time after a block; it gets the images ``(N, C, H, W)`` of the block's last step.
    """

    def __init__(self, block: int, other: Callable[[Tensor], object]) -> None:
        self.block, self.other = block, other
        self.steps: list[float] = []
        self.others: list[float] = []
        self._in_block = 0
        self._last = 0.0

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Record the step that has just ended, timed from the end of the one before: the wait for data counts."""
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self._in_block += 1
        if self._in_block > PREFETCHED:
            self.steps.append(now - self._last)
        if self._in_block == PREFETCHED + self.block:
            state: Any = engine.state
            images = torch.cat([state.batch[SUPPORT_IMAGE].flatten(0, 1), state.batch[IMAGE]]).to(state.device)
            self.others += [seconds_of(lambda: self.other(images)) for _ in range(self.block)]
            self._in_block = 0
        self._last = now


def measure(
    encoder: str,
    batch_size: int = 1,
    steps: int = 3,
    repeats: int = 3,
    size: int = 256,
    device: str = "cpu",
    seed: int = 0,
) -> Result:
    """Measure one-shot training steps with alignment loss and SGD, on phantom scans.

    Args:
        encoder: One of ``ENCODERS``.
        batch_size: Episodes per step.
        steps: Counted steps in a row, followed by the same number with the encoder alone.
        repeats: Counted rounds, after one warm-up round.
        size: Rows and columns of a slice.
        device: Device of the network.
        seed: Random seed of phantoms, weights and episodes.

    Returns:
        Seconds and ratio.

    Raises:
        ValueError: If the encoder is unknown or a number is out of range.
    """
    check_positive_integers(batch_size=batch_size, steps=steps, repeats=repeats, size=size)
    refuse_unknown("encoder", [encoder], ENCODERS)
    torch.manual_seed(seed)
    keys = _keys(encoder, size, seed) | {
        "device": device,
        "batch_size": batch_size,
        "max_epochs": 1,
        "epoch_length": (PREFETCHED + steps) * (repeats + 1),
        "train::handlers": "$benchmark_handlers",
    }
    with tempfile.TemporaryDirectory() as folder, tqdm(desc=f"training {encoder}", unit="step", leave=False) as bar:
        handlers: list[Any] = []
        parser = parsed(["train.yaml"], {**keys, "output_dir": folder}, benchmark_handlers=handlers)
        clock = StepClock(steps, _EncoderAlone(build_network(encoder, seed).encoder.to(device)))
        handlers += [clock, _Progress(bar)]
        parser.get_parsed_content("train::trainer").run()
    values = _values(median(clock.steps[steps:]), median(clock.others[steps:]), batch_size)
    return Result("training", {"encoder": encoder, "batch_size": batch_size}, values)


def _keys(encoder: str, size: int, seed: int) -> dict[str, Any]:
    """Return what the config says of the network and of the phantom scans."""
    depth, last_stage = ENCODERS[encoder]
    return {
        "slice_size": [size, size],
        "superpixel_size": max(1, 400 * size**2 // 256**2),
        "phantom": {"unlabeled": 2, "labeled": 1, "size": [size, size, 8], "seed": seed},
        "network_def::encoder::depth": depth,
        "network_def::encoder::last_stage": last_stage,
    }


def _values(ours: float, floor: float, batch_size: int) -> dict[str, float]:
    return {
        "ours, s a step": ours,
        "encoder alone, s a step": floor,
        "ours, steps/s": 1 / ours,
        "ours, episodes/s": batch_size / ours,
        "ours / encoder alone": ours / floor,
    }


class _EncoderAlone:
    """Forward and backward pass of an encoder in training mode, and nothing else."""

    def __init__(self, encoder: nn.Module) -> None:
        self.encoder = encoder.train()

    def __call__(self, images: Tensor) -> None:
        self.encoder.zero_grad(set_to_none=True)
        self.encoder(images).sum().backward()


class _Progress:
    def __init__(self, bar: tqdm[Any]) -> None:
        self.bar = bar

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda _: self.bar.update())
