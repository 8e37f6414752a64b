"""Federated learning with MONAI's ``MonaiAlgo``: two clients and a server's loop, on phantoms."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from bundle.data.phantoms import write_phantoms
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems, ModelType
from monai.fl.utils.exchange_object import ExchangeObject
from tests.test_workflows import ROOT

Weights = dict[str, torch.Tensor]

SMALL = {"slice_size": [64, 64], "superpixel_size": 64, "num_workers": 0, "network_def#encoder#out_channels": 16}


def client(folder: Path, name: str, steps: int, **phantom: Any) -> MonaiAlgo:
    """Provision a client as a federated system does: a copy of the bundle, and scans of its own."""
    root = folder / name
    for part in ("configs", "models"):
        shutil.copytree(ROOT / part, root / part)
    scans = write_phantoms(root / "scans", **{"size": [64, 64, 6], "unlabeled": 2, "labeled": 2} | phantom)
    keys = SMALL | {"bundle_root": str(root), "dataset_dir": str(scans), "epoch_length": steps}
    algo = MonaiAlgo(bundle_root=name, send_weight_diff=False, train_kwargs=dict(keys), eval_kwargs=dict(keys))
    algo.initialize({ExtraItems.CLIENT_NAME: name, ExtraItems.APP_ROOT: str(folder)})
    return algo


def sent(weights: Weights) -> ExchangeObject:
    return ExchangeObject(weights={name: value.clone() for name, value in weights.items()})


def trained(algo: MonaiAlgo, weights: Weights) -> Weights:
    algo.train(sent(weights))
    return {name: torch.as_tensor(value).clone() for name, value in algo.get_weights().weights.items()}


def average(clients: list[Weights]) -> Weights:
    return {
        name: sum(one[name].float() for one in clients).to(clients[0][name].dtype) / len(clients) for name in clients[0]
    }


def parts(network: torch.nn.Module) -> Weights:
    return {name: value.clone() for name, value in network.state_dict().items()}


@pytest.mark.slow
def test_two_clients_learn_from_each_other_without_a_scan_leaving_them(tmp_path: Path) -> None:
    first, second = client(tmp_path, "first", 2, seed=1), client(tmp_path, "second", 2, seed=2)
    start = parts(first.evaluator.network)
    assert start.keys() == parts(first.trainer.network).keys() == parts(persisted(tmp_path / "first")).keys()
    assert 0 <= dice(second, start) <= 1  # a client that has not trained evaluates what the server sent

    weights = start
    for _ in range(2):
        weights = average([trained(algo, weights) for algo in (first, second)])
    assert set(weights) == set(start)
    assert any(not torch.equal(weights[name], start[name]) for name in start)
    assert first.trainer.state.iteration == second.trainer.state.iteration == 4

    assert 0 <= dice(first, weights) <= 1
    assert_equal(parts(first.evaluator.network), weights)
    assert_best_is_what_training_wrote(first, tmp_path / "first")


def assert_best_is_what_training_wrote(algo: MonaiAlgo, root: Path) -> None:
    best = algo.get_weights({ExtraItems.MODEL_TYPE: ModelType.BEST_MODEL}).weights
    assert_equal(best, torch.load(root / "models" / "model.pt", weights_only=True))
    assert_equal(best, algo.get_weights().weights)
    assert (root / "models" / "model.pt").read_bytes() != (ROOT / "models" / "model.pt").read_bytes()
    assert not list((root / "eval").rglob("last_of_previous_run.pt"))  # a round continues, it does not start over


def assert_equal(one: Weights, other: Weights) -> None:
    assert one.keys() == other.keys()
    assert not [name for name in one if not torch.equal(torch.as_tensor(one[name]).cpu(), other[name].cpu())]


def persisted(root: Path) -> torch.nn.Module:
    """Build what a server's persistor builds: ``network_def`` of the training config."""
    parser = ConfigParser()
    parser.read_config(str(root / "configs" / "train.json"))
    parser.update({"bundle_root": str(root), "network_def#encoder#out_channels": 16})
    network: torch.nn.Module = parser.get_parsed_content("network_def")
    return network


def dice(algo: MonaiAlgo, weights: Weights) -> float:
    return float(algo.evaluate(sent(weights)).metrics["val_mean_dice"])


def test_any_other_training_leaves_the_shipped_weights_alone(tmp_path: Path) -> None:
    """Whatever its run is called: experiment tracking of a program of the user sets a name, too."""
    shutil.copytree(ROOT / "models", tmp_path / "models")
    workflow = ConfigWorkflow(
        config_file=str(ROOT / "configs" / "train.yaml"),
        workflow_type="train",
        bundle_root=str(tmp_path),
        dataset_dir=str(write_phantoms(tmp_path / "scans", size=[64, 64, 6], unlabeled=2, labeled=2)),
        run_name="tracked_20260101_120000",
        max_epochs=1,
        epoch_length=1,
        **SMALL,
    )
    workflow.initialize()
    workflow.run()
    assert (tmp_path / "models" / "model.pt").read_bytes() == (ROOT / "models" / "model.pt").read_bytes()
    assert (tmp_path / "eval" / "model.pt").is_file()
