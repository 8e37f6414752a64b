"""Thousands of damaged files through the chain that inference reads with: none hangs, crashes or takes memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.faults import trials
from tests.faults.mutations import FORMATS

pytestmark = pytest.mark.faults
ROOT = Path(__file__).parents[2]
# Megabytes that the whole trial may take above its first file; it loads ITK on the way.
MOST_MEMORY = 400


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder, count = tmp_path_factory.mktemp("mutated"), trials(400, 10_000)
    found: list[dict[str, Any]] = []
    while len(found) < count:
        found += read_from(folder, len(found), count)
    return found


def read_from(folder: Path, first: int, end: int) -> Iterator[dict[str, Any]]:
    """Read files until all are done or the process dies, which is the last one's outcome."""
    command = [sys.executable, "-m", "tests.faults.read_mutated", str(folder), str(first), str(end)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    yield from (line for line in lines if "number" in line)
    if lines and "started" in lines[-1]:
        how = "hang" if done.returncode == -14 else f"crash {done.returncode}"
        yield {"number": lines[-1]["started"], "outcome": how, "words": "", "how": "", "suffix": ""} | UNKNOWN
    assert lines, "the reading process did not start"


UNKNOWN = {"seconds": 0.0, "megabytes": 0.0}


def of(outcomes: list[dict[str, Any]], *wrong: str) -> list[str]:
    return [str(outcome) for outcome in outcomes if outcome["outcome"].split()[0] in wrong]


def test_every_damaged_file_is_read_or_refused_in_a_sentence_with_its_name(outcomes: list[dict[str, Any]]) -> None:
    assert of(outcomes, "unclean") == []


def test_every_sound_file_is_taken(outcomes: list[dict[str, Any]]) -> None:
    sound = [outcome for outcome in outcomes if outcome["how"] in ("nothing", "behind gzip: nothing")]
    assert of(sound, "refused") == []
    assert len(sound) > len(outcomes) / 20


def test_no_damaged_file_hangs_or_ends_the_process(outcomes: list[dict[str, Any]]) -> None:
    assert of(outcomes, "hang", "crash") == []


def test_no_spoiled_compressed_file_is_taken_with_other_voxels(outcomes: list[dict[str, Any]]) -> None:
    assert of(outcomes, "wrong") == []
    assert sum(outcome["suffix"] == "nii.gz" for outcome in outcomes) > len(outcomes) / len(FORMATS) / 2


def test_memory_and_time_stay_bounded(outcomes: list[dict[str, Any]]) -> None:
    taken = [outcome["megabytes"] for outcome in outcomes]
    assert max(taken) - taken[0] < MOST_MEMORY
    assert max(outcome["seconds"] for outcome in outcomes) < 15


def test_both_answers_occur_and_are_counted(outcomes: list[dict[str, Any]]) -> None:
    counts = Counter(outcome["outcome"] for outcome in outcomes)
    first, most = outcomes[0]["megabytes"], max(outcome["megabytes"] for outcome in outcomes)
    slowest = max(outcome["seconds"] for outcome in outcomes)
    print(f"{len(outcomes)} damaged files ({', '.join(FORMATS)}): {dict(counts)}; slowest {slowest:.2f} s, memory ")
    print(f"{first:.0f} MB after the first file, {most:.0f} MB at most")
    assert min(counts["taken"], counts["refused"]) > len(outcomes) / 20
