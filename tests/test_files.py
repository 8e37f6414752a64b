"""Tests of ``bundle.files``."""

from __future__ import annotations

import csv
import errno
import os
from pathlib import Path

import pytest

from bundle.files import WriteError, file_name, read_csv, safe_name, text_of, write_csv, written_whole


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


def test_the_text_of_a_file_that_is_not_there_is_what_the_caller_says(tmp_path: Path) -> None:
    (tmp_path / "note").write_text("ö", encoding="utf-8")
    assert text_of(tmp_path / "note", missing="none") == "ö"
    assert text_of(tmp_path / "other", missing="none") == text_of(None, missing="none") == "none"


def test_a_table_names_files_without_their_folders() -> None:
    assert file_name("some/where/model.pt") == "model.pt"
    assert file_name(None) == "none"


@pytest.mark.parametrize("name", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "'=1", "''-a"])
def test_a_spreadsheet_computes_no_name_of_a_table_and_it_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [["scan", "dice"], [name, "0.5"]])
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
