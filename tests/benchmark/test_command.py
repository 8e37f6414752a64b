"""``python -m bundle benchmark``: what it measures by default, and how it reports errors."""

from __future__ import annotations

import csv
import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from bundle.__main__ import VERBS
from bundle.benchmark import commands as command
from bundle.benchmark.commands import Benchmark
from bundle.benchmark.results import Result

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("one_thread")

MEASURES = [
    (command.inference, "measure"),
    (command.inference, "measure_prototypes"),
    *((module, "measure") for module in (command.memory, command.training, command.superpixels, command.startup)),
]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Note what is asked for, and measure nothing."""
    noted: list[tuple[Any, ...]] = []

    def fake(module: Any, function: str) -> Any:
        name = module.__name__.rpartition(".")[2] if function == "measure" else function

        def note(*arguments: Any) -> Any:
            noted.append((name, *arguments))
            result = Result(name, {}, {"s": 1.0})
            return [result] if name in ("inference", "memory", "startup") else result

        return note

    for module, function in MEASURES:
        monkeypatch.setattr(module, function, fake(module, function))
    monkeypatch.setattr(command, "write_results", lambda results, about, folder: f"{len(results)} results")
    return noted


def words(*given: str) -> None:
    VERBS["benchmark"].run("benchmark", given)


def test_all_combinations_are_measured(asked: list[tuple[Any, ...]]) -> None:
    given = (
        "--encoders resnet18,resnet101 --organs 1,4 --support_scans 8 --slices 30,300 --naive_slices 3 --matching paper"
    )
    words("inference", *given.split(), "--prototypes=50", "--size=32", "--seed=5", "--repeats=2", "--threads=1")
    common = (32, 2, "cpu", 5)
    cases = itertools.product(["resnet18", "resnet101"], [1, 4], [8], [30, 300])
    assert asked == [
        *(("inference", *case, ["paper"], 3, *common) for case in cases),
        ("measure_prototypes", 50, "resnet18", 30, *common),
    ]


def test_the_original_way_is_measured_on_all_slices_if_asked(asked: list[tuple[Any, ...]]) -> None:
    words("inference", "--organs=1", "--support_scans=1", "--naive_slices=0", "--prototypes=0", "--threads=1")
    assert asked == [("inference", "resnet18", 1, 1, 30, ["paper", "annotate_one"], None, 256, 3, "cpu", 0)]


def test_all_measures_every_axis(asked: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]) -> None:
    words("all", "--threads", "1")
    common = (256, 3, "cpu", 0)
    cases = [("resnet18", organs, 1, 30) for organs in (1, 4, 13)]
    cases += [("resnet18", 4, 8, 30), ("resnet18", 4, 1, 300), ("resnet50", 4, 1, 30), ("resnet101", 4, 1, 30)]
    assert asked == [
        *(("inference", *case, ["paper", "annotate_one"], 2, *common) for case in cases),
        ("measure_prototypes", 5000, "resnet18", 30, *common),
        ("memory", [30, 300, 1000], 4, 256, 1, "cpu", 0),
        ("training", "resnet18", 1, 3, 3, 256, "cpu", 0),
        ("training", "resnet18", 4, 3, 3, 256, "cpu", 0),
        ("training", "resnet101", 1, 1, 3, 256, "cpu", 0),
        ("superpixels", None, 4, 12, 256, 3, 0),
        ("startup", 3, 256, 30, 1, "cpu", 0),
    ]
    assert capsys.readouterr().out == "14 results\nresults.csv, table.md and plot.png in benchmark\n"


def test_quick_is_small(asked: list[tuple[Any, ...]]) -> None:
    words("all", "--quick", "--threads", "1")
    assert {arguments[1] for arguments in asked if arguments[0] in ("inference", "training")} == {"resnet18"}
    assert all(64 in arguments and 256 not in arguments for arguments in asked)
    assert ("startup", 1, 64, 4, 1, "cpu", 0) in asked


def test_each_command_measures_its_own(asked: list[tuple[Any, ...]], tmp_path: Path) -> None:
    words("memory", "--slices", "3,4", "--organs", "2", "--quick", "--threads", "1")
    words("memory", "--quick", "--threads", "1")
    words("training", "--encoders", "resnet50", "--batch_sizes", "2", "--steps", "4", "--threads", "1")
    words("training", "--quick", "--threads", "1")
    words("superpixels", "--dataset_dir", str(tmp_path), "--scans", "6", "--threads", "1")
    words("startup", "--threads", "1")
    assert asked == [
        ("memory", [3, 4], 2, 64, 1, "cpu", 0),
        ("memory", [4, 8], 4, 64, 1, "cpu", 0),
        ("training", "resnet50", 2, 4, 3, 256, "cpu", 0),
        ("training", "resnet18", 1, 3, 1, 64, "cpu", 0),
        ("training", "resnet18", 4, 3, 1, 64, "cpu", 0),
        ("superpixels", str(tmp_path), 6, 12, 256, 3, 0),
        ("startup", 3, 256, 30, 1, "cpu", 0),
    ]


def test_threads_are_those_that_are_asked_for(asked: list[tuple[Any, ...]]) -> None:
    words("startup", "--threads", "2")
    assert torch.get_num_threads() == 2
    assert asked[0][4] == 2
    words("startup")
    assert asked[1][4] == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("inference --encoders resnet19", "unknown encoder 'resnet19'"),
        ("inference --matching paper,mine", "unknown matching 'mine'"),
        ("inference --organs 1,none", "organs must be a whole number of at least 1, got 'none'"),
        ("inference --slices []", "slices must be a whole number of at least 1, got 0"),
        ("inference --prototypes -1", "prototypes must be a whole number"),
        ("training --encoders vgg", "unknown encoder 'vgg'. Choose among resnet18, resnet34, resnet50, resnet101"),
        ("all --repeats 0", "repeats must be a whole number"),
        ("all --threads 0", "threads must be a whole number"),
        ("all --seed -1", "seed must be a whole number from 0, got -1"),
        ("all --seed True", "--seed must be a whole number, got True"),
        ("all --device tpu", "device must be a name such as cpu or cuda:0, got 'tpu'"),
        ("all --quick maybe", "must be true or false"),
        ("all --device", "--device has no value"),
        ("all --quik", "benchmark all has no option --quik. Did you mean --quick"),
        ("memory --steps 3", "benchmark memory has no option --steps"),
        ("al", "benchmark has no subcommand 'al'. Did you mean 'all'"),
    ],
)
def test_an_error_is_reported_in_plain_words(asked: list[tuple[Any, ...]], given: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        words(*given.split())


def test_a_missing_gpu_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match="device cuda does not exist: PyTorch sees 0 GPUs"):
        Benchmark(device="cuda", threads=1)


def test_a_file_is_no_output_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file"):
        Benchmark(output_dir=str(tmp_path / "file"), threads=1)


@pytest.mark.slow
def test_the_quick_benchmark_measures_everything(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "bundle",
            "benchmark",
            "all",
            "--quick",
            "--threads",
            "1",
            "--output_dir",
            str(tmp_path),
        ],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    counted = {name: len([row for row in rows if row["benchmark"] == name]) for name in {r["benchmark"] for r in rows}}
    assert counted == {"inference": 48, "prototypes": 5, "memory": 10, "training": 10, "superpixels": 5, "startup": 16}
    assert all(float(row["value"]) > 0 for row in rows)
    assert (tmp_path / "table.md").read_text() in done.stdout
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_command_says_a_mistake_in_one_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bundle", "benchmark", "training", "--encoders", "vgg", "--output_dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "error: unknown encoder 'vgg'" in done.stderr
    assert "Traceback" not in done.stderr
