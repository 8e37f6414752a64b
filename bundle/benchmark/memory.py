"""Peak memory of an inference, measured in a new process, which runs this module, for each number of slices."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from bundle.benchmark.children import forget_peak, peak_megabytes, run_child
from bundle.benchmark.results import Result
from bundle.benchmark.synthetic import blob_scan
from bundle.command_line.checks import check_positive_integers
from bundle.command_line.configs import parsed
from monai.data import MetaTensor
from tqdm import tqdm


def measure(
    slices: Sequence[int], organs: int = 4, size: int = 256, threads: int = 1, device: str = "cpu", seed: int = 0
) -> list[Result]:
    """Measure scans with different numbers of slices, each in a new process.

    Args:
        slices: Numbers of slices of the query; the annotated scan has up to 30 of them.
        organs: Number of organs to segment.
        size: Rows and columns of a slice.
        threads: Threads per process.
        device: Device of the network; the memory is that of the process, not of a GPU.
        seed: Random seed of scans and weights.
    """
    check_positive_integers(organs=organs, threads=threads, **{f"slices {number}": number for number in slices})
    results = []
    for number in tqdm(slices, desc="memory", unit="scan", leave=False):
        settings = {"slices": number, "organs": organs, "size": size, "device": device, "seed": seed}
        values = run_child("bundle.benchmark.memory", settings, threads)
        results.append(Result("memory", {"encoder": "resnet18", "organs": organs, "slices": number}, values))
    return results


def infer(slices: int, organs: int, size: int, device: str, seed: int) -> dict[str, float]:
    """Segment and refine a scan with the parts of ``configs/inference.yaml``; return the memory and time it took.

    The scan is made in memory, in the form in which a file is loaded.
    """
    imported = peak_megabytes()
    support = [blob_scan(size, min(slices, 30), organs, seed + 1)]
    image = blob_scan(size, slices, organs, seed)["image"]
    torch.manual_seed(seed)
    parser = parsed(
        ["inference.yaml"],
        {"checkpoint": None, "device": device, "slice_size": [size, size], "inferer::support": "$benchmark_support"},
        benchmark_support=support,
    )
    network, inferer, refinement = (parser.get_parsed_content(part) for part in ("network", "inferer", "refinement"))
    network.eval()
    forget_peak()  # making a scan takes more memory than the scan
    before = peak_megabytes()
    began = time.perf_counter()
    with torch.no_grad():
        scores = inferer(MetaTensor(image)[None].to(device), network)
        refinement({"image": MetaTensor(image), "pred": scores[0].cpu()})
    return {
        "MB at the peak": peak_megabytes(),
        "MB before the scan": before,
        "MB after the imports": imported,
        "MB of the image": image.nbytes / 1e6,
        "s, first scan, refined": time.perf_counter() - began,
    }


def main(settings: dict[str, Any]) -> None:
    """Print what ``infer`` returns as JSON."""
    print(json.dumps(infer(**settings)))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
