"""What processes share out and put together again, seen from one of them; ``test_distributed.py`` starts real ones."""

from __future__ import annotations

import itertools
import json
import logging
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundle import distributed
from bundle.data import EpisodeDataset, EpisodeSampler, usable_scans
from bundle.data.cache import cached_scans
from tests.data.scans import StoredScan, write_arrays
from tests.processes import become
from torch import nn


@pytest.mark.parametrize(("rank", "share"), [(0, [0, 3, 6]), (1, [1, 4]), (2, [2, 5])])
def test_items_are_dealt_out_and_put_in_order_again(
    monkeypatch: pytest.MonkeyPatch, rank: int, share: list[int]
) -> None:
    shares = {0: [0, 3, 6], 1: [1, 4], 2: [2, 5]}
    become(monkeypatch, rank, 3, shares)
    assert list(distributed.own_share("7 items")) == share
    assert distributed.lists_of_all(share) == [[0, 3, 6], [1, 4], [2, 5]]
    assert distributed.gathered(share) == [0, 1, 2, 3, 4, 5, 6]


def test_a_process_too_many_has_no_share(monkeypatch: pytest.MonkeyPatch) -> None:
    become(monkeypatch, 2, 3, {0: ["a"], 1: ["b"]})
    assert list(distributed.own_share("ab")) == []
    assert distributed.gathered([]) == ["a", "b"]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system has no affinity")
def test_cores_are_those_that_the_process_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "process_cpu_count", lambda: 3, raising=False)
    assert distributed.available_cores() == 3
    monkeypatch.delattr(os, "process_cpu_count")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {4, 5})
    assert distributed.available_cores() == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    assert distributed.available_cores() == 64


def test_a_process_alone_has_everything() -> None:
    assert distributed.alone()
    assert distributed.is_first()
    assert list(distributed.own_share("abc")) == [0, 1, 2]
    assert distributed.gathered(["a", None, "c"]) == ["a", None, "c"]
    assert distributed.from_first("a") == "a"
    loss = torch.tensor(2.5, requires_grad=True)
    assert distributed.mean_of_all(loss) is loss
    distributed.share_buffers(nn.BatchNorm2d(2))


def test_the_first_processs_value_is_everybodys(monkeypatch: pytest.MonkeyPatch) -> None:
    become(monkeypatch, 1, 2)
    monkeypatch.setattr(
        distributed.dist, "broadcast_object_list", lambda values, src: values.__setitem__(src, "the first's")
    )
    assert distributed.from_first("mine") == "the first's"


def test_the_mean_is_over_the_processes_and_has_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    become(monkeypatch, 0, 2)
    monkeypatch.setattr(distributed.idist, "all_reduce", lambda value: value.add_(5.0))
    own = torch.tensor(2.0, requires_grad=True)
    mean = distributed.mean_of_all(own)
    assert (float(mean), mean.requires_grad, float(own)) == (3.5, False, 2.0)


def test_buffers_are_those_of_the_first_process(monkeypatch: pytest.MonkeyPatch) -> None:
    become(monkeypatch, 1, 2)
    sources: list[int] = []
    monkeypatch.setattr(distributed.dist, "broadcast", lambda buffer, src: (buffer.fill_(7), sources.append(src)))
    norm = nn.BatchNorm2d(2)
    distributed.share_buffers(norm)
    assert (norm.running_mean.tolist(), norm.running_var.tolist(), int(norm.num_batches_tracked)) == ([7, 7], [7, 7], 7)
    assert norm.weight.tolist() == [1, 1]
    assert sources == [0, 0, 0]


def test_a_batch_is_shared_equally(monkeypatch: pytest.MonkeyPatch) -> None:
    assert distributed.own_batch(5) == 5
    become(monkeypatch, 1, 4)
    assert distributed.own_batch(8) == 2
    with pytest.raises(
        ValueError, match=r"of all processes together and must be a multiple of their number, 4, got 5\. .* to 8"
    ):
        distributed.own_batch(5)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_a_step_has_the_same_episodes_however_many_processes_there_are(
    monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    batch, sampler, steps = 4, EpisodeSampler(start=8), []
    for rank in range(processes):
        become(monkeypatch, rank, processes)
        share = batch // processes
        episodes = list(itertools.islice(sampler, 3 * share))
        steps.append([episodes[step * share : (step + 1) * share] for step in range(3)])
    together = [sorted(itertools.chain.from_iterable(shares)) for shares in zip(*steps, strict=True)]
    assert together == [[8, 9, 10, 11], [12, 13, 14, 15], [16, 17, 18, 19]]


def stored(folder: Path, number: int) -> dict[str, str]:
    random = np.random.default_rng(number)
    return write_arrays(folder / f"{number}.npz", random.normal(5, 3, (8, 8, 2)), random.integers(0, 3, (8, 8, 2)))


def test_each_process_makes_its_share_of_the_superpixels_before_all_look_at_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scans = [stored(tmp_path, number) for number in range(5)]
    alone = cached_scans(scans, StoredScan(), tmp_path / "alone", num_workers=0)
    log, made = tmp_path / "log", []
    become(monkeypatch, 1, 2)
    monkeypatch.setattr(distributed.idist, "barrier", lambda: made.extend(log.read_text().splitlines()))
    together = cached_scans(scans, StoredScan(log=log), tmp_path / "together", num_workers=0)
    assert made == [scans[1]["image"], scans[3]["image"]]
    assert [scan.name for scan in together] == ["0.npz", "1.npz", "2.npz", "3.npz", "4.npz"]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_array_equal(one.image, other.image)


def test_the_first_process_alone_writes_the_statistics(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    paths = [tmp_path / "0.json", tmp_path / "1.json"]
    for rank, path in enumerate(paths):
        become(monkeypatch, rank, 2)
        keys: dict[str, Any] = {"statistics": "training_set", "statistics_file": path, "min_area": 1, "num_workers": 0}
        EpisodeDataset([stored(tmp_path, 0)], StoredScan(), tmp_path / "cache", **keys)
    assert set(json.loads(paths[0].read_text())) == {"mean", "std"}
    assert not paths[1].exists()


def test_each_process_checks_its_share_of_the_scans_and_knows_all_problems(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scans = [stored(tmp_path, number) for number in range(4)]
    missing = {"image": str(tmp_path / "gone.npz")}
    scans[2] = missing
    log = tmp_path / "log"
    become(monkeypatch, 1, 2, {0: ["", "gone.npz: there is no such image file."]})
    usable, problems = usable_scans(scans, StoredScan(log=log), num_workers=0)
    assert log.read_text().splitlines() == [scans[1]["image"], scans[3]["image"]]
    assert usable == [scans[0], scans[1], scans[3]]
    assert problems == ["gone.npz: there is no such image file."]
    assert not caplog.records  # the first process says it


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, timedelta]]]:
    """What torchrun sets, and how the processes were joined."""
    calls: list[tuple[str, timedelta]] = []
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(distributed.idist, "initialize", lambda backend, timeout: calls.append((backend, timeout)))
    yield calls
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize(("device", "backend"), [("cpu", "gloo"), (torch.device("cuda", 1), "nccl")])
def test_processes_join_by_what_their_device_speaks(joined: list[Any], device: Any, backend: str) -> None:
    distributed.join(device, timeout=1.5)
    assert joined == [(backend, timedelta(seconds=90))]
    assert logging.root.manager.disable == logging.NOTSET


def test_processes_but_the_first_tell_no_more_than_warnings(joined: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    become(monkeypatch, 1, 2)
    distributed.join("cpu")
    assert logging.root.manager.disable == logging.INFO


def test_a_process_that_torchrun_did_not_start_is_told_so(joined: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK")
    with pytest.raises(ValueError, match="which torchrun starts: torchrun --standalone"):
        distributed.join("cpu")
    assert joined == []


def test_a_timeout_of_nothing_is_refused(joined: list[Any]) -> None:
    with pytest.raises(ValueError, match="process_timeout must be above 0 minutes, got 0"):
        distributed.join("cpu", timeout=0)
    assert joined == []


class OnGpu(nn.Parameter):
    """A parameter that says it is on a GPU."""

    is_cuda = True  # type: ignore[assignment]


def norm(on_gpu: bool, trained: bool) -> nn.Sequential:
    made = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))
    if on_gpu:
        made[1].weight, made[1].bias = OnGpu(torch.ones(2)), OnGpu(torch.zeros(2))
    for parameter in made[1].parameters():
        parameter.requires_grad_(trained)
    return made


def test_trained_batch_norm_on_gpus_sees_the_episodes_of_all() -> None:
    network = norm(on_gpu=True, trained=True)
    weight, names = network[1].weight, list(network.state_dict())
    synchronized = distributed.synchronized(network)
    assert synchronized is network
    assert isinstance(synchronized[1], nn.SyncBatchNorm)
    assert synchronized[1].weight is weight  # the optimizer may have it already
    assert list(synchronized.state_dict()) == names


@pytest.mark.parametrize(("on_gpu", "trained"), [(True, False), (False, True)])
def test_frozen_batch_norm_and_that_of_a_processor_stay_as_they_are(on_gpu: bool, trained: bool) -> None:
    network = norm(on_gpu, trained)
    assert distributed.synchronized(network) is network
    assert type(network[1]) is nn.BatchNorm2d


def test_a_process_computes_on_the_gpu_of_its_local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert distributed.own_device() == torch.device("cuda", 3)
    monkeypatch.delenv("LOCAL_RANK")
    assert distributed.own_device() == torch.device("cuda", 0)


def test_without_a_gpu_a_process_computes_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert distributed.own_device() == torch.device("cpu")


def test_a_wrapped_network_is_told_its_gpu_and_on_a_cpu_nothing() -> None:
    assert distributed.device_ids("cuda:1") == [torch.device("cuda", 1)]
    assert distributed.device_ids(torch.device("cpu")) is None


def test_the_number_of_processes_is_torchruns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert distributed.processes() == 4
    monkeypatch.delenv("WORLD_SIZE")
    assert distributed.processes() == 1
