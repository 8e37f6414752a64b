"""The cache computes each entry once, and an entry is whole or absent."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle.data import cache
from bundle.data.cache import CachedScan, CacheError, cached_scans
from bundle.data.loading import ScanError
from tests.data.scans import StoredScan, write_arrays

fork = multiprocessing.get_context("fork")


def stored_scan(path: Path, seed: int = 0) -> dict[str, str]:
    random = np.random.default_rng(seed)
    return write_arrays(path, random.normal(5, 3, (6, 9, 4)), random.integers(0, 7, (6, 9, 4)))


def fill(scan: dict[str, str], folder: Path, transform: Callable[[Any], Any] | None = None) -> CachedScan:
    return cached_scans([scan], transform or StoredScan(), folder, num_workers=0)[0]


def calls(log: Path) -> int:
    return len(log.read_text(encoding="utf-8").splitlines())


def entries(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if not path.name.startswith(".tmp-")]


def test_an_entry_holds_the_slices_first_and_the_statistics_of_its_voxels(tmp_path: Path) -> None:
    scan = stored_scan(tmp_path / "scan_1.npz")
    entry = fill(scan, tmp_path / "cache")
    arrays = np.load(scan["image"])
    slices = np.stack([arrays["image"][..., z] for z in range(4)]).astype(np.float32)
    np.testing.assert_array_equal(entry.image, slices)
    np.testing.assert_array_equal(entry.superpixels, np.stack([arrays["superpixels"][..., z] for z in range(4)]))
    assert entry.name == "scan_1.npz"
    assert (entry.image.dtype, entry.superpixels.dtype) == (np.float32, np.int16)
    np.testing.assert_allclose([entry.mean, entry.variance], [slices.mean(), slices.var()], rtol=1e-5)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_entry_is_computed_once(tmp_path: Path, num_workers: int) -> None:
    scans = [stored_scan(tmp_path / f"{n}.npz", seed=n) for n in range(3)]
    transform = StoredScan(log=tmp_path / "log")
    first = cached_scans(scans, transform, tmp_path / "cache", num_workers)
    second = cached_scans(scans, transform, tmp_path / "cache", num_workers)
    assert calls(tmp_path / "log") == 3
    assert [entry.name for entry in first] == [entry.name for entry in second] == ["0.npz", "1.npz", "2.npz"]


def test_a_changed_parameter_is_a_new_entry(tmp_path: Path) -> None:
    scan = stored_scan(tmp_path / "scan.npz")
    once, twice = (fill(scan, tmp_path / "cache", StoredScan(factor)) for factor in (1.0, 2.0))
    np.testing.assert_allclose(twice.image, 2 * once.image, rtol=1e-6)
    assert len(entries(tmp_path / "cache")) == 2


def test_a_changed_file_is_a_new_entry(tmp_path: Path) -> None:
    old = fill(stored_scan(tmp_path / "scan.npz", seed=1), tmp_path / "cache")
    new = fill(stored_scan(tmp_path / "scan.npz", seed=2), tmp_path / "cache")
    assert not np.array_equal(old.image, new.image)


def test_another_version_of_a_library_is_a_new_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan, transform = stored_scan(tmp_path / "scan.npz"), StoredScan(log=tmp_path / "log")
    known = cache.library_versions()
    for name in (None, "torch", "monai", "scipy", "scikit-image", "numpy", "nibabel", None):
        changed = known if name is None else known | {name: "0.0"}
        monkeypatch.setattr(cache, "library_versions", lambda changed=changed: changed)
        fill(scan, tmp_path / "cache", transform)
    assert calls(tmp_path / "log") == 7  # once each, and the first once


def test_a_transform_that_holds_a_random_generator_hits(tmp_path: Path) -> None:
    scan = stored_scan(tmp_path / "scan.npz")
    for seed in (3, 3, 4):
        transform = StoredScan(log=tmp_path / "log")
        transform.random = np.random.default_rng(seed)
        fill(scan, tmp_path / "cache", transform)
    assert calls(tmp_path / "log") == 2


def test_the_same_content_under_another_name_is_the_same_entry(tmp_path: Path) -> None:
    transform = StoredScan(log=tmp_path / "log")
    for name in ("a.npz", "b.npz"):
        fill(stored_scan(tmp_path / name), tmp_path / "cache", transform)
    assert calls(tmp_path / "log") == 1


def test_the_label_is_never_read(tmp_path: Path) -> None:
    scan = stored_scan(tmp_path / "scan.npz") | {"label": str(tmp_path / "there_is_none.npz")}
    assert fill(scan, tmp_path / "cache").name == "scan.npz"


def test_the_remains_of_a_killed_run_are_no_entry(tmp_path: Path) -> None:
    scan = stored_scan(tmp_path / "scan.npz")
    (tmp_path / "cache" / ".tmp-abc").mkdir(parents=True)
    (tmp_path / "cache" / ".tmp-abc" / "image.npy").write_bytes(b"half")
    assert fill(scan, tmp_path / "cache").image.shape == (4, 6, 9)


def _killed_at_the_second_array(scan: dict[str, str], folder: Path) -> None:
    write = Path.write_bytes

    def kill(path: Path, content: bytes) -> int:
        if path.name == "superpixels.npy":
            write(path, b"half of it")
            os.kill(os.getpid(), signal.SIGKILL)
        return write(path, content)

    Path.write_bytes = kill
    fill(scan, folder)


def test_a_process_killed_while_writing_leaves_no_entry_and_the_next_one_makes_it(tmp_path: Path) -> None:
    scan = stored_scan(tmp_path / "scan.npz")
    process = fork.Process(target=_killed_at_the_second_array, args=(scan, tmp_path / "cache"))
    process.start()
    process.join(20)
    assert process.exitcode == -signal.SIGKILL
    assert len(list((tmp_path / "cache").glob(".tmp-*/superpixels.npy"))) == 1
    assert entries(tmp_path / "cache") == []
    np.testing.assert_array_equal(
        fill(scan, tmp_path / "cache").superpixels, np.moveaxis(np.load(scan["image"])["superpixels"], -1, 0)
    )


class Together(StoredScan):
    """Wait until two processes have computed the same entry."""

    barrier = fork.Barrier(2)

    def __call__(self, scan: Mapping[str, Any]) -> dict[str, np.ndarray]:
        result = super().__call__(scan)
        self.barrier.wait(20)
        return result


def test_two_processes_may_fill_the_same_cache_at_the_same_time(tmp_path: Path) -> None:
    scan = stored_scan(tmp_path / "scan.npz")
    both = [fork.Process(target=fill, args=(scan, tmp_path / "cache", Together())) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(20)
    assert [process.exitcode for process in both] == [0, 0]
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert fill(scan, tmp_path / "cache", Together()).image.shape == (4, 6, 9)


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    scan = stored_scan(tmp_path / "scan.npz")
    with pytest.raises(CacheError, match="No space left"):
        fill(scan, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file in the folder's place")
    with pytest.raises(ValueError, match=r"the cache folder \S*cache cannot be written to .*Set cache_dir"):
        fill(stored_scan(tmp_path / "scan.npz"), tmp_path / "cache")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_bad_scan_is_said_in_one_line_whichever_process_read_it(tmp_path: Path, num_workers: int) -> None:
    (tmp_path / "bad.npz").write_text("no arrays in here")
    with pytest.raises(ScanError) as caught:
        cached_scans([{"image": str(tmp_path / "bad.npz")}], StoredScan(), tmp_path / "cache", num_workers)
    assert str(caught.value).startswith(str(tmp_path / "bad.npz"))
    assert "Traceback" not in str(caught.value)


def test_a_bad_scan_leaves_the_finished_entries(tmp_path: Path) -> None:
    good, missing = stored_scan(tmp_path / "good.npz"), {"image": str(tmp_path / "gone.npz")}
    transform = StoredScan(log=tmp_path / "log")
    with pytest.raises(ScanError, match=r"gone\.npz: there is no such image file"):
        cached_scans([good, missing], transform, tmp_path / "cache", num_workers=0)
    fill(good, tmp_path / "cache", transform)
    assert calls(tmp_path / "log") == 1
