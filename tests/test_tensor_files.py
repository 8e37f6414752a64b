"""PyTorch's files: whole or absent, and checked to the last byte."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from bundle import tensor_files
from bundle.networks import ALPNet, load_network
from bundle.tensor_files import read_tensors, write_tensors

ADVICE = "Copy it again."


def written(path: Path) -> dict[str, Any]:
    state = {f"layer_{n}": torch.arange(n, n + 40.0).reshape(5, 8) for n in range(4)} | {"step": 3}
    write_tensors(state, path)
    return state


def test_what_was_written_is_read(tmp_path: Path) -> None:
    state = written(tmp_path / "new" / "a.pt")
    torch.testing.assert_close(read_tensors(tmp_path / "new" / "a.pt", ADVICE), state, rtol=0, atol=0)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.pt"]


def test_saving_that_fails_midway_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    state = written(tmp_path / "a.pt")
    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(ValueError, match=r"a\.pt cannot be written \(No space left on device\)\. Free space"):
        write_tensors({}, tmp_path / "a.pt")
    torch.testing.assert_close(read_tensors(tmp_path / "a.pt", ADVICE), state, rtol=0, atol=0)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_no_flipped_bit_changes_what_is_read(tmp_path: Path) -> None:
    state = written(tmp_path / "a.pt")
    content, draw, refused = (tmp_path / "a.pt").read_bytes(), random.Random(0), []
    for _ in range(300):
        damaged = bytearray(content)
        damaged[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        (tmp_path / "b.pt").write_bytes(damaged)
        try:
            torch.testing.assert_close(read_tensors(tmp_path / "b.pt", ADVICE), state, rtol=0, atol=0)
        except ValueError as error:
            refused.append(str(error))
    assert len(refused) > 100  # the others hit the filling between the records
    assert all(message.endswith(ADVICE) for message in refused)


def test_no_truncated_file_is_read(tmp_path: Path) -> None:
    written(tmp_path / "a.pt")
    content = (tmp_path / "a.pt").read_bytes()
    for length in range(0, len(content), 97):
        (tmp_path / "b.pt").write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"b\.pt cannot be read as a PyTorch file: it "):
            read_tensors(tmp_path / "b.pt", ADVICE)


def test_the_older_format_is_read_without_checksums(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(read_tensors(tmp_path / "a.pt", ADVICE)["a"], torch.ones(2))


def test_what_is_no_dictionary_is_refused(tmp_path: Path) -> None:
    torch.save([1], tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt must hold a dictionary of tensors, got list\. Copy it again"):
        read_tensors(tmp_path / "a.pt", ADVICE)


def test_damaged_weights_are_refused_by_the_network(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=r"model\.pt cannot be read .* Git LFS pointer"):
        load_network(ALPNet(torch.nn.Conv2d(3, 2, 1)), tmp_path / "model.pt")


def test_the_checksums_are_what_finds_a_flipped_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch alone takes the file: the day it does not, the check can go."""
    written(tmp_path / "a.pt")
    content = bytearray((tmp_path / "a.pt").read_bytes())
    content[content.index(torch.arange(0.0, 8.0).numpy().tobytes()) + 3] ^= 64
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"the checksum of its record .* is wrong"):
        read_tensors(tmp_path / "a.pt", ADVICE)
    monkeypatch.setattr(tensor_files.zipfile, "is_zipfile", lambda _: False)
    assert read_tensors(tmp_path / "a.pt", ADVICE)["layer_0"][0, 0] == 2
