"""DICOM segmentations as label maps: on the grid of their series, with the names of their segments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from bundle.data.reader import FileError, ScanReader, load_label
from bundle.transforms import CheckLabeld
from bundle.transforms.own_grid import on_grid_of
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, LoadImage, LoadImaged
from pydicom.uid import SegmentationStorage
from tests.data.dicom import ACQUISITIONS, groups_of, shared_of, write_frames, write_segmentation, write_series
from tests.prepare.downloads import Acquisition, label_at

ORGANS = {1: "Liver", 2: "Right kidney", 3: "Left kidney", 4: "Spleen"}
SMALL = Acquisition(size=(40, 48, 8))


@pytest.fixture(params=ACQUISITIONS.values(), ids=ACQUISITIONS.keys())
def taken(request: pytest.FixtureRequest) -> Acquisition:
    return request.param


def read(series: Path, label: Path) -> dict[str, Any]:
    both = ["image", "label"]
    steps = [LoadImaged(both, reader=ScanReader(), image_only=True), EnsureChannelFirstd(both), CheckLabeld("label")]
    return Compose(steps)({"image": str(series), "label": str(label)})


def places_of(volume: Any) -> np.ndarray:
    affine = np.asarray(volume.affine)
    index = np.stack(np.meshgrid(*map(np.arange, volume.shape[-3:]), indexing="ij"), axis=-1)
    return (index @ affine[:3, :3].T + affine[:3, 3]).round(9)


def test_each_voxel_of_the_series_has_its_organ(tmp_path: Path, taken: Acquisition) -> None:
    write_series(tmp_path / "series", taken)
    path = write_segmentation(tmp_path / "seg.dcm", taken, ORGANS)
    found = read(tmp_path / "series", path)
    np.testing.assert_array_equal(np.asarray(found["label"])[0], label_at(places_of(found["image"])))
    assert found["label"].meta["organ_names"] == ORGANS
    np.testing.assert_array_equal(np.asarray(found["label"].affine), np.asarray(found["image"].affine))


def test_planes_that_were_not_annotated_stay_empty(tmp_path: Path) -> None:
    write_series(tmp_path / "series", SMALL)
    path = write_segmentation(tmp_path / "seg.dcm", SMALL, ORGANS, planes=[2, 4, 6])
    found = read(tmp_path / "series", path)
    expected = label_at(places_of(found["image"]))
    expected[..., [0, 1, 3, 5, 7]] = 0
    np.testing.assert_array_equal(np.asarray(found["label"])[0], expected)


def test_a_single_plane_is_enough(tmp_path: Path) -> None:
    write_series(tmp_path / "series", SMALL)
    path = write_segmentation(tmp_path / "seg.dcm", SMALL, ORGANS, planes=[4])
    found = read(tmp_path / "series", path)
    assert np.asarray(found["label"])[0].any(axis=(0, 1)).nonzero()[0].tolist() == [4]


def test_a_finer_segmentation_is_sampled_at_the_voxels_of_the_image(tmp_path: Path) -> None:
    fine = Acquisition(size=(120, 144, 24), spacing=(1.0, 2.5 / 3, 8.0 / 3))  # each voxel in three along each axis
    write_series(tmp_path / "series", SMALL)
    found = read(tmp_path / "series", write_segmentation(tmp_path / "seg.dcm", fine, ORGANS))
    np.testing.assert_array_equal(np.asarray(found["label"])[0], label_at(places_of(found["image"])))


def test_the_truth_of_an_evaluation_lies_on_its_image(tmp_path: Path) -> None:
    write_series(tmp_path / "series", SMALL)
    path = write_segmentation(tmp_path / "seg.dcm", SMALL, ORGANS)
    image = LoadImage(reader=ScanReader(), image_only=True)(tmp_path / "series")[None]
    np.testing.assert_array_equal(load_label(path, image).numpy(), label_at(places_of(image)))


def test_a_label_map_of_ids_is_read(tmp_path: Path) -> None:
    write_series(tmp_path / "series", SMALL)
    label, places = label_at(SMALL.places()), SMALL.places()
    binary = write_segmentation(tmp_path / "seg.dcm", SMALL, ORGANS)
    path = write_frames(
        tmp_path / "map.dcm", np.moveaxis(label, -1, 0), SegmentationStorage, 8,
        SegmentationType="LABELMAP",
        SegmentSequence=pydicom.dcmread(binary).SegmentSequence,
        SharedFunctionalGroupsSequence=[shared_of(SMALL)],
        PerFrameFunctionalGroupsSequence=[groups_of(places[0, 0, k]) for k in range(SMALL.size[2])],
    )  # fmt: skip
    found = read(tmp_path / "series", path)
    np.testing.assert_array_equal(np.asarray(found["label"])[0], label_at(places_of(found["image"])))


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"SegmentationType": "FRACTIONAL"}, "its type must be BINARY or LABELMAP, got FRACTIONAL; save it"),
        ({"PerFrameFunctionalGroupsSequence": []}, r"a file of \d+ frames must place each of them, but places 0"),
    ],
)
def test_what_is_no_label_map_is_refused(tags: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = write_segmentation(tmp_path / "seg.dcm", SMALL, ORGANS, **tags)
    with pytest.raises(FileError, match=words):
        LoadImage(reader=ScanReader(), image_only=True)(path)


def test_segments_that_overlap_are_named(tmp_path: Path) -> None:
    label = np.ones((40, 48, 8), np.uint8)
    path = write_segmentation(tmp_path / "seg.dcm", SMALL, {1: "Liver"}, label=label)
    data = pydicom.dcmread(path)
    data.SegmentSequence = [*data.SegmentSequence, *pydicom.dcmread(path).SegmentSequence]
    data.SegmentSequence[1].SegmentNumber, data.SegmentSequence[1].SegmentLabel = 2, "Tumor"
    frames = data.PerFrameFunctionalGroupsSequence
    frames[1].PlanePositionSequence = frames[0].PlanePositionSequence
    frames[1].SegmentIdentificationSequence[0].ReferencedSegmentNumber = 2
    data.save_as(path)
    with pytest.raises(FileError, match="a voxel can belong to one organ, but Liver and Tumor overlap"):
        LoadImage(reader=ScanReader(), image_only=True)(path)


def test_a_segmentation_of_another_place_is_refused(tmp_path: Path) -> None:
    label = MetaTensor(torch.ones(1, 4, 4, 2), affine=torch.diag(torch.tensor([1.0, 1, 1, 1])), meta={"own_grid": True})
    far = torch.eye(4, dtype=torch.float64)
    far[0, 3] = 100
    with pytest.raises(ValueError, match=r"must lie on its image, but none of its voxels does\. Are the two files"):
        on_grid_of(label, MetaTensor(torch.zeros(1, 4, 4, 2), affine=far))


def test_a_label_map_of_another_format_is_not_moved(tmp_path: Path) -> None:
    label = MetaTensor(torch.ones(1, 4, 4, 2), affine=2 * torch.eye(4))
    assert on_grid_of(label, MetaTensor(torch.zeros(1, 4, 4, 2), affine=torch.eye(4))) is label
