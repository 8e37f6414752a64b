"""What is left of a folder of DICOM series: counted in one line, whatever its depth."""

from __future__ import annotations

from pathlib import Path

import pytest
from bundle.data import find_scans, find_support
from bundle.data.survey import survey
from pydicom.uid import generate_uid
from tests.data.dicom import write_segmentation, write_series, write_without_pixels
from tests.prepare.downloads import Acquisition

SMALL = Acquisition(size=(12, 10, 3))


def told(folder: Path, series: str | None = None) -> list[str]:
    support = find_support(dataset_dir=folder, needed=False, series=series)
    scans = find_scans(folder, support, series=series)
    lines = survey(scans, scans, support, folder).lines
    assert len(lines) <= 5
    return [line.removeprefix(f"left alone in {folder}: ") for line in lines if line.startswith("left alone")]


def test_files_without_pixels_are_counted_by_their_modality_at_any_depth(tmp_path: Path) -> None:
    write_series(tmp_path / "p1/study/ct", SMALL)
    for number in range(2):
        write_without_pixels(tmp_path / f"p1/study/ct/plan{number}.dcm", "RTSTRUCT")
    write_without_pixels(tmp_path / "p1/reports/a.dcm", "SR")
    (tmp_path / "p1/.DS_Store").touch()
    assert told(tmp_path) == ["2 RTSTRUCT, 1 SR"]


def test_the_series_folder_itself_may_hold_other_files(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", SMALL)
    assert told(tmp_path / "ct") == []
    write_without_pixels(tmp_path / "ct/report.dcm", "SR")
    (tmp_path / "ct/notes.txt").touch()
    assert told(tmp_path / "ct") == ["1 .txt, 1 SR"]


def test_folders_without_the_chosen_series_are_named_and_other_series_are_counted(tmp_path: Path) -> None:
    for patient, descriptions in {"p1": ["t1", "t2"], "p2": ["t1"], "p3": ["t2"], "p4": ["t1", "dwi"]}.items():
        for number, description in enumerate(descriptions):
            write_series(tmp_path / patient, SMALL, SeriesNumber=number, SeriesDescription=description)
    assert told(tmp_path, "t2") == ["2 folders without the chosen series (p2, p4), 1 other series (see the key series)"]


def test_a_segmentation_of_another_series_is_counted_and_that_of_a_scan_is_not(tmp_path: Path) -> None:
    uid = generate_uid()
    write_series(tmp_path / "p1/ct", SMALL, uid=uid)
    write_series(tmp_path / "p2/ct", SMALL)
    write_segmentation(tmp_path / "p1/seg.dcm", Acquisition(size=(40, 48, 8)), {1: "Liver"}, series=uid)
    assert told(tmp_path) == []
    write_segmentation(tmp_path / "p2/seg.dcm", Acquisition(size=(40, 48, 8)), {1: "Liver"}, series="1.2.3")
    assert told(tmp_path) == ["1 SEG"]


@pytest.mark.parametrize("place", ["images/a", "images/b/deeper"])
def test_series_in_images_are_looked_through_too(tmp_path: Path, place: str) -> None:
    write_series(tmp_path / "images/a", SMALL)
    write_without_pixels(tmp_path / place / "report.dcm", "SR")
    assert told(tmp_path) == [f"left alone in {tmp_path / 'images'}: 1 SR"]
