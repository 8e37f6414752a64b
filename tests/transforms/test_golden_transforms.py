"""Superpixels and augmentation against the outputs of the authors' code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from bundle.transforms.augmentation import Augmentation, View, change_gamma, warp_affine, warp_elastic
from bundle.transforms.superpixels import Superpixelsd, body_mask, felzenszwalb_superpixels
from tests.golden_data import golden_arrays, golden_json

SUPERPIXELS = golden_json("superpixels_meta.json")


@pytest.mark.parametrize("case", SUPERPIXELS, ids=lambda case: case["tag"])
def test_segments_and_body_masks_equal_the_authors(case: dict[str, Any]) -> None:
    arrays = golden_arrays("superpixels.npz", f"{case['tag']}.volume")
    for z, image in enumerate(arrays[f"{case['tag']}.volume"].astype(np.float64)):
        segments = felzenszwalb_superpixels(image, case["min_size"], case["sigma"], case["scale"])
        np.testing.assert_array_equal(segments, arrays[f"{case['tag']}.raw"][z])
        np.testing.assert_array_equal(body_mask(image, case["fg_thresh"]), arrays[f"{case['tag']}.fgmask"][z])


@pytest.mark.parametrize("case", SUPERPIXELS, ids=lambda case: case["tag"])
def test_superpixel_ids_equal_the_authors(case: dict[str, Any]) -> None:
    arrays = golden_arrays("superpixels.npz", f"{case['tag']}.volume")
    volume = torch.tensor(arrays[f"{case['tag']}.volume"]).movedim(0, -1)[None]
    transform = Superpixelsd("image", body_threshold=case["fg_thresh"], numbering="reference")
    superpixels = transform({"image": volume})["superpixels"]
    np.testing.assert_array_equal(superpixels[0].movedim(-1, 0), arrays[f"{case['tag']}.superpix"])


@pytest.mark.parametrize(("index", "case"), list(enumerate(golden_json("augment_meta.json")["cases"])))
def test_each_step_of_the_augmentation_equals_the_authors(index: int, case: dict[str, Any]) -> None:
    arrays = golden_arrays("augment.npz", f"M{index}", "image")
    image, label = arrays["image"], arrays["label"]
    draws = np.random.RandomState(case["randomstate_elastic"])
    field = np.stack([draws.rand(*image.shape), draws.rand(*image.shape)]) * 2 - 1
    augmentation = Augmentation()
    view = View(
        case["rotate_deg"],
        (case["tx"], case["ty"]),
        case["shear_deg"],
        case["zoom"],
        augmentation.smooth(field),
        case["gamma"],
    )

    np.testing.assert_allclose(view.matrix(*image.shape), arrays[f"M{index}"], atol=1e-5)
    np.testing.assert_allclose(view.displacement[0], arrays[f"dx{index}"], atol=1e-5)
    np.testing.assert_allclose(view.displacement[1], arrays[f"dy{index}"], atol=1e-5)
    channels = torch.tensor(np.stack([image, label]), dtype=torch.float64)
    moved = warp_affine(channels, view.matrix(*image.shape))
    np.testing.assert_allclose(moved[0], arrays[f"affine{index}"], atol=2e-5)
    np.testing.assert_allclose(moved[1], arrays[f"affine_fg{index}"], atol=2e-5)
    bent = warp_elastic(moved, view.displacement)
    np.testing.assert_allclose(bent[0], arrays[f"elastic{index}"], atol=2e-5)
    np.testing.assert_allclose(bent[1], arrays[f"elastic_fg{index}"], atol=2e-5)
    bent = torch.tensor(arrays[f"elastic{index}"])
    np.testing.assert_allclose(change_gamma(bent, case["gamma"]), arrays[f"image_out{index}"], atol=2e-6)

    image_out, label_out = augmentation.apply(view, image, label)
    # A gamma near 0.5 magnifies the 1e-5 of the single-precision warp near the darkest pixel.
    np.testing.assert_allclose(image_out, arrays[f"image_out{index}"], atol=2e-4)
    np.testing.assert_array_equal(label_out, arrays[f"label_out{index}"])
