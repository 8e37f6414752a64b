"""Tests of ``bundle.command_line.configs``."""

from __future__ import annotations

from pathlib import Path

import pytest

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
    with pytest.raises(ValueError, match=r"there is no config moon\. Give a path, or one of data_chaos_t2, "):
        config_path("moon")


def test_keys_and_objects_go_into_what_is_read() -> None:
    parser = parsed(["inference", "preset_paper"], {"spacing": "$pair", "network_def::encoder::depth": 34}, pair=[1, 2])
    assert parser.get_parsed_content("spacing") == [1, 2]
    assert parser["network_def::encoder::depth"] == 34
    assert parser["bundle_root"] == str(ROOT)
