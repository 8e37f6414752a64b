"""The files of a benchmark, each written whole: results -> results.csv, table.md, plot.png."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from bundle.benchmark.plot import figure_of
from bundle.benchmark.results import Result, long_form, markdown
from bundle.command_line.words import typed_command
from bundle.distributed import available_cores
from bundle.files import write_csv, written_whole
from bundle.provenance import versions

CPUINFO = Path("/proc/cpuinfo")


def about(seed: int, device: str) -> dict[str, str]:
    """Return the conditions of a benchmark by name: command, seed, machine, versions."""
    return {
        "command": typed_command(),
        "seed": str(seed),
        "device": device,
        "processor": f"{processor()}, {available_cores()} cores, {torch.get_num_threads()} threads used",
        **versions(),
    }


def processor(cpuinfo: Path = CPUINFO) -> str:
    """Return the name of the processor."""
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def write_results(results: Sequence[Result], about: Mapping[str, str], folder: Path) -> str:
    """Write ``results.csv``, ``table.md`` and ``plot.png``.

    Args:
        results: In the order of the tables.
        about: The conditions of the benchmark, by name.
        folder: Where the files go; made if missing.

    Returns:
        The text of ``table.md``.
    """
    text = markdown(results, about)
    write_csv(folder / "results.csv", long_form(results))
    with written_whole(folder / "table.md") as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    with written_whole(folder / "plot.png") as unfinished:
        figure_of(results).savefig(unfinished, dpi=120)
    return text
