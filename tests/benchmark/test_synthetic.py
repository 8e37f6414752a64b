"""Synthetic scans show every organ where they should, and are the same each time."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from bundle.benchmark.synthetic import blob_scan, write_scan
from bundle.transforms.slices import organ_slices, organs_of


def test_every_organ_is_in_most_slices_and_apart_from_the_others() -> None:
    scan = blob_scan(64, 20, 13, seed=0)
    assert organs_of(scan["label"]) == list(range(1, 14))
    for organ in range(1, 14):
        assert organ_slices(scan["label"], organ) == list(range(2, 18))
    areas = [int((scan["label"][..., 10] == organ).sum()) for organ in range(1, 14)]
    # Balls of a radius of 0.42 of a square with 16 pixels a side.
    np.testing.assert_allclose(areas, np.pi * (0.42 * 16) ** 2, rtol=0.12)


def test_an_image_is_standardized_and_its_organs_differ_in_brightness() -> None:
    scan = blob_scan(64, 6, 3, seed=0)
    assert (scan["image"].shape, scan["image"].dtype) == ((1, 64, 64, 6), torch.float32)
    assert (scan["label"].shape, scan["label"].dtype) == ((1, 64, 64, 6), torch.uint8)
    np.testing.assert_allclose([scan["image"].mean(), scan["image"].std()], [0, 1], atol=1e-3)
    means = [float(scan["image"][scan["label"] == organ].mean()) for organ in range(4)]
    assert sorted(means) == means
    assert min(np.diff(means)) > 0.3


def test_a_scan_is_of_its_seed_alone() -> None:
    one, same, other = (blob_scan(32, 3, 2, seed) for seed in (1, 1, 2))
    assert torch.equal(one["image"], same["image"])
    assert torch.equal(one["label"], same["label"])
    assert not torch.equal(one["label"], other["label"])


def test_a_scan_of_one_slice_shows_its_organ() -> None:
    assert organs_of(blob_scan(16, 1, 1, seed=0)["label"]) == [1]


def test_a_blob_that_would_be_too_small_is_refused() -> None:
    assert organs_of(blob_scan(16, 3, 4, seed=0)["label"]) == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="got 5 organs in 16 x 16 pixels and 3 slices"):
        blob_scan(16, 3, 5, seed=0)
    with pytest.raises(ValueError, match="and 0 slices"):
        blob_scan(16, 0, 1, seed=0)


def test_files_hold_the_scan(tmp_path: Path) -> None:
    scan = blob_scan(32, 3, 2, seed=0)
    files = write_scan(scan, tmp_path, "one")
    assert files == {"image": str(tmp_path / "images/one.nii.gz"), "label": str(tmp_path / "labels/one.nii.gz")}
    np.testing.assert_array_equal(nibabel.load(files["label"]).get_fdata(), scan["label"][0])
    image = nibabel.load(files["image"]).get_fdata()
    np.testing.assert_allclose((image - 1000) / 100, scan["image"][0], atol=0.01)
