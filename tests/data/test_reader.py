"""One reader for every file: what it gives, and what it says of files that cannot be read."""

from __future__ import annotations

import gzip
import importlib.util
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from bundle.data import reader
from bundle.data.reader import FileError, ScanReader, in_words, load_volume, segment_names
from monai.transforms import EnsureChannelFirst, LoadImage, LoadImaged
from tests.data.headers import QFORM, SFORM, nifti_bytes, noise, with_sizes, write_bytes

HAS_ITK = importlib.util.find_spec("itk") is not None
needs_itk = pytest.mark.skipif(not HAS_ITK, reason="itk, which reads NRRD and MetaImage, is not installed")

NRRD = (
    "NRRD0004\n# a comment\ntype: int16\ndimension: 3\nspace: left-posterior-superior\nsizes: 6 7 8\n"
    "space directions: (3,0,0) (0,-4,0) (0,0,5)\nkinds: domain domain domain\nendian: little\nencoding: {encoding}\n"
    "space origin: (-20,30,7)\n\n"
)
META = (
    "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = {packed}\n"
    "TransformMatrix = 1 0 0 0 -1 0 0 0 1\nOffset = -20 30 7\nElementSpacing = 3 4 5\nDimSize = 6 7 8\n"
    "ElementType = MET_SHORT\nElementDataFile = LOCAL\n"
)
VOXELS = noise("<i2").tobytes("F")
PACKED = zlib.compress(VOXELS)
OTHER_FORMATS = {
    "a.nrrd": NRRD.format(encoding="raw").encode() + VOXELS,
    "b.nrrd": NRRD.format(encoding="gzip").encode() + gzip.compress(VOXELS),
    "c.mha": META.format(packed="False").encode() + VOXELS,
    "d.mha": META.format(packed=f"True\nCompressedDataSize = {len(PACKED)}").encode() + PACKED,
}


@needs_itk
@pytest.mark.parametrize("name", OTHER_FORMATS)
def test_other_formats_lie_where_their_headers_say(tmp_path: Path, name: str) -> None:
    volume = LoadImage(reader=ScanReader)(write_bytes(tmp_path / name, OTHER_FORMATS[name]))
    np.testing.assert_array_equal(volume.numpy(), noise())
    # Left and back are the negative of right and front.
    np.testing.assert_allclose(volume.affine, [[-3, 0, 0, 20], [0, 4, 0, -30], [0, 0, 5, 7], [0, 0, 0, 1]])


SEGMENTS = "Segment0_Name:=left kidney\nSegment0_LabelValue:=4\nSegment1_Name:=liver\nSegment1_LabelValue:=1\n"


@needs_itk
def test_the_names_of_slicers_segments_come_with_the_label_map(tmp_path: Path) -> None:
    head = NRRD.format(encoding="raw").replace("\n\n", f"\n{SEGMENTS}\n")
    label = LoadImage(reader=ScanReader)(write_bytes(tmp_path / "a.seg.nrrd", head.encode() + VOXELS))
    assert label.meta["organ_names"] == {4: "left kidney", 1: "liver"}


def test_segments_without_a_name_or_a_number_are_none() -> None:
    meta = {"Segment0_Name": " ", "Segment0_LabelValue": "1", "Segment1_Name": "liver", "Segment1_LabelValue": "x"}
    assert segment_names(meta | {"Segment2_Name": "spleen", "Segment_Name": "a"}) == {}


@pytest.mark.parametrize("name", OTHER_FORMATS)
def test_without_itk_a_sentence_says_what_to_install(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "find_spec", lambda name: None)
    path = write_bytes(tmp_path / name, OTHER_FORMATS[name])
    with pytest.raises(FileError, match=rf"^{path}: this format needs itk, which is not installed: pip install"):
        LoadImage(reader=ScanReader)(path)


def test_a_scan_whose_pixdim_is_rounded_keeps_left_and_right(tmp_path: Path) -> None:
    fields = {**SFORM, "pixdim": with_sizes(3.00009, 4, 5)}
    volume = LoadImage(reader=ScanReader)(write_bytes(tmp_path / "scan.nii", nifti_bytes(noise(), **fields)))
    assert nibabel.aff2axcodes(volume.affine) == ("L", "A", "S")
    np.testing.assert_array_equal(volume.meta["original_affine"], volume.affine)


@pytest.mark.parametrize("shape", [(6, 7, 8), (6, 7, 8, 1), (6, 7, 8, 1, 1)])
def test_trailing_dimensions_of_1_are_no_channels(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = write_bytes(tmp_path / "scan.nii", nifti_bytes(noise(shape=shape), **QFORM))
    volume = LoadImage(reader=ScanReader)(path)
    assert volume.shape == (6, 7, 8)
    assert EnsureChannelFirst()(volume).shape == (1, 6, 7, 8)
    assert load_volume(path).shape == (6, 7, 8)


def test_volumes_of_a_series_are_channels(tmp_path: Path) -> None:
    path = write_bytes(tmp_path / "scan.nii", nifti_bytes(noise(shape=(6, 7, 8, 3)), **SFORM))
    assert EnsureChannelFirst()(LoadImage(reader=ScanReader)(path)).shape == (3, 6, 7, 8)


def test_image_and_label_are_read_by_the_same_rule(tmp_path: Path) -> None:
    path = write_bytes(tmp_path / "scan.nii", nifti_bytes(noise(), **QFORM))
    data = LoadImaged(["image", "label"], reader=ScanReader)({"image": path, "label": path})
    np.testing.assert_array_equal(data["image"].affine, data["label"].affine)


BAD_FILES: dict[str, tuple[bytes, str]] = {
    "LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n",
        r"this is a Git LFS pointer, not the file itself\. Fetch it with git lfs pull\.",
    ),
    "empty": (b"", r"the file is empty\. Copy it again\."),
    "text": (b"patient 7" * 50, r"the file cannot be read \(ImageFileError: it does not begin with a NIfTI header"),
    "RGB": (
        nifti_bytes(np.zeros((6, 7, 8), [("R", "u1"), ("G", "u1"), ("B", "u1")]), **SFORM),
        r"a scan must hold one real number per voxel, got colors \(RGB\)",
    ),
    "complex": (nifti_bytes(noise(np.complex64), **SFORM), r"a scan must hold one real number per voxel, got complex"),
    "wrong checksum": (
        gzip.compress(nifti_bytes(noise(), **SFORM))[:-8] + bytes(8),
        r"the file cannot be read \(BadGzipFile: CRC check failed.*It may be truncated; copy it again\.",
    ),
    "contradiction": (nifti_bytes(noise(), **SFORM, pixdim=with_sizes(1, 1, 1)), r"the header contradicts itself"),
}


@pytest.mark.parametrize(("content", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_is_named_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = write_bytes(tmp_path / "scan.nii.gz", content)
    with pytest.raises(FileError, match=rf"^{path}: {message}") as caught:
        LoadImage(reader=ScanReader)(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"gone\.nii: there is no such file\. Check the path\."):
        load_volume(tmp_path / "gone.nii")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            MemoryError(),
            "the volume does not fit into memory. Close other programs, or use a machine with more memory.",
        ),
        (ValueError("organs must be named, got 3."), "organs must be named, got 3."),
        (ValueError("Are they of one scan?"), "Are they of one scan?"),
        (ValueError("w2 < 0"), "the file cannot be read (ValueError: w2 < 0). It may be truncated; copy it again."),
        (
            RuntimeError("/src/itk.cxx:3:\nITK ERROR: Reader(0x1):\n  no\n pixels."),
            "the file cannot be read (RuntimeError: Reader(0x1): no pixels). It may be truncated; copy it again.",
        ),
    ],
)
def test_errors_are_told_in_words(error: BaseException, words: str) -> None:
    assert in_words(error) == words


def test_a_librarys_words_are_cut_where_they_become_a_page() -> None:
    assert len(in_words(RuntimeError("no " * 1000))) < 350


@needs_itk
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.nrrd",
            NRRD.format(encoding="raw").replace("6 7 8", "6 7 8 3").replace("sion: 3", "sion: 4"),
            "trouble reading",
        ),
        (
            "a.mha",
            META.format(packed="False").replace("NDims = 3", "NDims = 0"),
            "must declare 1 to 5 dimensions, got 0",
        ),
    ],
)
def test_what_itk_would_stumble_over_is_a_sentence(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = write_bytes(tmp_path / name, content.encode("latin-1") + 3 * VOXELS)
    with pytest.raises(FileError, match=message):
        load_volume(path)


def test_reading_takes_any_name_for_its_own(tmp_path: Path) -> None:
    checked: Any = ScanReader().verify_suffix("scan.xyz")
    assert checked
