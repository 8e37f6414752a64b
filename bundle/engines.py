"""What MONAI's engines need to be told of episodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import PrepareBatch, SupervisedEvaluator
from monai.handlers import MeanDice
from torch import Tensor

from bundle import ranks
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


class OrganDice(MeanDice):
    """``MeanDice`` for several processes: one without a scan gives a row of NaN, which is part of no mean.

    MONAI gathers the rows of all processes, and would wait forever for the one that has none.

    Args:
        organs: One for each column.
        **settings: Those of ``MeanDice``.
    """

    def __init__(self, organs: Sized, **settings: Any) -> None:
        super().__init__(**settings)
        self.organs = len(organs)
        self._has_rows = False

    def reset(self) -> None:
        """Start anew."""
        super().reset()
        self._has_rows = False

    def update(self, output: Sequence[Tensor]) -> None:
        """Take in the masks of some scans: predicted and true ones."""
        super().update(output)
        self._has_rows = True

    def compute(self) -> Any:
        """Return the mean over organs, then scans."""
        if not self._has_rows:
            self.metric_fn.append(torch.full((self.organs,), float("nan")))
        return super().compute()


class ScanEvaluator(SupervisedEvaluator):
    """A ``SupervisedEvaluator`` that has its share of the scans, by ``ranks.own_share`` as its loader's sampler.

    Its handlers gather when all scans are done. A process without a scan, or that finds all of them done, therefore
    still starts and ends.
    """

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
        ranks.share_buffers(self.network)
        if self.state.epoch_length:
            super().run(global_epoch)
            return
        self.state.iteration, self.state.epoch = 0, global_epoch
        of_an_epoch = (Events.EPOCH_STARTED, Events.EPOCH_COMPLETED) if self.scans else ()
        for event in (Events.STARTED, *of_an_epoch, Events.COMPLETED):
            self.fire_event(event)


class ValidateAtEnds:
    """Validate before training, and after it if the last epoch was not validated anyway.

    A resumed training is not validated at its start: its table would get a row of a step that ends no epoch.

    Args:
        validator: The evaluator.
        interval: Epochs between two validations of ``ValidationHandler``.
    """

    def __init__(self, validator: ScanEvaluator, interval: int) -> None:
        self.validator = validator
        self.interval = interval

    def attach(self, engine: Engine) -> None:
        """Wait for the start and the end."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.COMPLETED, self.finish)

    def start(self, engine: Engine) -> None:
        """Validate what was not trained yet."""
        if not self.validator.scans:
            print("no Dice will be printed: there is no annotated scan besides the support to compare with")
        elif engine.state.iteration == 0:
            self.validator.run(0)

    def finish(self, engine: Engine) -> None:
        """Validate the last epoch."""
        if engine.state.epoch % self.interval != 0:
            self.validator.run(engine.state.epoch)
