"""Parts of the merged config: which keys exist, and which arguments a component accepts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bundle.command_line.configs import config_path
from bundle.command_line.parts import check_components, merged

TRAIN = [config_path("train")]


def test_keys_are_merged_as_monai_does() -> None:
    organs = {"organs": {"liver": 1}, "organs::heart": 9, "+organs": {"lung": 8}}
    config = merged(TRAIN, {"train#trainer#max_epochs": 3, **organs})
    assert config["train"]["trainer"]["max_epochs"] == 3
    assert config["organs"] == {"liver": 1, "heart": 9, "lung": 8}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "train#trainr#amp",
            1,
            r"unknown key 'train#trainr#amp' in the command: train has no trainr\. Did you .*'train",
        ),
        ("train::handlers::99", 1, r"train#handlers has only the entries 0 to \d+\. Choose one\."),
        ("head#k", 3, r"sets head#k, but head is None and has no parts\. Set head as a whole\."),
        ("phantom#labelled", 3, r"phantom has no labelled\. Did you mean 'labeled'\?"),
        ("sampler", 3, r"sampler must be a mapping, as in the config, got 3\. Set one of its parts as sampler#name\."),
        ("run", "x", r"run must be a list, as in the config, got 'x'\."),
    ],
)
def test_a_key_that_leads_nowhere_is_refused(key: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        merged(TRAIN, {key: value})


def test_a_file_whose_key_leads_nowhere_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("train::trainr::amp: true\n")
    with pytest.raises(ValueError, match=r"unknown key 'train::trainr::amp' in \S*mine\.yaml"):
        merged([*TRAIN, tmp_path / "mine.yaml"], {})


def test_a_part_that_another_one_refers_to_may_be_new() -> None:
    with pytest.raises(ValueError, match="train has no mine"):
        merged(TRAIN, {"train#mine": 4})
    assert merged(TRAIN, {"train#mine": 4, "seed": "@train::mine"})["train"]["mine"] == 4


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            {"_target_": "bundle.inference.matching.SliceMatching", "slicez": 3},
            r"unknown key 'a#slicez': bundle.inference.matching.SliceMatching does not accept slicez\. Did .*'slices'",
        ),
        ({"_target_": "SupervisedTrainer", "max_epoch": 3}, r"does not accept max_epoch\. Did you mean 'max_epochs'\?"),
        ({"_target_": "bundle.monai_label.AnsweringInferer", "slice_batc": 3}, r"Did you mean 'slice_batch'\?"),
        (
            {"_target_": "bundle.networks.Nope"},
            r"a in the config has the _target_ bundle.networks.Nope, which does not exist",
        ),
        ([{"b": {"_target_": "Compose", "transform": []}}], r"unknown key 'a#0#b#transform'.*'transforms'"),
    ],
)
def test_a_component_that_does_not_take_its_keys_is_refused(part: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_components({"a": part})


@pytest.mark.parametrize(
    "part",
    [
        {"_target_": "LoadImaged", "keys": "image", "anything": 1},  # of the reader
        {"_target_": "$@inferer.ranker.rank", "scans": 1},
        {"_target_": "torch.Generator"},
        {"_target_": "bundle.transforms.RestoreGridd", "keys": "pred", "_disabled_": True},
    ],
)
def test_what_does_not_tell_its_arguments_passes(part: Any) -> None:
    check_components({"a": part})
