"""The words of a command -> values by name, as Fire reads them.

["all", "--quick", "--slices", "3,4"]  ->  ("all",), {"quick": True, "slices": (3, 4)}, {"quick"}

These are then options of a function, or keys of a config.
"""

from __future__ import annotations

import difflib
import inspect
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import fire
from bundle.command_line.values import refuse_bare


@dataclass(frozen=True)
class Words:
    """The parsed words of a command.

    Attributes:
        plain: Words that belong to no key.
        keys: Keys with their values; hyphens in names become underscores.
        bare: Keys that were given without a value: in ``keys`` they are ``True``, or ``False`` for ``--no<key>``.
    """

    plain: tuple[Any, ...]
    keys: Mapping[str, Any]
    bare: frozenset[str]


# Values of YAML that Fire reads as texts.
YAML = {"null": None, "true": True, "false": False}


def read_words(words: Sequence[str], texts: bool = False) -> Words:
    """Read the words of a command; numbers, lists, mappings, ``null``, ``true`` and ``false`` become values.

    Args:
        words: The words.
        texts: Keep ``null``, ``true`` and ``false`` as texts, as MONAI does.

    Raises:
        ValueError: If a word is ``-`` or ``--``, which Fire would interpret itself.
    """
    if lone := [word for word in words if word in ("-", "--")]:
        raise ValueError(f"{lone[0]!r} belongs to no key. Write --key value, without a space after the hyphens.")
    taken: list[Words] = []

    def take(*plain: Any, **typed: Any) -> None:
        known = {} if texts else YAML
        keys = {key: known.get(value, value) if isinstance(value, str) else value for key, value in typed.items()}
        # Fire reads --noresume as --resume False.
        bare = (key if key in keys else key.removeprefix("no") for key in _bare(words))
        taken.append(Words(plain, keys, frozenset(bare)))

    fire.Fire(take, command=list(words), name="bundle")
    return taken[0]


def typed_command() -> str:
    """Return this process's command as it is typed in a shell."""
    return shlex.join(["python", "-m", "bundle", *sys.argv[1:]])


def _bare(words: Sequence[str]) -> Iterable[str]:
    for place, word in enumerate(words):
        following = words[place + 1] if place + 1 < len(words) else "--"
        if _is_key(word) and "=" not in word and _is_key(following):
            yield word.lstrip("-").replace("-", "_")


def _is_key(word: str) -> bool:
    return word.startswith("--") or re.match("-[A-Za-z]", word) is not None


def nearest(name: str, known: Iterable[str], otherwise: str, dashes: str = "") -> str:
    """Return the remedy for a misspelt name: the nearest known name, or else another sentence."""
    near = difflib.get_close_matches(name, sorted(known), n=1)
    return f"Did you mean {dashes + near[0] if dashes else repr(near[0])}?" if near else otherwise


def call(function: Callable[..., Any], words: Sequence[str], name: str) -> Any:
    """Call a function with the words of a command as its keyword arguments.

    Args:
        function: Its parameters are the options; ``**keys`` accepts any others, which the function checks itself.
            Parameters annotated as a text, a whole number or a switch accept nothing else.
        words: The words of the command after its name.
        name: The command's name in messages.

    Raises:
        ValueError: If an option is unknown, missing, without a value or of the wrong kind; the call is not made.
    """
    given = read_words(words)
    parameters = inspect.signature(function).parameters
    options = {key: one for key, one in parameters.items() if one.kind is not inspect.Parameter.VAR_KEYWORD}
    listed = f"Its options: {', '.join(f'--{key}' for key in options)}."
    if given.plain:
        raise ValueError(f"{str(given.plain[0])!r} belongs to no option of {name}. {listed}")
    if len(options) == len(parameters):
        for key in given.keys:
            if key not in options:
                raise ValueError(f"{name} has no option --{key}. {nearest(key, options, listed, '--')}")
    for key, one in options.items():
        if one.default is inspect.Parameter.empty and key not in given.keys:
            raise ValueError(f"{name} needs --{key}. Give it a value; see {name} --help.")
    hints = get_type_hints(function)
    refuse_bare(key for key in given.bare if bool not in _kinds(hints.get(key)))
    for key, value in given.keys.items():
        _check_option(key, value, _kinds(hints.get(key)))
    return function(**given.keys)


def _kinds(hint: Any) -> set[Any]:
    return set(get_args(hint)) if get_origin(hint) in (Union, UnionType) else {hint}


def _check_option(key: str, value: Any, kinds: set[Any]) -> None:
    if value is None and type(None) in kinds:
        return
    if kinds <= {str, type(None)} and not isinstance(value, str):
        raise ValueError(f"--{key} must be a text, got {value!r}. Write a name that is a number or a list as ./name.")
    if kinds <= {int, type(None)} and (isinstance(value, bool) or not isinstance(value, int)):
        raise ValueError(f"--{key} must be a whole number, got {value!r}. Write, for example, --{key} 1.")
