"""What a user sees when a key is misspelt, and when a command fails."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from bundle.command_line.checks import check_positive_integers, refuse_missing_device, switch
from bundle.command_line.command import check_command
from bundle.command_line.errors import explain_errors, in_one_sentence, sentence_of
from bundle.data.loading import ScanError
from monai.bundle import ConfigParser

CONFIGS = Path(__file__).parents[2] / "configs"
MAIN = """
max_epochs: 8
learning_rate: 0.001
organs: {liver: 1}
rate: $@learning_rate / @divisor
train:
  trainer: {max_epochs: "@max_epochs"}
"""


@pytest.fixture(autouse=True)
def command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process be a bundle command."""
    monkeypatch.setattr(sys, "argv", ["/somewhere/monai/bundle/__main__.py", "run"])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)


def test_a_program_that_hosts_the_bundle_keeps_its_words_and_its_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    config = str(Path(__file__).parents[2] / "configs" / "train.yaml")
    monkeypatch.setattr(sys, "argv", ["/my/program.py", "--config_file", config, "--lr", "3"])
    before = sys.excepthook
    check_command()
    explain_errors()
    assert sys.excepthook is before


@pytest.fixture
def main(tmp_path: Path) -> Path:
    """The config that a command starts from."""
    path = tmp_path / "configs" / "train.yaml"
    path.parent.mkdir()
    path.write_text(MAIN)
    return path


def check(config_file: str | Path, *words: str) -> None:
    check_command(["bundle", "run", "training", "--config_file", str(config_file), *words])


def test_a_misspelt_key_is_refused_with_the_nearest_known_one(main: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown key 'max_epoch' in the command: .* Did you mean 'max_epochs'\?"):
        check(main, "--max_epoch", "3")


@pytest.mark.parametrize("form", ["--max_epoch=3", "--max_epoch 3", "-max_epoch 3", "--max-epoch 3", "--max_epoch"])
def test_a_misspelt_key_is_refused_in_every_form(main: Path, form: str) -> None:
    with pytest.raises(ValueError, match="unknown key 'max_epoch'"):
        check(main, *form.split())


def test_a_key_like_no_other_is_refused_without_a_suggestion(main: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown key 'zzz' .* See the top of the config file"):
        check(main, "--zzz", "1")


@pytest.mark.parametrize(
    "words",
    [
        "--max_epochs 3",
        "--max_epochs=3",
        "--max-epochs 3",
        "--rate -0.1",
        "--train#trainer#max_epochs 3",
        "--train::trainer::max_epochs=3",
        "--+organs {'spleen':2}",
        "--divisor 3",
        "--run_id training --logging_file none --meta_file none",
    ],
)
def test_a_known_key_is_taken_in_every_form(main: Path, words: str) -> None:
    check(main, *words.split())


def test_the_top_of_a_nested_key_must_be_known(main: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown key 'trian' .* Did you mean 'train'\?"):
        check(main, "--trian#trainer#max_epochs", "3")


def test_a_key_that_the_command_itself_refers_to_is_known(main: Path) -> None:
    check(main, "--rate", "$@extra", "--extra", "3")


@pytest.mark.parametrize("form", ["['{0}','{1}']", "{0},{1}"])
def test_a_key_of_an_override_shipped_beside_the_config_is_known(main: Path, form: str) -> None:
    override = main.with_name("evaluate.yaml")
    override.write_text("checkpoint: null\n")
    check(form.format(main, override), "--checkpoint", "x.pt")
    with pytest.raises(ValueError, match=r"unknown key 'chekpoint' .* Did you mean 'checkpoint'\?"):
        check(form.format(main, override), "--chekpoint", "x.pt")


def test_a_key_that_an_override_from_elsewhere_refers_to_is_known(main: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("max_epochs: $@my_epochs * 2\nmy_epochs: 4\n")
    check(f"['{main}', '{tmp_path / 'mine.yaml'}']", "--my_epochs", "3")


def test_a_misspelt_key_in_an_override_from_elsewhere_is_refused_with_the_file(main: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("learning_rat: 0.1\n")
    with pytest.raises(ValueError, match=r"unknown key 'learning_rat' in \S*mine\.yaml"):
        check(f"['{main}', '{tmp_path / 'mine.yaml'}']")


@pytest.mark.parametrize("name", ["args.json", "args.yaml"])
def test_keys_of_an_args_file_are_checked(main: Path, tmp_path: Path, name: str) -> None:
    # JSON is YAML, too.
    (tmp_path / name).write_text(json.dumps({"config_file": [str(main)], "max_epoch": 3}))
    with pytest.raises(ValueError, match="unknown key 'max_epoch'"):
        check_command(["bundle", "run", "--args_file", str(tmp_path / name)])


def test_an_args_file_may_be_yaml(main: Path, tmp_path: Path) -> None:
    (tmp_path / "args.yaml").write_text(f"config_file: {main}\nmax_epochs: 3\n")
    check_command(["bundle", "run", "--args_file", str(tmp_path / "args.yaml")])


def test_the_command_goes_before_the_args_file(main: Path, tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("other: 1\n")
    (tmp_path / "args.json").write_text(json.dumps({"config_file": str(tmp_path / "other.yaml")}))
    check(main, "--max_epochs", "3", "--args_file", str(tmp_path / "args.json"))


@pytest.mark.parametrize("argv", [["pytest", "-q", "--maxfail", "1"], []])
def test_what_is_no_command_with_a_config_is_let_alone(argv: list[str]) -> None:
    check_command(argv)


def test_without_words_the_words_of_the_process_are_checked(main: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [sys.argv[0], "run", "--config_file", str(main), "--max_epoch", "3"])
    with pytest.raises(ValueError, match="unknown key 'max_epoch'"):
        check_command()


@pytest.mark.parametrize(
    "override", [path for kind in ("data", "preset", "multi") for path in CONFIGS.glob(f"{kind}_*")]
)
def test_the_shipped_overrides_are_known_to_training(override: Path) -> None:
    check(f"['{CONFIGS / 'train.yaml'}','{override}']", "--dataset_dir", "x", "--fold", "0", "--max_epochs", "1")


def explained(error: BaseException, monkeypatch: pytest.MonkeyPatch, debug: str | None = None) -> None:
    """Let the hook see an error as MONAI raises it: twice wrapped."""
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    monkeypatch.delenv("MONAI_DEBUG", raising=False)
    if debug is not None:
        monkeypatch.setenv("MONAI_DEBUG", debug)
    explain_errors()
    try:
        try:
            try:
                raise error
            except type(error) as first:
                raise RuntimeError("applying transform") from first
        except RuntimeError as second:
            raise RuntimeError("Failed to instantiate the component") from second
    except RuntimeError as last:
        sys.excepthook(type(last), last, last.__traceback__)


@pytest.mark.parametrize("kind", [ValueError, ScanError, FileNotFoundError, FloatingPointError])
def test_an_error_over_the_input_is_one_sentence(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    explained(kind("fold must be from 0 to 4, got 7."), monkeypatch)
    assert capsys.readouterr().err.strip().splitlines() == [
        "error: fold must be from 0 to 4, got 7.",
        "(MONAI_DEBUG=1 shows the traceback)",
    ]


@pytest.mark.parametrize(("processes", "place"), [("1", "error: "), ("2", "error in process 1: ")])
def test_with_several_processes_the_error_names_its_process(
    processes: str, place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", processes)
    monkeypatch.setenv("RANK", "1")
    explained(ValueError("shots must be at least 1."), monkeypatch)
    assert capsys.readouterr().err.startswith(f"\n{place}shots must be at least 1.\n")


def test_a_scan_error_is_shown_and_not_its_cause(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = ScanError("scan_7.nii.gz: the file cannot be read")
    error.__cause__ = ValueError("Compressed file ended")
    explained(error, monkeypatch)
    assert "error: scan_7.nii.gz: the file cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(("kind", "debug"), [(KeyError, None), (TypeError, None), (ValueError, "1")])
def test_a_mistake_in_the_program_keeps_its_traceback_and_so_does_debugging(
    kind: type[Exception], debug: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    explained(kind("oops"), monkeypatch, debug)
    shown = capsys.readouterr().err
    assert "Traceback (most recent call last)" in shown
    assert "Failed to instantiate the component" in shown
    assert "\nerror:" not in shown


@pytest.mark.parametrize(("value", "expected"), [(True, True), ("true", True), ("False", False), (False, False)])
def test_a_switch_may_come_as_a_word(value: bool | str, expected: bool) -> None:
    assert switch(value) is expected


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_a_switch_that_is_neither_true_nor_false_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="must be true or false"):
        switch(value)


@pytest.mark.parametrize("word", ["null", "None"])
def test_a_null_that_monai_would_not_take_is_refused(word: str) -> None:
    words = ["run", "--config_file", str(Path(__file__).parents[2] / "configs" / "train.yaml"), "--fold", word]
    with pytest.raises(ValueError, match=r"--fold null does not set null: .* Write --fold '\$None'"):
        check_command(words)


def test_the_words_of_the_bundle_are_shown_and_not_what_they_explain(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        try:
            try:
                raise OSError("no space")
            except OSError as error:
                raise ValueError("the cache folder cannot be written to") from error
        except ValueError as error:
            raise RuntimeError("Failed to instantiate component") from error
    except RuntimeError as error:
        explain_errors()
        sys.excepthook(type(error), error, None)
    assert "error: the cache folder cannot be written to" in capsys.readouterr().err


def failed(config: dict[str, Any]) -> BaseException:
    """Return what MONAI raises over a part of a config."""
    with pytest.raises((RuntimeError, ImportError)) as caught:
        ConfigParser({"part": config}).get_parsed_content("part")
    return caught.value


def test_a_key_that_a_component_does_not_accept_is_reported() -> None:
    error = failed({"_target_": "bundle.inference.matching.SliceMatching", "slicez": 3})
    assert sentence_of(error) == (
        "the config's bundle.inference.matching.SliceMatching cannot be made: "
        "SliceMatching.__init__() got an unexpected keyword argument 'slicez'. Correct its keys."
    )


def test_a_key_that_a_component_lacks_is_reported() -> None:
    error = failed({"_target_": "bundle.transforms.RestoreGridd"})
    assert "missing 1 required positional argument: 'keys'" in (sentence_of(error) or "")


def test_a_part_of_the_config_that_does_not_exist_is_reported() -> None:
    error = failed({"_target_": "bundle.networks.Nope"})
    assert sentence_of(error) == (
        "Cannot locate class or function path: 'bundle.networks.Nope'. Correct the _target_ in the config."
    )


def test_a_wrong_value_in_a_config_is_reported_by_its_component() -> None:
    error = failed({"_target_": "bundle.inference.matching.SliceMatching", "slices": 0})
    assert (
        sentence_of(error)
        == "slices, grid and annotated_slices must be at least 1, got {'slices': 0}. null takes all slices."
    )


def broken_inside() -> None:
    len(3)  # type: ignore[arg-type]


def test_a_mistake_inside_a_part_of_the_config_is_the_programs() -> None:
    assert sentence_of(failed({"_target_": f"{__name__}.broken_inside"})) is None
    assert sentence_of(ModuleNotFoundError("No module named 'nope'")) is None


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cpux", "device must be a name such as cpu or cuda:0, got 'cpux'"),
        (None, "device must be a name such as cpu or cuda:0, got None"),
        ("cuda", None),
        ("cuda:1", None),
        ("cuda:2", "device cuda:2 does not exist: PyTorch sees 2 GPUs. Use --device cpu"),
        (torch.device("cpu"), None),
        ("CudA", "device must be a name such as cpu or cuda:0, in lower case, got 'CudA'. Use --device cpu"),
        ("MPS", "device must be a name such as cpu or cuda:0, in lower case, got 'MPS'"),
        ("mps", "device mps does not exist: PyTorch sees 0 devices of the kind mps. Use --device cpu"),
        ("xpu:3", "device xpu:3 does not exist: PyTorch sees 3 devices of the kind xpu"),
        ("xpu:2", None),
        ("meta", "device meta does not exist: PyTorch sees 0 devices of the kind meta"),
        ("vulkan", "device vulkan does not exist"),
    ],
)
def test_a_device_that_is_not_there_is_refused(
    device: Any, message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind, seen in ((torch.cuda, 2), (torch.mps, 0), (torch.xpu, 3)):
        monkeypatch.setattr(kind, "device_count", lambda seen=seen: seen)
    if message is None:
        refuse_missing_device(device)
        return
    with pytest.raises(ValueError, match=message):
        refuse_missing_device(device)


@pytest.mark.parametrize("count", [0, -1, 2.5, True, "3"])
def test_counts_below_one_or_not_whole_are_refused(count: Any) -> None:
    with pytest.raises(ValueError, match="epoch_length must be a whole number of at least 1"):
        check_positive_integers(max_epochs=2, epoch_length=count)


def test_a_command_fails_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MONAI_DEBUG", raising=False)
    with pytest.raises(SystemExit, match=r"error: no folder\n\(MONAI_DEBUG=1"), in_one_sentence():
        raise FileNotFoundError("no folder")
    with pytest.raises(SystemExit, match="error: slices, grid and annotated_slices must be"), in_one_sentence():
        raise failed({"_target_": "bundle.inference.matching.SliceMatching", "slices": 0})
    for mistake in (TypeError("a mistake of ours"), RuntimeError("of ours"), ImportError("of ours")):
        with pytest.raises(type(mistake)), in_one_sentence():
            raise mistake
    monkeypatch.setenv("MONAI_DEBUG", "1")
    with pytest.raises(ValueError, match="wrong"), in_one_sentence():
        raise ValueError("wrong")


def test_a_command_that_is_stopped_ends_in_one_sentence_and_code_130(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop, in_one_sentence():
        raise KeyboardInterrupt
    assert stop.value.code == 130
    assert capsys.readouterr().err.splitlines() == [
        "stopped by Ctrl-C. Finished work is kept; rerun the command to do the rest."
    ]


def test_a_mistake_that_is_made_while_an_input_is_refused_is_the_programs() -> None:
    mistake = TypeError("a mistake of ours")
    mistake.__context__ = ValueError("wrong")  # as it is within "except ValueError"
    assert sentence_of(mistake) is None


def test_a_file_that_may_not_be_read_is_reported_by_a_command() -> None:
    with pytest.raises(SystemExit, match=r"error: .*Permission denied: 'scan\.nii\.gz'"), in_one_sentence():
        raise PermissionError(13, "Permission denied", "scan.nii.gz")


def test_commands_say_nothing_of_a_missing_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    log = logging.getLogger("monai.data.nvimgcodec_pydicom_plugin")
    monkeypatch.setattr(sys, "argv", ["/somewhere/bundle/__main__.py"])
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    for command in (lambda: in_one_sentence().__enter__(), explain_errors):
        monkeypatch.setattr(log, "level", logging.WARNING)
        with warnings.catch_warnings(record=True) as told:
            command()
            warnings.warn("NvImgCodecPydicomReader: no decoder", stacklevel=1)
        assert (log.level, told) == (logging.ERROR, [])
