"""Tests of ``bundle.inference.features``."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import bundle.inference.features
import pytest
import torch
from bundle.inference.features import kept_features
from torch import Tensor

FEATURES = torch.randn(7, 5, 3, 4)


def batches(size: int = 3) -> Iterator[Tensor]:
    return iter(FEATURES.split(size))


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle.inference.features, "FEATURES_IN_MEMORY", FEATURES.nbytes - 1)


@pytest.mark.parametrize("size", [1, 3, 7, 9])
def test_a_small_volumes_features_are_one_tensor_with_channels_last(size: int) -> None:
    kept = kept_features(batches(size), 7)
    assert isinstance(kept, Tensor)
    assert torch.equal(kept, FEATURES)
    assert kept.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.usefixtures("no_memory")
@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_large_volumes_features_come_back_from_a_file(size: int, layout: torch.memory_format) -> None:
    kept = kept_features((batch.to(memory_format=layout) for batch in batches(size)), 7)
    assert not isinstance(kept, Tensor)
    assert len(kept) == 7
    assert torch.equal(torch.stack(list(kept)), FEATURES)
    assert torch.equal(kept[4], FEATURES[4])  # in any order, and again
    assert torch.equal(kept[-1], FEATURES[6])


@pytest.mark.usefixtures("no_memory")
@pytest.mark.parametrize("place", [7, -8])
def test_there_are_no_more_slices_than_were_kept(place: int) -> None:
    with pytest.raises(IndexError):
        kept_features(batches(), 7)[place]


def test_the_limit_itself_is_still_held_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle.inference.features, "FEATURES_IN_MEMORY", FEATURES.nbytes)
    assert isinstance(kept_features(batches(), 7), Tensor)


@pytest.mark.usefixtures("no_memory")
def test_the_file_is_gone_with_its_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    kept = kept_features(batches(), 7)
    assert torch.equal(kept[0], FEATURES[0])
    del kept
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_memory")
def test_a_full_disk_is_said_with_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> object:
        return Path("/dev/full").open("wb")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(ValueError, match=rf"{tempfile.gettempdir()} cannot hold it \(No space left.*set TMPDIR"):
        kept_features(batches(), 7)
