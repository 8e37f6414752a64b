"""Seconds from the start of a process to the first segmented slice, part by part."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from tqdm import tqdm

from bundle.benchmark.children import run_child
from bundle.benchmark.results import Result
from bundle.benchmark.synthetic import blob_scan, write_scan
from bundle.command_line.checks import check_positive_integers
from bundle.command_line.configs import parsed

ROADS = {
    "python -m monai.bundle, annotated scan": {"module": "monai.bundle"},
    "python -m bundle, its prototypes": {"module": "bundle.command_line.quick_monai"},
}
"""What is imported first, of the slowest and of the fastest way to start."""


def measure(
    repeats: int = 3, size: int = 256, slices: int = 30, threads: int = 1, device: str = "cpu", seed: int = 0
) -> list[Result]:
    """Measure new processes that use ``configs/inference.yaml`` with files of weights, annotated scan and query.

    One of the two roads in ``ROADS`` has a file of prototypes in place of the annotated scan.

    Args:
        repeats: Processes, after one that does not count.
        size: Rows and columns of a slice.
        slices: Slices of both scans.
        threads: Threads of the arithmetic.
        device: Where the network is.
        seed: Of scans and weights.

    Raises:
        ValueError: If a number is out of range, or a process fails.
    """
    check_positive_integers(repeats=repeats, size=size, slices=slices, threads=threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        support, query = (write_scan(blob_scan(size, slices, 4, seed + n), folder, f"scan_{n}") for n in (1, 0))
        torch.manual_seed(seed)
        network = parsed(["inference.yaml"], {"checkpoint": None, "device": "cpu"}).get_parsed_content("network")
        torch.save(network.state_dict(), folder / "model.pt")
        keys = {
            "support_image": support["image"],
            "support_label": support["label"],
            "checkpoint": str(folder / "model.pt"),
            "output_dir": name,
            "device": device,
            "slice_size": [size, size],
        }
        parser = parsed(["inference.yaml"], keys)
        file = str(folder / "prototypes.safetensors")
        parser.get_parsed_content("inferer").save_prototypes(file, parser.get_parsed_content("network"), device)
        other = {key: value for key, value in keys.items() if not key.startswith("support_")} | {"prototypes": file}
        parts: dict[str, list[dict[str, float]]] = {road: [] for road in ROADS}
        for _ in tqdm(range(repeats + 1), desc="startup", unit="round", leave=False):
            for (road, how), road_keys in zip(ROADS.items(), (keys, other), strict=True):
                settings = {"keys": road_keys, "query": query["image"], "started": time.time()} | how
                parts[road].append(run_child("bundle.benchmark.first_slice", settings, threads))
    results = []
    for road, (_, *counted) in parts.items():
        values = {f"{part}, s": median(one[part] for one in counted) for part in counted[0]}
        results.append(Result("startup", {"road": road, "encoder": "resnet18", "slices": slices}, values))
    return results
