"""What MONAI's engines need to be told of scans."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import IterationEvents, PrepareBatch, SupervisedEvaluator
from torch import Tensor, nn

from bundle import distributed
from bundle.data.loading import report_problems
from bundle.keys import IMAGE, LABEL, PROBLEM
from bundle.networks import load_weights

logger = logging.getLogger(__name__)


class PrepareScan(PrepareBatch):
    """Tell ``SupervisedEvaluator`` of a scan, and of its label where it has one."""

    def __call__(
        self,
        batchdata: Mapping[str, Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None, tuple[()], dict[str, Any]]:
        """Return image, label and, for the inferer's ``"paper"`` protocol, the label as a keyword argument."""
        image = batchdata[IMAGE].to(device=device, non_blocking=non_blocking, **kwargs)
        label = batchdata.get(LABEL)
        label = None if label is None else label.to(device=device, non_blocking=non_blocking, **kwargs)
        return image, label, (), {LABEL: label}


class ToCPU:
    """Bring what an iteration gives to the CPU once it is postprocessed: metrics, masks and pictures are made there."""

    def attach(self, engine: Engine) -> None:
        """Wait for the postprocessing, which an evaluator registers before its handlers."""
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Move the tensors of every scan of this iteration."""
        state: Any = engine.state
        state.output = [
            {key: value.cpu() if isinstance(value, Tensor) else value for key, value in item.items()}
            for item in state.output
        ]


class ScanEvaluator(SupervisedEvaluator):
    """A ``SupervisedEvaluator`` that has its share of the scans, by ``distributed.own_share`` as its loader's sampler.

    Scans are segmented and postprocessed on the device; handlers and metrics get them on the CPU.

    Its handlers gather when all scans are done. A process without a scan, or that finds all of them done, therefore
    still starts and ends.

    Args:
        device: As of ``SupervisedEvaluator``.
        val_data_loader: As there.
        network: As there.
        val_handlers: As there; kept as an attribute.
        **settings: As there.

    Attributes:
        problems: What is wrong with the scans of this process that could not be read, a sentence each.
    """

    def __init__(
        self,
        device: torch.device,
        val_data_loader: Any,
        network: nn.Module,
        val_handlers: Sequence[Any] | None = None,
        **settings: Any,
    ) -> None:
        self.val_handlers = [ToCPU(), *(val_handlers or [])]
        self.problems: list[str] = []
        super().__init__(device, val_data_loader, network, val_handlers=self.val_handlers, **settings)

    @property
    def scans(self) -> int:
        """How many scans all processes have together."""
        return len(self.data_loader.dataset)  # type: ignore[union-attr, arg-type]

    def run(self, global_epoch: int = 1) -> None:  # type: ignore[override]
        """Segment this process's scans with the first one's network.

        Args:
            global_epoch: The epoch of the training that this belongs to.
        """
        # Batch norm that is not synchronized has other running statistics in each process.
        distributed.share_buffers(self.network)
        if self.state.epoch_length:
            super().run(global_epoch)
            return
        self.state.iteration, self.state.epoch = 0, global_epoch
        of_an_epoch = (Events.EPOCH_STARTED, Events.EPOCH_COMPLETED) if self.scans else ()
        for event in (Events.STARTED, *of_an_epoch, Events.COMPLETED):
            self.fire_event(event)

    def _iteration(self, engine: Any, batchdata: dict[str, Any]) -> Any:
        """Pass over a scan that could not be read: handlers see an iteration without a scan."""
        if PROBLEM not in batchdata:
            return super()._iteration(engine, batchdata)
        self.problems += batchdata[PROBLEM]
        for problem in batchdata[PROBLEM]:
            logger.error("cannot use %s", problem)
        engine.state.batch = []
        return []

    def report_problems(self, found_before: Sequence[str] = ()) -> None:
        """Raise at the end of a run if scans could not be used, so that its exit code tells; all processes call it.

        Args:
            found_before: What is wrong with scans that were not tried.

        Raises:
            ScanError: If there is a problem; the message lists all.
        """
        report_problems([*found_before, *distributed.gathered(self.problems)])


class WeightsCheckpointLoader:
    """Load trained weights when an evaluation starts.

    It is a handler with this name so that MONAI's federated learning switches it off: there the server has the weights.

    Args:
        network: What is evaluated.
        path: ``model.pt``, or a training's checkpoint; ``None`` leaves the network untrained.
    """

    def __init__(self, network: nn.Module, path: str | Path | None) -> None:
        self.network = network
        self.path = path

    def attach(self, engine: Engine) -> None:
        """Wait for the start."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Load them; the errors are those of ``load_weights``."""
        if self.path is not None:
            load_weights(self.network, self.path)
