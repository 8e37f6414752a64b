"""What several processes of one run share; torchrun starts them. A single process does all the work and never waits.

With ``P`` processes, scans are assigned in turn: rank ``r`` gets the scans ``r``, ``r + P``, ``r + 2P``, ...
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence, Sized
from datetime import timedelta
from itertools import chain, zip_longest
from typing import Any, TypeVar

import ignite.distributed as idist
import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")

_NOTHING: Any = object()


def join(device: torch.device | str, timeout: float = 120) -> None:
    """Connect to the other processes that torchrun started, with NCCL on GPUs and gloo on CPUs.

    Args:
        device: Where this process computes.
        timeout: Minutes to wait for the others; it must be longer than the slowest process's share of superpixels.

    Raises:
        ValueError: If torchrun did not start this process, or ``timeout`` is not above 0.
    """
    if "RANK" not in os.environ:
        raise ValueError(
            "this config is for several processes, which torchrun starts: torchrun --standalone --nproc_per_node=2 -m "
            "monai.bundle run ... For one process, leave out the multi_gpu config."
        )
    if not timeout > 0:
        raise ValueError(f"process_timeout must be above 0 minutes, got {timeout}. Set it to 120, for example.")
    backend = "nccl" if torch.device(device).type == "cuda" else "gloo"
    idist.initialize(backend, timeout=timedelta(minutes=timeout))
    if not is_first():
        logging.disable(logging.INFO)  # the first process reports progress


def own_device() -> torch.device:
    """Return where this process computes: the GPU of its local rank, or the CPU where there is no GPU."""
    index = int(os.environ.get("LOCAL_RANK", 0))
    return torch.device("cuda", index) if torch.cuda.is_available() else torch.device("cpu")


def device_ids(device: torch.device | str) -> list[torch.device] | None:
    """Return the ``device_ids`` of ``DistributedDataParallel``: this process's GPU, or ``None`` on a CPU."""
    device = torch.device(device)
    return [device] if device.type == "cuda" else None


def processes() -> int:
    """Return how many processes torchrun starts; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))


def available_cores() -> int:
    """Return how many cores this process may use; on a cluster node, the cores of its job."""
    counted = getattr(os, "process_cpu_count", None)  # since Python 3.13
    if counted is not None:
        return int(counted() or 1)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def alone() -> bool:
    """Return whether there is no other process."""
    return idist.get_world_size() == 1


def is_first() -> bool:
    """Return whether this process writes the run's shared files: checkpoints, log, tables."""
    return idist.get_rank() == 0


def own_share(items: Sized) -> range:
    """Return the indices of this process's items; a single process has all, and with too few items some have none."""
    return range(idist.get_rank(), len(items), idist.get_world_size())


def own_batch(batch_size: int) -> int:
    """Return this process's number of episodes in a step.

    Raises:
        ValueError: If the episodes cannot be divided equally.
    """
    processes = idist.get_world_size()
    if batch_size % processes:
        raise ValueError(
            f"batch_size counts the episodes of all processes together and must be a multiple of their number, "
            f"{processes}, got {batch_size}. Set batch_size to {-(-batch_size // processes) * processes}, or start a "
            "number of processes that divides it."
        )
    return batch_size // processes


def lists_of_all(items: Sequence[T]) -> list[list[T]]:
    """Return each process's list, by rank; every process must call it."""
    if idist.get_world_size() == 1:
        return [list(items)]
    lists: list[list[T]] = [[] for _ in range(idist.get_world_size())]
    dist.all_gather_object(lists, list(items))
    return lists


def interleaved(lists: Sequence[Sequence[T]]) -> list[T]:
    """Merge the lists of all processes in the order from before ``own_share``."""
    rounds = chain.from_iterable(zip_longest(*lists, fillvalue=_NOTHING))
    return [item for item in rounds if item is not _NOTHING]


def gathered(items: Sequence[T]) -> list[T]:
    """Return the results of all processes, one item a scan, in the order of the data set."""
    return interleaved(lists_of_all(items))


def from_first(value: T) -> T:
    """Return the first process's value; every process must call it."""
    if idist.get_world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def mean_of_all(value: Tensor) -> Tensor:
    """Return the mean of a number over the processes, without gradient."""
    if idist.get_world_size() == 1:
        return value
    total = idist.all_reduce(value.detach().clone())
    assert isinstance(total, Tensor)
    return total / idist.get_world_size()


def share_buffers(network: nn.Module) -> None:
    """Give every process the first one's buffers, in place: the running statistics of batch norm."""
    if idist.get_world_size() > 1:
        for buffer in network.buffers():
            dist.broadcast(buffer, src=0)


def synchronized(network: nn.Module) -> nn.Module:
    """Synchronize batch norm that is trained on GPUs over the episodes of all processes, in place.

    The parameters stay the same objects. PyTorch offers this for GPUs only: on CPUs each process normalizes by its own
    episodes. Frozen batch norm is left unchanged.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    trained = any(p.requires_grad and p.is_cuda for norm in norms for p in norm.parameters())
    return nn.SyncBatchNorm.convert_sync_batchnorm(network) if trained else network
