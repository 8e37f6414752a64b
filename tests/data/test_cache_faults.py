"""What the superpixel cache does when the disk is full, the folder cannot be used, or a process is killed."""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle.data import cache
from bundle.data.cache import CacheError, cached_scans
from bundle.data.loading import ScanError
from tests.data.scans import StoredScan, write_arrays

fork = multiprocessing.get_context("fork")

SHAPE = (6, 9, 4)
FILES = ("image.npy", "superpixels.npy", "entry.json")


def stored_scans(folder: Path, number: int = 1) -> list[dict[str, str]]:
    scans = []
    for seed in range(number):
        random = np.random.default_rng(seed)
        arrays = random.normal(5, 3, SHAPE), random.integers(0, 7, SHAPE)
        scans.append(write_arrays(folder / f"scan_{seed}.npz", *arrays))
    return scans


def contents(folder: Path) -> list[str]:
    """Return the names of everything below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def check_entries(scans: list[dict[str, str]], folder: Path) -> None:
    """Hold what a next run opens against the scans' files; nothing but whole entries may lie in the folder."""
    for entry, scan in zip(cached_scans(scans, StoredScan(), folder, num_workers=0), scans, strict=True):
        arrays = np.load(scan["image"])
        np.testing.assert_array_equal(entry.image, np.moveaxis(arrays["image"], -1, 0).astype(np.float32))
        np.testing.assert_array_equal(entry.superpixels, np.moveaxis(arrays["superpixels"], -1, 0))
    entries = [path for path in folder.iterdir() if not path.name.startswith(".tmp-")]
    assert [contents(entry) for entry in entries] == [sorted(FILES)] * len(scans)


def error_in_a_child(work: Callable[[], Any], seconds: float = 60) -> str:
    """Run something in a process of its own, and return the type and the message of what it raises."""
    receiver, sender = fork.Pipe(duplex=False)
    process = fork.Process(target=_send_error, args=(work, sender))
    process.start()
    sender.close()
    assert receiver.poll(seconds), "the child neither ended nor raised"
    message = receiver.recv()
    process.join(seconds)
    return str(message)


def _send_error(work: Callable[[], Any], sender: Connection) -> None:
    try:
        work()
        sender.send("nothing was raised")
    except Exception as error:
        sender.send(f"{type(error).__name__}: {error}")


def limit_files(size: int) -> None:
    """Let every file of this process and of its children end at so many bytes, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


# image.npy has 992 bytes: its head does not fit, or its last byte alone.
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("size", [40, 991])
def test_a_full_disk_is_said_in_one_sentence_and_leaves_nothing(tmp_path: Path, size: int, num_workers: int) -> None:
    scans = stored_scans(tmp_path, 3)
    folder = tmp_path / "cache"

    def fill() -> None:
        limit_files(size)
        cached_scans(scans, StoredScan(), folder, num_workers)

    message = error_in_a_child(fill)
    assert message.startswith(f"CacheError: the cache folder {folder} cannot be written to (")
    assert message.endswith("). Set cache_dir to another folder, or free space there; finished entries are kept.")
    assert "Traceback" not in message
    assert contents(folder) == []
    check_entries(scans, folder)


def breaking_at(name: str, act: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Write half a file and do something when it is the turn of one of the three files of an entry."""
    write = Path.write_bytes

    def broken(path: Path, content: bytes) -> int:
        if path.name == name:
            write(path, b"half")
            act(path)
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", broken)


def no_space(path: Path) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("name", FILES)
def test_a_disk_that_is_full_at_any_file_of_an_entry_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, num_workers: int
) -> None:
    scans = stored_scans(tmp_path)
    with monkeypatch.context() as broken:
        breaking_at(name, no_space, broken)
        with pytest.raises(CacheError) as caught:
            cached_scans(scans, StoredScan(), tmp_path / "cache", num_workers)
    assert f"the cache folder {tmp_path / 'cache'} cannot be written to (No space left on device)." in str(caught.value)
    assert contents(tmp_path / "cache") == []
    check_entries(scans, tmp_path / "cache")


def test_after_a_full_disk_no_other_scan_is_computed_and_finished_ones_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = stored_scans(tmp_path, 4)
    transform = StoredScan(log=tmp_path / "log")
    cached_scans(scans[:1], transform, tmp_path / "cache", num_workers=0)
    before = contents(tmp_path / "cache")
    breaking_at("image.npy", no_space, monkeypatch)
    with pytest.raises(CacheError):
        cached_scans(scans, transform, tmp_path / "cache", num_workers=0)
    assert (tmp_path / "log").read_text().split() == [scans[0]["image"], scans[1]["image"]]
    assert contents(tmp_path / "cache") == before


def test_a_full_disk_counts_more_than_a_bad_scan_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scans = [{"image": str(tmp_path / "gone.npz")}, *stored_scans(tmp_path)]
    breaking_at("image.npy", no_space, monkeypatch)
    with pytest.raises(CacheError, match="No space left"):
        cached_scans(scans, StoredScan(), tmp_path / "cache", num_workers=0)


def test_all_bad_scans_are_listed(tmp_path: Path) -> None:
    scans = [{"image": str(tmp_path / name)} for name in ("gone.npz", "lost.npz")]
    with pytest.raises(
        ScanError, match=r"gone\.npz: there is no such image file\. Check the path\.\n  \S*lost\.npz: there is no such"
    ):
        cached_scans(scans, StoredScan(), tmp_path / "cache", num_workers=0)


def test_a_cache_folder_below_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(
        CacheError, match=r"the cache folder \S*file/cache cannot be .* \(Not a directory\)\. Set cache_"
    ):
        cached_scans(stored_scans(tmp_path), StoredScan(), tmp_path / "file" / "cache", num_workers=0)
    assert (tmp_path / "file").read_text() == "no folder"


def test_a_folder_that_became_read_only_meanwhile_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scans = stored_scans(tmp_path)

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    class MountedReadOnly(StoredScan):
        def __call__(self, scan: Any) -> dict[str, np.ndarray]:
            monkeypatch.setattr(cache.tempfile, "mkdtemp", refuse)
            return super().__call__(scan)

    with pytest.raises(CacheError, match=r"cache cannot be written to \(Read-only file system\)\. Set cache_dir"):
        cached_scans(scans, MountedReadOnly(), tmp_path / "cache", num_workers=0)
    assert contents(tmp_path / "cache") == []


def test_two_processes_that_start_together_fill_a_cache_once(tmp_path: Path) -> None:
    scans = stored_scans(tmp_path, 5)

    def fill(folder: Path, start: Any, num_workers: int) -> None:
        start.wait(20)
        cached_scans(scans, StoredScan(), folder, num_workers)

    for attempt in range(4):
        folder = tmp_path / f"cache_{attempt}"
        start = fork.Barrier(2)
        both = [fork.Process(target=fill, args=(folder, start, attempt % 2)) for _ in range(2)]
        for process in both:
            process.start()
        for process in both:
            process.join(60)
        assert [process.exitcode for process in both] == [0, 0]
        assert not [name for name in contents(folder) if name.startswith(".tmp-")]
        check_entries(scans, folder)


def kill_this_process(path: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("name", FILES)
def test_a_process_killed_at_any_file_of_an_entry_leaves_none_and_the_next_run_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    scans = stored_scans(tmp_path, 2)
    with monkeypatch.context() as broken:
        breaking_at(name, kill_this_process, broken)
        process = fork.Process(target=cached_scans, args=(scans, StoredScan(), tmp_path / "cache", 0))
        process.start()
        process.join(20)
    assert process.exitcode == -signal.SIGKILL
    left = contents(tmp_path / "cache")
    assert left
    assert all(path.startswith(".tmp-") for path in left)
    check_entries(scans, tmp_path / "cache")


def test_what_killed_processes_left_is_removed_after_a_day_and_not_before(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    day = 24 * 3600
    for name, age in ((".tmp-old", day + 60), (".tmp-young", day - 60), ("entry", 9 * day)):
        (folder / name).mkdir(parents=True)
        (folder / name / "image.npy").write_bytes(b"half")
        os.utime(folder / name, (time.time() - age,) * 2)
    cached_scans(stored_scans(tmp_path), StoredScan(), folder, num_workers=0)
    assert [name for name in contents(folder) if name.endswith("image.npy") and len(name) < 30] == [
        ".tmp-young/image.npy",
        "entry/image.npy",
    ]


def test_two_that_clean_at_once_do_not_disturb_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache" / ".tmp-old").mkdir(parents=True)
    os.utime(tmp_path / "cache" / ".tmp-old", (0, 0))
    remove = cache.shutil.rmtree

    def remove_after_the_other(path: Path, *arguments: Any, **options: Any) -> None:
        remove(path, *arguments, **options)
        if Path(path).name == ".tmp-old":
            remove(path, *arguments, **options)

    monkeypatch.setattr(cache.shutil, "rmtree", remove_after_the_other)
    scans = stored_scans(tmp_path)
    cached_scans(scans, StoredScan(), tmp_path / "cache", num_workers=0)
    check_entries(scans, tmp_path / "cache")


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_entry_is_named(tmp_path: Path, name: str) -> None:
    scans = stored_scans(tmp_path)
    cached_scans(scans, StoredScan(), tmp_path / "cache", num_workers=0)
    (entry,) = (tmp_path / "cache").iterdir()
    with (entry / name).open("r+b") as file:
        file.truncate(20)
    with pytest.raises(CacheError, match=rf"the cache entry {entry} is damaged .* Remove that folder"):
        cached_scans(scans, StoredScan(), tmp_path / "cache", num_workers=0)
