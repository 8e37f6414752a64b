"""What MONAI's engines need to be told of episodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import Evaluator, PrepareBatch
from torch import Tensor

from bundle.keys import IMAGE, LABEL, SUPPORT_IMAGE, SUPPORT_MASK


class PrepareEpisode(PrepareBatch):
    """Tell ``SupervisedTrainer`` which part of an episode is input, which is target and which is support."""

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


class ValidateAtEnd:
    """Validate when training is done, if the last epoch was not validated anyway.

    Args:
        validator: The evaluator.
        interval: Epochs between two validations of ``ValidationHandler``.
    """

    def __init__(self, validator: Evaluator, interval: int) -> None:
        self.validator = validator
        self.interval = interval

    def attach(self, engine: Engine) -> None:
        """Wait for the end."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Validate."""
        if engine.state.epoch % self.interval != 0:
            self.validator.run(engine.state.epoch)
