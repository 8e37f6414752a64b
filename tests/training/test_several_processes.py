"""Several processes, started by torchrun on this machine's processor: what one does, and what one's death leaves."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from bundle.data.phantoms import write_phantoms
from bundle.evaluation.cases import read_cases
from monai.bundle import ConfigParser
from tests.test_workflows import CONFIGS, ROOT, assert_equal_states, command, workflow

__all__ = ["command"]

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

PHANTOM = {"unlabeled": 2, "size": [64, 64, 6], "modality": "mr", "noise": 20.0}
QUERIES = 3  # an odd number for two processes
STEPS = 12


def log_place() -> str:
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / "train.yaml"))
    handlers = parser["train::handlers"]
    place = next(n for n, handler in enumerate(handlers) if handler["_target_"].endswith("TrainingLog"))
    return f"train#handlers#{place}#every"


TRAINING = {
    "batch_size": 2,
    "epoch_length": STEPS // 2,
    "max_epochs": 2,
    "val_interval": 2,
    "learning_rate": 1e-4,  # with a larger one a network without batch norm to adapt amplifies rounding
    "network_def#encoder#train_batch_norm": False,  # trained on a CPU, its statistics are each process's own
    log_place(): 1,
}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantoms(tmp_path_factory.mktemp("study") / "phantom", labeled=1 + QUERIES, **PHANTOM)


def files(*names: str) -> list[str]:
    return [str(CONFIGS / f"{name}.yaml") for name in names]


def torchrun(run_id: str, configs: list[str], **keys: Any) -> subprocess.CompletedProcess[str]:
    """Run a workflow in two processes that each compute in one thread."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    words = [f"--{key}={value}" for key, value in ({"bundle_root": ROOT, "config_file": configs} | keys).items()]
    return subprocess.run(
        [*start, "-m", "monai.bundle", "run", run_id, *words],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def killing(folder: Path, engine: str, step: int) -> str:
    """Return a config that kills the second process in the middle of a run."""
    text = f"""
run:
  - {{_target_: tests.processes.kill_one, engine: "@{engine}", rank: 1, step: {step}}}
  - $@{engine}.run()
"""
    (folder / "killing.yaml").write_text(text)
    return str(folder / "killing.yaml")


def in_two(output: Path, study: Path, *more: str, **keys: Any) -> subprocess.CompletedProcess[str]:
    configs = [*files("train", "smoke", "multi_gpu_train"), *more]
    return torchrun("training", configs, output_dir=output, dataset_dir=study, **TRAINING, **keys)


@pytest.fixture(scope="module")
def two(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training by two processes."""
    output = tmp_path_factory.mktemp("two")
    done = in_two(output, study)
    assert done.returncode == 0, done.stderr
    (output / "stdout.txt").write_text(done.stdout)
    return output


@pytest.fixture
def one(study: Path, tmp_path: Path) -> Path:
    """The same training by one."""
    workflow(files("train", "smoke"), tmp_path / "one", dataset_dir=str(study), **TRAINING).run()
    return tmp_path / "one"


def weights(output: Path) -> dict[str, torch.Tensor]:
    return torch.load(output / "model.pt", weights_only=True)


def losses(output: Path) -> list[float]:
    with (output / "log" / "training.csv").open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def test_two_processes_learn_what_one_does(one: Path, two: Path) -> None:
    assert len(losses(one)) == STEPS
    np.testing.assert_allclose(losses(two), losses(one), rtol=1e-4)
    assert losses(one)[-1] != losses(one)[0]
    expected, found = weights(one), weights(two)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_the_first_process_alone_writes_and_tells(one: Path, two: Path) -> None:
    made = [sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()) for out in (one, two)]
    made = [[re.sub(r"tfevents.*", "tfevents", name) for name in names] for names in made]
    assert made[1] == sorted([*made[0], "stdout.txt"])
    text = (two / "stdout.txt").read_text()
    assert text.count("trained weights:") == 1
    assert text.count("0 (untrained)") == 2  # one line after the first evaluation, one in the table of both


def test_a_killed_process_ends_the_other_and_the_training_resumes_exactly(
    study: Path, two: Path, tmp_path: Path
) -> None:
    started = time.monotonic()
    done = in_two(tmp_path / "cut", study, killing(tmp_path, "train::trainer", step=8))
    assert time.monotonic() - started < 60
    assert done.returncode != 0
    assert re.search(r"rank\s*: 1 ", done.stderr)
    assert "Signal 9 (SIGKILL)" in done.stderr
    last = torch.load(tmp_path / "cut" / "checkpoints" / "last.pt", weights_only=True)
    assert 6 <= last["step"] <= 7
    assert not (tmp_path / "cut" / "model.pt").exists()
    shutil.copytree(tmp_path / "cut", tmp_path / "cut too")

    resumed = in_two(tmp_path / "cut", study, resume=True)
    assert resumed.returncode == 0, resumed.stderr
    assert_equal_states(weights(tmp_path / "cut"), weights(two))
    assert losses(tmp_path / "cut") == losses(two)

    workflow(
        files("train", "smoke"), tmp_path / "cut too", dataset_dir=str(study), resume=True, **TRAINING
    ).run()  # one process goes on with what two began
    np.testing.assert_allclose(losses(tmp_path / "cut too"), losses(two), rtol=1e-4)


def test_a_batch_that_cannot_be_shared_is_refused(study: Path, tmp_path: Path) -> None:
    done = torchrun(
        "training", files("train", "smoke", "multi_gpu_train"), output_dir=tmp_path, dataset_dir=study, batch_size=3
    )
    assert done.returncode != 0
    assert "batch_size counts the episodes of all processes together" in done.stderr
    assert "Set batch_size to 4" in done.stderr
    assert not list(tmp_path.iterdir())


def evaluated(output: Path) -> tuple[Any, ...]:
    """Return all that an evaluation leaves, but for the seconds that it took."""
    cases = [case | {"seconds": ""} for case in read_cases(output / "cases.csv")]
    masks = {path.name: nibabel.load(path) for path in sorted((output / "masks").glob("*.nii.gz"))}
    arrays = {name: (np.asarray(mask.dataobj).tolist(), mask.affine.tolist()) for name, mask in masks.items()}
    pictures = {path.name: path.read_bytes() for path in sorted((output / "overlays").iterdir())}
    return cases, arrays, pictures, (output / "masks" / "volumes.csv").read_text()


def page(output: Path) -> str:
    """Return the report without its columns of seconds."""
    text = (output / "report.html").read_text(encoding="utf-8")
    seconds = r"<td>[\d.]+</td>(?=\s*</tr>|\s*<td>[\d.]+</td>\s*<td>\d+</td>\s*<td>\d+ \()"
    return re.sub(seconds, "", text)


@pytest.mark.parametrize("queries", [QUERIES, 1], ids=["three scans", "fewer scans than processes"])
def test_two_processes_evaluate_exactly_as_one(queries: int, study: Path, two: Path, tmp_path: Path) -> None:
    keys = {"dataset_dir": str(study), "checkpoint": str(two / "model.pt"), "support_scans": 1 + QUERIES - queries}
    made = workflow(files("train", "smoke", "evaluate"), tmp_path / "one", **keys)
    made.run_id = "evaluating"
    made.run()
    configs = files("train", "smoke", "evaluate", "multi_gpu_evaluate")
    done = torchrun("evaluating", configs, output_dir=tmp_path / "two", **keys)
    assert done.returncode == 0, done.stderr
    assert evaluated(tmp_path / "two") == evaluated(tmp_path / "one")
    assert len(evaluated(tmp_path / "one")[1]) == queries
    assert page(tmp_path / "two") == page(tmp_path / "one")


def test_the_table_of_a_training_has_the_scans_in_their_order(one: Path, two: Path) -> None:
    tables = []
    for output in (one, two):
        with (output / "dice.csv").open(newline="") as file:
            tables.append(list(csv.DictReader(file)))
    assert [row["scan"] for row in tables[0][::3]] == ["phantom_03", "phantom_04", "phantom_05"] * 2
    assert [(row["epoch"], row["scan"], row["organ"]) for row in tables[0]] == [
        (row["epoch"], row["scan"], row["organ"]) for row in tables[1]
    ]
    # The weights are the very same before training, and equal within rounding after it.
    assert tables[0][: 3 * QUERIES] == tables[1][: 3 * QUERIES]


def inference(study: Path, trained: Path) -> dict[str, Any]:
    return {
        "dataset_dir": str(study),
        "support_image": str(study / "images" / "phantom_02.nii.gz"),
        "support_label": str(study / "labels" / "phantom_02.nii.gz"),
        "checkpoint": str(trained / "model.pt"),
    }


def test_a_killed_inference_resumes(study: Path, two: Path, tmp_path: Path) -> None:
    keys, folder = inference(study, two), tmp_path / "cut" / "masks"
    workflow(files("inference", "smoke"), tmp_path / "one", **keys).run()
    expected = evaluated_masks(tmp_path / "one")
    assert len(expected[0]) == 2 + QUERIES  # all scans but the support

    configs = files("inference", "smoke", "multi_gpu_evaluate")
    done = torchrun("run", [*configs, killing(tmp_path, "evaluator", step=2)], output_dir=tmp_path / "cut", **keys)
    assert done.returncode != 0
    assert "Signal 9 (SIGKILL)" in done.stderr
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.nii.gz") if path.name[0] != "."}
    assert 1 <= len(before) < len(expected[0])
    assert all(nibabel.load(folder / name).get_fdata().shape == (64, 64, 6) for name in before)

    resumed = torchrun("run", configs, output_dir=tmp_path / "cut", resume=True, **keys)
    assert resumed.returncode == 0, resumed.stderr
    assert f"resumed: {len(before)} of {len(expected[0])} masks are already finished" in resumed.stdout
    assert evaluated_masks(tmp_path / "cut") == expected
    assert {name: (folder / name).stat().st_mtime_ns for name in before} == before

    # One process finds all of it done; with another grid it would not be the same inference.
    stamps = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.nii.gz")}
    (folder / "volumes.csv").unlink()
    workflow(files("inference", "smoke"), tmp_path / "cut", **keys, resume=True).run()
    assert evaluated_masks(tmp_path / "cut") == expected
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("*.nii.gz")} == stamps
    with pytest.raises((RuntimeError, ValueError), match=r"\w") as caught:
        workflow(files("inference", "smoke"), tmp_path / "cut", **keys, resume=True, spacing=[2.0, 2.0, 5.0]).run()
    assert re.search(r"made with other settings: spacing was 'fit', is \[2\.0, 2\.0, 5\.0\]\.", cause(caught.value))


def cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error)


def evaluated_masks(output: Path) -> tuple[Any, ...]:
    masks = {path.name: nibabel.load(path) for path in sorted((output / "masks").glob("[!.]*.nii.gz"))}
    arrays = {name: np.asarray(mask.dataobj).tolist() for name, mask in masks.items()}
    return arrays, (output / "masks" / "volumes.csv").read_text()
