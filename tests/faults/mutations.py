"""Small sound files of every format, and ways to damage them; everything follows from a number."""

from __future__ import annotations

import gzip
import struct
import zlib
from importlib.util import find_spec

import nibabel
import numpy as np

SHAPE = (20, 24, 6)
AFFINE = np.array([[-1.5, 0, 0, 20.0], [0, 1.4, 0, -30.0], [0, 0, 4.0, 7.0], [0, 0, 0, 1.0]])
# Bytes of a NIfTI-1 header.
HEADER = 352

FORMATS = (".nii", ".nii.gz") + ((".nrrd", ".mha") if find_spec("itk") else ())


def sound(random: np.random.Generator, suffix: str, label: bool) -> bytes:
    """Write a scan of one bright block, or its label map, in a variant of a format."""
    values = np.zeros(SHAPE, np.uint8 if label else np.dtype(random.choice(["<i2", ">i2", "<f4", "<f8", "<u2"])))
    values[4:12, 5:15, 1:5] = 2 if label else 300
    if not label:
        values += np.random.default_rng(0).integers(0, 40, SHAPE).astype(values.dtype)
    if suffix.startswith(".nii"):
        content = _nifti(random, values)
        return gzip.compress(content, 6) if suffix == ".nii.gz" else content
    return (_nrrd if suffix == ".nrrd" else _meta_image)(random, values)


def _nifti(random: np.random.Generator, values: np.ndarray) -> bytes:
    kind = nibabel.Nifti2Image if random.random() < 0.2 else nibabel.Nifti1Image
    image = kind(values, AFFINE, dtype=values.dtype)
    image.set_sform(AFFINE, int(random.integers(3)))
    image.set_qform(AFFINE, 0 if int(image.header["sform_code"]) and random.random() < 0.5 else 1)
    image.header["xyzt_units"] = 2
    if values.dtype.byteorder == ">":
        image = kind(values, None, image.header.as_byteswapped(">"))
    return image.to_bytes()


def _nrrd(random: np.random.Generator, values: np.ndarray) -> bytes:
    names = {"u1": "uint8", "i2": "int16", "u2": "uint16", "f4": "float", "f8": "double"}
    voxels = values.tobytes("F")
    encoding = str(random.choice(["raw", "gzip"]))
    endian = "big" if values.dtype.byteorder == ">" else "little"
    head = (
        f"NRRD0004\ntype: {names[values.dtype.str[1:]]}\ndimension: 3\nspace: left-posterior-superior\n"
        f"sizes: 20 24 6\nspace directions: (1.5,0,0) (0,-1.4,0) (0,0,4)\nkinds: domain domain domain\n"
        f"endian: {endian}\nencoding: {encoding}\nspace origin: (-20,30,7)\n\n"
    )
    return head.encode() + (gzip.compress(voxels) if encoding == "gzip" else voxels)


def _meta_image(random: np.random.Generator, values: np.ndarray) -> bytes:
    names = {"u1": "UCHAR", "i2": "SHORT", "u2": "USHORT", "f4": "FLOAT", "f8": "DOUBLE"}
    voxels = values.tobytes("F")
    is_compressed = bool(random.random() < 0.5)
    voxels = zlib.compress(voxels) if is_compressed else voxels
    head = (
        "ObjectType = Image\nNDims = 3\nBinaryData = True\n"
        f"BinaryDataByteOrderMSB = {values.dtype.byteorder == '>'}\nCompressedData = {is_compressed}\n"
        + (f"CompressedDataSize = {len(voxels)}\n" if is_compressed else "")
        + "TransformMatrix = 1 0 0 0 -1 0 0 0 1\nOffset = -20 30 7\nElementSpacing = 1.5 1.4 4\nDimSize = 20 24 6\n"
        f"ElementType = MET_{names[values.dtype.str[1:]]}\nElementDataFile = LOCAL\n"
    )
    return head.encode() + voxels


def damaged(random: np.random.Generator, content: bytes, suffix: str) -> tuple[str, bytes]:
    """Damage a file; also return how."""
    name = str(random.choice([*DAMAGES, *(["behind gzip"] if suffix == ".nii.gz" else [])]))
    if name == "behind gzip":  # of right checksum, and wrong content
        inner, changed = damaged(random, gzip.decompress(content), ".nii")
        return f"{name}: {inner}", gzip.compress(changed, 6)
    return name, bytes(DAMAGES[name](random, bytearray(content)))


def _flipped(random: np.random.Generator, content: bytearray) -> bytearray:
    for place in random.integers(len(content), size=int(random.integers(1, 4))):
        content[place] ^= 1 << int(random.integers(8))
    return content


def _header_bytes(random: np.random.Generator, content: bytearray) -> bytearray:
    for place in random.integers(min(HEADER, len(content)), size=int(random.integers(1, 9))):
        content[place] = int(random.integers(256))
    return content


def _header_number(random: np.random.Generator, content: bytearray) -> bytearray:
    numbers = [0.0, -1.0, 1e34, -1e34, 1e-34, float("nan"), float("inf"), 3e38, 1e10]
    pieces = [struct.pack("<f", value) for value in numbers]
    pieces += [struct.pack("<h", value) for value in (0, 1, -1, 2, 5, 7, 32767, -32768, 1000)]
    piece = pieces[int(random.integers(len(pieces)))]
    place = 2 * int(random.integers(min(HEADER, len(content)) // 2))
    content[place : place + len(piece)] = piece
    return content


def _digits(random: np.random.Generator, content: bytearray) -> bytearray:
    """Change a digit of a header of text."""
    places = [place for place, byte in enumerate(content[:HEADER]) if 48 <= byte <= 57]
    if places:
        content[int(random.choice(places))] = int(random.choice(list(b"09-e. ")))
    return content


def _cut(random: np.random.Generator, content: bytearray) -> bytearray:
    return content[: int(random.integers(len(content)))]


def _without_middle(random: np.random.Generator, content: bytearray) -> bytearray:
    start, stop = np.sort(random.integers(len(content), size=2))
    return content[:start] + content[stop:]


def _inserted(random: np.random.Generator, content: bytearray) -> bytearray:
    place = int(random.integers(len(content)))
    return content[:place] + bytearray(random.bytes(int(random.integers(1, 600)))) + content[place:]


def _zeroed(random: np.random.Generator, content: bytearray) -> bytearray:
    start = int(random.integers(len(content)))
    stop = min(start + int(random.integers(1, 512)), len(content))
    content[start:stop] = bytes(stop - start)
    return content


def _noise(random: np.random.Generator, content: bytearray) -> bytearray:
    return bytearray(random.bytes(len(content)))


def _nothing(random: np.random.Generator, content: bytearray) -> bytearray:
    return content


DAMAGES = {
    "nothing": _nothing,
    "flipped bits": _flipped,
    "header bytes": _header_bytes,
    "header number": _header_number,
    "digit": _digits,
    "truncated": _cut,
    "middle removed": _without_middle,
    "bytes inserted": _inserted,
    "zeroed": _zeroed,
    "noise": _noise,
}
