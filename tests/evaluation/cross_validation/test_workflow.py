"""The commands and the settings of a cross-validation, without running any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bundle.evaluation.cases import COLUMNS
from bundle.evaluation.cross_validation.workflow import PROTOCOLS, Unit, Workflow, method_name
from bundle.files import write_csv
from bundle.root import module_command
from fire.parser import DefaultParseValue

CHAOS = ["data_chaos_t2", "preset_fast_cpu"]


def made(configs: list[str] = CHAOS, setting: Any = 1, untrained: bool = False, **keys: Any) -> Workflow:
    return Workflow(configs, {"dataset_dir": "scans", **keys}, setting, untrained)


def unit(root: Path, group: str = "") -> Unit:
    return Unit(root, group, {"liver": 1, "spleen": 4}, fold=3, seed=7)


def commands(workflow: Workflow, one: Unit) -> list[dict[str, str]]:
    """Return the commands as keys and values, with the run's name under ``run``."""
    found = []
    for words in workflow.commands(one, Path("cache"), "ours"):
        assert words[:4] == [*module_command("monai.bundle"), "run"]
        found.append({"run": words[4], **dict(zip(words[5::2], words[6::2], strict=True))})
    return found


def test_a_unit_trains_once_and_is_evaluated_by_both_protocols(tmp_path: Path) -> None:
    training, paper, volume = commands(made(max_epochs=9), unit(tmp_path))
    assert [training["run"], paper["run"], volume["run"]] == ["training", "evaluating", "evaluating"]
    assert [paper["--protocol"], volume["--protocol"]] == ["paper", "volume"]
    assert {one["--max_epochs"] for one in (training, paper, volume)} == {"9"}
    assert (training["--fold"], training["--seed"], training["--resume"]) == ("3", "7", "True")
    assert training["--output_dir"] == paper["--ckpt_dir"] == str(tmp_path / "fold_3" / "seed_7")
    assert paper["--output_dir"] == str(tmp_path / "fold_3" / "seed_7" / "paper")
    assert "evaluate.yaml" in paper["--config_file"]
    assert "evaluate.yaml" not in training["--config_file"]


def test_setting_2_leaves_the_units_organs_out_and_evaluates_them(tmp_path: Path) -> None:
    training, paper, _ = commands(made(setting=2), unit(tmp_path, "upper"))
    assert training["--test_organs"] == "['liver', 'spleen']"
    assert training["--setting"] == paper["--setting"] == "2"
    assert paper["--organs"] == "{'liver': 1, 'spleen': 4}"
    assert paper["--group"] == "upper"
    assert training["--output_dir"] == str(tmp_path / "upper" / "fold_3" / "seed_7")


def test_what_was_evaluated_is_not_evaluated_again(tmp_path: Path) -> None:
    one = unit(tmp_path)
    write_csv(one.folder / "paper" / "cases.csv", [COLUMNS])
    assert not one.done
    assert [command["--protocol"] for command in commands(made(), one)[1:]] == ["volume"]
    write_csv(one.folder / "volume" / "cases.csv", [COLUMNS])
    assert one.done


def test_an_untrained_network_keeps_the_weights_that_it_starts_with(tmp_path: Path) -> None:
    paper, volume = commands(made(untrained=True), unit(tmp_path))
    assert paper["run"] == volume["run"] == "evaluating"
    assert paper["--checkpoint"] == "$None"
    assert paper["--network_def#encoder#weights"] == "imagenet"
    assert made(untrained=True).steps == 0
    assert made(max_epochs=2).steps == 2000


def test_the_weights_of_another_run_are_evaluated_fold_by_fold(tmp_path: Path) -> None:
    workflow = Workflow(CHAOS, {"dataset_dir": "scans"}, 2, False, tmp_path / "trained")
    paper, volume = commands(workflow, unit(tmp_path / "new", "upper"))
    assert paper["run"] == volume["run"] == "evaluating"
    assert paper["--ckpt_dir"] == str(tmp_path / "trained" / "upper" / "fold_3" / "seed_7")
    assert paper["--output_dir"] == str(tmp_path / "new" / "upper" / "fold_3" / "seed_7" / "paper")
    assert workflow.steps == 0
    assert workflow.settings()["weights_of"] == "trained"
    assert "weights_of" not in made().settings()


def test_a_network_is_either_untrained_or_has_weights(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Give one of them"):
        Workflow(CHAOS, {"dataset_dir": "scans"}, 1, True, tmp_path)


def test_an_untrained_ct_network_gets_the_training_sets_intensities(tmp_path: Path) -> None:
    learning, *_ = commands(made(["data_sabs_ct"], untrained=True), unit(tmp_path))
    assert learning["run"] == "training"
    assert (learning["--max_epochs"], learning["--epoch_length"], learning["--learning_rate"]) == ("1", "1", "0.0")


def test_a_key_of_the_evaluation_alone_does_not_reach_the_training(tmp_path: Path) -> None:
    training, paper, _ = commands(made(nsd_tolerance=1.5), unit(tmp_path))
    assert "--nsd_tolerance" not in training
    assert paper["--nsd_tolerance"] == "1.5"


def test_texts_reach_the_commands_as_texts(tmp_path: Path) -> None:
    training, paper, _ = commands(made(dataset_dir="2026", amp="true"), unit(tmp_path))
    for word, text in ((training["--dataset_dir"], "2026"), (paper["--method"], "ours")):
        assert DefaultParseValue(word) == text
    words = list(made().commands(unit(tmp_path), Path("cache"), "untrained, plain"))[1]
    assert DefaultParseValue(words[words.index("--method") + 1]) == "untrained, plain"


@pytest.mark.parametrize(
    "keys",
    [{"max_epochs": 4}, {"nsd_tolerance": 1.0}, {"network_def#encoder#depth": 50}, {"loss#alignment_weight": 0.0}],
)
def test_what_changes_a_result_is_a_setting(keys: dict[str, Any]) -> None:
    assert made(**keys).settings() != made().settings()


@pytest.mark.parametrize(
    "keys", [{"num_workers": 0}, {"dataset_dir": "elsewhere"}, {"device": "cpu"}, {"val_interval": 1}]
)
def test_what_changes_no_result_is_none(keys: dict[str, Any]) -> None:
    assert made(**{"dataset_dir": "scans", **keys}).settings() == made().settings()


def test_a_preset_is_a_setting() -> None:
    plain = made([*CHAOS, "preset_plain_prototypes"]).settings()
    assert plain["network_def::foreground::_target_"] == "bundle.networks.ClassPrototype"
    assert plain != made().settings()


def test_a_file_is_a_setting_by_its_content(tmp_path: Path) -> None:
    settings = []
    for folder, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "weights.pth").write_bytes(content)
        path = str(tmp_path / folder / "weights.pth")
        settings.append(made(**{"network_def#encoder#weights": path}).settings())
    assert settings[0] == settings[1] != settings[2]
    assert settings[0]["network_def::encoder::weights"].startswith("weights.pth 6b86b273ff34fce1")  # sha256sum


def test_a_misspelt_key_is_refused_before_any_work() -> None:
    with pytest.raises(ValueError, match="Did you mean 'max_epochs'"):
        made(max_epoch=3)


def test_a_config_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no config data_chaos\. .*data_chaos_t2"):
        made(["data_chaos"])


def test_protocols_are_those_of_the_inferer() -> None:
    assert set(PROTOCOLS) == {"paper", "volume"}


@pytest.mark.parametrize(
    ("configs", "choices", "name"),
    [
        (["data_chaos_t2"], {}, "ALPNet"),
        (CHAOS, {}, "ALPNet (fast cpu)"),
        (["data_chaos_t2", "my/preset_annotate_one.yaml"], {"untrained": True}, "ALPNet (annotate one, untrained)"),
        (CHAOS, {"weights_of": Path("runs/first")}, "ALPNet (fast cpu, weights of first)"),
    ],
)
def test_a_method_without_a_name_is_called_by_its_presets_and_weights(
    configs: list[str], choices: dict[str, Any], name: str
) -> None:
    assert method_name(configs, **choices) == name


def test_evaluations_are_told_the_steps_of_their_weights(tmp_path: Path) -> None:
    def steps(workflow: Workflow) -> str:
        return commands(workflow, unit(tmp_path))[-1]["--steps"]

    assert steps(made(max_epochs=2, epoch_length=15)) == "30"
    assert steps(made(untrained=True)) == "0"
    other = Workflow(CHAOS, {"dataset_dir": "scans"}, 1, untrained=False, weights_of=tmp_path)
    assert steps(other) == "$None"
    (tmp_path / "settings.json").write_text('{"settings": {"max_epochs": "100", "epoch_length": "1000"}}')
    assert steps(other) == "100000"


def test_a_group_leads_to_no_other_folder(tmp_path: Path) -> None:
    assert unit(tmp_path, "../../x").folder.parents[2] == tmp_path
    assert unit(tmp_path, "upper").folder == tmp_path / "upper" / "fold_3" / "seed_7"


def test_a_unit_knows_its_steps_and_the_scans_that_both_evaluations_segmented(tmp_path: Path) -> None:
    one = Unit(tmp_path, "", {"liver": 1}, fold=3, seed=7, scans=2)
    assert (one.step, one.segmented) == (0, 0)
    write_csv(one.folder / "log" / "training.csv", [["step", "loss"], ["20", "0.5"], ["40", "0.4"]])
    for place in ("paper/masks/a.nii.gz", "paper/masks/b.nii.gz", "volume/masks/a.nii.gz"):
        (one.folder / place).parent.mkdir(parents=True, exist_ok=True)
        (one.folder / place).touch()
    assert (one.step, one.segmented) == (40, 3)


def test_a_reader_is_shown_values_in_place_of_expressions() -> None:
    values = made(max_epochs=3).values()
    assert values["max_epochs"] == "3"
    assert values["slice_size"] == "[256, 256]"
    assert not [value for value in values.values() if set("$@") & set(value)]
