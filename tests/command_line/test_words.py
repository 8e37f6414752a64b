"""The words of a command become values by name; a wrong option is refused before the function is called."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

import pytest
from bundle.command_line.words import call, read_words


def test_words_become_values_by_name() -> None:
    typed = "all --quick --slices 3,4 --dataset-dir=scans --overlap false --fold null"
    words = read_words(shlex.split(typed))
    assert words.plain == ("all",)
    assert words.keys == {
        "quick": True, "slices": (3, 4), "dataset_dir": "scans", "overlap": False, "fold": None,
    }  # fmt: skip


def test_keys_without_a_value_are_known() -> None:
    assert read_words(["--data", "--fold", "0", "--x=1", "--noresume", "-v"]).bare == {"data", "resume", "v"}


def test_words_of_monai_stay_texts() -> None:
    assert read_words(["--overlap", "false", "--fold", "null"], texts=True).keys == {"overlap": "false", "fold": "null"}


@pytest.mark.parametrize("lone", ["-", "--"])
def test_hyphens_alone_are_refused(lone: str) -> None:
    with pytest.raises(ValueError, match="belongs to no key"):
        read_words(["--fold", "0", lone])


CALLS: list[dict[str, Any]] = []


def paint(color: str, coats: int = 1, dry: bool = False, note: str | None = None) -> None:
    """Note what it is called with."""
    CALLS.append({"color": color, "coats": coats, "dry": dry, "note": note})


def test_options_are_the_parameters() -> None:
    CALLS.clear()
    call(paint, ["--color", "red", "--coats=2", "--dry", "--note", "None"], "paint")
    assert CALLS == [{"color": "red", "coats": 2, "dry": True, "note": None}]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("red", r"'red' belongs to no option of paint\. Its options: --color, --coats, --dry, --note\."),
        ("--color red --coat 2", r"paint has no option --coat\. Did you mean --coats\?"),
        ("--color red --zzz 2", r"paint has no option --zzz\. Its options: --color, "),
        ("--coats 2", r"paint needs --color\."),
        ("--color", r"--color has no value\. Write --color <value>\."),
        ("--color 5", r"--color must be a text, got 5\. Write a name that is a number or a list as \./name\."),
        ("--color red --coats x", r"--coats must be a whole number, got 'x'\."),
        ("--color red --coats True", r"--coats must be a whole number, got True\."),
    ],
)
def test_a_wrong_option_is_refused_before_the_call(words: str, message: str) -> None:
    CALLS.clear()
    with pytest.raises(ValueError, match=message):
        call(paint, words.split(), "paint")
    assert CALLS == []


def test_a_sequence_of_whole_numbers_is_given_as_a_list() -> None:
    given: list[Sequence[int]] = []

    def run(folds: Sequence[int]) -> None:
        given.append(folds)

    call(run, ["--folds", "[0,3]"], "run")
    assert given == [[0, 3]]


def test_a_function_that_takes_any_key_gets_it() -> None:
    given = {}
    call(lambda **keys: given.update(keys), ["--a#b", "1"], "any")
    assert given == {"a#b": 1}
