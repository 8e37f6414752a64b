"""A training goes on with what it was begun with, and ends with the evaluation that a kill had cut off."""

from __future__ import annotations

import errno
import re
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from bundle.command_line.errors import sentence_of
from bundle.data.phantoms import write_phantoms
from bundle.evaluation.handlers import SaveMasks
from tests.test_workflows import command, train  # noqa: F401  (command is a fixture)

TINY: dict[str, Any] = {"max_epochs": 1, "epoch_length": 1, "num_workers": 0, "slice_size": [64, 64]}


def begin(output: Path, study: Path, **keys: Any) -> None:
    train(output, dataset_dir=str(study), **{**TINY, "fold": 0, "validate#dataset#enabled": False, **keys})


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five annotated phantoms."""
    return write_phantoms(tmp_path_factory.mktemp("study") / "five", unlabeled=0, labeled=5, size=(64, 64, 4))


@pytest.fixture(scope="module")
def begun(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of fold 0."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["monai.bundle", "run"])
        begin(tmp_path_factory.mktemp("begun"), study)
    return tmp_path_factory.getbasetemp() / "begun0"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fold": 1}, "fold was 0, is 1"),
        ({"slice_size": [64, 80]}, r"dataset::transform::transforms::0::.*size was \[64, 64\], is \[64, 80\]"),
        ({"superpixel_size": 50}, "::arguments::min_size was .*, is 50"),
        ({"intensity#percentile": 90.0}, r"percentile was 99\.5, is 90\.0"),
        ({"train#dataset#min_area": 20}, "dataset::min_area was 64, is 20"),
        ({"loss#background_weight": 0.5}, r"loss::.*background_weight was 0\.05, is 0\.5"),
        ({"optimizer#momentum": 0.5}, r"optimizer::groups::0::momentum was 0\.9, is 0\.5"),
        ({"lr_scheduler#gamma": 0.5}, r"lr_scheduler::gamma was 0\.95, is 0\.5"),
        ({"network_def#background#window": 2}, "network::background::.*window was .*4.*, is .*2"),
    ],
)
def test_a_training_does_not_go_on_with_something_else(
    begun: Path, study: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    shutil.copytree(begun, tmp_path / "again")
    with pytest.raises(RuntimeError) as caught:
        begin(tmp_path / "again", study, resume=True, max_epochs=2, **change)
    sentence = str(sentence_of(caught.value))
    assert re.search(rf"was made with other settings: .*{words}", sentence), sentence


def test_a_training_does_not_go_on_with_other_voxels(begun: Path, study: Path, tmp_path: Path) -> None:
    shutil.copytree(begun, tmp_path / "again")
    shutil.copytree(study, tmp_path / "study")
    path = tmp_path / "study" / "images" / "phantom_04.nii.gz"
    scan = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.asarray(scan.dataobj) + np.int16(1), scan.affine), path)
    begin(tmp_path / "again", study, resume=True, max_epochs=1)
    with pytest.raises(RuntimeError) as caught:
        begin(tmp_path / "again", tmp_path / "study", resume=True, max_epochs=2)
    assert "dataset::scans was ['phantom_02.nii.gz " in str(sentence_of(caught.value))


def test_an_evaluation_that_was_cut_off_after_the_last_step_is_done_on_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = TINY | {"val_interval": 1}
    train(tmp_path / "whole", **keys)
    with monkeypatch.context() as patch:
        patch.setattr(SaveMasks, "__call__", cut_off(SaveMasks.__call__))
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "cut", **keys)
    rows = [(tmp_path / name / "dice.csv").read_text().splitlines() for name in ("whole", "cut")]
    assert len(rows[1]) < len(rows[0])
    train(tmp_path / "cut", resume=True, **keys)
    for name in ("dice.csv", "masks/volumes.csv", "model.pt"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    masks = [nibabel.load(tmp_path / name / "masks" / "phantom_03.nii.gz").get_fdata() for name in ("whole", "cut")]
    np.testing.assert_array_equal(*masks)


def cut_off(save: Any) -> Any:
    def saved(self: SaveMasks, engine: Any) -> None:
        if engine.state.epoch == 1:
            raise KeyboardInterrupt
        save(self, engine)

    return saved


def test_a_full_disk_is_a_sentence_wherever_it_is_met() -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "training.csv")
    error = RuntimeError("Failed to evaluate")
    error.__cause__ = full
    assert sentence_of(error) == (
        "a file cannot be written ([Errno 28] No space left on device: 'training.csv'). Free space there, or choose a "
        "folder on another disk, and rerun the command."
    )
    error.__cause__ = OSError(errno.EIO, "Input/output error")
    assert sentence_of(error) is None
