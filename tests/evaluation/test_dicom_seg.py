"""DICOM segmentations, opened again by highdicom: the same voxels, each on the image that it belongs to."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundle.data.reader import FileError
from bundle.data.survey import survey
from bundle.evaluation.dicom_seg import check_series, check_sources, save_dicom_seg
from bundle.evaluation.viewer_files import check_format, check_source
from monai.data import MetaTensor

highdicom = pytest.importorskip("highdicom", reason="DICOM segmentations need highdicom: the extra dicom")
pydicom = pytest.importorskip("pydicom")

ORGANS = {"right kidney": 7, "blob": 300, "absent": 4}
COLUMNS, ROWS, SLICES = 6, 5, 4
COS, SIN = 0.8, 0.6
# Directions of DICOM: along a row, along a column, from slice to slice; each turned by the same angle.
ACQUISITIONS = {
    "axial": [(1, 0, 0), (0, 1, 0), (0, 0, 1)],
    "axial, head first": [(1, 0, 0), (0, 1, 0), (0, 0, -1)],
    "coronal": [(1, 0, 0), (0, 0, -1), (0, 1, 0)],
    "sagittal": [(0, 1, 0), (0, 0, -1), (-1, 0, 0)],
    "oblique": [(COS, 0, SIN), (0, 1, 0), (-SIN, 0, COS)],
}
SPACING, ORIGIN = (1.5, 2.0, 4.0), (10.0, -20.0, 30.0)


def write_series(folder: Path, axes: Any, **changed: Any) -> list[str]:
    """Write images whose file names and InstanceNumbers do not follow their places; return them in their order."""
    folder.mkdir()
    study, series = highdicom.UID(), highdicom.UID()
    files = []
    for z in range(SLICES):
        one = pydicom.Dataset()
        one.file_meta = pydicom.dataset.FileMetaDataset()
        one.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        one.SOPClassUID = one.file_meta.MediaStorageSOPClassUID = pydicom.uid.MRImageStorage
        one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = highdicom.UID()
        one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = study, series, study
        one.Modality, one.InstanceNumber = "MR", (3 * z) % SLICES + 1
        one.Rows, one.Columns, one.PixelSpacing = ROWS, COLUMNS, [SPACING[1], SPACING[0]]
        one.ImageOrientationPatient = [*axes[0], *axes[1]]
        one.ImagePositionPatient = [
            float(n) for n in np.array([10.0, -20.0, 30.0]) + SPACING[2] * z * np.array(axes[2])
        ]
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.BitsAllocated = one.BitsStored = 16
        one.HighBit, one.PixelRepresentation = 15, 0
        one.PixelData = bytes(2 * ROWS * COLUMNS)
        for name, value in changed.items():
            setattr(one, name, value) if value is not None else delattr(one, name)
        file = folder / f"{(5 * z) % 7}.dcm"
        one.save_as(file, enforce_file_format=True)
        files.append(str(file))
    return files


def label_on(files: list[str], axes: Any) -> MetaTensor:
    """A label map ``(1, columns, rows, slices)`` in RAS: random ids, none of them in the first slice."""
    values = torch.as_tensor(np.random.default_rng(0).choice([0, 7, 300], (1, COLUMNS, ROWS, SLICES)).astype(np.int16))
    values[..., 0] = 0
    affine = np.eye(4)
    affine[:3, :3] = np.array(axes).T * SPACING
    affine[:3, 3] = ORIGIN
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    return MetaTensor(values, affine=torch.as_tensor(affine), meta={"series": files})


def stack(place: Path, files: list[str]) -> np.ndarray:
    """The segmentation's planes on some images, ``(images, rows, columns, segments)``."""
    images = [pydicom.dcmread(file).SOPInstanceUID for file in files]
    told: dict[str, Any] = {"ignore_spatial_locations": True, "assert_missing_frames_are_empty": True}
    return np.asarray(opened(place).get_pixels_by_source_instance(images, **told))


def opened(place: Path) -> Any:
    return highdicom.seg.segread(place.with_name(f"{place.name}.seg.dcm"))


@pytest.mark.parametrize("axes", ACQUISITIONS.values(), ids=ACQUISITIONS.keys())
def test_highdicom_reads_the_same_voxels_on_the_same_images(tmp_path: Path, axes: Any) -> None:
    files = write_series(tmp_path / "series", axes)
    label = label_on(files, axes)
    save_dicom_seg(label, tmp_path / "scan", ORGANS, "series")
    planes = stack(tmp_path / "scan", files)
    expected = np.moveaxis(np.asarray(label)[0], -1, 0).swapaxes(1, 2)  # slices, rows, columns
    np.testing.assert_array_equal(planes[..., 0], expected == 7)
    np.testing.assert_array_equal(planes[..., 1], expected == 300)
    assert not planes[..., 2].any()


def test_every_frame_refers_to_the_image_at_its_place(tmp_path: Path) -> None:
    axes = ACQUISITIONS["oblique"]
    files = write_series(tmp_path / "series", axes)
    save_dicom_seg(label_on(files, axes), tmp_path / "scan", ORGANS, "series")
    places = {image.SOPInstanceUID: image.ImagePositionPatient for image in map(pydicom.dcmread, files)}
    frames = opened(tmp_path / "scan").PerFrameFunctionalGroupsSequence
    assert len(frames) == 2 * (SLICES - 1), "the first slice shows no organ"
    for frame in frames:
        (source,) = frame.DerivationImageSequence[0].SourceImageSequence
        place = frame.PlanePositionSequence[0].ImagePositionPatient
        np.testing.assert_allclose(places[source.ReferencedSOPInstanceUID], place, atol=1e-4)


def test_a_label_map_on_other_axes_than_the_series_is_written_in_its_place(tmp_path: Path) -> None:
    axes = ACQUISITIONS["coronal"]
    files = write_series(tmp_path / "series", axes)
    label = label_on(files, axes)
    # Its axes are rows, slices, columns backward: to its (i, j, k) belongs (last column - k, i, j).
    turned = np.array([[0, 0, -1, COLUMNS - 1], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])
    other = torch.as_tensor(np.asarray(label)[:, ::-1].transpose(0, 2, 3, 1).copy())
    affine = torch.as_tensor(np.asarray(label.affine) @ turned)
    assert torch.equal(other[0, 2, 3, 1], label[0, COLUMNS - 1 - 1, 2, 3].as_tensor())
    save_dicom_seg(label, tmp_path / "one", ORGANS, "series")
    save_dicom_seg(MetaTensor(other, affine=affine, meta={"series": files[::-1]}), tmp_path / "two", ORGANS, "series")
    one, two = (stack(tmp_path / name, files) for name in ("one", "two"))
    np.testing.assert_array_equal(one, two)
    assert one.any()


def test_segments_have_names_codes_and_colors(tmp_path: Path) -> None:
    axes = ACQUISITIONS["axial"]
    files = write_series(tmp_path / "series", axes)
    save_dicom_seg(label_on(files, axes), tmp_path / "scan", ORGANS, "series")
    segments = opened(tmp_path / "scan").SegmentSequence
    assert [one.SegmentLabel for one in segments] == list(ORGANS)
    codes = [one.SegmentedPropertyTypeCodeSequence[0] for one in segments]
    assert (codes[0].CodeValue, codes[0].CodingSchemeDesignator) == ("64033007", "SCT"), "kidney"
    assert [code.CodeMeaning for code in codes] == ["Kidney", "Organ", "Organ"]
    color = highdicom.color.CIELabColor.from_dicom_value(tuple(segments[0].RecommendedDisplayCIELabValue))
    np.testing.assert_allclose(color.to_rgb(), (185, 102, 83), atol=1)


def test_a_mask_without_any_organ_is_written(tmp_path: Path) -> None:
    axes = ACQUISITIONS["axial"]
    files = write_series(tmp_path / "series", axes)
    label = label_on(files, axes)
    save_dicom_seg(MetaTensor(torch.zeros_like(label), meta=label.meta), tmp_path / "scan", ORGANS, "series")
    assert not opened(tmp_path / "scan").pixel_array.any()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"FrameOfReferenceUID": None}, r"the header has no FrameOfReferenceUID\. Choose nifti"),
        ({"NumberOfFrames": 2}, r"^series: a DICOM segmentation needs a series of single slices\. Choose"),
        ({"PixelSpacing": [2.0, 1.6]}, "does not lie on the grid of the mask"),
        (
            {"Columns": COLUMNS + 1, "PixelData": bytes(2 * ROWS * (COLUMNS + 1))},
            "does not lie on the grid of the mask",
        ),
    ],
)
def test_a_series_that_does_not_fit_is_refused_and_nothing_is_written(
    tmp_path: Path, changed: dict[str, Any], words: str
) -> None:
    axes = ACQUISITIONS["axial"]
    label = label_on(write_series(tmp_path / "series", axes, **changed), axes)
    with pytest.raises(ValueError, match=words):
        save_dicom_seg(label, tmp_path / "scan", ORGANS, "series")
    assert [path.name for path in tmp_path.iterdir()] == ["series"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"FrameOfReferenceUID": None}, r"\.dcm: .* must refer .*, but the header has no FrameOfReferenceUID"),
        ({"StudyInstanceUID": ""}, "but the header has no StudyInstanceUID"),
        ({"NumberOfFrames": 1}, "a DICOM segmentation needs a series of single slices"),
    ],
)
def test_a_series_that_does_not_fit_is_named_from_its_headers(
    tmp_path: Path, changed: dict[str, Any], words: str
) -> None:
    write_series(tmp_path / "good", ACQUISITIONS["oblique"])
    write_series(tmp_path / "bad", ACQUISITIONS["oblique"], **changed)
    scans = [{"image": str(tmp_path / name)} for name in ("good", "bad")]
    found = survey(scans, scans, check=partial(check_source, output_format="dicom_seg"))
    assert found.usable == scans[:1]
    assert re.search(words, found.problems[0])
    assert survey(scans, scans, check=partial(check_source, output_format="nifti")).usable == scans


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("ImagePositionPatient", [10.0, -19.4, 34.0], r"0?5\.dcm at .* lies aside"),
        ("StudyInstanceUID", "1.2.3", "needs images with one StudyInstanceUID, but these have 2"),
    ],
)
def test_one_image_that_does_not_fit_its_series_is_named(tmp_path: Path, name: str, value: Any, words: str) -> None:
    files = write_series(tmp_path / "series", ACQUISITIONS["axial"])
    check_series(str(tmp_path / "series"))
    image = pydicom.dcmread(files[1])
    setattr(image, name, value)
    image.save_as(files[1], enforce_file_format=True)
    with pytest.raises(FileError, match=words):
        check_series(str(tmp_path / "series"))


def test_scans_that_are_no_dicom_series_are_refused_before_the_work() -> None:
    scans = [{"image": "series"}, {"image": "scan.nii.gz"}]
    check_format("dicom_seg", scans[:1])
    check_format("nifti", scans)
    with pytest.raises(ValueError, match=r"DICOM series, but 1 of 2 are other files, such as scan\.nii\.gz\. Choose"):
        check_format("dicom_seg", scans)
    with pytest.raises(ValueError, match="are other files"):
        check_sources(["a.mha"])
