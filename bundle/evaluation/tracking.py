"""Experiment tracking with MLflow (``--tracking mlflow``): the pictures of an evaluation, and closing its run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bundle.evaluation.handlers import SaveOverlays
from bundle.inference.engines import ScanEvaluator
from ignite.engine import Engine, Events
from monai.handlers import MLFlowHandler


class TrackOverlays:
    """Log the pictures of each evaluation to MLflow if it tracks the evaluator; else do nothing.

    Args:
        overlays: The handler that draws them.
    """

    def __init__(self, overlays: SaveOverlays) -> None:
        self.overlays = overlays

    def attach(self, engine: ScanEvaluator) -> None:
        """Log at the end of an evaluation, before MLflow closes its run."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Log the pictures of the last evaluation."""
        for tracker in _trackers(engine.val_handlers):  # type: ignore[attr-defined]
            run: Any = tracker.cur_run
            for path in self.overlays.drawn:
                tracker.client.log_artifact(run.info.run_id, str(path), "overlays")


def close_tracking(handlers: Sequence[Any]) -> None:
    """Finish MLflow's run of an evaluation without a training, which MONAI leaves open.

    Args:
        handlers: Handlers of the evaluator.
    """
    for tracker in _trackers(handlers):
        tracker.complete()
        tracker.close()


def _trackers(handlers: Sequence[Any]) -> list[MLFlowHandler]:
    """Return the MLflow handlers with an open run."""
    return [handler for handler in handlers if isinstance(handler, MLFlowHandler) and handler.cur_run is not None]
