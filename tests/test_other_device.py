"""The shipped configs on a device that is as strict as a GPU: nothing of them needs the CPU's memory on the way."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from bundle.command_line.configs import parsed
from bundle.data import list_scans
from bundle.data.phantoms import write_phantoms
from bundle.evaluation.annotation_order import Annotator, simulate
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from tests.other_device import DEVICE, other_device


@pytest.fixture(autouse=True)
def on_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[torch.Tensor], bool]]:
    """Make the strict device, and tell what is on it."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(torch.mps, "device_count", lambda: 1)
    with other_device() as on:
        yield on


def smoke(output_dir: Path, *names: str, **keys: Any) -> ConfigParser:
    """Return a config at smoke size, on the strict device."""
    torch.manual_seed(0)  # of the weights: prototypes are only used with the encoder that made them
    settings = {"output_dir": str(output_dir), "device": "$torch.device('mps:0')", **keys}
    return parsed([*names, "smoke.yaml"], settings, torch=torch)


def run(parser: ConfigParser, *steps: str) -> None:
    for step in steps:
        parser.get_parsed_content(step)


def test_the_strict_device_refuses_numpy() -> None:
    for tensor in (torch.ones(3).to(DEVICE), MetaTensor(torch.ones(3)).to(DEVICE)):
        with pytest.raises(TypeError, match="can't convert mps:0 tensor to numpy"):
            np.asarray(tensor)
        assert np.asarray(tensor.cpu()).sum() == 3


def test_the_strict_device_refuses_tensors_of_the_cpu_beside_its_own() -> None:
    with pytest.raises(RuntimeError, match="on the same device"):
        torch.eq(torch.ones(3, device=DEVICE), torch.ones(3))
    with pytest.raises(RuntimeError, match="on the same device"):
        torch.stack([torch.ones(3), torch.ones(3).to(DEVICE)])
    assert (torch.ones(3, device=DEVICE) + torch.tensor(1.0)).device == DEVICE


def test_the_strict_device_has_no_float64() -> None:
    with pytest.raises(TypeError, match=r"no torch\.float64"):
        torch.ones(3).double().to(DEVICE)
    with pytest.raises(TypeError, match=r"no torch\.float64"):
        torch.ones(3, device=DEVICE).double()


@pytest.mark.parametrize("preset", [(), ("preset_paper.yaml",)], ids=["annotate one", "paper"])
def test_inference_runs_on_another_device(tmp_path: Path, preset: tuple[str, ...]) -> None:
    keys = {"network_def::encoder::weights": None} if preset else {}
    run(smoke(tmp_path, "inference.yaml", *preset, **keys), "initialize", "run")
    assert (tmp_path / "masks" / "volumes.csv").is_file()
    assert list((tmp_path / "overlays").glob("*.png"))


def test_masks_of_another_device_are_those_of_the_cpu(tmp_path: Path) -> None:
    run(smoke(tmp_path / "there", "inference.yaml"), "run")
    run(smoke(tmp_path / "here", "inference.yaml", device="cpu"), "run")
    there, here = (sorted((tmp_path / place / "masks").glob("*.nii.gz")) for place in ("there", "here"))
    for one, other in zip(there, here, strict=True):
        np.testing.assert_array_equal(*(np.asarray(nibabel.load(path).dataobj) for path in (one, other)))


def test_a_server_that_postprocesses_by_itself_gets_a_label_map_that_it_can_write(tmp_path: Path) -> None:
    parser = smoke(tmp_path, "inference.yaml")
    network = parser.get_parsed_content("network").eval()
    image = parser.get_parsed_content("dataset")[0]["image"].to(DEVICE)
    scores = parser.get_parsed_content("inferer")(image[None], network)[0]
    data = parser.get_parsed_content("postprocessing")({"image": image, "pred": scores})
    assert np.asarray(data["pred"]).shape == (1, *image.meta["spatial_shape"])


def test_prototypes_are_written_and_used_on_another_device(tmp_path: Path) -> None:
    run(smoke(tmp_path, "inference.yaml"), "encode")
    prototypes = str(tmp_path / "prototypes.safetensors")
    images = str(tmp_path / "phantom" / "images")
    run(smoke(tmp_path / "used", "inference.yaml", prototypes=prototypes, dataset_dir=images), "run")
    assert (tmp_path / "used" / "masks" / "volumes.csv").is_file()


def test_scans_are_ranked_on_another_device(tmp_path: Path) -> None:
    run(smoke(tmp_path, "inference.yaml"), "encode")
    data = {"dataset_dir": str(tmp_path / "phantom" / "images")}
    run(smoke(tmp_path / "first", "inference.yaml", **data), "rank")
    prototypes = str(tmp_path / "prototypes.safetensors")
    run(smoke(tmp_path / "next", "inference.yaml", prototypes=prototypes, **data), "rank")
    assert (tmp_path / "first" / "next_scan.csv").is_file()
    assert (tmp_path / "next" / "next_scan.csv").is_file()


@pytest.mark.parametrize("protocol", ["volume", "paper"])
def test_training_and_its_evaluations_run_on_another_device(
    tmp_path: Path, protocol: str, on_device: Callable[[torch.Tensor], bool]
) -> None:
    parser = smoke(tmp_path, "train.yaml", protocol=protocol)
    log = {"_target_": "bundle.training.handlers.TrainingLog", "folder": str(tmp_path / "log"), "pictures_every": 1}
    parser["train"]["handlers"][4] = {**log, "optimizer": "@optimizer", "every": 1}
    run(parser, "initialize", "run")
    made = [tmp_path / name for name in ("model.pt", "dice.csv", "masks/volumes.csv", "log/training.csv")]
    assert all(path.is_file() for path in made)
    assert all(map(on_device, parser.get_parsed_content("network").parameters()))


@pytest.mark.parametrize("protocol", ["volume", "paper"])
def test_cases_are_compared_on_another_device(tmp_path: Path, protocol: str) -> None:
    keys = {"checkpoint": None, "protocol": protocol}
    run(smoke(tmp_path, "train.yaml", "preset_annotate_one.yaml", "evaluate.yaml", **keys), "initialize", "run")
    assert (tmp_path / "cases.csv").is_file()
    assert (tmp_path / "report.html").is_file()


def test_annotation_orders_are_compared_on_another_device(tmp_path: Path) -> None:
    study = write_phantoms(tmp_path / "study", unlabeled=0, labeled=3, size=[64, 64, 6], noise=20.0)
    annotator = Annotator(smoke(tmp_path, "inference.yaml"), list_scans(study))
    assert len(simulate(annotator, annotated=1, orders=1, seed=0)) == 2
