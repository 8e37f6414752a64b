"""Real volumes, where they lie beside the checkout or in the folder that ``ALPNET_DATA`` names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("ALPNET_DATA", ROOT.parent / "shared" / "data"))
CHAOS = DATA / "chaost2"

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.slow,
    pytest.mark.skipif(not CHAOS.is_dir(), reason=f"no real volumes at {CHAOS}; set ALPNET_DATA to their folder"),
]


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * float((one & other).sum()) / float(one.sum() + other.sum())


def test_the_shipped_weights_segment_an_unseen_patient_from_one_annotated_scan(tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    shutil.copy(CHAOS / "images" / "chaost2_02.nii.gz", tmp_path / "scans")
    words = {
        "dataset_dir": tmp_path / "scans",
        "support_image": CHAOS / "images" / "chaost2_08.nii.gz",
        "support_label": CHAOS / "labels" / "chaost2_08.nii.gz",
        "output_dir": tmp_path / "out",
    }
    command = [sys.executable, "-m", "bundle", "inference", *(f"--{key}={value}" for key, value in words.items())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    mask = nibabel.load(tmp_path / "out" / "masks" / "chaost2_02.nii.gz")
    truth = nibabel.load(CHAOS / "labels" / "chaost2_02.nii.gz")
    np.testing.assert_array_equal(mask.affine, truth.affine)
    found, known = np.asarray(mask.dataobj), np.asarray(truth.dataobj)
    # Half of what the model card reports for these four patients: far from what a broken road gives.
    assert np.mean([dice(found == organ, known == organ) for organ in (1, 2, 3, 4)]) > 0.3
    assert dice(found == 1, known == 1) > 0.5
