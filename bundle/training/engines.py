"""Adapters between episodes and MONAI's engines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from bundle.inference.engines import ScanEvaluator
from bundle.keys import IMAGE, LABEL, SUPPORT_IMAGE, SUPPORT_MASK
from ignite.engine import Engine, Events
from monai.engines import PrepareBatch
from torch import Tensor


class PrepareEpisode(PrepareBatch):
    """Split an episode into input, target and support for ``SupervisedTrainer``."""

    def __call__(
        self,
        batchdata: Mapping[str, Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Tensor], tuple[()], dict[str, Tensor]]:
        """Return query images, the targets of ``EpisodeLoss``, and the support as keyword arguments."""
        moved = {
            key: batchdata[key].to(device=device, non_blocking=non_blocking, **kwargs)
            for key in (IMAGE, LABEL, SUPPORT_IMAGE, SUPPORT_MASK)
        }
        support = {key: moved[key] for key in (SUPPORT_IMAGE, SUPPORT_MASK)}
        return moved[IMAGE], {key: moved[key] for key in (LABEL, SUPPORT_MASK)}, (), support


class ValidateAtEnds:
    """Validate before training, after it, and again where a resumed training stopped before its validation was done.

    ``ValidationHandler`` validates at the end of every ``interval`` epochs. Whether a killed run completed that is
    not known: a resumed run that starts at such a point validates again, and tables get the same rows.

    Args:
        validator: The evaluator.
        interval: Epochs between two validations of ``ValidationHandler``.
    """

    def __init__(self, validator: ScanEvaluator, interval: int) -> None:
        self.validator = validator
        self.interval = interval

    def attach(self, engine: Engine) -> None:
        """Register for the start and the end of training."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.COMPLETED, self.finish)

    def start(self, engine: Engine) -> None:
        """Validate the untrained network, or the state that a resumed training starts from."""
        state = engine.state
        if not self.validator.scans:
            print(
                "no Dice will be printed: besides the support, there is no annotated scan to compare with", flush=True
            )
        elif state.iteration == 0:
            self.validator.run(0)
        elif state.iteration == state.epoch * (state.epoch_length or 0) and state.epoch % self.interval == 0:
            self.validator.run(state.epoch)

    def finish(self, engine: Engine) -> None:
        """Validate the last epoch."""
        if engine.state.epoch % self.interval != 0:
            self.validator.run(engine.state.epoch)
