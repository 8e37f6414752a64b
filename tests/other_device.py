"""A device on the CPU that is as strict as a GPU: what would crash there crashes here, in the same place.

Tensors that were moved to ``DEVICE`` lie in ordinary memory and compute as ever, but are marked as the device's. NumPy
cannot look at them, an operation cannot mix them with tensors of the CPU, and there is no float64, as with Apple's MPS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

# No other accelerator: PyTorch's own checks let this name through where there is none.
DEVICE = torch.device("mps:0")

CPU = torch.device("cpu")

_NUMPY = {torch.Tensor.numpy, torch.Tensor.__array__}
_FROM_DATA = {torch.tensor, torch.as_tensor, torch.asarray}
_BY_NO_OPERATION = {torch.Tensor.__deepcopy__, torch.Tensor.new_tensor}
_aten = torch.ops.aten
# Copies cross devices, and an index, as a number, may come from the CPU.
_MIXES = {_aten.copy_.default, _aten._to_copy.default, _aten.index.Tensor}


class _Marks:
    """The memory that belongs to the device; a mark lives as long as its memory."""

    def __init__(self) -> None:
        self._marked: dict[int, StorageWeakRef] = {}

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        self._marked[storage._cdata] = StorageWeakRef(storage)

    def __contains__(self, tensor: torch.Tensor) -> bool:
        reference = self._marked.get(tensor.untyped_storage()._cdata)
        return reference is not None and not reference.expired()


class _Operations(TorchDispatchMode):
    """Every operation: refuses mixed devices, and marks what comes out of the device's tensors."""

    def __init__(self, marks: _Marks) -> None:
        super().__init__()
        self.marks = marks

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        settings = dict(kwargs or {})
        given = [value for value in tree_flatten([args, settings])[0] if isinstance(value, torch.Tensor)]
        ours = [tensor in self.marks for tensor in given]
        moved = settings.get("device")
        wanted = any(ours) if moved is None else torch.device(moved).type == DEVICE.type
        if (any(ours) or not given) and torch._C._current_graph_task_id() != -1:
            wanted = True  # a backward pass takes memory where it believes that its tensors are
        if func not in _MIXES and any(ours):
            self._refuse_mixed(func, given, ours)
        if moved is not None:
            settings["device"] = CPU
        made = func(*args, **settings)
        if wanted and func is not _aten._local_scalar_dense.default:
            tree_map_only(torch.Tensor, lambda tensor: self._mark(func, tensor, given), made)
        return made

    def _refuse_mixed(self, func: Any, given: Sequence[torch.Tensor], ours: Sequence[bool]) -> None:
        if any(tensor.ndim and not own for tensor, own in zip(given, ours, strict=True)):
            raise RuntimeError(f"{func}: expected all tensors to be on the same device, found {DEVICE} and cpu")

    def _mark(self, func: Any, tensor: torch.Tensor, given: Sequence[torch.Tensor]) -> None:
        if tensor in self.marks or any(tensor is one for one in given):
            return
        if tensor.dtype in (torch.float64, torch.complex128):
            raise TypeError(f"{func}: {DEVICE} has no {tensor.dtype}")
        self.marks.add(tensor)


class _Functions(TorchFunctionMode):
    """What Python asks of a tensor before there is an operation: its device, and NumPy's view of it."""

    def __init__(self, marks: _Marks) -> None:
        super().__init__()
        self.marks = marks

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        first = args[0] if args else None
        if isinstance(first, torch.Tensor):
            if func == torch.Tensor.device.__get__ and first in self.marks:
                return DEVICE
            if func in _NUMPY and first in self.marks:
                raise TypeError(f"can't convert {DEVICE} tensor to numpy. Use Tensor.cpu() first")
            if func is torch.Tensor.cpu:
                return self._moved(first, CPU, None)
            if func is torch.Tensor.to:
                return self._moved(first, *self._wanted(*args[1:], **(kwargs or {})))
            if func in _BY_NO_OPERATION and first in self.marks:
                self.marks.add(made := func(*args, **(kwargs or {})))
                return made
        settings = dict(kwargs or {})
        if func in _FROM_DATA and settings.get("device") is not None:
            device = torch.device(settings.pop("device"))
            return self._moved(func(*args, **settings), device, None)
        return func(*args, **settings)

    def _wanted(self, *args: Any, **kwargs: Any) -> tuple[torch.device | None, torch.dtype | None, Any]:
        """Return device, type and memory format that ``Tensor.to`` is asked for."""
        kwargs.pop("copy", None)
        if isinstance(other := kwargs.pop("other", args[0] if args else None), torch.Tensor):
            return (DEVICE if other in self.marks else CPU), other.dtype, kwargs.get("memory_format")
        device, dtype, _, memory_format = torch._C._nn._parse_to(*args, **kwargs)
        return device, dtype, memory_format

    def _moved(
        self, tensor: torch.Tensor, device: torch.device | None, dtype: torch.dtype | None, memory_format: Any = None
    ) -> torch.Tensor:
        own = DEVICE if tensor in self.marks else CPU
        settings: dict[str, Any] = {} if memory_format is None else {"memory_format": memory_format}
        if device is None or device.type == own.type:  # to the CPU's memory in any case: only the type may change
            return torch.Tensor.to(tensor, dtype=dtype or tensor.dtype, **settings)
        return _aten._to_copy.default(tensor, device=device, dtype=dtype, **settings)


@contextmanager
def other_device() -> Iterator[Callable[[torch.Tensor], bool]]:
    """Within, ``DEVICE`` is there; gives what tells whether a tensor is on it."""
    marks = _Marks()
    with _Operations(marks), _Functions(marks):
        yield marks.__contains__
