"""What NRRD and MetaImage headers declare is compared with what is there, without ITK and in little memory."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest
from bundle.data.declared import check_declared
from nibabel.filebasedimages import ImageFileError
from tests.data.headers import write_bytes
from tests.data.test_reader import META, NRRD, OTHER_FORMATS, VOXELS


@pytest.mark.parametrize("name", OTHER_FORMATS)
def test_a_sound_file_passes(tmp_path: Path, name: str) -> None:
    check_declared(Path(write_bytes(tmp_path / name, OTHER_FORMATS[name])))


def test_voxels_may_lie_in_a_file_of_their_own(tmp_path: Path) -> None:
    write_bytes(tmp_path / "voxels.raw", VOXELS)
    nrrd = NRRD.format(encoding="raw").replace("\n\n", "\ndata file: voxels.raw\n")
    check_declared(Path(write_bytes(tmp_path / "a.nhdr", nrrd.encode())))
    meta = META.format(packed="False").replace("LOCAL", "voxels.raw")
    check_declared(Path(write_bytes(tmp_path / "a.mhd", meta.encode())))


def test_carriage_returns_do_not_matter(tmp_path: Path) -> None:
    head = NRRD.format(encoding="raw").replace("\n", "\r\n").encode()
    check_declared(Path(write_bytes(tmp_path / "a.nrrd", head + VOXELS)))


@pytest.mark.parametrize("name", OTHER_FORMATS)
def test_a_missing_voxel_is_noticed(tmp_path: Path, name: str) -> None:
    path = Path(write_bytes(tmp_path / name, OTHER_FORMATS[name].replace(b"6 7 8", b"6 7 9")))
    with pytest.raises(ImageFileError, match=r"declares 756 bytes of voxels, (but holds 672|but can hold at most 672)"):
        check_declared(path)


@pytest.mark.parametrize("name", OTHER_FORMATS)
def test_a_huge_declaration_takes_no_memory(tmp_path: Path, name: str) -> None:
    path = Path(write_bytes(tmp_path / name, OTHER_FORMATS[name].replace(b"6 7 8", b"9000 9000 9000")))
    tracemalloc.start()
    with pytest.raises(ImageFileError, match=r"declares 1458000000000 bytes of voxels, but can hold at most \d+"):
        check_declared(path)
    assert tracemalloc.get_traced_memory()[1] < 1e7
    tracemalloc.stop()


@pytest.mark.parametrize("name", ["b.nrrd", "d.mha"])
def test_a_spoiled_stream_is_noticed(tmp_path: Path, name: str) -> None:
    content = bytearray(OTHER_FORMATS[name])
    content[-12] ^= 1
    with pytest.raises((OSError, zlib.error, EOFError)):
        check_declared(Path(write_bytes(tmp_path / name, bytes(content))))


def test_a_compressed_stream_that_ends_early_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(EOFError):
        check_declared(Path(write_bytes(tmp_path / "d.mha", OTHER_FORMATS["d.mha"][:-20])))
    with pytest.raises(EOFError):
        check_declared(Path(write_bytes(tmp_path / "b.nrrd", OTHER_FORMATS["b.nrrd"][:-20])))


WRONG: dict[str, tuple[str, str, Any, str]] = {
    "no NRRD": ("a.nrrd", "patient 7\n\n", ImageFileError, "does not begin with NRRD"),
    "no sizes": ("a.nrrd", NRRD.replace("sizes: 6 7 8\n", ""), ImageFileError, "has '' instead of whole numbers"),
    "other sizes": ("a.nrrd", NRRD.replace("6 7 8", "6 7"), ImageFileError, "has '6 7' instead of whole numbers"),
    "a word": ("a.nrrd", NRRD.replace("6 7 8", "6 7 x"), ImageFileError, "has '6 7 x' instead of whole numbers"),
    "a size of 0": ("a.nrrd", NRRD.replace("6 7 8", "6 0 8"), ImageFileError, r"declares \[6, 0, 8\] voxels"),
    "a type": ("a.nrrd", NRRD.replace("int16", "block"), ImageFileError, "voxels of type 'block'"),
    "bzip2": ("a.nrrd", NRRD.replace("{encoding}", "bzip2"), ValueError, "raw or gzip, .*got encoding 'bzip2'"),
    "several files": (
        "a.nhdr",
        NRRD.replace("\n\n", "\ndata file: a%03d.raw 1 8 1\n"),
        ValueError,
        "in one piece, .*data file 'a%03d.raw 1 8 1'",
    ),
    "a file that is not there": (
        "a.nhdr",
        NRRD.replace("\n\n", "\ndata file: gone.raw\n"),
        ImageFileError,
        "in 'gone.raw' in the same folder, which is missing",
    ),
    "no MetaImage": ("a.mha", "patient 7\n", ImageFileError, "no ElementDataFile"),
    "no dimension": (
        "a.mha",
        META.replace("NDims = 3", "NDims = 0"),
        ImageFileError,
        "must declare 1 to 5 dimensions, got 0",
    ),
    "a list": ("a.mha", META.replace("LOCAL", "LIST"), ValueError, "in one piece, got ElementDataFile 'LIST'"),
}


@pytest.mark.parametrize(("name", "head", "kind", "message"), WRONG.values(), ids=WRONG)
def test_a_header_that_cannot_be_followed_is_refused(
    tmp_path: Path, name: str, head: str, kind: Any, message: str
) -> None:
    content = head.replace("{encoding}", "raw").replace("{packed}", "False").encode() + VOXELS
    with pytest.raises(kind, match=message):
        check_declared(Path(write_bytes(tmp_path / name, content)))


def test_numbers_in_text_take_two_bytes_at_least(tmp_path: Path) -> None:
    head = NRRD.format(encoding="ascii").encode()
    check_declared(Path(write_bytes(tmp_path / "a.nrrd", head + b"1 " * 336)))
    with pytest.raises(ImageFileError, match=r"declares 671 bytes of voxels, but can hold at most 600"):
        check_declared(Path(write_bytes(tmp_path / "a.nrrd", head + b"1 " * 300)))


def test_a_stream_of_zeros_is_counted_in_blocks(tmp_path: Path) -> None:
    head = NRRD.format(encoding="gzip").replace("6 7 8", "500 500 200").encode()
    path = Path(write_bytes(tmp_path / "a.nrrd", head + gzip.compress(bytes(100_000_000), 1)))
    tracemalloc.start()
    check_declared(path)
    assert tracemalloc.get_traced_memory()[1] < 1e7
    tracemalloc.stop()
