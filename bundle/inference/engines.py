"""Adapters between scans and MONAI's engines."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from bundle import distributed
from bundle.data.loading import report_problems
from bundle.keys import IMAGE, LABEL, PROBLEM
from bundle.networks import load_weights
from ignite.engine import Engine, Events
from monai.engines import IterationEvents, PrepareBatch, SupervisedEvaluator
from torch import Tensor, nn

logger = logging.getLogger(__name__)


class PrepareScan(PrepareBatch):
    """Split a scan into image and label, if it has one, for ``SupervisedEvaluator``."""

    def __call__(
        self,
        batchdata: Mapping[str, Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None, tuple[()], dict[str, Any]]:
        """Return image and label, and the label as a keyword argument for the inferer's ``"paper"`` protocol."""
        image = batchdata[IMAGE].to(device=device, non_blocking=non_blocking, **kwargs)
        label = batchdata.get(LABEL)
        label = None if label is None else label.to(device=device, non_blocking=non_blocking, **kwargs)
        return image, label, (), {LABEL: label}


class ToCPU:
    """Move the postprocessed output of an iteration to the CPU, where metrics, masks and pictures are made."""

    def attach(self, engine: Engine) -> None:
        """Register after the postprocessing, which an evaluator registers before its handlers."""
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Move the tensors of every scan of this iteration."""
        state: Any = engine.state
        state.output = [
            {key: value.cpu() if isinstance(value, Tensor) else value for key, value in item.items()}
            for item in state.output
        ]


class ScanEvaluator(SupervisedEvaluator):
    """A ``SupervisedEvaluator`` for this process's share of the scans; ``distributed.own_share`` samples its loader.

    Scans are segmented and postprocessed on the device; handlers and metrics get them on the CPU.

    The handlers of all processes exchange results at the end. A process without a pending scan therefore still fires
    the events of start and end.

    Args:
        device: As in ``SupervisedEvaluator``.
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
        """The number of scans of all processes together."""
        return len(self.data_loader.dataset)  # type: ignore[union-attr, arg-type]

    def run(self, global_epoch: int = 1) -> None:  # type: ignore[override]
        """Segment this process's scans with the first process's network.

        Args:
            global_epoch: The epoch of the training in progress.
        """
        # Without synchronized batch norm, each process has running statistics of its own.
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


def segment_all(
    inferer: Any,
    network: nn.Module,
    device: torch.device | str,
    evaluator: ScanEvaluator,
    problems: Sequence[str] = (),
    stored_in: str | Path | None = None,
) -> None:
    """Encode the support, segment all scans, and report those that could not be used.

    Args:
        inferer: A ``VolumeInferer``; a support that cannot be used is reported before any scan is read.
        network: The trained network; it is put in eval mode.
        device: Where to compute.
        evaluator: Segments the scans.
        problems: What is wrong with scans that are not tried.
        stored_in: Folder that keeps the encoded support for the next run; ``None`` keeps none.

    Raises:
        ScanError: At the end, if a scan could not be used.
    """
    inferer.library.stored_in = None if stored_in is None else Path(stored_in)
    inferer.pool(network.eval(), torch.device(device))
    inferer.library.report(network, torch.device(device))
    evaluator.run()
    evaluator.report_problems(problems)


class WeightsCheckpointLoader:
    """Load trained weights when an evaluation starts.

    The name of the class makes MONAI's federated learning switch it off: there the weights come from the server.

    Args:
        network: The network to evaluate.
        path: ``model.pt`` or a training checkpoint; ``None`` leaves the network untrained.
    """

    def __init__(self, network: nn.Module, path: str | Path | None) -> None:
        self.network = network
        self.path = path

    def attach(self, engine: Engine) -> None:
        """Register for the start."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Load the weights; see ``load_weights`` for the errors."""
        if self.path is not None:
            load_weights(self.network, self.path)
