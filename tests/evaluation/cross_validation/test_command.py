"""``python -m bundle cross_validation`` on phantoms: finished, repeated, changed, stopped, broken."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from bundle.data.phantoms import write_phantoms
from bundle.evaluation.cases import read_cases
from bundle.evaluation.cross_validation.commands import CrossValidation
from filelock import FileLock

ROOT = Path(__file__).parents[3]
FOLDS = "[0,1]"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six annotated phantoms."""
    return write_phantoms(tmp_path_factory.mktemp("study") / "six", unlabeled=0, labeled=6, size=(64, 64, 6))


def words(study: Path, output: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "bundle", "cross_validation", "run", "--configs", "smoke",
        "--dataset_dir", str(study),
        "--output_dir", str(output), "--folds", FOLDS, *more,
    ]  # fmt: skip


def call(command: list[str]) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def run_here(study: Path, output: Path, **keys: Any) -> None:
    """The same in this process, where nothing is started."""
    given = {"configs": "smoke", "dataset_dir": str(study), "output_dir": str(output), "folds": [0, 1]}
    CrossValidation().run(**{**given, **keys})


@pytest.fixture(scope="module")
def finished(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished cross-validation of two folds, both at the same time."""
    output = tmp_path_factory.mktemp("cross_validation")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        run_here(study, output, jobs=2, method="small")
    (output / "stdout.txt").write_text(printed.getvalue())
    return output


def stamps(folder: Path) -> dict[str, int]:
    """When each file of the units was written."""
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("fold_*/**/*") if path.is_file()}


def test_every_query_of_every_fold_has_its_cases(finished: Path) -> None:
    cases = read_cases(finished / "cases.csv")
    # Of six scans fold 0 holds out the first and takes the second as support; fold 1 the second and the third.
    queries = {(case["fold"], case["scan"], case["support"]) for case in cases}
    assert queries == {("0", "phantom_00", "phantom_01"), ("1", "phantom_01", "phantom_02")}
    assert Counter((case["protocol"], case["organ"]) for case in cases) == {
        (protocol, organ): 2 for protocol in ("paper", "volume") for organ in ("liver", "kidneys", "spleen")
    }
    assert {(case["method"], case["seed"], case["setting"]) for case in cases} == {("small", "1234", "1")}


def test_the_table_and_the_report_are_written(finished: Path) -> None:
    table = (finished / "table.md").read_text()
    assert table in (finished / "stdout.txt").read_text()
    for text in ("liver", "kidneys", "spleen", "mean", "paper", "volume", "small"):
        assert text in table
    page = (finished / "report.html").read_text()
    assert "data:image/jpeg" in page
    assert "epoch_length" in page


def test_the_mean_of_the_table_is_the_mean_of_the_folds(finished: Path) -> None:
    by_fold: dict[str, list[float]] = {}
    for case in read_cases(finished / "cases.csv"):
        if (case["organ"], case["protocol"]) == ("liver", "volume"):
            by_fold.setdefault(case["fold"], []).append(100 * float(case["dice"]))
    mean = sum(sum(values) / len(values) for values in by_fold.values()) / len(by_fold)
    line = next(line for line in (finished / "table.md").read_text().splitlines() if "volume" in line)
    header = (finished / "table.md").read_text().splitlines()[0].split("|")
    assert f"{mean:.1f}" in line.split("|")[[name.strip() for name in header].index("liver")]


def test_the_same_command_again_does_nothing_again(finished: Path, study: Path) -> None:
    before = stamps(finished)
    done = call(words(study, finished, "--method", "small"))
    assert done.returncode == 0
    assert "2 of 2 units are done" in done.stdout
    assert stamps(finished) == before


@pytest.mark.parametrize("keys", [{"max_epochs": 2}, {"nsd_tolerance": 1.0}, {"method": "large"}, {"untrained": True}])
def test_another_setting_is_refused_and_changes_nothing(finished: Path, study: Path, keys: dict[str, Any]) -> None:
    before = stamps(finished)
    with pytest.raises(ValueError, match=f"must not be mixed: .*{next(iter(keys))} was"):
        run_here(study, finished, **{"method": "small", **keys})
    assert stamps(finished) == before


def test_other_data_are_refused(finished: Path, study: Path, tmp_path: Path) -> None:
    shutil.copytree(study, tmp_path / "five")
    for folder in ("images", "labels"):
        sorted((tmp_path / "five" / folder).iterdir())[-1].unlink()
    with pytest.raises(ValueError, match="data was '6 scans"):
        run_here(tmp_path / "five", finished, method="small")


def test_two_commands_do_not_work_in_one_folder(finished: Path, study: Path) -> None:
    with FileLock(finished / ".lock"), pytest.raises(ValueError, match="another command is writing to"):
        run_here(study, finished, method="small")


def test_runs_are_compared_in_one_table(finished: Path, study: Path, tmp_path: Path) -> None:
    untrained = tmp_path / "runs" / "plain"
    run_here(study, untrained, untrained=True, jobs=2, method=("untrained", "plain"))
    assert not list(untrained.rglob("model.pt"))
    CrossValidation().compare(f"{finished},{untrained}", str(tmp_path / "both"), title="Small against untrained")
    cases = read_cases(tmp_path / "both" / "cases.csv")
    assert {case["method"] for case in cases} == {"small", "untrained, plain"}
    page = (tmp_path / "both" / "report.html").read_text()
    assert "Small against untrained" in page
    assert "data:image/jpeg" in page
    assert "untrained, plain, setting 1: untrained" in page
    CrossValidation().compare([str(finished)], str(tmp_path / "one"), pictures=False)
    assert "data:image/jpeg" not in (tmp_path / "one" / "report.html").read_text()


def test_trained_weights_are_evaluated_under_other_settings(finished: Path, study: Path, tmp_path: Path) -> None:
    run_here(study, tmp_path / "other", configs="smoke,preset_annotate_one", weights_of=str(finished), folds=[0])
    assert not list((tmp_path / "other").rglob("model.pt"))
    ours, before = (read_cases(folder / "cases.csv") for folder in (tmp_path / "other", finished))
    assert {(case["fold"], case["scan"]) for case in ours} <= {(case["fold"], case["scan"]) for case in before}
    assert {case["quality"] for case in ours} != {""}


def test_a_folder_without_a_run_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="must be the output folder of a cross-validation"):
        CrossValidation().compare(str(tmp_path), str(tmp_path / "out"))


def test_a_killed_run_resumes_where_it_was(study: Path, tmp_path: Path) -> None:
    output = tmp_path / "killed"
    command = words(study, output, "--epoch_length", "40", "--jobs", "1")
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE)
    first, second = (output / f"fold_{fold}" / "seed_1234" for fold in (0, 1))
    log = second / "log" / "training.csv"
    deadline = time.monotonic() + 200
    while not (log.is_file() and len(log.read_text().splitlines()) > 1):
        assert process.poll() is None, "it ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.communicate()
    done_first = {path: path.stat().st_mtime_ns for path in first.rglob("*") if path.is_file()}
    assert not (second / "model.pt").exists()
    while subprocess.run(["pgrep", "-f", str(output)], capture_output=True, check=False).stdout:
        assert time.monotonic() < deadline, "its trainings must end with it"
        time.sleep(0.1)

    done = call(command)
    assert done.returncode == 0, done.stderr
    assert "1 of 2 units are done" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*") if path.is_file()} == done_first
    assert "last.pt at step" in (second / "log.txt").read_text()
    with log.open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [20, 40]


def test_a_unit_that_fails_is_named_and_the_others_are_done(study: Path, tmp_path: Path) -> None:
    shutil.copytree(study, tmp_path / "broken")
    output = tmp_path / "out"
    # The query of fold 0: a broken label is read by its evaluation, and by no training.
    label = min((tmp_path / "broken" / "labels").iterdir())
    label.write_bytes(label.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"(?s)1 of 2 units failed.*fold_0/seed_1234: see .*log\.txt"):
        run_here(tmp_path / "broken", output, jobs=2)
    assert {case["fold"] for case in read_cases(output / "cases.csv")} == {"1"}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"folds": [5]}, "fold must be a whole number from 0 to 4"),
        ({"folds": "all"}, "folds and seeds must be whole numbers"),
        ({"seeds": []}, "folds and seeds must be whole numbers"),
        ({"setting": 3}, "setting must be 1, 2 or 'legacy_all'"),
        ({"setting": 2}, "setting 2 needs groups"),
        ({"setting": 2, "groups": {"lower": ["bladder"]}}, "groups must name organs .*bladder"),
        ({"jobs": 0}, "jobs must be a whole number of at least 1"),
        ({"max_epoch": 3}, "unknown key 'max_epoch'"),
        ({"configs": "data_chaos"}, "there is no config data_chaos"),
        ({"dataset_dir": "nowhere"}, "nowhere does not exist"),
        ({"weights_of": "nowhere"}, r"nowhere has no model\.pt of fold_0/seed_1234, fold_1/seed_1234"),
    ],
)
def test_an_error_is_reported_before_any_work(study: Path, tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run_here(study, tmp_path / "out", **keys)
    assert not (tmp_path / "out").exists()


def test_a_file_is_no_output_folder(study: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file"):
        run_here(study, tmp_path / "file")


def test_the_command_says_a_mistake_in_one_sentence(study: Path, tmp_path: Path) -> None:
    done = call(words(study, tmp_path / "out", "--setting", "2"))
    assert done.returncode == 1
    assert "error: setting 2 needs groups" in done.stderr
    assert "Traceback" not in done.stderr
