"""Files for viewers, read back by other programs or by hand: the same voxels in the same place, with names."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from bundle.evaluation.viewer_files import (
    check_format,
    organ_colors,
    save_per_organ,
    save_segmentation,
    write_names,
    writer_of,
)
from monai.data import MetaTensor

ORGANS = {"right kidney": 2, "blob": 300}
# Oblique: rows to the back and a little up, columns to the left, slices up.
AFFINE = np.array([[0, -2.0, 0, 11.0], [-1.5, 0, 0.4, 23.0], [0.3, 0, 5.0, -7.0], [0, 0, 0, 1.0]])


def label_map() -> MetaTensor:
    values = torch.zeros(1, 4, 5, 6, dtype=torch.int16)
    values[0, 1:3, 2, 0:4] = 2
    values[0, 3, 4, 5] = 300
    return MetaTensor(values, affine=torch.as_tensor(AFFINE))


@pytest.fixture
def segmentation(tmp_path: Path) -> Path:
    save_segmentation(label_map(), tmp_path / "scan", ORGANS, "scan.nii.gz")
    return tmp_path / "scan.seg.nrrd"


def test_a_segmentation_has_voxels_place_and_names_as_nrrd_defines_them(segmentation: Path) -> None:
    header, _, voxels = segmentation.read_bytes().partition(b"\n\n")
    fields = dict(re.split(r":=|: ", line, maxsplit=1) for line in header.decode().splitlines()[1:])
    values = np.frombuffer(gzip.decompress(voxels), "<i2").reshape((4, 5, 6), order="F")
    np.testing.assert_array_equal(values, label_map()[0].numpy())
    assert fields["space"] == "left-posterior-superior"
    # The third axis steps by (0, 0.4, 5) mm to right, front, up: (0, -0.4, 5) to left, back, up.
    last = [float(n) for n in fields["space directions"].split()[2].strip("()").split(",")]
    np.testing.assert_allclose(last, [0, -0.4, 5.0], atol=1e-6)
    np.testing.assert_allclose([float(n) for n in fields["space origin"].strip("()").split(",")], [-11, -23, -7])
    assert (fields["Segment0_Name"], fields["Segment0_LabelValue"]) == ("right kidney", "2")
    assert (fields["Segment1_Name"], fields["Segment1_LabelValue"]) == ("blob", "300")


def test_simple_itk_reads_a_segmentation_in_its_place(segmentation: Path) -> None:
    itk = pytest.importorskip("SimpleITK")
    image = itk.ReadImage(str(segmentation))
    np.testing.assert_array_equal(itk.GetArrayFromImage(image).T, label_map()[0].numpy())
    assert image.GetMetaData("Segment0_Name") == "right kidney"
    place = AFFINE @ [3, 4, 5, 1]
    np.testing.assert_allclose(
        image.TransformIndexToPhysicalPoint((3, 4, 5)), [-place[0], -place[1], place[2]], atol=1e-5
    )


def test_each_organ_gets_a_file_of_its_own_on_the_grid(tmp_path: Path) -> None:
    save_per_organ(label_map(), tmp_path / "scan", ORGANS, "gone.nii.gz")
    assert sorted(path.name for path in (tmp_path / "scan").iterdir()) == ["blob.nii.gz", "right kidney.nii.gz"]
    mask = nibabel.load(tmp_path / "scan" / "right kidney.nii.gz")
    np.testing.assert_array_equal(mask.dataobj, label_map()[0].numpy() == 2)
    np.testing.assert_allclose(mask.affine, AFFINE, atol=1e-6)


def test_names_and_colors_lie_beside_the_masks(tmp_path: Path) -> None:
    write_names(tmp_path, {'a "b"\nc': 7, "liver": 3})
    assert json.loads((tmp_path / "organs.json").read_text(encoding="utf-8"))[0] == {
        "id": 3,
        "name": "liver",
        "color": [221, 130, 101],
    }
    snap = (tmp_path / "itksnap_labels.txt").read_text(encoding="utf-8").splitlines()
    assert snap[1] == '3 221 130 101 1 1 1 "liver"'
    assert snap[2].endswith("\"a 'b' c\"")
    slicer = (tmp_path / "slicer_colors.ctbl").read_text(encoding="utf-8").splitlines()
    assert slicer[2] == "3 liver 221 130 101 255"
    assert len(slicer) == 4, "a name stays on its line"


def test_known_organs_have_their_usual_colors_and_others_those_of_the_pictures() -> None:
    assert organ_colors({"Left Kidney": 1, "blob": 2}) == {"Left Kidney": (185, 102, 83), "blob": (77, 187, 213)}


def test_another_format_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"output_format must be one of nifti, seg\.nrrd, dicom_seg, per_organ, got 'dicom'"
    ):
        writer_of("dicom")


def test_dicom_segmentations_need_a_package_which_is_named_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bundle.evaluation.dicom_seg.find_spec", lambda _: None)
    with pytest.raises(
        ValueError, match=r"dicom_seg needs the package highdicom: pip install 'ssl-alpnet-bundle\[dicom\]'\."
    ):
        check_format("dicom_seg", [])
