"""``python -m bundle``: help and refusals appear at once, and the package is found from any folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from bundle.__main__ import VERBS, main

ROOT = Path(__file__).parents[2]


def said(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    main(words)
    return capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_the_help_lists_every_verb(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    page = said(words, capsys)
    assert all(f"\n    {verb} " in page for verb in VERBS)


@pytest.mark.parametrize(
    ("verb", "lines"),
    [
        ("training", ["max_epochs: 5 ", "superpixel_size: "]),
        ("inference", ["support_dir: null ", "slice_size: [256, 256] "]),
        ("evaluating", ["max_epochs: 5 ", "nsd_tolerance: 3.0 "]),
        ("cross_validation run", ["Args:", "    folds: "]),
        ("annotation_order", ["    annotated: "]),
        ("prepare nifti", ["--organs "]),
        ("benchmark memory", ["    slices: ", "    threads: "]),
        ("export", ["--configs "]),
    ],
)
def test_each_help_text_lists_the_options(verb: str, lines: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    page = said([*verb.split(), "--help"], capsys)
    for line in lines:
        assert f"\n{line}" in page


def test_help_and_refusals_do_not_wait_for_pytorch() -> None:
    code = """
import sys
from bundle.__main__ import VERBS, main
for verb in VERBS:
    main([verb, "--help"])
try:
    main(["training", "--fold", "7"])
except SystemExit as stop:
    assert "fold must be a whole number from 0 to 4" in stop.code
print(sorted({"torch", "monai", "numpy"} & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "[]")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trainin"], "there is no command 'trainin'. Did you mean 'training'?"),
        (["training", "--config_file", "x"], "--config_file is set by training itself. Add config files with --con"),
        (["training", "--data"], "--data has no value. Write --data <value>."),
        (["training", "x"], "'x' belongs to no key."),
        (["training", "--configs", "none.yaml"], "there is no config none.yaml. Give a path, or one of data_acdc"),
        (["prepare", "chaoss"], "prepare has no subcommand 'chaoss'. Did you mean 'chaos'?"),
    ],
)
def test_a_mistake_is_one_sentence(words: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert str(stop.value.code).startswith(f"error: {message}")


def test_a_folder_called_bundle_in_the_working_folder_is_not_taken_for_the_package(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "scan.nii.gz").touch()
    command = [sys.executable, "-m", "bundle", "training", "--fold", "7"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert "error: fold must be" in done.stderr


def test_transformers_is_not_imported_and_can_be() -> None:
    code = (
        "import sys, bundle.command_line.quick_monai; print('transformers' in sys.modules); "
        "import transformers; print('imported')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False", "imported"]


@pytest.mark.parametrize("key", ["meta_file", "logging_file", "tracking"])
def test_a_file_that_monai_would_go_on_without_is_refused(key: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["training", f"--{key}", "none.json"])
    assert f"error: --{key} must be an existing file, got 'none.json'." in str(stop.value.code)
