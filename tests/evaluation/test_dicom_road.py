"""From a folder of DICOM series, one of them annotated, to DICOM segmentations, by the command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from bundle.__main__ import main
from bundle.data import find_support
from bundle.data.reader import load_volume
from tests.data.dicom import write_enhanced, write_segmentation, write_series, write_without_pixels
from tests.prepare.downloads import Acquisition

highdicom = pytest.importorskip("highdicom", reason="DICOM segmentations need highdicom: the extra dicom")
pydicom = pytest.importorskip("pydicom")

ANNOTATED = Acquisition(size=(40, 48, 10))
QUERY = Acquisition(down=(0, -1, 0), backward=True, size=(44, 40, 12), spacing=(3.0, 3.0, 6.5))
ORGANS = {1: "Liver", 2: "Right kidney"}


def referable() -> dict[str, str]:
    """What a series must have so that others can refer to it."""
    return {"StudyInstanceUID": highdicom.UID(), "FrameOfReferenceUID": highdicom.UID()}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """An export of an archive: p1 is annotated, p2 is not, and of p3 and p4 no segmentation can be written."""
    folder = tmp_path / "archive"
    uid = highdicom.UID()
    write_series(folder / "p1/ct", ANNOTATED, uid=uid, **referable())
    write_segmentation(folder / "p1/seg.dcm", ANNOTATED, ORGANS, series=uid)
    write_series(folder / "p2/ct", QUERY, **referable())
    write_without_pixels(folder / "p2/report.dcm", "SR")
    write_enhanced(folder / "p3/ct/all.dcm", ANNOTATED, range(10))
    write_series(folder / "p4/ct", ANNOTATED)
    return folder


def run(archive: Path, out: Path, *more: str) -> str:
    """Run the command; return what it ends with: a sentence, with which the exit code is 1, or nothing."""
    words = ["--dataset_dir", str(archive), "--output_dir", str(out), "--output_format", "dicom_seg"]
    try:
        assert not main(["inference", *words, "--slice_size", "[64, 64]", "--device", "cpu", *more])
    except SystemExit as end:
        return str(end.code)
    return ""


def in_world(segmentation: Any, segment: int) -> set[tuple[float, ...]]:
    """The RAS places, mm, of a segment's voxels, by the header of each frame."""
    places = set()
    shared = segmentation.SharedFunctionalGroupsSequence[0]
    right, down = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    between_rows, between_columns = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    frames = segmentation.pixel_array
    for frame, about in zip(frames, segmentation.PerFrameFunctionalGroupsSequence, strict=True):
        if about.SegmentIdentificationSequence[0].ReferencedSegmentNumber == segment:
            first = np.array(about.PlanePositionSequence[0].ImagePositionPatient, float)
            for row, column in np.argwhere(frame):
                lps = first + right * between_columns * column + down * between_rows * row
                places.add(tuple((lps * (-1, -1, 1)).round(2) + 0.0))
    return places


def of_mask(path: Path, organ: int) -> set[tuple[float, ...]]:
    mask: Any = nibabel.load(path)
    index = np.argwhere(np.asarray(mask.dataobj) == organ)
    return {tuple(place) for place in nibabel.affines.apply_affine(mask.affine, index).round(2) + 0.0}


def test_the_series_of_an_archive_become_segmentations_of_their_own_images(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = run(archive, tmp_path / "out")
    assert last.startswith("error: 2 scans could not be used; all others are finished:")
    told = "".join(capsys.readouterr())
    assert "3 scans: 1 to segment, 0 with a finished mask, 2 unusable" in told
    assert f"cannot use {archive / 'p3/ct'}: a DICOM segmentation needs a series of single slices" in told
    assert "a DICOM segmentation must refer to its images, but the header has no StudyInstanceUID" in told
    assert f"left alone in {archive}: 1 SR" in told
    assert "Traceback" not in told
    assert "copy" not in told, "highdicom tells every attribute that it copies"

    masks = tmp_path / "out/masks"
    assert sorted(path.name for path in masks.glob("p*")) == ["p2_ct.nii.gz", "p2_ct.seg.dcm"]
    made = highdicom.seg.segread(masks / "p2_ct.seg.dcm")
    assert [one.SegmentLabel for one in made.SegmentSequence] == list(ORGANS.values())
    for organ in ORGANS:
        assert in_world(made, organ) == of_mask(masks / "p2_ct.nii.gz", organ) != set()
    images = {one.SOPInstanceUID: one for one in map(pydicom.dcmread, (archive / "p2/ct").iterdir())}
    for frame in made.PerFrameFunctionalGroupsSequence:
        (source,) = frame.DerivationImageSequence[0].SourceImageSequence
        image = images[source.ReferencedSOPInstanceUID]
        np.testing.assert_allclose(frame.PlanePositionSequence[0].ImagePositionPatient, image.ImagePositionPatient)


def test_a_segmentation_made_here_is_the_label_of_its_series_in_the_next_run(archive: Path, tmp_path: Path) -> None:
    run(archive, tmp_path / "out")
    made = tmp_path / "out/masks/p2_ct.seg.dcm"
    made.rename(archive / "p2/corrected.dcm")
    labels = {Path(scan["image"]).parent.name: scan["label"] for scan in find_support(dataset_dir=archive)}
    assert labels == {"p1": str(archive / "p1/seg.dcm"), "p2": str(archive / "p2/corrected.dcm")}
    again = load_volume(labels["p2"])
    first: Any = nibabel.load(tmp_path / "out/masks/p2_ct.nii.gz")
    counts = [[int((np.asarray(one) == organ).sum()) for organ in ORGANS] for one in (again, first.dataobj)]
    assert counts[0] == counts[1]
    assert min(counts[0]) > 0


def test_a_dry_run_names_the_series_that_no_segmentation_can_refer_to(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(archive, tmp_path / "out", "--dry_run", "true") == ""
    assert f"cannot use {archive / 'p3/ct'}: a DICOM segmentation needs" in "".join(capsys.readouterr())
    assert not (tmp_path / "out/masks").exists()
