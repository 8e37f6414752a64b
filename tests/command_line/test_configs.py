"""Tests of ``bundle.command_line.configs``."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from bundle.command_line.configs import ROOT, config_path, parsed


@pytest.mark.parametrize("name", ["preset_paper", "preset_paper.yaml", str(ROOT / "configs" / "preset_paper.yaml")])
def test_a_shipped_config_is_found_by_name_or_path(name: str) -> None:
    assert config_path(name) == ROOT / "configs" / "preset_paper.yaml"


def test_a_file_of_the_working_folder_serves_unless_it_has_the_name_of_a_shipped_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine.yaml", "inference.yaml", "inference"):
        (tmp_path / name).write_text("device: nonsense\n")
    assert config_path("mine.yaml") == tmp_path / "mine.yaml"
    assert config_path("./inference.yaml") == tmp_path / "inference.yaml"
    for name in ("inference", "inference.yaml"):
        assert config_path(name) == ROOT / "configs" / "inference.yaml"


def test_a_config_that_does_not_exist_is_refused_with_those_there_are() -> None:
    with pytest.raises(
        ValueError, match=r"there is no config moon\. Give a path, or one of data_acdc, data_chaos_t2, "
    ):
        config_path("moon")


def test_keys_and_objects_go_into_what_is_read() -> None:
    parser = parsed(["inference", "preset_paper"], {"spacing": "$pair", "network_def::encoder::depth": 34}, pair=[1, 2])
    assert parser.get_parsed_content("spacing") == [1, 2]
    assert parser["network_def::encoder::depth"] == 34
    assert parser["bundle_root"] == str(ROOT)


def expressions(config: Any) -> Iterator[str]:
    """Yield every expression of a config."""
    if isinstance(config, dict):
        config = list(config.values())
    if isinstance(config, list):
        for part in config:
            yield from expressions(part)
    elif isinstance(config, str) and config.startswith("$") and not config.startswith("$import"):
        yield re.sub(r"@[\w:]+", "x", config[1:])


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_no_expression_of_a_config_has_control_flow(path: Path) -> None:
    loops = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
    control = loops | ast.IfExp | ast.NamedExpr | ast.Lambda | ast.BoolOp
    for expression in expressions(yaml.safe_load(path.read_text(encoding="utf-8"))):
        assert not any(isinstance(node, control) for node in ast.walk(ast.parse(expression, mode="eval"))), expression


def test_the_config_of_training_stays_readable() -> None:
    assert len((ROOT / "configs" / "train.yaml").read_text().splitlines()) <= 250
