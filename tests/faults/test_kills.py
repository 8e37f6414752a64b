"""Kills at random times: what is started again gives the same results bit for bit, and nothing is left over."""

from __future__ import annotations

import csv
import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import safetensors.torch
import torch
from bundle.data.phantoms import write_phantoms
from bundle.provenance import tensors_hash
from tests.faults import trials
from tests.faults.warm import Warm, gone

pytestmark = [pytest.mark.faults, pytest.mark.slow]

# Columns of tables that no two runs share.
TIMES = ("seconds", "episodes_per_second")


@dataclass
class Study:
    """A tiny study, and trained weights for it."""

    folder: Path
    warm: Warm

    def words(self, kind: str, output: Path) -> list[Any]:
        """Return the command of a kind: begun, killed and gone on with in the same words."""
        scans, shown = self.folder / "phantom", ("images", "labels")
        support = [f"--support_{part[:-1]}={scans / part / 'phantom_02.nii.gz'}" for part in shown]
        network = ["--checkpoint", "$None", "--slice_size", "[64,64]", "--device", "cpu"]
        network += ["--network_def#encoder#out_channels", "16"]
        own = {
            "training": ["--configs", "smoke", "--epoch_length", "6", "--resume", "true"],
            "inference": [*support, *network, "--resume", "true"],
            "encoding": [*support, *network],
            "cross_validation": ["--configs", "smoke", "--epoch_length", "4", "--folds", "0", "--jobs", "1"],
        }
        name = [kind, "run"] if kind == "cross_validation" else [kind]
        return [*name, "--dataset_dir", scans, "--output_dir", output, *own[kind]]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    folder = tmp_path_factory.mktemp("kills")
    warm = Warm(folder)
    write_phantoms(folder / "phantom", unlabeled=2, labeled=5, size=(64, 64, 6), noise=20.0)
    yield Study(folder, warm)
    warm.close()


def content(path: Path) -> Any:
    """Return what of a file must be equal: tensors, voxels, rows without times, bytes."""
    if path.suffix == ".pt":
        return tensors_hash(dict(sorted(tensors_of(torch.load(path, weights_only=True)).items())))
    if path.suffix == ".safetensors":
        return tensors_hash(dict(sorted(safetensors.torch.load_file(path).items())))
    if path.name.endswith(".nii.gz"):
        image = nibabel.load(path)
        return sha256(np.asarray(image.dataobj).tobytes()).hexdigest(), image.affine.tolist()
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            return [{key: cell for key, cell in row.items() if key not in TIMES} for row in csv.DictReader(file)]
    return sha256(path.read_bytes()).hexdigest()


def tensors_of(state: Any, name: str = "") -> dict[str, torch.Tensor]:
    """Return all tensors of a checkpoint, by their places."""
    if isinstance(state, torch.Tensor):
        return {name: state}
    inner = dict(enumerate(state)) if isinstance(state, list | tuple) else state
    parts = inner.items() if isinstance(inner, dict) else ()
    return {key: value for part, one in parts for key, value in tensors_of(one, f"{name}.{part}").items()}


def results(folder: Path) -> dict[str, Any]:
    """Return all that a command leaves but what holds times: pages, logs, readable tables, TensorBoard events."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    told = ("log.txt", "report.html", "table.md")
    kept = [path for path in found if "tfevents" not in path.name and path.name not in told]
    return {str(path.relative_to(folder)): content(path) for path in kept}


def leftovers(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob("*") if re.match(r"\.tmp-|\.lock|tmp|pymp-", path.name)]


def killed_often(study: Study, kind: str, count: int, random: np.random.Generator) -> int:
    """Kill a command until it was killed so often, up to three times in one folder; compare what it ends with."""
    seconds = study.warm.run(*study.words(kind, study.folder / f"{kind} whole"))
    expected, kills, folders = results(study.folder / f"{kind} whole"), 0, 0
    assert expected
    while kills < count:
        output, folders = study.folder / f"{kind} {folders}", folders + 1
        words = study.words(kind, output)
        for _ in range(3):
            if kills == count or not study.warm.killed(random.uniform(0, seconds), *words):
                break
            kills += 1
        study.warm.run(*words)
        assert results(output) == expected
        assert leftovers(study.folder) == []
    return folders


# Kills with the other tests, and of the full trial.
KINDS = {"training": (2, 25), "inference": (2, 25), "encoding": (1, 20), "cross_validation": (0, 5)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_command_that_is_killed_at_any_time_ends_with_the_same_results(kind: str, study: Study) -> None:
    count = trials(*KINDS[kind])
    if not count:
        pytest.skip("each takes a minute: ALPNET_FAULTS=full")
    folders = killed_often(study, kind, count, np.random.default_rng([13, list(KINDS).index(kind)]))
    print(f"{kind}: {count} kills in {folders} runs; results equal bit for bit, nothing left over")


def fill(warm: Warm, study: Study, cache: Path) -> int:
    """Start a process that computes the superpixels of the study, in a process of its own for each of two scans."""
    return warm.start("superpixels", study.folder / "phantom", cache)


def test_two_processes_share_a_cache_and_one_of_them_is_killed(study: Study, tmp_path: Path) -> None:
    count, random, kills = trials(1, 25), np.random.default_rng(17), 0
    begin = time.perf_counter()
    assert study.warm.wait(fill(study.warm, study, tmp_path / "whole")) == 0
    seconds, expected, rounds = time.perf_counter() - begin, results(tmp_path / "whole"), 0
    assert len(expected) == 3 * 7  # seven scans, three files each
    while kills < count:
        cache, rounds = tmp_path / f"cache {rounds}", rounds + 1
        first, other = (fill(study.warm, study, cache) for _ in range(2))
        time.sleep(random.uniform(0, seconds))
        os.kill(first, signal.SIGKILL)
        kills += study.warm.wait(first) == -signal.SIGKILL
        assert study.warm.wait(other) == 0
        assert results_of_entries(cache) == expected
        assert gone(first)
        assert study.warm.wait(fill(study.warm, study, cache)) == 0  # the next one removes what the killed one began
        assert results(cache) == expected
        assert leftovers(cache) == []
    print(f"superpixels: {kills} kills of one of two processes on a cache in {rounds} runs; equal, nothing left over")


def results_of_entries(cache: Path) -> dict[str, Any]:
    return {name: found for name, found in results(cache).items() if not name.startswith(".tmp-")}
