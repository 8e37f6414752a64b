"""Tests of ``bundle.files``."""

from __future__ import annotations

import csv
import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from bundle.files import (
    WriteError,
    alone_in,
    append_csv,
    file_name,
    keep_alone,
    read_csv,
    read_json,
    remove_abandoned,
    safe_name,
    write_csv,
    written_whole,
)

fork = multiprocessing.get_context("fork")
ROOT = Path(__file__).parents[1]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_there_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "a.csv"
    with written_whole(path) as unfinished:
        unfinished.write_text("half")
        assert unfinished.suffix == ".csv"
        assert not path.exists()
    assert path.read_text() == "half"
    assert names(path.parent) == ["a.csv"]


def fail_with(error: BaseException, path: Path) -> None:
    with written_whole(path) as unfinished:
        unfinished.write_text("half")
        raise error


@pytest.mark.parametrize("error", [KeyError("mistake"), KeyboardInterrupt()])
def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "a.csv").write_text("old")
    with pytest.raises(type(error)):
        fail_with(error, tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text() == "old"
    assert names(tmp_path) == ["a.csv"]


def test_a_full_disk_is_said_with_the_file_and_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("old")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    message = r"a\.csv cannot be written \(No space left on device\)\. Free space there, or choose"
    with pytest.raises(WriteError, match=message):
        fail_with(full, tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text() == "old"
    assert names(tmp_path) == ["a.csv"]


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match=r"b\.csv cannot be written \(Not a directory\)"):
        fail_with(KeyError("not reached"), tmp_path / "file" / "folder" / "b.csv")
    assert names(tmp_path) == ["file"]


def test_a_table_names_files_without_their_folders() -> None:
    assert file_name("some/where/model.pt") == "model.pt"
    assert file_name(None) == "none"


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, r"\(No space left on device\)\. Free space there, or choose a folder on another disk"),
        (errno.EDQUOT, r"\(Disk quota exceeded\)\. Free space there"),
        (errno.EACCES, r"\(Permission denied\)\. Choose a folder that can be written to\."),
        (errno.EROFS, r"\(Read-only file system\)\. Choose a folder that can be written to\."),
        (errno.EIO, r"\(Input/output error\)\. Fix the cause and rerun the command\."),
    ],
)
def test_only_a_full_disk_is_advised_to_free_space(tmp_path: Path, number: int, words: str) -> None:
    with pytest.raises(WriteError, match=rf"a\.csv cannot be written {words}"):
        fail_with(OSError(number, os.strerror(number)), tmp_path / "a.csv")


def test_an_error_over_another_file_is_not_blamed_on_the_one_that_is_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="the_scan"):
        fail_with(FileNotFoundError(errno.ENOENT, "gone", str(tmp_path / "the_scan")), tmp_path / "a.csv")


def test_two_writers_of_one_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    with written_whole(tmp_path / "a.csv") as one:
        one.write_text("one")
        with written_whole(tmp_path / "a.csv") as other:
            other.write_text("other")
        assert (tmp_path / "a.csv").read_text() == "other"
    assert (tmp_path / "a.csv").read_text() == "one"
    assert names(tmp_path) == ["a.csv"]


def write_often(path: Path, letter: str) -> None:
    for _ in range(200):
        with written_whole(path) as unfinished:
            unfinished.write_text(letter * 50_000)


def test_what_two_writers_write_is_never_read_half(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("c" * 50_000)
    writers = [fork.Process(target=write_often, args=(path, letter)) for letter in "ab"]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        text = path.read_text()
        assert text == text[0] * 50_000
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert names(tmp_path) == ["a.csv"]


def be_killed(path: Path) -> None:
    with written_whole(path) as unfinished:
        unfinished.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_writer_left_is_removed_and_that_of_a_living_one_is_not(tmp_path: Path) -> None:
    writer = fork.Process(target=be_killed, args=(tmp_path / "a.csv",))
    writer.start()
    writer.join(20)
    assert [name.endswith("-a.csv") for name in names(tmp_path)] == [True]
    with written_whole(tmp_path / "b.csv") as living:
        living.write_text("whole")
        with written_whole(tmp_path / "c.csv") as other:
            other.write_text("c")
    assert names(tmp_path) == ["b.csv", "c.csv"]


def test_what_another_machine_left_is_removed_after_a_day(tmp_path: Path) -> None:
    now = time.time()
    for name, hours in (("old", 25), ("young", 23)):
        (tmp_path / f".tmp-ffffff-1-0-{name}").touch()
        os.utime(tmp_path / f".tmp-ffffff-1-0-{name}", (now - 3600 * hours,) * 2)
    remove_abandoned(tmp_path)
    assert names(tmp_path) == [".tmp-ffffff-1-0-young"]
    remove_abandoned(tmp_path, alone=True)
    assert names(tmp_path) == []


def test_a_folder_is_one_commands_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "masks"
    with alone_in(folder):
        with (
            pytest.raises(
                WriteError, match=rf"another command is writing to {folder}, and results must not be mixed\. Wait"
            ),
            alone_in(folder),
        ):
            pass
        assert names(folder) == [".lock"]
    assert names(folder) == []
    with alone_in(folder):
        pass


def test_a_folder_that_cannot_be_made_is_said_when_it_is_to_be_kept(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match=r"file/a cannot be written to \(Not a directory\)\. Choose a folder"):
        keep_alone(tmp_path / "file" / "a")


KEEPER = """
import sys, time
from bundle.files import keep_alone
for _ in range(2):
    keep_alone(sys.argv[1])
print("kept", flush=True)
time.sleep(float(sys.argv[2]))
"""


def keeper(folder: Path, seconds: float = 0) -> Any:
    command = [sys.executable, "-c", KEEPER, str(folder), str(seconds)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_process_keeps_a_folder_until_its_end_however_it_ends(tmp_path: Path) -> None:
    first = keeper(tmp_path, 100)
    assert first.stdout.readline() == b"kept\n"
    second = keeper(tmp_path)
    assert f"another command is writing to {tmp_path}" in second.communicate(timeout=60)[1].decode()
    first.kill()
    first.wait()
    third = keeper(tmp_path)
    assert third.communicate(timeout=60)[0] == b"kept\n"
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "'=1", "''-a"])
def test_a_spreadsheet_computes_no_name_of_a_table_and_it_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [["scan", "dice"]])
    append_csv(tmp_path / "a.csv", [[name, "0.5"]])
    with (tmp_path / "a.csv").open(newline="") as file:
        written = list(csv.reader(file))
    assert written[1] == [f"'{name}", "0.5"]
    assert read_csv(tmp_path / "a.csv") == [["scan", "dice"], [name, "0.5"]]


@pytest.mark.parametrize("cell", ["-0.5", "+3", "-1e-05", "scan-1", "a=b", "'quoted'", ""])
def test_numbers_and_plain_names_of_a_table_stay_as_they_are(cell: str, tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [["scan", cell]])
    with (tmp_path / "a.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["scan", cell]]
    assert read_csv(tmp_path / "a.csv") == [["scan", cell]]


@pytest.mark.parametrize("name", ["x/../../y", "..", "../a", "a\\b", "C:\\a", "a\0b", ".hidden", "a/b/c", "a\nb"])
def test_a_name_leads_to_no_other_folder(name: str, tmp_path: Path) -> None:
    safe = safe_name(name)
    assert Path(safe).parts == (safe,)
    assert not set("/\\:\0\n") & set(safe)
    assert not safe.startswith(".")


def test_names_of_files_stay_as_they_are_where_they_can_and_differ_where_they_differed() -> None:
    for name in ("left_kidney", "Niere links", "左腎", "liver-2.1", ""):
        assert safe_name(name) == name
    assert len({safe_name(name) for name in ("a/b", "a_b", "a\\b", "a:b")}) == 4


def test_a_json_file_is_its_mapping(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert read_json(tmp_path / "a.json", "Make it anew.", ["a"]) == {"a": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"a\.json cannot be read as JSON \(.*\): it is damaged\. Make it anew\."),
        ("[" * 100_000, r"a\.json cannot be read as JSON \(.*recursion.*\): it is damaged\. Make it anew\."),
        ("[1]", r"a\.json must hold a mapping with a, got '\[1\]'\. Make it anew\."),
        ('{"b": 1}', r"a\.json must hold a mapping with a, got .*\. Make it anew\."),
    ],
)
def test_a_json_file_that_cannot_be_used_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_json(tmp_path / "a.json", "Make it anew.", ["a"])


def test_rows_that_cannot_be_appended_are_told(tmp_path: Path) -> None:
    with pytest.raises(
        WriteError, match=r"gone/a\.csv cannot be written \(No such file or directory\)\. Fix the cause"
    ):
        append_csv(tmp_path / "gone/a.csv", [["scan", "0.5"]])
