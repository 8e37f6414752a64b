"""From the words of a command to the function that runs it: help texts, misspelt verbs, errors in one sentence.

["prepare", "chaos", "--source", "x"]  ->  bundle.prepare.commands.chaos(source="x")

Nothing here imports PyTorch or MONAI, so that help texts and refusals appear at once.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_type_hints

import bundle
from bundle.command_line.errors import in_one_sentence
from bundle.command_line.words import call, nearest
from bundle.command_line.workflows import Workflow

HELP = ("--help", "-h", "help")


@dataclass(frozen=True)
class Commands:
    """Functions of a module, which is imported only when one of them is called.

    Attributes:
        summary: What they do, in a line.
        module: Its docstring is the help text of the verb; the functions' docstrings are those of the subcommands.
        names: Subcommands and their functions or methods (``Class.method``); a verb without subcommands has only
            ``""``. The arguments of the class's constructor are options, too.
    """

    summary: str
    module: str
    names: Mapping[str, str]

    def help(self, name: str, subcommand: str = "") -> str:
        """Return the help text of the verb or of a subcommand, without importing the module."""
        spec = find_spec(self.module)
        assert spec is not None
        assert spec.origin is not None
        module = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
        node: ast.Module | ast.ClassDef | ast.FunctionDef = module
        pages: list[str | None] = []
        for part in self.names[subcommand].split(".") if subcommand in self.names else []:
            inner = [one for one in node.body if isinstance(one, ast.ClassDef | ast.FunctionDef)]
            node = next(one for one in inner if one.name == part)
            pages.insert(0, ast.get_docstring(node))
        if not any(page and "\n" in page for page in pages):  # it lists no options
            pages.append(ast.get_docstring(module))
        return f"{name} {subcommand}".strip() + ": " + "\n\n".join(page for page in pages if page)

    def run(self, name: str, words: Sequence[str]) -> None:
        """Call the function of the first word.

        Raises:
            ValueError: If there is no such subcommand, or an option is wrong.
        """
        subcommand, *options = ["", *words] if "" in self.names else words or ["--help"]
        if subcommand not in self.names:
            listed = f"{name} has {', '.join(self.names)}."
            raise ValueError(f"{name} has no subcommand {subcommand!r}. {nearest(subcommand, self.names, listed)}")
        call(_function(self.module, self.names[subcommand]), options, f"{name} {subcommand}".strip())


def _function(module: str, name: str) -> Callable[..., Any]:
    """Return a function of a module, or a method as a function that also takes the arguments of its class."""
    owner, _, method = name.rpartition(".")
    if not owner:
        return getattr(importlib.import_module(module), name)
    kind = getattr(importlib.import_module(module), owner)
    shared, own = inspect.signature(kind).parameters, list(inspect.signature(getattr(kind, method)).parameters.values())

    def command(**options: Any) -> Any:
        made = kind(**{key: value for key, value in options.items() if key in shared})
        return getattr(made, method)(**{key: value for key, value in options.items() if key not in shared})

    parameters = [*shared.values(), *own[1:]]
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        sorted((one.replace(kind=max(one.kind, one.KEYWORD_ONLY)) for one in parameters), key=lambda one: one.kind)
    )
    command.__annotations__ = get_type_hints(kind.__init__) | get_type_hints(getattr(kind, method))
    return command


Verbs = Mapping[str, Workflow | Commands]


def main(words: Sequence[str], verbs: Verbs, manual: str) -> None:
    """Run a command; an error in its input ends it with one sentence and exit code 1.

    Args:
        words: The words after the program's name.
        verbs: The verbs, by name.
        manual: The help text of the program.
    """
    with in_one_sentence():
        name, *rest = words or ["--help"]
        if name in HELP:
            width = max(map(len, verbs))
            lines = [f"    {verb:{width}}  {what.summary}" for verb, what in verbs.items()]
            print(inspect.cleandoc(manual).replace("{verbs}", "\n".join(lines)))
        elif name == "--version":
            print(bundle.__version__)
        elif name not in verbs:
            listed = f"There are {', '.join(verbs)}."
            raise ValueError(f"there is no command {name!r}. {nearest(name, verbs, listed)}")
        elif manual_of(verbs[name], name, rest):
            print(manual_of(verbs[name], name, rest))
        else:
            verbs[name].run(name, rest)


def manual_of(verb: Workflow | Commands, name: str, words: Sequence[str]) -> str:
    """Return the help text that a command asks for; ``""`` if it asks for none."""
    needs_subcommand = isinstance(verb, Commands) and "" not in verb.names
    if not (any(word in HELP[:2] for word in words) or (needs_subcommand and not words)):
        return ""
    if isinstance(verb, Workflow):
        return verb.help(name)
    return verb.help(name, words[0] if words and needs_subcommand else "")
