"""Probabilities: sigmoids of the scores, in files that lie where the mask lies and agree with it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import torch
from bundle.data import ScanReader
from bundle.evaluation.probabilities import SaveProbabilities
from bundle.transforms import AddProbabilitiesd, FitSlicesd, ScoresToLabeld, SliceLayoutd
from bundle.transforms.volumes import restore_grid
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged
from tests.data.scans import write_nifti

ORGANS = {"liver": 1, "left/kidney": 7}
INFERER: Any = SimpleNamespace(organ_names=lambda: ORGANS)
AFFINE = np.array([[0, -4.0, 0, 11.0], [0, 0, -5.0, 23.0], [2.5, 0, 0, -7.0], [0, 0, 0, 1.0]])


def test_a_probability_is_the_sigmoid_of_the_score_to_a_byte() -> None:
    scores = torch.tensor([-6.0, -1.0, -1e-4, 0.0, 1e-4, 1.0, 6.0]).reshape(1, 7, 1, 1)
    found = AddProbabilitiesd("pred")({"pred": MetaTensor(scores)})["probabilities"]
    assert found.dtype == torch.uint8
    expected = 1 / (1 + np.exp(-scores.numpy()))
    np.testing.assert_allclose(found.numpy() / 255, expected, atol=1 / 255)
    assert [int(value) for value in found.flatten()[2:5]] == [127, 127, 128], "above 1/2 where the score is above 0"


def test_without_a_wish_nothing_is_added() -> None:
    data = {"pred": MetaTensor(torch.zeros(1, 2, 2, 2))}
    assert AddProbabilitiesd("pred", enabled=False)(data).keys() == {"pred"}


def test_files_lie_on_the_grid_of_the_scan_and_agree_with_its_mask(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "scan.nii.gz", np.ones((9, 20, 24), dtype=np.uint8), AFFINE)
    load = [LoadImaged("image", reader=ScanReader), EnsureChannelFirstd("image"), SliceLayoutd("image")]
    image = Compose([*load, FitSlicesd("image", size=(28, 32))])({"image": str(path)})["image"]
    scores = MetaTensor(torch.randn(2, *image.shape[1:]), meta={**image.meta, "organ_ids": torch.tensor([7, 1])})
    item = AddProbabilitiesd("pred")({"image": image, "pred": scores})
    mask = restore_grid(ScoresToLabeld("pred")(item)["pred"])[0].numpy()
    engine = Engine(lambda *_: [item])
    SaveProbabilities(tmp_path / "probabilities", INFERER).attach(engine)
    engine.run([0])
    files = sorted((tmp_path / "probabilities/scan").iterdir())
    assert [file.name.partition("-")[0] for file in files] == ["left_kidney", "liver.nii.gz"]
    kidney, liver = (nibabel.load(file) for file in files)
    assert kidney.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(kidney.affine, AFFINE)
    kidney, liver = kidney.get_fdata(), liver.get_fdata()
    assert 0 <= kidney.min() < kidney.max() <= 1
    inside = np.maximum(kidney, liver) > 0.5
    np.testing.assert_array_equal(mask > 0, inside)
    assert (kidney >= liver)[mask == 7].all()
    assert (liver >= kidney)[mask == 1].all()


def test_a_scan_without_probabilities_leaves_no_folder(tmp_path: Path) -> None:
    engine = Engine(lambda *_: [{"image": MetaTensor(torch.zeros(1, 2, 2, 2))}])
    SaveProbabilities(tmp_path / "probabilities", INFERER).attach(engine)
    engine.run([0])
    assert not list(tmp_path.iterdir())
