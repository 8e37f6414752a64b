"""Phantom scans: the same files from the same seed, and nothing of others is touched."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from bundle.data import phantoms
from bundle.data.phantoms import ORGANS, write_phantoms
from bundle.files import alone_in

SMALL: dict[str, Any] = {"unlabeled": 1, "labeled": 2, "size": (40, 48, 6)}


def volumes(folder: Path) -> dict[str, np.ndarray]:
    files = sorted(folder.glob("*/*.nii.gz"))
    return {str(path.relative_to(folder)): np.asarray(nibabel.load(path).dataobj) for path in files}


def test_the_labeled_scans_come_last_and_share_their_names_with_their_labels(tmp_path: Path) -> None:
    folder = write_phantoms(tmp_path / "phantom", **SMALL)
    assert list(volumes(folder)) == [
        *(f"images/phantom_{number:02d}.nii.gz" for number in (0, 1, 2)),
        *(f"labels/phantom_{number:02d}.nii.gz" for number in (1, 2)),
    ]


def test_the_same_seed_makes_the_same_volumes(tmp_path: Path) -> None:
    one, other = (volumes(write_phantoms(tmp_path / name, **SMALL, seed=3)) for name in ("a", "b"))
    assert all(np.array_equal(one[name], other[name]) for name in one | other)


def test_another_seed_makes_other_volumes(tmp_path: Path) -> None:
    one, other = (volumes(write_phantoms(tmp_path / f"{seed}", **SMALL, seed=seed)) for seed in (3, 4))
    assert not any(np.array_equal(one[name], other[name]) for name in one)


def test_no_two_patients_are_alike(tmp_path: Path) -> None:
    found = volumes(write_phantoms(tmp_path / "phantom", **SMALL))
    assert not np.array_equal(found["labels/phantom_01.nii.gz"], found["labels/phantom_02.nii.gz"])


def test_the_same_study_is_not_written_again(tmp_path: Path) -> None:
    folder = write_phantoms(tmp_path / "phantom", **SMALL)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    write_phantoms(folder, **(SMALL | {"size": [40, 48, 6]}))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_changed_settings_write_the_study_anew(tmp_path: Path) -> None:
    folder = write_phantoms(tmp_path / "phantom", **SMALL)
    write_phantoms(folder, **(SMALL | {"labeled": 1}))
    assert len(list((folder / "images").iterdir())) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["phantom"]


def test_a_folder_of_something_else_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("irreplaceable")
    with pytest.raises(ValueError, match="holds something other than phantom scans"):
        write_phantoms(tmp_path, **SMALL)
    assert (tmp_path / "thesis.txt").read_text() == "irreplaceable"


def test_a_study_of_patients_with_a_dataset_json_of_its_own_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "Task09_Spleen"
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "imagesTr" / "spleen_2.nii.gz").write_text("irreplaceable")
    (folder / "dataset.json").write_text(json.dumps({"name": "Spleen", "numTraining": 41}))
    with pytest.raises(ValueError, match="holds something other than phantom scans"):
        write_phantoms(folder, **SMALL)
    assert (folder / "imagesTr" / "spleen_2.nii.gz").is_file()


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    assert len(volumes(write_phantoms(tmp_path, **SMALL))) == 5


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"labelled": 3}, r"phantom settings must be among .*'labeled'.*, got \['labelled'\]"),
        ({"modality": "pet"}, "modality 'ct' or 'mr'"),
        ({"unlabeled": -1}, "counts from 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        write_phantoms(tmp_path / "phantom", **settings)


@pytest.mark.parametrize("modality", ["ct", "mr"])
def test_every_labeled_patient_has_all_organs(tmp_path: Path, modality: str) -> None:
    folder = write_phantoms(tmp_path / "phantom", unlabeled=0, labeled=6, size=(56, 64, 10), modality=modality)
    found = {name: set(np.unique(volume)) for name, volume in volumes(folder).items() if name.startswith("labels")}
    assert list(found.values()) == [{0, *ORGANS.values()}] * 6


@pytest.mark.parametrize("modality", ["ct", "mr"])
def test_a_label_lies_on_the_grid_of_its_image(tmp_path: Path, modality: str) -> None:
    folder = write_phantoms(tmp_path / "phantom", **SMALL, modality=modality)
    for path in (folder / "labels").iterdir():
        label, image = nibabel.load(path), nibabel.load(folder / "images" / path.name)
        # 40 rows and 48 columns; NIfTI's first axis counts columns.
        assert label.shape == image.shape == (48, 40, 6)
        np.testing.assert_array_equal(label.affine, image.affine)


def test_ct_is_in_hounsfield_units_with_air_around_the_body(tmp_path: Path) -> None:
    found = volumes(write_phantoms(tmp_path / "phantom", **SMALL, modality="ct", noise=5.0))
    corner = found["images/phantom_01.nii.gz"][0, 0]
    liver = found["images/phantom_01.nii.gz"][found["labels/phantom_01.nii.gz"] == ORGANS["liver"]]
    assert abs(corner.mean() + 1000) < 10
    assert 60 < np.median(liver) < 150


def test_mr_is_never_negative(tmp_path: Path) -> None:
    found = volumes(write_phantoms(tmp_path / "phantom", **SMALL, modality="mr"))
    assert min(volume.min() for volume in found.values()) >= 0


def be_killed(folder: Path) -> None:
    phantoms._write_scan = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    write_phantoms(folder, **SMALL)


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=be_killed, args=(tmp_path / "phantom",))
    process.start()
    process.join(20)
    assert process.exitcode == -signal.SIGKILL
    assert [path.name for path in tmp_path.glob(".tmp-*")]
    write_phantoms(tmp_path / "phantom", **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["phantom"]


def test_two_commands_do_not_write_the_same_phantoms(tmp_path: Path) -> None:
    folder = tmp_path / "phantom"
    with alone_in(folder, tmp_path / ".phantom.lock"), pytest.raises(ValueError, match=f"is writing to {folder}, and"):
        write_phantoms(folder, **SMALL)
    assert not folder.exists()


def test_other_code_writes_the_phantoms_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_phantoms(tmp_path / "phantom", **SMALL)
    before = volumes(folder)
    monkeypatch.setattr(phantoms, "_ANATOMY", phantoms._ANATOMY[:1])
    write_phantoms(folder, **SMALL)
    assert not any(np.array_equal(before[name], volume) for name, volume in volumes(folder).items())
