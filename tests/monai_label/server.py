"""A real MONAI Label server with this bundle in it, its scans, and what the checks measure."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import requests
import torch

ROOT = Path(__file__).resolve().parents[2]

MODEL = "alpnet"
SECOND = "bright_segmentation"
BRIGHT = 100.0
failures: list[str] = []


def claim(text: str, holds: bool, measured: Any = "") -> None:
    print(f"{'ok  ' if holds else 'FAIL'}  {text}  {measured}", flush=True)
    if not holds:
        failures.append(text)


def dice(one: np.ndarray, other: np.ndarray, ids: list[int]) -> float:
    return float(
        np.mean([2 * ((one == i) & (other == i)).sum() / ((one == i).sum() + (other == i).sum()) for i in ids])
    )


def write_second_bundle(folder: Path) -> None:
    """Make a bundle of another kind, with MONAI's usual package ``scripts``: it finds what is brighter than a limit."""
    for name in ("configs", "models", "scripts"):
        (folder / name).mkdir(parents=True)
    (folder / "scripts" / "__init__.py").touch()
    (folder / "scripts" / "bright.py").write_text(
        "import torch\n\n\n"
        "class Bright(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.limit = torch.nn.Parameter(torch.zeros(1))\n\n"
        "    def forward(self, image):\n"
        "        return (image > self.limit).float()\n"
    )
    config = {
        "network_def": {"_target_": "scripts.bright.Bright"},
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [{"_target_": name, "keys": "image"} for name in ("LoadImaged", "EnsureChannelFirstd")],
        },
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": {"_target_": "Compose", "transforms": [{"_target_": "Identityd", "keys": "pred"}]},
    }
    channels = {"outputs": {"pred": {"channel_def": {"0": "background", "1": "bright"}}}}
    inputs = {"inputs": {"image": {"spatial_shape": ["*", "*", "*"]}}}
    (folder / "configs" / "inference.json").write_text(json.dumps(config))
    (folder / "configs" / "metadata.json").write_text(
        json.dumps({"version": "1", "description": "bright", "network_data_format": inputs | channels})
    )
    torch.save({"limit": torch.full((1,), BRIGHT)}, folder / "models" / "model.pt")


class Server:
    """The stock app with this bundle in it, and the few calls that Slicer makes."""

    def __init__(self, work: Path, archive: str | None = None) -> None:
        self.work, self.studies = work, work / "studies"
        self.address = archive or "studies"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        self.command = [sys.executable, "-m", "monailabel.main"]
        self.env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}

    def set_up(self) -> None:
        subprocess.run(
            [*self.command, "apps", "--download", "--name", "monaibundle", "--output", "apps"],
            cwd=self.work, env=self.env, check=True, capture_output=True,
        )  # fmt: skip
        models = self.work / "apps" / "monaibundle" / "model"
        for part in ("bundle", "configs", "models", "docs"):
            shutil.copytree(ROOT / part, models / MODEL / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "LICENSE", models / MODEL)
        write_second_bundle(models / SECOND)

    def start(self) -> float:
        log = (self.work / "server.log").open("a")
        self.process = subprocess.Popen(
            [*self.command, "start_server", "--app", "apps/monaibundle", "--studies", self.address,
             "--host", "127.0.0.1",
             "--port", self.url.rsplit(":", 1)[1], "--conf", "models", f"{MODEL},{SECOND}",
             "--conf", "zoo_source", "local", "--conf", "sam2", "false"],
            cwd=self.work, env=self.env, stdout=log, stderr=log,
        )  # fmt: skip
        begin = time.monotonic()
        while time.monotonic() - begin < 120 and self.process.poll() is None:
            try:
                if requests.get(f"{self.url}/info/", timeout=30).ok:
                    break
            except requests.ConnectionError:
                time.sleep(0.5)
        return time.monotonic() - begin

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=60)

    def infer(
        self, image: str, output: str = "json", label: Path | None = None, model: str = MODEL, **params: Any
    ) -> requests.Response:
        files = {"label": label.open("rb")} if label else None
        return requests.post(
            f"{self.url}/infer/{model}", params={"image": image, "output": output},
            data={"params": json.dumps(params)}, files=files, timeout=600,
        )  # fmt: skip

    def infer_with_path(self, image: str, label: str) -> requests.Response:
        """Ask with a path on the server in place of a label."""
        return requests.post(
            f"{self.url}/infer/{MODEL}", params={"image": image, "output": "json"},
            data={"params": json.dumps({"label": label})}, timeout=600,
        )  # fmt: skip

    def log_size(self) -> tuple[int, int]:
        """Return lines and bytes of the log."""
        text = (self.work / "server.log").read_bytes()
        return text.count(b"\n"), len(text)

    def submit(self, image: str, label: Path, names: list[str] | None = None) -> requests.Response:
        info = {"label_info": [{"name": name, "idx": idx} for idx, name in enumerate(names or [], start=1)]}
        return requests.put(
            f"{self.url}/datastore/label", params={"image": image, "tag": "final"},
            data={"params": json.dumps(info)}, files={"label": label.open("rb")}, timeout=60,
        )  # fmt: skip

    def delete_label(self, image: str) -> requests.Response:
        return requests.delete(f"{self.url}/datastore/label", params={"id": image, "tag": "final"}, timeout=60)


def lay_out(data: Path | None, work: Path) -> tuple[dict[str, Path], list[str]]:
    """Put five scans into the studies folder; return their true labels by name and the organs' names."""
    if data is None:
        from bundle.data.phantoms import write_phantoms

        data = write_phantoms(work / "phantom", unlabeled=0, labeled=5, size=(128, 128, 16))
        organs = ["liver", "kidneys", "spleen"]
    else:
        organs = ["liver", "right_kidney", "left_kidney", "spleen"]
    (work / "studies").mkdir()
    images = sorted((data / "images").glob("*.nii.gz"))
    truths = {}
    for path in (images[4], *images[:4]):  # the support first: patient 8 of CHAOS
        name = path.name.replace(".nii.gz", "").replace("_", " ")
        shutil.copy(path, work / "studies" / f"{name}.nii.gz")
        truths[name] = data / "labels" / path.name
    return truths, organs


def read(response: requests.Response, folder: Path, suffix: str = ".nii.gz") -> Path:
    path = folder / f"answer{suffix}"
    path.write_bytes(response.content)
    return path


def voxels_of(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj)


def server_labels(server: Server) -> list[str]:
    labels = requests.get(f"{server.url}/info/", timeout=30).json()["models"][MODEL]["labels"]
    return sorted(labels, key=labels.get)


def drawn_label(server: Server, truth: Path, slices: slice, suffix: str = ".nii.gz") -> Path:
    """Write a label map that has some of the slices that show an organ."""
    label = nibabel.load(truth)
    values = np.asarray(label.dataobj).copy()
    shown = np.flatnonzero(values.any(axis=(0, 1)))[slices]
    values[..., np.setdiff1d(np.arange(values.shape[-1]), shown)] = 0
    path = server.work / f"drawing{suffix}"
    if suffix == ".nrrd":
        affine = np.diag([-1, -1, 1, 1]) @ label.affine  # its space is left, posterior, superior
        header = {
            "space": "left-posterior-superior",
            "space directions": affine[:3, :3].T,
            "space origin": affine[:3, 3],
        }
        nrrd.write(str(path), values, header)
    else:
        nibabel.save(nibabel.Nifti1Image(values, label.affine), path)
    return path


def dice_with(server: Server, name: str, truth: Path, organs: list[str], **params: Any) -> float:
    """Segment a scan; return the mean Dice of the organs."""
    renamed = {v: k for k, v in server.infer(name, **params).json().get("renamed", {}).items()}
    names = {organ: value for value, organ in enumerate(server_labels(server), 1)}
    found, true = voxels_of(read(server.infer(name, "image", **params), server.work)), voxels_of(truth)
    by_truth = np.zeros_like(true)
    for organ, value in enumerate((names[renamed.get(name, name)] for name in organs), start=1):
        by_truth[found == value] = organ
    return dice(by_truth, true, list(range(1, len(organs) + 1)))
