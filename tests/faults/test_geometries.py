"""Random valid geometries: a marker in a scan comes back to its place in the world."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from bundle.data.nifti import save_nifti
from bundle.data.reader import ScanReader
from bundle.transforms import FitSlicesd, RestoreGridd, SliceLayoutd
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged
from scipy.spatial.transform import Rotation
from tests.faults import trials

pytestmark = pytest.mark.faults
MARKED = 1000


def geometry(random: np.random.Generator) -> np.ndarray:
    """Axes permuted, flipped and turned by any angle, voxels of 0.1 to 20 mm, an origin anywhere in a meter."""
    axes = np.eye(3)[random.permutation(3)] * random.choice([-1, 1], 3)
    turn = Rotation.random(rng=random).as_matrix() if random.random() < 0.5 else np.eye(3)
    affine = np.eye(4)
    affine[:3, :3] = turn @ axes @ np.diag(10 ** random.uniform(-1, np.log10(20), 3))
    affine[:3, 3] = random.uniform(-1000, 1000, 3)
    return affine


def write_scan(random: np.random.Generator, folder: Path) -> tuple[str, np.ndarray]:
    """Write a scan with one bright block; return the file and the block's mask."""
    shape = random.integers(8, 26, 3)
    start = [int(random.integers(0, n - 3)) for n in shape]
    values = random.integers(0, 50, shape).astype(np.int16)
    values[tuple(slice(s, s + 3) for s in start)] = MARKED
    affine = geometry(random)
    image = (nibabel.Nifti2Image if random.random() < 0.2 else nibabel.Nifti1Image)(values, affine)
    codes = [(1, 0), (2, 1), (4, 3), (0, 1)][int(random.integers(4))]
    image.set_sform(affine if codes[0] else None, codes[0])
    image.set_qform(affine, codes[1])
    path = folder / f"scan{random.choice(['.nii', '.nii.gz'])}"
    nibabel.save(image, path)
    return str(path), values == MARKED


def there_and_back(path: str, layout: dict[str, Any], folder: Path) -> nibabel.Nifti1Image:
    """Bring a scan to slices of 32 x 32 pixels as acquired, mark what is bright, and write the mask."""
    steps = [LoadImaged("image", reader=ScanReader), EnsureChannelFirstd("image"), SliceLayoutd("image", **layout)]
    volume: MetaTensor = Compose([*steps, FitSlicesd("image", size=(32, 32))])({"image": path})["image"]
    mask = RestoreGridd("pred")({"pred": volume > MARKED / 2})["pred"]
    save_nifti(mask, folder / "mask.nii.gz", like=path)
    return nibabel.load(folder / "mask.nii.gz")


def test_a_marker_returns_to_its_place_in_the_world(tmp_path: Path) -> None:
    layouts = [{"orientation": "PLS"}, {"orientation": "RAI"}, {"orientation": None, "slice_axis": 2}]
    count, farthest = trials(100, 1000), 0.0
    for number in range(count):
        random = np.random.default_rng([11, number])
        path, marked = write_scan(random, tmp_path)
        mask = there_and_back(path, layouts[number % 3], tmp_path)
        np.testing.assert_array_equal(np.asarray(mask.dataobj), marked, err_msg=f"geometry {number}")
        scan = nibabel.load(path)
        place = [nibabel.affines.apply_affine(file.affine, np.argwhere(marked)) for file in (scan, mask)]
        farthest = max(farthest, float(np.abs(place[0] - place[1]).max()))
        Path(path).unlink()
    print(f"{count} geometries: every marker is back, {farthest:g} mm from its place at most")
    assert farthest == 0
