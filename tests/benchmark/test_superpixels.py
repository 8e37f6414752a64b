"""The cache is filled again in each round, and scikit-image segments the same slices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle.benchmark import superpixels
from bundle.benchmark.superpixels import measure
from bundle.data.phantoms import write_phantoms


@pytest.fixture
def filled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Note every filling of a cache and every slice that is cut alone; the seconds are made up."""
    noted: list[Any] = []
    fill = superpixels.cached_scans

    def note_fill(images: Any, transform: Any, cache: Any, workers: int) -> Any:
        assert not list(Path(cache).iterdir())
        noted.append((len(images), workers))
        return fill(images, transform, cache, workers)

    def note_cut(image: np.ndarray, scale: float, sigma: float, min_size: int) -> None:
        noted.append((image.shape, str(image.dtype), scale, sigma, min_size))

    def fake(works: Mapping[str, Callable[[], object]], repeats: int, title: str) -> dict[str, float]:
        for work in works.values():
            work()
        return {"one": 4.0, "two": 2.5, "alone": 2.0}

    monkeypatch.setattr(superpixels, "cached_scans", note_fill)
    monkeypatch.setattr(superpixels, "felzenszwalb", note_cut)
    monkeypatch.setattr(superpixels, "side_by_side", fake)
    return noted


def test_one_and_two_processes_fill_an_empty_cache_and_the_same_slices_are_cut_alone(filled: list[Any]) -> None:
    result = measure(scans=2, slices=3, size=64)
    assert filled == [(2, 0), (2, 0), (2, 2), *[((64, 64), "float64", 1.0, 1.0, 25)] * 6]
    assert (result.benchmark, dict(result.case)) == ("superpixels", {"slices": 6})
    assert result.values == {
        "1 process, slices/s": 1.5,
        "2 processes, slices/s": 2.4,
        "scikit-image alone, slices/s": 3,
        "1 process / scikit-image alone, time": 2,
        "2 processes / 1 process, speed": 1.6,
    }


def test_scans_of_ones_own_may_be_cut(filled: list[Any], tmp_path: Path) -> None:
    write_phantoms(tmp_path / "study", unlabeled=2, labeled=1, size=(32, 32, 4))
    assert measure(str(tmp_path / "study"), scans=2, size=32).case == {"slices": 8}
    assert filled[0] == (2, 0)


def test_a_number_below_1_is_refused() -> None:
    with pytest.raises(ValueError, match="scans must be a whole number of at least 1, got 0"):
        measure(scans=0)
