"""The merged config, checked part by part: each key must exist, and each component must accept its arguments."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from pydoc import locate
from typing import Any

from bundle.command_line.configs import read_config
from bundle.command_line.values import KINDS, is_expression
from bundle.command_line.words import nearest
from monai.bundle import ConfigParser
from monai.bundle.config_item import ComponentLocator, ConfigComponent
from monai.bundle.utils import merge_kv

# Mappings whose keys the user chooses.
FREE = ("organs", "groups", "published")


def merged(files: Sequence[Path], keys: Mapping[str, Any]) -> dict[str, Any]:
    """Merge config files, then single keys, as MONAI does.

    Raises:
        ValueError: If a key names a part that does not exist, with its place and the nearest name.
    """
    parser = ConfigParser({})
    contents = [(str(path), read_config(path)) for path in files]
    text = json.dumps([*(content for _, content in contents), dict(keys)], default=str)
    for place, content in [*contents, ("the command", dict(keys))]:
        for key, value in content.items():
            _check_place(parser.get(), key, place, text)
            _check_replacement(parser, key, value)
            merge_kv(parser, key.replace("#", "::"), value)
    return dict(parser.get())


def _check_place(config: Mapping[str, Any], key: str, place: str, text: str) -> None:
    names = re.split("::|#", key.lstrip("+%"))
    node: Any = config
    for depth, name in enumerate(names):
        whole, is_last = "#".join(names[:depth]), depth == len(names) - 1
        if isinstance(node, list):
            if not (name.isdigit() and int(name) < len(node)):
                raise ValueError(
                    f"{place} sets {key}, but {whole} has only the entries 0 to {len(node) - 1}. Choose one."
                )
            node = node[int(name)]
        elif isinstance(node, Mapping):
            if name not in node and not (is_last and _may_be_new(node, names, text)):
                hint = nearest(name, map(str, node), f"It has {', '.join(map(str, node))}.")
                raise ValueError(f"unknown key {key!r} in {place}: {whole or 'the config'} has no {name}. {hint}")
            node = node.get(name)
        else:
            raise ValueError(f"{place} sets {key}, but {whole} is {node!r} and has no parts. Set {whole} as a whole.")


def _check_replacement(parser: ConfigParser, key: str, value: Any) -> None:
    """Refuse a number or a text in place of a mapping or a list, unless the table of kinds allows it."""
    name = key.lstrip("+%").replace("#", "::")
    before = parser.get(name) if name in parser else None
    if not isinstance(before, dict | list) or isinstance(value, Mapping | list | tuple) or value is None:
        return
    if name not in KINDS and not is_expression(value):
        kind = "mapping" if isinstance(before, dict) else "list"
        raise ValueError(
            f"{key} must be a {kind}, as in the config, got {value!r}. Set one of its parts as {key}#name."
        )


def _may_be_new(node: Mapping[str, Any], names: Sequence[str], text: str) -> bool:
    """Return whether a mapping may get a new key: components, whose arguments are checked later, and free names."""
    referred = re.search(rf"[@%]{'(::|#)'.join(map(re.escape, names))}\b", text)
    return len(names) == 1 or "_target_" in node or names[0] in FREE or referred is not None


def check_components(config: Mapping[str, Any]) -> None:
    """Raise if a component does not exist or does not accept one of its keys; nothing is instantiated.

    Raises:
        ValueError: With the component's place in the config and the nearest argument.
    """
    locator = ComponentLocator()
    for place, component in _components(config, ""):
        target = ConfigComponent(component, locator=locator).resolve_module_name()
        made = locate(target) if isinstance(target, str) else target
        if made is None:
            raise ValueError(f"{place} in the config has the _target_ {target}, which does not exist. Correct it.")
        arguments = _arguments(made)
        for key in component:
            if arguments is not None and not key.startswith("_") and key not in arguments:
                hint = nearest(key, arguments, f"It accepts {', '.join(arguments)}.")
                raise ValueError(f"unknown key {f'{place}#{key}'!r}: {target} does not accept {key}. {hint}")


def _components(value: Any, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    if isinstance(value, dict) and isinstance(target := value.get("_target_"), str) and not target.startswith("$"):
        yield place, value
    for key, inner in items:
        yield from _components(inner, f"{place}#{key}" if place else str(key))


def _arguments(made: Any) -> list[str] | None:
    """Return the argument names of a class or function; ``None`` if it accepts any, or cannot be inspected."""
    try:
        parameters = inspect.signature(made).parameters.values()
    except (TypeError, ValueError):
        return None
    names = [one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    if not any(one.kind is one.VAR_KEYWORD for one in parameters):
        return names
    # Our classes pass further arguments to the class that they extend.
    above = _arguments(made.__mro__[1]) if inspect.isclass(made) and made.__module__.startswith("bundle.") else None
    return None if above is None else [*names, *above]
