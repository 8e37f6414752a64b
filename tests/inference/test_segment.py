"""Segmentation in one call: the command's mask, in the type of the volume."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import bundle
import nibabel
import numpy as np
import pytest
import torch
from bundle.data.in_memory import as_volume, mask_like
from bundle.data.loading import ScanError
from bundle.data.phantoms import write_phantoms
from bundle.data.reader import load_volume
from bundle.inference import segment as module
from monai.bundle import ConfigWorkflow
from monai.data import MetaTensor
from pydicom.uid import generate_uid
from tests.data.dicom import write_segmentation, write_series
from tests.data.scans import noise_volume, write_nifti
from tests.prepare.downloads import Acquisition, label_at

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL: dict[str, Any] = {"slice_size": [64, 64], "device": "cpu"}
OBLIQUE = np.array([[-1.2, 0.3, 0, 20.0], [0.3, 1.2, 0.1, -30.0], [0, -0.1, 4.0, 7.0], [0, 0, 0, 1.0]])


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An annotated scan, 01, and one to segment, 00."""
    folder = tmp_path_factory.mktemp("data") / "phantoms"
    return write_phantoms(folder, unlabeled=1, labeled=1, size=[64, 60, 6], modality="mr", noise=20.0)


@pytest.fixture(scope="module")
def segmenter(phantoms: Path) -> bundle.Segmenter:
    return bundle.Segmenter(*annotated(phantoms), **SMALL)


def annotated(phantoms: Path) -> tuple[str, str]:
    return str(phantoms / "images/phantom_01.nii.gz"), str(phantoms / "labels/phantom_01.nii.gz")


def query(phantoms: Path) -> str:
    return str(phantoms / "images/phantom_00.nii.gz")


@pytest.fixture(scope="module")
def mask(segmenter: bundle.Segmenter, phantoms: Path) -> nibabel.Nifti1Image:
    """Of the query, given as a path."""
    return segmenter(query(phantoms))


def test_the_mask_is_the_one_that_the_command_writes(
    mask: nibabel.Nifti1Image, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["monai.bundle", "run"])
    image, label = annotated(phantoms)
    keys = {"dataset_dir": query(phantoms), "support_image": image, "support_label": label, **SMALL}
    places = {"bundle_root": str(CONFIGS.parent), "output_dir": str(tmp_path)}
    command = ConfigWorkflow(str(CONFIGS / "inference.yaml"), workflow_type="infer", **keys, **places)
    command.initialize()
    command.run()
    written = nibabel.load(tmp_path / "masks/phantom_00.nii.gz")
    np.testing.assert_array_equal(mask.get_fdata(), written.get_fdata())
    np.testing.assert_array_equal(mask.affine, written.affine)
    assert np.asarray(mask.dataobj).sum() > 30, "the claim is empty without an organ"


def test_a_nibabel_image_gets_a_nibabel_image_of_the_same_voxels(
    segmenter: bundle.Segmenter, mask: nibabel.Nifti1Image, phantoms: Path
) -> None:
    found = segmenter(nibabel.load(query(phantoms)))
    assert isinstance(found, nibabel.Nifti1Image)
    np.testing.assert_array_equal(found.dataobj, mask.dataobj)
    np.testing.assert_array_equal(found.affine, mask.affine)


@pytest.mark.parametrize("channels", [0, 1])
def test_a_meta_tensor_gets_a_meta_tensor_of_its_shape(
    channels: int, segmenter: bundle.Segmenter, mask: nibabel.Nifti1Image, phantoms: Path
) -> None:
    given = MetaTensor(load_volume(query(phantoms)), affine=torch.as_tensor(nibabel.load(query(phantoms)).affine))
    found = segmenter(given[None] if channels else given)
    assert isinstance(found, MetaTensor)
    assert found.shape == ((1,) * channels) + (60, 64, 6)
    np.testing.assert_array_equal(found.numpy().reshape(60, 64, 6), mask.dataobj)
    torch.testing.assert_close(found.affine, given.affine)


def test_a_simple_itk_image_gets_a_simple_itk_image_in_the_same_place(
    segmenter: bundle.Segmenter, mask: nibabel.Nifti1Image, phantoms: Path
) -> None:
    itk = pytest.importorskip("SimpleITK")
    given = itk.ReadImage(query(phantoms))
    found = segmenter(given)
    np.testing.assert_array_equal(itk.GetArrayFromImage(found), np.asarray(mask.dataobj).T)
    assert found.GetOrigin() == given.GetOrigin()
    assert found.GetDirection() == given.GetDirection()
    np.testing.assert_allclose(as_volume(given).affine, nibabel.load(query(phantoms)).affine, atol=1e-4)


def test_annotated_volumes_may_be_objects(mask: nibabel.Nifti1Image, phantoms: Path) -> None:
    image, label = annotated(phantoms)
    found = bundle.segment(nibabel.load(query(phantoms)), nibabel.load(image), [as_volume(label)], **SMALL)
    np.testing.assert_array_equal(found.dataobj, mask.dataobj)


def test_the_support_is_encoded_once_for_many_calls(
    segmenter: bundle.Segmenter, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(*_: Any, **__: Any) -> None:
        raise AssertionError("the support is encoded again")

    monkeypatch.setattr(segmenter._inferer.matching, "encode", encode)
    segmenter(query(phantoms))


def test_quality_and_notices_go_with_the_names_of_organs(phantoms: Path) -> None:
    organs = {"gland": 2, "vessel": 1}
    found = bundle.Segmenter(*annotated(phantoms), organs=organs, **SMALL).assess(query(phantoms))
    assert set(found.quality) == set(organs)
    assert all(0 <= value <= 1 for value in found.quality.values())
    assert set(found.notices) <= {*organs, module.WHOLE_SCAN}


def test_a_volume_keeps_an_oblique_place(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "scan.nii.gz", noise_volume(), OBLIQUE)
    image = nibabel.load(path)
    volume = as_volume(image)
    np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-5)
    torch.testing.assert_close(volume.as_tensor(), as_volume(path).as_tensor())
    np.testing.assert_array_equal(mask_like(volume[None].byte(), image).affine, image.affine)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (np.zeros((4, 4, 4)), "An array does not say where its voxels lie"),
        (MetaTensor(torch.zeros(2, 4, 4, 4)), "a volume must have three axes, got 2 x 4 x 4 x 4"),
        ("missing.nii.gz", "missing.nii.gz: there is no such image file"),
    ],
)
def test_what_is_no_volume_is_refused_in_one_sentence(given: Any, words: str, segmenter: bundle.Segmenter) -> None:
    with pytest.raises(ScanError, match=words):
        segmenter(given)


def test_as_many_labels_as_images_are_needed() -> None:
    with pytest.raises(ValueError, match="every support image needs its label map, got 2 images and 1 labels"):
        bundle.Segmenter(["a.nii.gz", "b.nii.gz"], "a.nii.gz")
    with pytest.raises(ValueError, match="no annotated scan was given"):
        bundle.Segmenter()


def test_a_misspelt_key_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown key 'slice_sise'"):
        bundle.Segmenter("a.nii.gz", "b.nii.gz", slice_sise=[64, 64])


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, bundle; assert 'torch' not in sys.modules; bundle.segment; assert 'torch' in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_folder_of_series_is_segmented_as_their_volumes_in_nifti_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, uid = Acquisition(down=(0, 0, -1), size=(48, 40, 8), spacing=(2.5, 3.0, 9.0)), generate_uid()
    write_series(tmp_path / "in/a/ct", taken, uid=uid)
    write_series(tmp_path / "in/b/ct", taken, RescaleIntercept=7)
    write_segmentation(tmp_path / "in/a/seg.dcm", taken, {1: "Liver", 4: "Spleen"}, series=uid)
    monkeypatch.setattr(sys, "argv", ["monai.bundle", "run"])
    keys = {"dataset_dir": str(tmp_path / "in"), "output_dir": str(tmp_path / "out"), **SMALL}
    workflow = ConfigWorkflow(CONFIGS / "inference.yaml", workflow_type="infer", logging_file=False, **keys)
    workflow.initialize()
    workflow.run()
    shown, found = nibabel.load(tmp_path / "out/masks/b_ct.nii.gz"), load_volume(tmp_path / "in/b/ct")
    volumes = {name: as_volume(tmp_path / "in" / name / "ct") for name in ("a", "b")}
    np.testing.assert_allclose(shown.affine, volumes["b"].affine, atol=1e-4)
    truth = label_at(places_of(volumes["a"]))
    for name, values in {"a": volumes["a"], "b": found, "label": np.where(np.isin(truth, (1, 4)), truth, 0)}.items():
        write_nifti(tmp_path / f"{name}.nii.gz", np.asarray(values, np.float32), np.asarray(volumes["b"].affine))
    same = bundle.segment(*(tmp_path / f"{name}.nii.gz" for name in ("b", "a", "label")), **SMALL)
    np.testing.assert_array_equal(np.asarray(shown.dataobj), np.asarray(same.dataobj))
    assert "Spleen" in (tmp_path / "out/masks/organs.json").read_text()


def places_of(volume: MetaTensor) -> np.ndarray:
    affine = np.asarray(volume.affine)
    index = np.stack(np.meshgrid(*map(np.arange, volume.shape), indexing="ij"), axis=-1)
    return (index @ affine[:3, :3].T + affine[:3, 3]).round(9)
