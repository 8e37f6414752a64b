"""Times to compare, measured in turn in one process, so that other load on the machine affects all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch
from tqdm import tqdm


def side_by_side(works: Mapping[str, Callable[[], object]], repeats: int, title: str = "") -> dict[str, float]:
    """Run everything in turn, ``repeats`` times after a warm-up.

    Args:
        works: What to run, by name.
        repeats: Counted rounds, >= 1.
        title: Title of the progress bar.

    Returns:
        The median seconds of each name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    with tqdm(total=(repeats + 1) * len(works), desc=title, unit="run", leave=False) as bar:
        for number in range(repeats + 1):
            for name, work in works.items():
                bar.set_postfix_str(name)
                took = seconds_of(work)
                if number > 0:
                    seconds[name].append(took)
                bar.update()
    return {name: median(all_of_it) for name, all_of_it in seconds.items()}


def seconds_of(work: Callable[[], object]) -> float:
    """Return the seconds that ``work`` takes, including its work on a GPU."""
    _wait_for_gpu()
    began = time.perf_counter()
    work()
    _wait_for_gpu()
    return time.perf_counter() - began


def _wait_for_gpu() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
