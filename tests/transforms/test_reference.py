"""The authors' preprocessing against the outputs of their code."""

from __future__ import annotations

import numpy as np
import pytest
from bundle.transforms import reference
from tests.golden_data import golden_arrays, golden_json

META = golden_json("preprocess_meta.json")


def xyz(volume: np.ndarray) -> np.ndarray:
    """The golden volumes are (Z, H, W)."""
    return np.moveaxis(volume, 0, -1)


def hwz(spacing_xyz: list[float]) -> list[float]:
    return [spacing_xyz[1], spacing_xyz[0], spacing_xyz[2]]


@pytest.mark.parametrize("name", [name for name in META if name.startswith("chaos")])
def test_chaos_volumes_and_labels_equal_the_authors(name: str) -> None:
    arrays = golden_arrays("preprocess.npz", f"{name}.vol")
    case = META[name]
    old, new = hwz(case["spacing_xyz"]), hwz(case["new_spacing_xyz"])
    clipped = reference.clip_top(xyz(arrays[f"{name}.vol"]))
    assert clipped.max() == int(case["clip_value"])
    resampled = reference.resample(clipped, old, new)
    expected = xyz(arrays[f"{name}.resampled"])
    # Where the exact value is a whole number, the last bit of the arithmetic decides what cutting off gives.
    exact = reference.resample(clipped.astype(np.float64), old, new)
    tied = np.abs(exact - np.rint(exact)) < 1e-9
    np.testing.assert_array_equal(resampled[~tied], expected[~tied])
    np.testing.assert_allclose(resampled[tied], expected[tied], atol=1)
    label = reference.resample_label(xyz(arrays[f"{name}.label"]), old, new)
    np.testing.assert_array_equal(label, xyz(arrays[f"{name}.resampled_label"]))
    np.testing.assert_array_equal(reference.center_crop_or_pad(expected, case["crop"]), xyz(arrays[f"{name}.crop"]))
    np.testing.assert_array_equal(
        reference.center_crop_or_pad(label, case["crop"], fill=0), xyz(arrays[f"{name}.crop_label"])
    )


def test_sabs_volumes_and_labels_equal_the_authors() -> None:
    arrays = golden_arrays("preprocess.npz", "sabs.hu")
    spacing = hwz(META["sabs"]["spacing_xyz"])
    new = [spacing[0] * 1.75, spacing[1] * 1.75, spacing[2]]
    window = reference.window_ct(xyz(arrays["sabs.hu"]), *META["sabs"]["window"])[32:-32, 32:-32]
    label = xyz(arrays["sabs.label"])[32:-32, 32:-32]
    expected = xyz(arrays["sabs.resampled"])
    np.testing.assert_allclose(reference.resample(window, spacing, new), expected, atol=2e-5)
    np.testing.assert_array_equal(reference.resample_label(label, spacing, new), xyz(arrays["sabs.resampled_label"]))


def test_normalization_equals_the_authors() -> None:
    arrays = golden_arrays("preprocess.npz", "norm.v1")
    v1, v2 = xyz(arrays["norm.v1"]), xyz(arrays["norm.v2"])
    both = np.concatenate([v1.ravel(), v2.ravel()])
    np.testing.assert_allclose(reference.standardize(v1), arrays["norm.mr_v1"], atol=1e-6)
    np.testing.assert_allclose(reference.standardize(v2, both.mean(), both.std()), arrays["norm.ct_v2"], atol=1e-6)
