"""What an evaluation logs to MLflow, and that its runs are closed; the real server where MLflow is installed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bundle.evaluation.tracking import TrackOverlays, close_tracking
from monai.handlers import MLFlowHandler
from tests.test_workflows import CONFIGS, INFER, ROOT, TRAIN, run_command


class Tracker(MLFlowHandler):
    """An MLflow handler whose run is a list of what happens."""

    def __init__(self, is_running: bool = True) -> None:
        self.said: list[tuple[str, ...]] = []
        self.client = SimpleNamespace(log_artifact=lambda *words: self.said.append(words))
        self.cur_run: Any = SimpleNamespace(info=SimpleNamespace(run_id="run")) if is_running else None

    def complete(self) -> None:
        self.said.append(("complete",))

    def close(self) -> None:
        self.said.append(("close",))


def test_pictures_of_an_evaluation_go_to_an_open_run() -> None:
    tracker, idle = Tracker(), Tracker(is_running=False)
    overlays: Any = SimpleNamespace(drawn=[Path("a.png"), Path("b.png")])
    engine: Any = SimpleNamespace(val_handlers=["other", tracker, idle])
    TrackOverlays(overlays)(engine)
    assert tracker.said == [("run", "a.png", "overlays"), ("run", "b.png", "overlays")]
    assert idle.said == []


def test_an_evaluation_without_a_training_closes_its_run() -> None:
    tracker, idle = Tracker(), Tracker(is_running=False)
    close_tracking(["other", tracker, idle])
    assert tracker.said == [("complete",), ("close",)]
    assert idle.said == []


@pytest.mark.slow
def test_mlflow_gets_losses_rates_dice_and_pictures_and_every_run_finishes(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed (pip install mlflow)")
    keys = ["--tracking=mlflow", f"--bundle_root={ROOT}", f"--output_dir={tmp_path}"]
    evaluate = [*TRAIN, str(CONFIGS / "evaluate.yaml")]
    scans = [f"--dataset_dir={tmp_path / 'phantom'}", f"--support_dir={tmp_path / 'annotated'}"]
    for run_id, files, more in (("training", TRAIN, []), ("evaluating", evaluate, []), ("run", INFER, scans)):
        if run_id == "run":
            annotate(tmp_path)
        done = run_command("monai.bundle", "run", run_id, f"--config_file={files}", *keys, *more)
        assert done.returncode == 0, done.stderr
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlruns.db'}")
    inference, evaluation, training = client.search_runs(
        client.get_experiment_by_name("monai_experiment").experiment_id
    )
    assert {run.info.status for run in (inference, evaluation, training)} == {"FINISHED"}
    dice = {f"val_mean_dice{part}" for part in ("", "_liver", "_kidneys", "_spleen")}
    assert set(training.data.metrics) == dice | {"train_loss", "lr_group_0"}
    assert set(evaluation.data.metrics) == dice
    pictures = [client.list_artifacts(run.info.run_id, "overlays") for run in (inference, evaluation, training)]
    assert all(pictures)


def annotate(folder: Path) -> None:
    """Lay one annotated phantom into a folder of its own."""
    for part in ("images", "labels"):
        (folder / "annotated" / part).mkdir(parents=True)
        file = folder / "phantom" / part / "phantom_02.nii.gz"
        (folder / "annotated" / part / file.name).write_bytes(file.read_bytes())
