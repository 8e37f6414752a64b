"""The table of valid values: complete, with what each kind accepts and refuses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from bundle.command_line.configs import ROOT, read_config
from bundle.command_line.values import KINDS, check_literals, check_values, refuse_bare

# Keys at the top that are mappings, or checked where they are used.
FREE = {
    "standardization",
    "padding",
    "groups",
    "published",
    "intensity",
    "segmenter",
    "phantom",
    "mode",
    "weights",
    "dinov2",
}


def keys_to_set(name: str) -> set[str]:
    """Return the keys between the marks of a config, or all of a config without them."""
    text = (ROOT / "configs" / name).read_text()
    part = text.split("# --- set these")[-1].split("# --- paths")[0]
    return set(re.findall(r"^([a-z_]+):", part, re.MULTILINE))


@pytest.mark.parametrize("name", ["train.yaml", "inference.yaml"])
def test_the_table_has_every_key_that_a_user_sets(name: str) -> None:
    assert keys_to_set(name) - FREE <= set(KINDS)


def test_the_table_has_no_key_that_no_config_has() -> None:
    known = set().union(*(yaml.safe_load(path.read_text()) for path in (ROOT / "configs").glob("*.yaml")))
    assert set(KINDS) <= known


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_configs_keep_the_rules(path: Path) -> None:
    check_literals(read_config(path))


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("fold", [None, 0, 4], [5, -1, True, "0", 1.0]),
        ("max_epochs", [1, 100], [0, 1.5, True, "3", None]),
        ("learning_rate", [0, 0.001], [-1, "a", float("nan"), float("inf")]),
        ("slice_size", [[256, 192], (64, 64)], [[8, 8], 256, [64], ["a", "b"], [64, 64, 64], [64.0, 64.0]]),
        ("spacing", [None, "fit", [1, 1.5, -1]], [[0, 1, 1], [1, 1], "wide", 2]),
        ("organs", [None, {"liver": 1, "spleen": 500}], [{}, {"liver": 0}, {"a": 1, "b": 1}, {"a": True}, ["liver"]]),
        ("setting", [1, 2, "legacy_all"], [3, True, "1", 1.0, [1]]),
        ("statistics", ["volume", "training_set"], ["foo", None]),
        ("overlap", [True, False], ["false", "maybe", 1]),
        ("resume", [True, "false", "True"], ["maybe", 1, None]),
        ("orientation", [None, "PLS", "RAI"], ["PLX", "PL", "up", "PPL"]),
        ("dataset_dir", [None, "x", Path("x")], [5, "", True]),
        ("support_image", [None, "x", ["x", "y"]], [5, [5]]),
        ("cache_dir", ["x"], [5, None]),
        ("nsd_tolerance", [0.5], [0, -1]),
    ],
)
def test_a_kind_takes_what_it_says(key: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        check_values(**{key: value})
    for value in bad:
        with pytest.raises(ValueError, match=rf"^{key} must be .*, got .*\. Write, for example, --{key} "):
            check_values(**{key: value})


def test_a_message_has_the_rule_the_value_and_an_example() -> None:
    with pytest.raises(ValueError, match=r"^slice_batch must be a whole number of at least 1, got 'a'\. Write, for ex"):
        check_values(slice_batch="a")


@pytest.mark.parametrize("key", KINDS)
def test_the_example_of_a_kind_is_of_the_kind(key: str) -> None:
    check_literals({key: yaml.safe_load(KINDS[key].example.strip('"'))})


def test_what_monai_works_out_is_left_to_it() -> None:
    check_literals({"fold": "$0", "device": {"_target_": "x"}, "slice_size": "@other", "unknown": "x"})


def test_a_key_without_a_value_is_refused_unless_it_is_a_switch_or_a_part() -> None:
    refuse_bare(["resume", "overlap", "train#trainer#amp"])
    with pytest.raises(ValueError, match=r"--data has no value\. Write --data <value>\."):
        refuse_bare(["data"])
