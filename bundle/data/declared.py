"""Check that NRRD and MetaImage files hold what their headers declare, before ITK allocates memory for it."""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from bundle.data.nifti import BLOCK, DEFLATE_LIMIT
from nibabel.filebasedimages import ImageFileError

# Largest size of a header, bytes.
HEADER_LIMIT = 1 << 20

# Most dimensions of a file that is passed to ITK.
MOST_DIMENSIONS = 5

NRRD_BYTES = {
    1: "signed char|int8|int8_t|uchar|unsigned char|uint8|uint8_t",
    2: "short|short int|signed short|signed short int|int16|int16_t|ushort|unsigned short|unsigned short int"
    "|uint16|uint16_t",
    4: "int|signed int|int32|int32_t|uint|unsigned int|uint32|uint32_t|float",
    8: "longlong|long long|long long int|signed long long|signed long long int|int64|int64_t|ulonglong"
    "|unsigned long long|unsigned long long int|uint64|uint64_t|double",
}
META_BYTES = {
    1: "MET_CHAR|MET_UCHAR",
    2: "MET_SHORT|MET_USHORT",
    4: "MET_INT|MET_UINT|MET_LONG|MET_ULONG|MET_FLOAT",
    8: "MET_LONG_LONG|MET_ULONG_LONG|MET_DOUBLE",
}


@dataclass(frozen=True)
class Declared:
    """The voxels as declared by a header.

    Attributes:
        size: Their uncompressed size in bytes; for text, the smallest possible size.
        file: The file that holds them.
        offset: Position of their first byte in the file.
        encoding: ``raw``, ``text``, ``gzip``, or ``zlib``, a stream without gzip's frame.
    """

    size: int
    file: Path
    offset: int
    encoding: str


def check_declared(path: Path) -> None:
    """Raise unless the voxels of a NRRD or MetaImage file are complete; if compressed, the checksum is compared.

    Raises:
        ImageFileError: If it has neither format, or holds less than it declares.
        ValueError: If its encoding is not supported: bzip2, hexadecimal, several files.
        OSError, EOFError, zlib.error: If it is damaged.
    """
    declared = _nrrd(path) if path.suffix.lower() in (".nrrd", ".nhdr") else _meta_image(path)
    if not declared.file.is_file():
        raise ImageFileError(
            f"its voxels should be in {declared.file.name[:50]!r} in the same folder, which is missing"
        )
    present = declared.file.stat().st_size - declared.offset
    room = present * (DEFLATE_LIMIT if declared.encoding in ("gzip", "zlib") else 1)
    if declared.size > room:
        raise ImageFileError(f"it declares {declared.size} bytes of voxels, but can hold at most {room}")
    if declared.encoding in ("gzip", "zlib") and (held := _inflated(declared)) < declared.size:
        raise ImageFileError(f"it declares {declared.size} bytes of voxels, but holds {held}")


def _inflated(declared: Declared) -> int:
    """Count the bytes of a compressed stream and compare its checksum, block by block."""
    with declared.file.open("rb") as file:
        file.seek(declared.offset)
        if declared.encoding == "gzip":
            stream = gzip.GzipFile(fileobj=file)
            return sum(len(block) for block in iter(lambda: stream.read(BLOCK), b""))
        return _inflated_zlib(file)


def _inflated_zlib(file: BinaryIO) -> int:
    stream, held, waiting = zlib.decompressobj(), 0, b""
    while not stream.eof and (waiting := waiting or file.read(BLOCK)):
        held += len(stream.decompress(waiting, BLOCK))
        waiting = stream.unconsumed_tail
    if not stream.eof:
        raise EOFError("the compressed voxels are truncated")
    return held


def _nrrd(path: Path) -> Declared:
    head, end = _head(path, re.compile(rb"\r?\n\r?\n"))
    if not head.startswith("NRRD"):
        raise ImageFileError("it does not begin with NRRD")
    # Field names may be written as one word, such as datafile.
    fields = {key.replace(" ", ""): value for key, value in _fields(head, ":").items()}
    encodings = {"raw": "raw", "txt": "text", "text": "text", "ascii": "text", "gz": "gzip", "gzip": "gzip"}
    encoding = encodings.get(fields.get("encoding", "").lower())
    name, skip = fields.get("datafile", ""), _numbers(fields.get("byteskip", "0"), 1)[0]
    if encoding is None or " " in name or name == "LIST" or "lineskip" in fields or (skip and encoding != "raw"):
        raise ValueError(
            "a NRRD file must hold its voxels in one piece, raw or gzip, from the first byte, got encoding "
            f"{fields.get('encoding', '')[:20]!r}, data file {name[:50]!r}, byte skip {skip}. Save it again as .nii.gz."
        )
    sizes = _checked_sizes(fields, "dimension", "sizes")
    size = _size(sizes, fields.get("type", ""), NRRD_BYTES, encoding)
    return Declared(size, path.parent / name if name else path, max(skip, 0) + (0 if name else end), encoding)


def _meta_image(path: Path) -> Declared:
    head, end = _head(path, re.compile(rb"^ElementDataFile\b.*?(\n|\Z)", re.MULTILINE))
    fields = _fields(head, "=")
    if "elementdatafile" not in fields:
        raise ImageFileError("it is no MetaImage: there is no ElementDataFile")
    name = fields["elementdatafile"]
    is_text = fields.get("binarydata", "true").lower() == "false"
    if name.upper() == "LIST" or "%" in name:
        raise ValueError(
            f"a MetaImage must hold its voxels in one piece, got ElementDataFile {name!r}. Save it again as .nii.gz."
        )
    is_compressed = fields.get("compresseddata", "false").lower() == "true"
    encoding = "text" if is_text else "zlib" if is_compressed else "raw"
    channels = _numbers(fields.get("elementnumberofchannels", "1"), 1)
    sizes = _checked_sizes(fields, "ndims", "dimsize")
    size = _size([*sizes, *channels], fields.get("elementtype", ""), META_BYTES, encoding)
    is_local = name.upper() == "LOCAL"
    skip = int(_numbers(fields.get("headersize", "0"), 1)[0])
    return Declared(size, path if is_local else path.parent / name, end if is_local else max(skip, 0), encoding)


def _head(path: Path, end: re.Pattern[bytes]) -> tuple[str, int]:
    """Return a header and its length: it ends with the first match of ``end``, or with the file."""
    with path.open("rb") as file:
        start = file.read(HEADER_LIMIT)
    found = end.search(start)
    length = found.end() if found else len(start)
    return start[:length].decode("latin-1"), length


def _fields(head: str, separator: str) -> dict[str, str]:
    pairs = [line.split(separator, 1) for line in head.splitlines() if separator in line and line[:1] != "#"]
    return {key.strip().lower(): value.strip() for key, value in pairs}


def _numbers(text: str, count: int | None = None) -> list[int]:
    words = text.split()
    if (
        not words
        or (count is not None and len(words) != count)
        or not all(re.fullmatch(r"-?\d{1,18}", w) for w in words)
    ):
        raise ImageFileError(f"its header has {text[:50]!r} instead of whole numbers")
    return [int(word) for word in words]


def _checked_sizes(fields: Mapping[str, str], dimension: str, sizes: str) -> list[int]:
    # ITK trusts one field where it needs the other, and hangs if they differ.
    (count,) = _numbers(fields.get(dimension, ""), 1)
    if not 1 <= count <= MOST_DIMENSIONS:
        raise ImageFileError(f"its header must declare 1 to {MOST_DIMENSIONS} dimensions, got {count}")
    return _numbers(fields.get(sizes, ""), count)


def _size(sizes: list[int], kind: str, known: Mapping[int, str], encoding: str) -> int:
    bytes_each = [size for size, names in known.items() if kind.lower() in names.lower().split("|")]
    if not bytes_each or min(sizes) < 1:
        raise ImageFileError(f"its header declares {sizes} voxels of type {kind[:20]!r}")
    # In text, a number takes at least a digit and a blank.
    return math.prod(sizes) * (2 if encoding == "text" else bytes_each[0]) - (encoding == "text")
