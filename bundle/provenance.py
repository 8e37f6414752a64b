"""Provenance: describe and record what a result was made with, and compare it with the present settings.

    settings, code, files, weights, versions  ->  a record of plain values (JSON)  ->  the names of what changed

Resumed masks, cached superpixels, files of prototypes, cross-validations, checkpoints, prepared data sets and phantom
studies all use these functions.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import platform
import random
import re
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bundle.distributed import available_cores
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

# Packages whose versions can change a result.
LIBRARIES = ("monai", "torch", "scikit-image", "scipy", "numpy", "nibabel")

# Hexadecimal digits of the hashes in records.
SHORT = 16

# Changes that a message lists; the others are only counted.
MOST_CHANGES = 6

# A seed from here on was drawn by NumPy itself (128 bits).
DRAWN_SEED = 1 << 64

PLAIN = (bool, int, float, str, type(None))
CODE = (types.FunctionType, types.BuiltinFunctionType, type)
CONSTANTS = (*PLAIN, *CODE, Path, list, tuple, dict, set, frozenset, np.ndarray, Tensor, functools.partial)
INSTALLED = {"site-packages", "dist-packages"}
GENERATORS = (np.random.Generator, np.random.RandomState, random.Random, torch.Generator)
# Attributes that every module has and that are not settings.
INTERNAL = frozenset(vars(nn.Module())) | {"training"}


def describe(thing: Any, code: bool = True, weights: bool = True) -> Any:
    """Describe a setting by plain values, so that equal descriptions mean equal results.

    An object is described by its kind, its code and its attributes, a random generator by its seed, not its state, and
    a path by its text: ``file_records`` describes the content.

    Args:
        thing: A number, a text, a container, a function, a transform, a network, an optimizer, a schedule, ... If it
            has ``made_with()``, the result of that is described.
        code: Whether code counts: what a function or class does, and the defaults, constants and functions that it
            refers to; code of installed libraries counts by its version. If false, only kinds and public attributes
            count, which stay the same from one version to the next.
        weights: Whether a network's parameters and buffers count; they never do without ``code``.

    Returns:
        Values that JSON can hold.
    """
    return _Description(code, weights and code).of(thing)


def digest(described: Any, length: int = SHORT) -> str:
    """Return the hash of a description, ``length`` hexadecimal digits."""
    return _hash(json.dumps(described, sort_keys=True))[:length]


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Compare two records and name what changed.

    Args:
        before: The record of the existing result.
        now: The record of the present settings.

    Returns:
        A text such as ``"fold was 0, is 1; optimizer::lr was ..."``, or ``""`` if nothing changed.
    """
    old, new = ({name: json.dumps(value) for name, value in _flat(record)} for record in (before, now))
    texts = [
        f"{name} was {old.get(name, 'not set')}, is {new.get(name, 'not set')}".replace('"', "'")
        for name in {**new, **old}
        if old.get(name) != new.get(name)
    ]
    more = f" and {len(texts) - MOST_CHANGES} more" if len(texts) > MOST_CHANGES else ""
    return "; ".join(texts[:MOST_CHANGES]) + more


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the innermost values with their names; a list of plain values is one value."""
    inner = value
    if isinstance(value, list | tuple) and not all(isinstance(one, PLAIN) for one in value):
        inner = dict(enumerate(value))
    if isinstance(inner, Mapping) and (inner or not name):
        for key, one in inner.items():
            yield from _flat(one, f"{name}::{key}" if name else str(key))
    else:
        yield name, value


def content_hash(path: str | Path) -> str:
    """Return the SHA-256 of a file's content, of a folder's files and their names, or ``"missing"``.

    A process reads a file again only if its path, size, time or inode changed.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return _hash(repr([(str(file.relative_to(path)), content_hash(file)) for file in files]))
    try:
        state = path.stat()
    except OSError:  # whoever reads the file gives the proper error
        return "missing"
    return _content_hash(str(path.absolute()), state.st_size, state.st_mtime_ns, state.st_ino)


@functools.lru_cache(maxsize=4096)
def _content_hash(path: str, size: int, changed: int, inode: int) -> str:
    content = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            content.update(block)
    return content.hexdigest()


def file_record(path: str | Path) -> str:
    """Return a file's name and the hash of its content; its folder does not count."""
    return f"{Path(path).name} {content_hash(path)[:SHORT]}"


def origin(weights: str | Path | None) -> str:
    """Return where weights come from: a file's or folder's name and content, the name of a download, or chance."""
    if weights is None:
        return "random"
    return file_record(weights) if Path(weights).exists() else str(weights)


def file_records(paths: str | Path | Iterable[str | Path] | None) -> list[str]:
    """Return the records of one file, of several, or of none."""
    return [file_record(path) for path in ([paths] if isinstance(paths, str | Path) else paths or [])]


def fingerprint(module: nn.Module) -> str:
    """Return a hash of a module's weights: equal weights have equal ones, on every machine."""
    state = module.state_dict()  # num_batches_tracked changes nothing
    return tensors_hash({name: state[name] for name in state if not name.endswith("num_batches_tracked")})


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of named tensors: names, types, shapes and values, in their order."""
    content = hashlib.sha256()
    for name, tensor in tensors.items():
        content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        content.update(_bytes(tensor))
    return content.hexdigest()


def library_versions() -> dict[str, str]:
    """Return the versions of the packages that compute, and Python's."""
    return {name: version(name) for name in LIBRARIES} | {"python": "{}.{}".format(*sys.version_info)}


def versions() -> dict[str, str]:
    """Return a readable list of what results are made with: packages, Python and the machine."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    packages = {"bundle": _version_of("bundle"), **library_versions(), "python": platform.python_version()}
    machine = f"{platform.system()} {platform.machine()}, {available_cores()} cores, {gpu}"
    return {f"version: {name}": number for name, number in packages.items()} | {"machine": machine}


class _Description:
    """Describes values.

    Args:
        code: Whether code and private attributes count.
        weights: Whether a module's tensors count.
        found: If given, functions and classes are only named here and added to this list, to be described later.
    """

    def __init__(self, code: bool, weights: bool, found: list[Any] | None = None) -> None:
        self.code, self.weights, self.found = code, weights, found
        self._above: list[int] = []

    def of(self, thing: Any) -> Any:
        """Describe anything; a reference to itself ends the recursion."""
        if id(thing) in self._above:
            return "itself"
        self._above.append(id(thing))
        try:
            return self._value(thing)
        finally:
            self._above.pop()

    def _value(self, thing: Any) -> Any:
        if isinstance(thing, PLAIN):
            return thing
        if isinstance(thing, Path | types.ModuleType | logging.Logger):
            return str(thing) if isinstance(thing, Path) else thing.__class__.__name__
        if isinstance(thing, Mapping):
            return {str(self.of(key)): self.of(thing[key]) for key in sorted(thing, key=str)}
        if isinstance(thing, list | tuple):
            return [self.of(one) for one in thing]
        if isinstance(thing, set | frozenset):
            return sorted((self.of(one) for one in thing), key=repr)
        if isinstance(thing, np.ndarray | Tensor):
            content = _bytes(thing) if isinstance(thing, Tensor) else np.ascontiguousarray(thing).tobytes()
            return f"{thing.dtype} {tuple(thing.shape)} {_short_hash(content)}"
        return self._callable(thing)

    def _callable(self, thing: Any) -> Any:
        if isinstance(thing, CODE):
            return {"kind": self._kind(thing)}
        if isinstance(thing, functools.partial):
            arguments: dict[Any, Any] = {**dict(enumerate(thing.args)), **thing.keywords}
            return {"kind": "partial", "function": self.of(thing.func), "arguments": self.of(arguments)}
        if isinstance(thing, types.MethodType):
            return {"kind": "method", "function": self.of(thing.__func__), "of": self.of(thing.__self__)}
        if isinstance(thing, GENERATORS):
            return {"kind": type(thing).__name__, "seed": _seed_of(thing)}
        if hasattr(thing, "__wrapped__"):  # a cached function
            return self.of(thing.__wrapped__)
        return self._object(thing)

    def _kind(self, kind: Any) -> str:
        """Return the name of a function or a class, with the hash of its code."""
        if self.found is not None:
            self.found.append(kind)
            return _full_name(kind)
        return f"{kind.__name__} {code_hash(kind)}" if self.code else str(kind.__name__)

    def _object(self, thing: Any) -> Any:
        attributes = self._attributes(thing)
        if attributes is None:  # an object's address in memory is not a setting
            return re.sub(r" at 0x[0-9a-f]+", "", repr(thing))
        shown = {key: value for key, value in attributes.items() if self.code or not key.startswith("_")}
        # An attribute named kind must not hide the object's kind.
        return {"kind": self._kind(type(thing))} | {f"{k}_" if k == "kind" else k: v for k, v in self.of(shown).items()}

    def _attributes(self, thing: Any) -> dict[str, Any] | None:
        """Return those attributes of an object that are settings; ``None`` if it has no known kind of attributes."""
        if callable(getattr(thing, "made_with", None)):
            return dict(thing.made_with())
        if isinstance(thing, Optimizer):
            return {"groups": [{k: v for k, v in group.items() if k != "params"} for group in thing.param_groups]}
        if isinstance(thing, nn.Module):
            return self._attributes_of_module(thing)
        slots = [name for kind in type(thing).__mro__ for name in _names(vars(kind).get("__slots__", ()))]
        if not hasattr(thing, "__dict__") and not slots:
            return None
        held = {name: getattr(thing, name) for name in slots if hasattr(thing, name)} | getattr(thing, "__dict__", {})
        return {k: v for k, v in held.items() if not (k == "optimizer" and isinstance(thing, LRScheduler))}

    def _attributes_of_module(self, module: nn.Module) -> dict[str, Any]:
        settings = {key: value for key, value in vars(module).items() if key not in INTERNAL}
        settings |= dict(module.named_children())
        if self.code and _is_library(type(module)):
            # The parts of a library's network have hundreds of settings: a hash of them is enough.
            inner = _Description(self.code, weights=False, found=self.found)
            return {"settings": digest(inner.of(settings))} | ({"weights": fingerprint(module)} if self.weights else {})
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        return settings | (dict(tensors) if self.weights else {})


def code_hash(thing: Any) -> str:
    """Return a hash of what a function or class does.

    It covers the compiled code (so comments and docstrings do not count), the defaults, the closure, and recursively
    the constants, functions and classes of the same project that it refers to; installed libraries count by name and
    version. It is comparable within one version of Python.
    """
    waiting, texts = [thing], {}
    while waiting:
        one = waiting.pop()
        if (name := f"{_full_name(one)} {id(one)}") in texts:
            continue
        if _is_library(one):
            texts[name] = f"{_full_name(one)} {_version_of(one.__module__)}"
        else:
            content = _parts_of_class(one) if isinstance(one, type) else _parts_of_function(one)
            texts[name] = f"{_full_name(one)} {_Description(True, True, waiting).of(content)}"
    return _short_hash("\n".join(sorted(texts.values())))


def _parts_of_function(function: types.FunctionType) -> list[Any]:
    code, names = _parts_of_code(function.__code__, function.__doc__)
    within = function.__globals__
    used = {name: within[name] for name in names if name in within}
    for name, value in list(used.items()):
        if isinstance(value, types.ModuleType) and _is_installed(value.__name__):
            used[name] = f"{value.__name__} {_version_of(value.__name__)}"
        elif isinstance(value, types.ModuleType):  # module.CONSTANT
            used |= {f"{name}.{one}": vars(value)[one] for one in names if one in vars(value)}
    cells = [cell.cell_contents for cell in function.__closure__ or () if cell != types.CellType()]
    return [code, function.__defaults__, function.__kwdefaults__, cells, _constants(used)]


def _parts_of_code(code: types.CodeType, documentation: str | None) -> tuple[list[Any], list[str]]:
    """Return compiled code, including that of inner functions, and all names that it uses."""
    parts: list[Any] = [code.co_code.hex(), list(code.co_names), list(code.co_varnames)]
    names = list(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner, more = _parts_of_code(constant, None)
            names += more
            parts.append(inner)
        elif constant is None or constant != documentation:
            parts.append(constant)
    return parts, names


def _parts_of_class(kind: type) -> list[Any]:
    """Return a class's bases and everything that it defines."""
    defined = {}
    for name, value in vars(kind).items():
        value = getattr(value, "__func__", value)  # static methods and class methods
        if isinstance(value, property | functools.cached_property):
            value = [part for part in (getattr(value, one, None) for one in ("fget", "fset", "func")) if part]
        if not name.startswith("__") or isinstance(value, types.FunctionType):
            defined[name] = value
    return [list(kind.__bases__), _constants(defined)]


def _constants(values: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out objects that hold a library's state, such as modules, locks and loggers."""
    return {k: v for k, v in values.items() if isinstance(v, CONSTANTS) or not _is_library(type(v))}


def _is_library(thing: Any) -> bool:
    """Return whether a function or class is part of an installed library or of Python, and so known by its version."""
    return not isinstance(thing, types.FunctionType | type) or _is_installed(thing.__module__ or "builtins")


def _is_installed(module: str) -> bool:
    if module.partition(".")[0] in ("bundle", "__main__", "__mp_main__") or module not in sys.modules:
        return False
    file = getattr(sys.modules[module], "__file__", None)
    return file is None or bool(INSTALLED & set(Path(file).parts)) or file.startswith(sysconfig.get_path("stdlib"))


def _full_name(kind: Any) -> str:
    return f"{kind.__module__}.{kind.__qualname__}".replace("__mp_main__", "__main__")


def _version_of(module: str | None) -> str:
    return str(getattr(sys.modules.get((module or "").partition(".")[0]), "__version__", ""))


def _seed_of(generator: Any) -> Any:
    """Return the seed that a generator was given; ``None`` if it was given none or does not reveal it."""
    if isinstance(generator, torch.Generator):
        return generator.initial_seed()
    if not isinstance(generator, np.random.Generator):
        return None
    seeds: Any = generator.bit_generator.seed_seq
    drawn = isinstance(seeds.entropy, int) and seeds.entropy >= DRAWN_SEED
    return None if drawn else repr([seeds.entropy, seeds.spawn_key])


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _names(slots: str | Iterable[str]) -> list[str]:
    return [slots] if isinstance(slots, str) else list(slots)


def _hash(content: str | bytes) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def _short_hash(content: str | bytes) -> str:
    return _hash(content)[:SHORT]
