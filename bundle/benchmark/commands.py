"""``python -m bundle benchmark``: time and memory of this bundle on this machine, on synthetic scans.

    inference    seconds per scan, beside the original evaluation and the encoder alone
    memory       peak memory of an inference against the slices of the scan
    training     seconds per step, beside the encoder alone
    superpixels  slices per second of computing superpixels, beside scikit-image alone
    startup      seconds from the start of a process to its first segmented slice
    all          all of these

<output_dir>/results.csv    every number, in long form
<output_dir>/table.md       the same as a table, with command, machine and versions
<output_dir>/plot.png       seconds and memory against what they depend on

The numbers of a row were measured in turn in one process; each is a median after a warm-up.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from bundle.benchmark import inference, memory, startup, superpixels, training
from bundle.benchmark.inference import ENCODERS, MATCHINGS, refuse_unknown
from bundle.benchmark.output import about, write_results
from bundle.benchmark.results import Result
from bundle.command_line.checks import check_positive_integers, check_seed, refuse_file, refuse_missing_device, switch

Numbers = int | Sequence[int] | None
Names = str | Sequence[str] | None


class Benchmark:
    """Measure this bundle on this machine.

    python -m bundle benchmark all
    python -m bundle benchmark all --quick
    python -m bundle benchmark inference --encoders resnet18,resnet101 --organs 1,4,13 --support_scans 1,8

    Args:
        output_dir: Where results.csv, table.md and plot.png go.
        device: Such as cpu or cuda:0.
        threads: Number of threads; PyTorch's default if not set.
        seed: Random seed of scans and weights.
        repeats: Counted rounds.
        size: Rows and columns of a slice.
        quick: Few small slices and the smallest encoder: about a minute, for a check rather than a measurement.
    """

    def __init__(
        self,
        output_dir: str = "benchmark",
        device: str = "cpu",
        threads: int | None = None,
        seed: int = 0,
        repeats: int | None = None,
        size: int | None = None,
        quick: bool = False,
    ) -> None:
        self._quick = switch(quick)
        self._repeats = (1 if self._quick else 3) if repeats is None else repeats
        self._size = (64 if self._quick else 256) if size is None else size
        self._threads = torch.get_num_threads() if threads is None else threads
        check_positive_integers(repeats=self._repeats, size=self._size, threads=self._threads)
        check_seed(seed)
        self._seed = seed
        self._folder = Path(output_dir)
        refuse_file(self._folder)
        refuse_missing_device(device)
        self._device = str(device)
        torch.set_num_threads(self._threads)

    def inference(
        self,
        encoders: Names = "resnet18",
        organs: Numbers = None,
        support_scans: Numbers = None,
        slices: Numbers = None,
        matching: Names = None,
        naive_slices: int | None = 2,
        prototypes: Numbers = None,
    ) -> None:
        """Measure seconds per scan in every combination, and with many prototypes.

        Args:
            encoders: resnet18, resnet34, resnet50, resnet101.
            organs: Numbers of organs, such as 1,4,13.
            support_scans: Numbers of annotated scans, such as 1,8.
            slices: Numbers of slices, such as 30,300.
            matching: paper, annotate_one or both: the presets of these names.
            naive_slices: Slices on which the original evaluation is measured; its time is scaled up. 0 measures all.
            prototypes: Approximate numbers of prototypes to compare with every slice; 0 measures none.
        """
        cases = itertools.product(
            _names(encoders, ENCODERS, "encoder"),
            _numbers("organs", organs, [1, 2] if self._quick else [1, 4, 13]),
            _numbers("support_scans", support_scans, [1, 2] if self._quick else [1, 8]),
            _numbers("slices", slices, [4] if self._quick else [30]),
        )
        matchings = _names(matching, MATCHINGS, "matching")
        results = [found for case in cases for found in self._inference(*case, matchings, naive_slices)]
        if prototypes != 0:
            wanted = _numbers("prototypes", prototypes, [500 if self._quick else 5000])
            results += [self._prototypes(number) for number in wanted]
        self._write(results)

    def memory(self, slices: Numbers = None, organs: int = 4) -> None:
        """Measure peak memory; each scan is segmented and refined in a new process.

        Args:
            slices: Numbers of slices, such as 30,300,1000.
            organs: Number of organs to segment.
        """
        self._write(self._memory(_numbers("slices", slices, [4, 8] if self._quick else [30, 300, 1000]), organs))

    def training(self, encoders: Names = None, batch_sizes: Numbers = None, steps: int = 3) -> None:
        """Measure training steps in every combination.

        Args:
            encoders: resnet18, resnet34, resnet50, resnet101.
            batch_sizes: Episodes per step, such as 1,4.
            steps: Counted steps in a row, in each round.
        """
        names = _names(encoders, ["resnet18"] if self._quick else ["resnet18", "resnet101"], "encoder", ENCODERS)
        sizes = _numbers("batch_sizes", batch_sizes, [1, 4])
        self._write([self._training(name, size, steps) for name, size in itertools.product(names, sizes)])

    def superpixels(self, dataset_dir: str | None = None, scans: int = 4) -> None:
        """Measure slices per second of computing superpixels.

        Args:
            dataset_dir: Folder of scans to use in place of phantoms.
            scans: Number of scans.
        """
        self._write([self._superpixels(dataset_dir, scans)])

    def startup(self) -> None:
        """Measure the time to the first segmented slice."""
        self._write(self._startup())

    def all(self) -> None:
        """Measure everything: about half an hour on two cores, or a minute with --quick."""
        results = [*self._all_inference(), self._prototypes(500 if self._quick else 5000)]
        results += self._memory([4, 8] if self._quick else [30, 300, 1000], 4)
        for encoder, batch_size in [("resnet18", 1), ("resnet18", 4)] + ([] if self._quick else [("resnet101", 1)]):
            results.append(self._training(encoder, batch_size, 1 if encoder == "resnet101" else 3))
        results += [self._superpixels(None, 4), *self._startup()]
        self._write(results)

    def _all_inference(self) -> list[Result]:
        """Vary one thing at a time; all combinations would take hours."""
        if self._quick:
            cases = [("resnet18", organs, scans, slices) for organs, scans, slices in [(1, 1, 4), (4, 1, 4), (4, 2, 4)]]
        else:
            cases = [("resnet18", organs, 1, 30) for organs in (1, 4, 13)]
            cases += [("resnet18", 4, 8, 30), ("resnet18", 4, 1, 300), ("resnet50", 4, 1, 30), ("resnet101", 4, 1, 30)]
        return [found for case in cases for found in self._inference(*case, list(MATCHINGS), 2)]

    def _inference(
        self, encoder: str, organs: int, scans: int, slices: int, matchings: Sequence[str], naive_slices: int | None
    ) -> list[Result]:
        common = (self._size, self._repeats, self._device, self._seed)
        return inference.measure(encoder, organs, scans, slices, matchings, naive_slices or None, *common)

    def _prototypes(self, number: int) -> Result:
        slices = 4 if self._quick else 30
        return inference.measure_prototypes(
            number, "resnet18", slices, self._size, self._repeats, self._device, self._seed
        )

    def _memory(self, slices: Sequence[int], organs: int) -> list[Result]:
        return memory.measure(slices, organs, self._size, self._threads, self._device, self._seed)

    def _training(self, encoder: str, batch_size: int, steps: int) -> Result:
        return training.measure(encoder, batch_size, steps, self._repeats, self._size, self._device, self._seed)

    def _superpixels(self, dataset_dir: str | None, scans: int) -> Result:
        slices = 3 if self._quick else 12
        return superpixels.measure(dataset_dir, scans, slices, self._size, self._repeats, self._seed)

    def _startup(self) -> list[Result]:
        slices = 4 if self._quick else 30
        return startup.measure(self._repeats, self._size, slices, self._threads, self._device, self._seed)

    def _write(self, results: Sequence[Result]) -> None:
        text = write_results(results, about(self._seed, self._device), self._folder)
        print(f"{text}\nresults.csv, table.md and plot.png in {self._folder}", flush=True)


def _numbers(name: str, given: Numbers, default: Sequence[int]) -> list[int]:
    """Return whole numbers of at least 1; one, several or none may be given."""
    numbers = list(default) if given is None else list(given) if isinstance(given, list | tuple) else [given]
    check_positive_integers(**{name: len(numbers)})
    for number in numbers:
        check_positive_integers(**{name: number})
    return [int(number) for number in dict.fromkeys(numbers)]


def _names(given: Names, default: Any, what: str, known: Any = None) -> list[str]:
    """Return known names; one, several or none may be given."""
    names = list(default) if given is None else given.split(",") if isinstance(given, str) else list(given)
    refuse_unknown(what, names, default if known is None else known)
    return list(dict.fromkeys(names))
