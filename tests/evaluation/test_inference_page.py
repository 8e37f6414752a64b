"""The page of an inference: scans in the order to look at them, contours in their place, and nothing from elsewhere."""

from __future__ import annotations

import base64
import re
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle.evaluation.inference_page import WIDTH, write_page
from bundle.files import write_csv, write_json
from PIL import Image
from tests.data.scans import write_nifti

HEADER = ["scan", "organ", "voxels", "milliliters", "quality", "notice"]
ORGANS = {"liver": 1, "spot": 2}
# The file's axes run to the left, the front and up; a voxel is 2 x 2 x 5 mm.
AFFINE = np.array([[-2.0, 0, 0, 40.0], [0, 2.0, 0, -30.0], [0, 0, 5.0, 7.0], [0, 0, 0, 1.0]])


def folder_of(place: Path, rows: list[list[str]], names: list[str]) -> dict[str, str]:
    """Masks with a block of the organ ``spot`` at the patient's left and front, in the slices 2 to 6."""
    label = np.zeros((40, 30, 9), dtype=np.uint8)
    label[28:36, 20:28, 2:7] = 2
    for name in names:
        write_nifti(place / "masks" / f"{name}.nii.gz", label, AFFINE)
        write_nifti(place / f"{name}.nii.gz", np.full((40, 30, 9), 100, dtype=np.int16), AFFINE)
    write_csv(place / "masks" / "volumes.csv", [HEADER, *rows])
    return {name: str(place / f"{name}.nii.gz") for name in names}


def page_of(place: Path, rows: list[list[str]], names: list[str], organs: Any = None, **more: Any) -> str:
    images = folder_of(place, rows, names)
    write_page(place / "index.html", place / "masks", organs or ORGANS, images, **more)
    return (place / "index.html").read_text(encoding="utf-8")


def row(scan: str, organ: str = "spot", ml: str = "6.40", quality: str = "0.9000", notice: str = "") -> list[str]:
    return [scan, organ, "320", ml, quality, notice]


def order(page: str) -> list[str]:
    body = page.split("<tbody>")[1].split("</tbody>")[0]
    return re.findall(r"<tr><td>(?:<a [^>]*>)?([^<]+)<", body)


def test_scans_with_notices_come_first_then_those_of_low_quality(tmp_path: Path) -> None:
    rows = [
        row("a"),
        row("b", quality="0.6000"),
        row("c", notice="far larger than in the support"),
        row("d", quality=""),
    ]
    assert order(page_of(tmp_path, rows, ["a", "b", "c", "d"])) == ["c", "b", "a", "d"]


def test_a_volume_far_from_the_cohorts_is_a_reason_to_look(tmp_path: Path) -> None:
    rows = [row(f"s{number}", ml=f"{100 + number}.0") for number in range(8)] + [row("odd", ml="300.0")]
    page = page_of(tmp_path, rows, ["odd"])
    assert order(page)[0] == "odd"
    assert "spot: unusual volume of 300.0 ml" in page
    few = page_of(tmp_path / "few", rows[5:], ["odd"])
    assert "unusual volume" not in few, "of four scans none is unusual"


def test_a_contour_lies_where_the_organ_is_as_radiologists_see_it(tmp_path: Path) -> None:
    page = page_of(tmp_path, [row("a")], ["a"])
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)" alt="a, spot, slice (\d)', page)
    assert [number for _, number in pictures] == ["3", "4", "5"]
    pixels = np.asarray(Image.open(BytesIO(base64.b64decode(pictures[0][0])))).astype(int)
    assert pixels.shape == (round(WIDTH * 60 / 80), WIDTH, 3)
    rows, columns = np.nonzero(np.ptp(pixels, axis=2) > 60)  # the contour alone has a color
    # The patient's left is at the picture's right; the front is its top.
    assert columns.min() / WIDTH == pytest.approx(28 / 40, abs=0.02)
    assert columns.max() / WIDTH == pytest.approx(36 / 40, abs=0.02)
    assert rows.min() / pixels.shape[0] == pytest.approx(2 / 30, abs=0.03)
    assert rows.max() / pixels.shape[0] == pytest.approx(10 / 30, abs=0.03)


def test_the_slice_of_the_lowest_confidence_is_shown_and_marked(tmp_path: Path) -> None:
    place = [40.0, -30.0, 7.0 + 5 * 6, 0.614]  # in the slice 6
    write_json(tmp_path / "masks/quality/a.json", {"spot": ["0.9000", "", place], "liver": ["0.9000", ""]})
    page = page_of(tmp_path, [row("a"), row("b")], ["a", "b"])
    usual = ["slice 3", "slice 4", "slice 5"]
    assert re.findall(r"<small>([^<]*)</small>", page) == [*usual, "slice 6, least confident: 61", *usual]
    write_json(tmp_path / "masks/quality/a.json", {"spot": ["0.9000", "", [40.0, -30.0, 7.0 + 5 * 4, 0.5]]})
    page = page_of(tmp_path, [row("a")], ["a"])
    assert re.findall(r"<small>([^<]*)</small>", page) == ["slice 3", "slice 4, least confident: 50", "slice 5"]


def test_pictures_are_of_the_scans_to_look_at_first_alone(tmp_path: Path) -> None:
    rows = [row("a"), row("b", quality="0.6000")]
    page = page_of(tmp_path, rows, ["a", "b"], shown=1)
    assert page.count("<figure>") == 1
    assert 'alt="b, spot' in page


def test_of_many_organs_those_of_the_lowest_quality_have_pictures(tmp_path: Path) -> None:
    organs = {f"organ {number}": number for number in range(1, 118)}
    label = np.zeros((40, 30, 9), dtype=np.uint8)
    label.reshape(-1)[: 117 * 4] = np.repeat(np.arange(1, 118), 4)
    rows = [row("a", name, quality=f"{0.5 + number / 1000:.4f}") for name, number in organs.items()]
    images = folder_of(tmp_path, rows, ["a"])
    write_nifti(tmp_path / "masks" / "a.nii.gz", label, AFFINE)
    write_page(tmp_path / "index.html", tmp_path / "masks", organs, images)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert page.count("<figure>") == 12
    assert "<b>organ 12</b>" in page
    assert "<b>organ 13</b>" not in page
    assert "105 more stand in volumes.csv" in page
    assert len(page) < 1_000_000


def test_the_page_needs_nothing_else_and_trusts_no_name(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    page = page_of(tmp_path, [row("a", evil, notice=evil)], ["a"], {evil: 2})
    assert evil not in page
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    assert "default-src 'none'" in page
    assert page.endswith("</html>\n")
