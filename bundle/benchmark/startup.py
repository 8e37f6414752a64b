"""Seconds from the start of a process to its first segmented slice, part by part."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from bundle.benchmark.children import run_child
from bundle.benchmark.results import Result
from bundle.benchmark.synthetic import blob_scan, write_scan
from bundle.command_line.checks import check_positive_integers
from bundle.command_line.configs import parsed
from tqdm import tqdm

# The slowest and the fastest way to start, with the module that each imports first.
WORKFLOWS = {
    "python -m monai.bundle, annotated scan": {"module": "monai.bundle"},
    "python -m bundle, its prototypes": {"module": "bundle.command_line.quick_monai"},
}


def measure(
    repeats: int = 3, size: int = 256, slices: int = 30, threads: int = 1, device: str = "cpu", seed: int = 0
) -> list[Result]:
    """Measure new processes that run ``configs/inference.yaml`` on files: weights, an annotated scan and a query.

    The second of ``WORKFLOWS`` reads a file of prototypes in place of the annotated scan.

    Args:
        repeats: Counted processes, after one warm-up process.
        size: Rows and columns of a slice.
        slices: Slices of both scans.
        threads: Threads per process.
        device: Device of the network.
        seed: Random seed of scans and weights.

    Raises:
        ValueError: If a number is out of range, or a process fails.
    """
    check_positive_integers(repeats=repeats, size=size, slices=slices, threads=threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        support, query = (write_scan(blob_scan(size, slices, 4, seed + n), folder, f"scan_{n}") for n in (1, 0))
        keys = _keys(folder, size, device, seed)
        annotated = keys | {"support_image": support["image"], "support_label": support["label"]}
        encoded = keys | {"prototypes": _encoded(annotated, folder, device)}
        parts: dict[str, list[dict[str, float]]] = {workflow: [] for workflow in WORKFLOWS}
        for _ in tqdm(range(repeats + 1), desc="startup", unit="round", leave=False):
            for (workflow, how), own in zip(WORKFLOWS.items(), (annotated, encoded), strict=True):
                settings = {"keys": own, "query": query["image"], "started": time.time()} | how
                parts[workflow].append(run_child("bundle.benchmark.first_slice", settings, threads))
    results = []
    for workflow, (_, *counted) in parts.items():
        values = {f"{part}, s": median(one[part] for one in counted) for part in counted[0]}
        results.append(Result("startup", {"workflow": workflow, "encoder": "resnet18", "slices": slices}, values))
    return results


def _keys(folder: Path, size: int, device: str, seed: int) -> dict[str, Any]:
    """Write random weights, and return the keys of an inference with them."""
    torch.manual_seed(seed)
    network = parsed(["inference.yaml"], {"checkpoint": None, "device": "cpu"}).get_parsed_content("network")
    path = folder / "model.pt"
    torch.save(network.state_dict(), path)
    return {"checkpoint": str(path), "output_dir": str(folder), "device": device, "slice_size": [size, size]}


def _encoded(keys: dict[str, Any], folder: Path, device: str) -> str:
    """Write the encoded support to a file of prototypes, and return its path."""
    parser = parsed(["inference.yaml"], keys)
    file = str(folder / "prototypes.safetensors")
    parser.get_parsed_content("inferer").save_prototypes(file, parser.get_parsed_content("network"), device)
    return file
