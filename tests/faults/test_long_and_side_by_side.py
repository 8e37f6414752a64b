"""Hundreds of scans in one process, and two commands or writers at the same place."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle.data.phantoms import write_phantoms
from bundle.files import written_whole
from tests.faults import trials
from tests.faults.warm import Warm

pytestmark = [pytest.mark.faults, pytest.mark.slow]

fork = multiprocessing.get_context("fork")
SMALL = ["--checkpoint", "$None", "--slice_size", "[32,32]", "--device", "cpu"]
MEGABYTES = 1 << 20


def many(folder: Path, count: int) -> list[Any]:
    """Write a folder of so many scans, and return the words that segment them from one of three phantoms."""
    phantom = write_phantoms(folder / "phantom", unlabeled=1, labeled=2, size=(32, 32, 4), noise=20.0)
    (folder / "scans").mkdir()
    for number in range(count):
        os.link(phantom / "images" / f"phantom_{number % 3:02}.nii.gz", folder / "scans" / f"scan_{number:03}.nii.gz")
    scan = "phantom_01.nii.gz"
    support = ["--support_image", phantom / "images" / scan, "--support_label", phantom / "labels" / scan]
    return ["inference", "--dataset_dir", folder / "scans", "--output_dir", folder / "out", *support, *SMALL]


def pages_of(process: int) -> int:
    """Return the pages of memory that a process holds; 0 if it has ended."""
    return int(Path(f"/proc/{process}/statm").read_text(encoding="utf-8").split()[1])


def used(process: int, folder: Path) -> tuple[float, int, int]:
    """Return what a process holds now: megabytes of memory, open files, and temporary files in its folders."""
    temporary = sum(path.name.startswith((".tmp-", "tmp", "pymp-")) for path in folder.rglob("*"))
    return pages_of(process) * os.sysconf("SC_PAGE_SIZE") / MEGABYTES, len(os.listdir(f"/proc/{process}/fd")), temporary


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="what a process holds is read from Linux's /proc")
def test_memory_open_files_and_temporary_files_stay_flat_over_many_scans(warm: Warm, tmp_path: Path) -> None:
    count, found = trials(40, 300), {}
    process = warm.start(*many(tmp_path, count))
    while pages_of(process):
        done = len(list((tmp_path / "out" / "masks").glob("scan_*")))
        found[done] = used(process, tmp_path)
        time.sleep(0.05)
    assert warm.wait(process) == 0
    assert len(list((tmp_path / "out" / "masks").glob("scan_*"))) == count
    early, late = ([value for done, value in found.items() if low <= done < high] for low, high in halves(count))
    assert len(early) > 3
    assert len(late) > 3
    memory, files, temporary = (
        np.array([[value[n] for value in half][-4:] for half in (early, late)]) for n in range(3)
    )
    print(
        f"{count} scans in one process: {memory[0].max():.0f} MB after the first quarter, {memory[1].max():.0f} MB at"
    )
    print(f"the end; open files {files[0].max()} and {files[1].max()}; temporary files {temporary.max()} at most")
    assert memory[1].max() - memory[0].max() < 20
    assert files[1].max() <= files[0].max() + 2
    assert temporary.max() <= 2  # the mask that is being written
    assert used(os.getpid(), tmp_path)[2] == 0


def halves(count: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return from how many masks to how many the early and the late samples are."""
    return (2, count // 4 + 1), (3 * count // 4, count)


def write_often(path: Path, letter: str, end: float) -> None:
    while time.monotonic() < end:
        with written_whole(path) as unfinished:
            unfinished.write_text(letter * 50_000)


def test_two_writers_of_one_file_never_show_a_torn_one(tmp_path: Path) -> None:
    path, reads = tmp_path / "a.csv", 0
    path.write_text("c" * 50_000)
    end = time.monotonic() + trials(2, 30)
    writers = [fork.Process(target=write_often, args=(path, letter, end)) for letter in "ab"]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        text = path.read_text()
        assert text == text[0] * 50_000
        reads += 1
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]
    print(f"two writers of one file: {reads} reads, 0 torn")
    assert reads > 100


@pytest.mark.parametrize("kind", ["inference", "training"])
def test_of_two_commands_in_one_folder_one_is_done_and_one_is_told(kind: str, warm: Warm, tmp_path: Path) -> None:
    warm.log.unlink(missing_ok=True)
    words = many(tmp_path, 8)
    if kind == "training":
        words = [
            "training",
            "--configs",
            "smoke",
            "--dataset_dir",
            tmp_path / "phantom",
            "--output_dir",
            tmp_path / "out",
        ]
    first, other = (warm.start(*words) for _ in range(2))
    assert sorted([warm.wait(first), warm.wait(other)]) == [0, 1]
    log = warm.log.read_text(encoding="utf-8")
    assert log.count("error: ") == 1
    assert f"another command is writing to {tmp_path / 'out'}, and results must not be mixed. Wait until it ends" in log
    assert "Traceback" not in log
    assert [path for path in tmp_path.rglob(".*") if path.is_file()] == []
