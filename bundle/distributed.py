"""What the processes of one run do together, started by torchrun; a process alone has everything and waits for nobody.

Scans are dealt out like cards: of ``P`` processes, that of rank ``r`` has the scans ``r``, ``r + P``, ``r + 2P``, ...
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
    """Meet the other processes that torchrun started; NCCL carries what GPUs exchange, gloo what CPUs do.

    Args:
        device: Where this process computes.
        timeout: Minutes to wait for the others before giving up; the slowest share of superpixels must fit in.

    Raises:
        ValueError: If torchrun did not start this process, or ``timeout`` is not above 0.
    """
    if "RANK" not in os.environ:
        raise ValueError(
            "this config is for several processes, which torchrun starts: torchrun --standalone --nproc_per_node=2 -m "
            "monai.bundle run ... Leave the multi_gpu config out for one process."
        )
    if not timeout > 0:
        raise ValueError(f"process_timeout must be above 0 minutes, got {timeout}.")
    backend = "nccl" if torch.device(device).type == "cuda" else "gloo"
    idist.initialize(backend, timeout=timedelta(minutes=timeout))
    if not is_first():
        logging.disable(logging.INFO)  # the first one tells how it goes


def own_device() -> torch.device:
    """Return where this process computes: the GPU of its local rank, or the CPU where there is no GPU."""
    index = int(os.environ.get("LOCAL_RANK", 0))
    return torch.device("cuda", index) if torch.cuda.is_available() else torch.device("cpu")


def device_ids(device: torch.device | str) -> list[torch.device] | None:
    """Return what ``DistributedDataParallel`` wants: the one GPU of this process, ``None`` on a CPU."""
    device = torch.device(device)
    return [device] if device.type == "cuda" else None


def processes() -> int:
    """Return how many processes torchrun starts; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))


def available_cores() -> int:
    """Return how many cores this process may use: on a cluster's node, those that its job was given."""
    counted = getattr(os, "process_cpu_count", None)  # since Python 3.13
    if counted is not None:
        return int(counted() or 1)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def alone() -> bool:
    """Tell whether there is no other process."""
    return idist.get_world_size() == 1


def is_first() -> bool:
    """Tell whether this process writes what a run has one of: checkpoints, log, tables."""
    return idist.get_rank() == 0


def own_share(items: Sized) -> range:
    """Return the indices of this process's items, all of them if it is alone; none if there are too few."""
    return range(idist.get_rank(), len(items), idist.get_world_size())


def own_batch(batch_size: int) -> int:
    """Return how many of a step's episodes this process learns from.

    Raises:
        ValueError: If the processes cannot have equally many.
    """
    processes = idist.get_world_size()
    if batch_size % processes:
        raise ValueError(
            f"batch_size {batch_size} is of all processes together and must be a multiple of their number, "
            f"{processes}. Set batch_size to {-(-batch_size // processes) * processes}, or start as many processes as "
            "divide it."
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
    """Put what was dealt out by ``own_share`` in order again."""
    rounds = chain.from_iterable(zip_longest(*lists, fillvalue=_NOTHING))
    return [item for item in rounds if item is not _NOTHING]


def gathered(items: Sequence[T]) -> list[T]:
    """Return what each scan gave, one item a scan, of all processes and in the data set's order."""
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
    """Let batch norm that is trained on GPUs see the episodes of all processes, in place.

    The parameters stay the same ones. PyTorch has this for GPUs alone: on CPUs each process normalizes by its own
    episodes. Frozen batch norm stays as it is.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    trained = any(p.requires_grad and p.is_cuda for norm in norms for p in norm.parameters())
    return nn.SyncBatchNorm.convert_sync_batchnorm(network) if trained else network
