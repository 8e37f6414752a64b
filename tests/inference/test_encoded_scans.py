"""Tests of ``bundle.inference.encoded_scans``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import bundle.inference.prototype_files
import pytest
import torch
from bundle.inference.encoded_scans import KEPT_STATES, AnnotatedScan, EncodedScans, PrototypeFolder
from bundle.inference.matching import SliceMatching
from bundle.inference.matching.slices import EncodedScan
from bundle.inference.organ_shapes import OrganShape
from bundle.inference.slice_encoder import SliceEncoder
from bundle.inference.support_library import SupportLibrary
from bundle.transforms.annotated import AnnotatedSlices


class Maker:
    """Makes what it is asked for, and counts."""

    def __init__(self, made: Any = "scan") -> None:
        self.made, self.calls = made, 0

    def __call__(self) -> Any:
        self.calls += 1
        return self.made


def test_what_is_kept_is_made_once() -> None:
    scans, make = EncodedScans(), Maker()
    assert [scans.get("a", make, len) for _ in range(3)] == ["scan"] * 3
    assert make.calls == 1


def test_the_scan_that_was_not_used_for_longest_is_forgotten_when_all_are_too_large() -> None:
    scans, makers = EncodedScans(max_bytes=10), {name: Maker("four") for name in "abc"}
    for name in "abac":  # a was used after b
        scans.get(name, makers[name], len)
    for name in "acb":
        scans.get(name, makers[name], len)
    assert {name: make.calls for name, make in makers.items()} == {"a": 1, "b": 2, "c": 1}


def test_a_scan_larger_than_the_bound_is_returned_all_the_same() -> None:
    assert EncodedScans(max_bytes=1).get("a", Maker("four"), len) == "four"


def test_scans_of_size_0_are_never_forgotten() -> None:
    scans, own = EncodedScans(max_bytes=10), Maker("own")
    scans.get("own", own, lambda _: 0)
    for name in "abcdef":
        scans.get(name, Maker("four"), len)
    scans.get("own", own, lambda _: 0)
    assert own.calls == 1
    assert len(scans) == 1 + 2


def known_scan() -> AnnotatedScan:
    prototypes = [{0: torch.rand(3, 4), 7: torch.rand(1, 4)}, {0: torch.rand(2, 4)}]
    encoded = EncodedScan(prototypes, torch.rand(2, 64))
    shapes = {7: OrganShape(2, math.nan)}
    return AnnotatedScan(encoded, shapes, torch.rand(3), AnnotatedSlices((2, 6), 9, "drawn"), left_out=(8,))


def folder_of_a_new_server() -> PrototypeFolder:
    library = SupportLibrary([], SliceEncoder(), SliceMatching())
    return PrototypeFolder(library._read_kept, library._write_kept)


def fetch(folder: Path | None, make: Maker, name: str = "scan_1", **made_with: Any) -> AnnotatedScan:
    """Ask as a server does that has just been started."""
    return folder_of_a_new_server().get(folder, name, lambda: {"device": "cpu", **made_with}, make)


def test_a_restarted_server_reads_what_was_encoded_before(tmp_path: Path) -> None:
    made, make = known_scan(), Maker()
    fetch(tmp_path / "new", Maker(made), label="abc", ids={"1": 7})
    found = fetch(tmp_path / "new", make, label="abc", ids={"1": 7})
    assert make.calls == 0
    assert (found.taken, found.left_out, list(found.encoded)) == (made.taken, (8,), [7])
    assert found.shapes[7].components == 2
    torch.testing.assert_close(found.profile, made.profile)
    for one, other in zip(found.encoded.prototypes, made.encoded.prototypes, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[organ], other[organ]) for organ in other)


@pytest.mark.parametrize("change", [{"label": "abd"}, {"ids": {"1": 6}}, {"encoder": "other"}])
def test_anything_else_that_it_is_made_from_is_made_anew(tmp_path: Path, change: dict[str, Any]) -> None:
    settings, make = {"label": "abc", "ids": {"1": 7}, "encoder": "this"}, Maker(known_scan())
    fetch(tmp_path, make, **settings)
    fetch(tmp_path, make, **{**settings, **change})
    assert make.calls == 2


def test_a_damaged_file_is_said_and_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make = Maker(known_scan())
    fetch(tmp_path, make, label="abc")
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:40])
    fetch(tmp_path, make, label="abc")
    assert make.calls == 2
    assert "cannot be read" in caplog.text
    assert "The scan will be encoded again" in caplog.text
    fetch(tmp_path, make, label="abc")
    assert make.calls == 2


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    assert fetch(tmp_path / "file" / "folder", Maker(known_scan()), label="abc").left_out == (8,)
    assert "the next run will encode the scan again" in caplog.text


def test_a_corrected_label_leaves_no_more_than_a_few_files_behind(tmp_path: Path) -> None:
    for number in range(KEPT_STATES + 3):
        fetch(tmp_path, Maker(known_scan()), label=str(number))
    fetch(tmp_path, Maker(known_scan()), name="scan_1-2")
    names = [path.stem.rpartition("-")[0] for path in tmp_path.glob("*.safetensors")]
    assert sorted(names) == ["scan_1"] * KEPT_STATES + ["scan_1-2"]
    assert len(list(tmp_path.glob("*.json"))) == KEPT_STATES + 1
    make = Maker(known_scan())
    fetch(tmp_path, make, label=str(KEPT_STATES + 2))
    assert make.calls == 0  # the newest is among them


@pytest.mark.parametrize("without", ["folder", "package", "organ"])
def test_nothing_is_written_without_a_folder_or_the_package_or_an_organ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without: str
) -> None:
    if without == "package":
        monkeypatch.setattr(bundle.inference.prototype_files, "safetensors", None)
    taken = AnnotatedSlices((), 9, "drawn")
    made = AnnotatedScan(EncodedScan([], torch.zeros(0, 1)), taken=taken) if without == "organ" else known_scan()
    assert fetch(None if without == "folder" else tmp_path, Maker(made)) is made
    assert list(tmp_path.iterdir()) == []
