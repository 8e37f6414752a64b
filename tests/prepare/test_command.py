"""What a user types and reads."""

from __future__ import annotations

import inspect
import os
import re
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from bundle.__main__ import VERBS
from bundle.prepare import commands
from tests.prepare.downloads import run, said, write_chaos_mr, write_plain

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("ALPNET_DATA", ROOT.parent / "shared" / "data"))
CHAOS = DATA / "chaost2"

COMMANDS = {name: getattr(commands, name) for name in VERBS["prepare"].names}


def test_the_command_refuses_a_misspelt_option_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_plain(tmp_path / "source", "scan_1", "scan_1")
    words = ["nifti", "--source", str(tmp_path / "source"), "--target", str(tmp_path / "target"), "--spacng", "fit"]
    assert run(*words) == 1
    assert said(capsys).startswith("error: prepare nifti has no option --spacng. Did you mean --spacing?\n")
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_the_help_lists_every_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*words) == 0
    page = capsys.readouterr().out
    assert all(f"    python -m bundle prepare {name} " in page for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_commands_help_lists_every_option_with_its_default_and_an_example(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(name, "--help") == 0
    page = capsys.readouterr().out
    assert re.search(rf"^    python -m bundle prepare {name} --source \S+ --target \S+", page, re.MULTILINE)
    for option, parameter in inspect.signature(COMMANDS[name]).parameters.items():
        (line,) = re.findall(rf"^--{option} .*$", page, re.MULTILINE)
        assert line.endswith(")")
        if parameter.default is not None:
            assert line.endswith(f"(default: {parameter.default})")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["chaoss"], "prepare has no subcommand 'chaoss'. Did you mean 'chaos'?"),
        (["chaos"], "--source must be a folder, got nothing."),
        (["chaos", "--source"], "--source has no value. Write --source <value>."),
        (["chaos", "--source=12"], "--source must be a folder, got 12 (write"),
        (["chaos", "--source=nowhere"], "--source must be an existing folder, got nowhere."),
        (["chaos", "--source={s}"], "--target must be a folder, got nothing."),
        (["chaos", "{s}", "{t}"], "belongs to no option of prepare chaos. Its options: --source, --target, --part, "),
        (["chaos", "--source={s}", "--target={t}", "--part=t1"], "--part must be one of mr, ct, got 't1'."),
        (["chaos", "--source={s}", "--target={t}", "--nopart"], "--part has no value. Write --part <value>."),
        (["chaos", "--source={s}", "--target={t}", "--arithmetic=old"], "--arithmetic must be one of clean, reference"),
        (["btcv", "--source={s}", "--target={t}", "--part=ct"], "prepare btcv has no option --part."),
        (
            ["chaos", "--source={s}", "--target={t}", "--xyz=1"],
            "prepare chaos has no option --xyz. Its options: --source, --target",
        ),
        (["chaos", "--source={s}", "--target={t}", "--unlabeled=all"], "--unlabeled must be one of refuse, keep, skip"),
        (["chaos", "--source={s}", "--target={t}", "--part=ct"], "holds no CT/<number>/DICOM_anon/*.dcm of the CHAOS"),
        (["btcv", "--source={s}", "--target={t}"], "holds no Training/img/img0001.nii.gz and the like, of Synapse"),
        (["mscmr", "--source={s}", "--target={t}"], "holds no patient1_C0.nii.gz and the like"),
        (["nifti", "--source={s}/MR/1/T2SPIR/Ground", "--target={t}"], "holds no images (.nii.gz, "),
        (["nifti", "--source={s}", "--target={t}"], "at least one scan must have a label, got none in"),
        (["nifti", "--source={s}", "--target={t}", "--channel=-1"], "channel must be a whole number of at least 0"),
        (["nifti", "--source={s}", "--target={t}", "--series=9"], "a series, got 9. "),
        (["nifti", "--source={s}", "--target={t}", "--size=3"], "size must be two numbers of pixels"),
        (["nifti", "--source={s}", "--target={t}", "--spacing=1"], "spacing must be three numbers in mm"),
        (["nifti", "--source={s}", "--target={t}", "--spacing=0,1,1"], "spacing must be (row, column, slice) in mm"),
        (
            ["nifti", "--source={s}", "--target={t}", "--size=64", "--orientation=up"],
            "orientation must name one of L/R",
        ),
        (
            ["nifti", "--source={s}", "--target={t}", "--organs=liver"],
            "--organs must be names and different ids above 0",
        ),
        (
            ["nifti", "--source={s}", "--target={t}", "--organs={a: 1, b: 1}"],
            "--organs must be names and different ids",
        ),
        (["nifti", "--source={s}", "--target={t}", "--modality=us"], "--modality must be one of mr, ct, got 'us'."),
        (
            ["nifti", "--source={s}", "--target={t}", "--labels=nowhere"],
            "--labels must be an existing folder, got nowhere.",
        ),
    ],
)
def test_what_a_user_can_mend_is_one_sentence_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    write_chaos_mr(tmp_path / "source", 1)
    given = [word.replace("{s}", f"{tmp_path}/source").replace("{t}", f"{tmp_path}/target") for word in words]
    assert run(*given) == 1
    text = said(capsys).strip()
    assert text.startswith("error: ")
    assert sentence in text
    assert text.splitlines()[1:] == ["(MONAI_DEBUG=1 shows the traceback)"]
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("choice", ["refuse", "skip"])
def test_a_download_without_any_label_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], choice: str
) -> None:
    write_plain(tmp_path / "source", "scan_1", None)
    assert run("nifti", source=tmp_path / "source", target=tmp_path / "target", unlabeled=choice) == 1
    assert "at least one scan must have a label, got none in" in said(capsys)
    assert not (tmp_path / "target").exists()


def test_the_debug_variable_shows_where_an_error_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONAI_DEBUG", "1")
    with pytest.raises(ValueError, match="must be an existing folder"):
        run("chaos", source="nowhere")


def test_the_last_line_states_how_to_use_the_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_chaos_mr(tmp_path / "source", 1)
    run("chaos", source=tmp_path / "source", target=tmp_path / "target")
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"chaos_mr: 1 scans prepared in {tmp_path / 'target'}",
        f"use it with --data data_chaos_t2 --dataset_dir {tmp_path / 'target'}",
    ]


@pytest.mark.real_data
@pytest.mark.skipif(not CHAOS.is_dir(), reason=f"no real volumes at {CHAOS}; set ALPNET_DATA to their folder")
def test_real_volumes_go_through_unchanged(tmp_path: Path) -> None:
    names = [f"chaost2_{number:02d}.nii.gz" for number in (1, 38)]
    for place in (f"{part}/{name}" for part in ("images", "labels") for name in names):
        (tmp_path / "source" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / place).symlink_to(CHAOS / place)
    organs: Any = "{liver: 1, right_kidney: 2, left_kidney: 3, spleen: 4}"
    assert run("nifti", source=tmp_path / "source", target=tmp_path / "target", organs=organs) == 0
    for place in (f"{part}/{name}" for part in ("images", "labels") for name in names):
        before, after = nibabel.load(CHAOS / place), nibabel.load(tmp_path / "target" / place)
        np.testing.assert_array_equal(np.asarray(before.dataobj), np.asarray(after.dataobj))
        np.testing.assert_array_equal(before.affine, after.affine)
        assert before.get_data_dtype() == after.get_data_dtype()
