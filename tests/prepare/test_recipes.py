"""Prepared scans: the authors' numbers, the clean recipe's geometry, and configs that read both unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from bundle.prepare import recipes
from bundle.prepare.recipes import Recipe, ct_recipe, mr_recipe, nifti_recipe
from bundle.transforms import SliceLayoutd, reference
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from tests.golden_data import golden_arrays, golden_json
from tests.prepare.downloads import (
    ORGANS,
    Acquisition,
    centers,
    grid,
    image_at,
    label_at,
    run,
    write_btcv,
    write_chaos_ct,
    write_chaos_mr,
    write_mscmr,
    write_plain,
    write_volume,
)

CONFIGS = Path(__file__).parents[2] / "configs"
META = golden_json("preprocess_meta.json")


def volumes_of(spacing: Any, flips: Any = (-1, 1, 1), **arrays: np.ndarray) -> dict[str, MetaTensor]:
    """Arrays ``(H, W, Z)`` as a file holds them: columns first."""
    affine = np.diag([*(np.array(spacing)[[1, 0, 2]] * flips), 1.0])
    affine[:3, 3] = (11, -7, 3)
    return {
        key: MetaTensor(torch.as_tensor(values.swapaxes(0, 1).astype(np.float32))[None], affine=torch.as_tensor(affine))
        for key, values in arrays.items()
    }


def prepared(target: Path, name: str, key: str = "image") -> Any:
    return nibabel.load(target / f"{key}s" / f"{name}.nii.gz")


def shown(image: Any) -> np.ndarray:
    """A file's voxels as the authors read them, ``(H, W, Z)``."""
    return np.asarray(image.dataobj).swapaxes(0, 1)


def hwz(volume: np.ndarray) -> np.ndarray:
    """The golden volumes are (Z, H, W)."""
    return np.moveaxis(volume, 0, -1)


@pytest.mark.parametrize("name", [name for name in META if name.startswith("chaos")])
def test_reference_mr_equals_the_authors(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    arrays, case = golden_arrays("preprocess.npz", f"{name}.vol"), META[name]
    assert case["new_spacing_xyz"] == [*recipes.MR_SPACING]
    monkeypatch.setattr(recipes, "SIZE", case["crop"][0])  # of these small volumes; 256 else
    x, y, z = case["spacing_xyz"]
    volumes = volumes_of((y, x, z), image=hwz(arrays[f"{name}.vol"]), label=hwz(arrays[f"{name}.label"]))
    result = mr_recipe("reference")(volumes)
    image, expected = np.asarray(result["image"])[0].swapaxes(0, 1), hwz(arrays[f"{name}.crop"])
    label, expected_label = np.asarray(result["label"])[0].swapaxes(0, 1), hwz(arrays[f"{name}.crop_label"])
    # Spacings are those of a NIfTI header, 32 bits, and the golden ones 64: what is tied may go either way.
    assert (image != expected).mean() < 1e-3
    assert (label != expected_label).mean() < 1e-3
    np.testing.assert_allclose(image, expected, atol=1)


def test_reference_ct_equals_the_authors() -> None:
    arrays = golden_arrays("preprocess.npz", "sabs.hu")
    x, y, z = META["sabs"]["spacing_xyz"]
    volumes = volumes_of((y, x, z), image=hwz(arrays["sabs.hu"]), label=hwz(arrays["sabs.label"]))
    result = ct_recipe("reference", None)(volumes)
    image, label = (np.asarray(result[key])[0].swapaxes(0, 1) for key in ("image", "label"))
    np.testing.assert_allclose(image, hwz(arrays["sabs.resampled"]), atol=2e-5)
    np.testing.assert_array_equal(label, hwz(arrays["sabs.resampled_label"]))


def test_chaos_by_reference_is_the_authors_arithmetic_on_rows_from_the_back(tmp_path: Path) -> None:
    taken = Acquisition(backward=True, spacing=(3.0, 2.5, 6.0))
    write_chaos_mr(tmp_path / "source", 1, taken)
    run("chaos", source=tmp_path / "source", target=tmp_path / "target", arithmetic="reference")
    places = taken.places()[::-1, :, ::-1]  # back to front, right to left, feet to head
    spacing, new = (3.0, 2.5, 6.0), (1.25, 1.25, 7.7)
    image = reference.resample(reference.clip_top(image_at(places).astype(np.int16)), spacing, new)
    label = reference.resample_label(label_at(places), spacing, new)
    written = prepared(tmp_path / "target", "chaos_mr_01")
    np.testing.assert_array_equal(shown(written), reference.center_crop_or_pad(image, (256, 256)))
    written_label = shown(prepared(tmp_path / "target", "chaos_mr_01", "label"))
    np.testing.assert_array_equal(written_label, reference.center_crop_or_pad(label, (256, 256), fill=0))
    assert written.get_data_dtype() == np.int16
    assert nibabel.aff2axcodes(written.affine) == ("L", "A", "S")


def test_btcv_by_reference_is_the_authors_arithmetic_on_planes_as_stored(tmp_path: Path) -> None:
    write_btcv(tmp_path / "source", 7, size=(512, 512, 3))
    source = nibabel.load(tmp_path / "source" / "img" / "img0007.nii.gz")
    run("btcv", source=tmp_path / "source", target=tmp_path / "target", arithmetic="reference")
    spacing = np.abs(np.diag(source.affine)[:3])[[1, 0, 2]]
    new = spacing * (1.75, 1.75, 1)
    window = reference.window_ct(shown(source))[32:-32, 32:-32]
    written = prepared(tmp_path / "target", "btcv_0007")
    assert written.shape == (257, 257, 4)
    np.testing.assert_allclose(shown(written), reference.resample(window, spacing, new), atol=2e-5)
    label = shown(nibabel.load(tmp_path / "source" / "label" / "label0007.nii.gz"))[32:-32, 32:-32]
    written_label = shown(prepared(tmp_path / "target", "btcv_0007", "label"))
    np.testing.assert_array_equal(written_label, reference.resample_label(label, spacing, new))


@pytest.mark.parametrize("arithmetic", ["clean", "reference"])
@pytest.mark.parametrize(
    ("recipe_of", "flips"),
    [
        (mr_recipe, (-1, 1, 1)),
        (mr_recipe, (1, -1, 1)),
        (mr_recipe, (-1, -1, -1)),
        (lambda arithmetic: ct_recipe(arithmetic, "ALS"), (-1, 1, 1)),
        (lambda arithmetic: ct_recipe(arithmetic, None), (1, -1, -1)),
    ],
)
def test_a_point_stays_where_it_is_in_the_world(recipe_of: Any, arithmetic: str, flips: Any) -> None:
    size = (512, 512, 6) if recipe_of is not mr_recipe else (130, 100, 9)
    spacing = (0.7, 0.8, 6.0)
    affine, _ = grid(size, spacing, flips)
    image, label = np.zeros(size), np.zeros(size)
    blob = (slice(size[0] // 2 - 21, size[0] // 2 + 2), slice(size[1] // 2, size[1] // 2 + 20), slice(2, 5))
    image[blob], label[blob] = 200, 1
    volumes = {
        key: MetaTensor(torch.as_tensor(values.astype(np.float32))[None], affine=torch.as_tensor(affine))
        for key, values in {"image": image, "label": label}.items()
    }
    result = recipe_of(arithmetic)(volumes)
    middle = np.array([np.mean([part.start, part.stop - 1]) for part in blob])
    expected = affine[:3, :3] @ middle + affine[:3, 3]
    half = np.linalg.norm(np.asarray(result["image"].affine)[:3, :3], axis=0) / 2
    for key in ("image", "label"):
        found = np.argwhere(np.asarray(result[key])[0] > (100 if key == "image" else 0)).mean(axis=0)
        place = np.asarray(result[key].affine)[:3] @ [*found, 1]
        assert (np.abs(place - expected) <= half + 1e-6).all(), (key, place - expected)


def test_clean_and_reference_agree_where_organs_lie(tmp_path: Path) -> None:
    write_chaos_mr(tmp_path / "source", 1)
    places = {}
    for arithmetic in ("clean", "reference"):
        run("chaos", source=tmp_path / "source", target=tmp_path / arithmetic, arithmetic=arithmetic)
        places[arithmetic] = centers(prepared(tmp_path / arithmetic, "chaos_mr_01", "label"))
    for organ in ORGANS:
        assert (np.abs(places["clean"][organ] - places["reference"][organ]) < (0.7, 0.7, 3.9)).all()


def test_clean_mr_is_256_by_256_in_floating_point_and_no_slice_is_empty(tmp_path: Path) -> None:
    write_chaos_mr(tmp_path / "source", 1)
    run("chaos", source=tmp_path / "source", target=tmp_path / "target")
    image = prepared(tmp_path / "target", "chaos_mr_01")
    assert image.shape == (256, 256, 8)
    assert image.get_data_dtype() == np.float32
    np.testing.assert_allclose(image.header.get_zooms(), (1.25, 1.25, 7.7), rtol=1e-6)
    assert (image.get_fdata().max(axis=(0, 1)) > 90).all()


def test_reference_mr_pads_images_with_their_smallest_value_and_labels_with_0() -> None:
    values = np.arange(11**3).reshape(11, 11, 11) + 40
    # Nine tenths of a voxel of the new grid: no sample falls outside the old one, where the arithmetic gives 0.
    result = mr_recipe("reference")(volumes_of((1.125, 1.125, 6.93), image=values, label=values % 2 + 1))
    assert result["image"][0, 0, 0, 0] == result["image"].min() == 40
    assert result["label"][0, 0, 0, 0] == 0


def test_clean_mr_clips_the_top_of_the_brightness() -> None:
    image = np.linspace(0, 100, 30 * 40 * 5).reshape(30, 40, 5)
    image[12:14, 20, 2] = 5000
    prepared_image = np.asarray(mr_recipe("clean")(volumes_of((3, 3, 7.7), image=image))["image"])
    assert 95 < prepared_image.max() <= np.percentile(image, 99.5) + 1e-3


@pytest.mark.parametrize("size", [512, 64])
def test_clean_ct_keeps_seven_eighths_of_the_side_in_hu(tmp_path: Path, size: int) -> None:
    affine, _ = grid((size, size, 3), (448 / size, 448 / size, 5.0))
    column = (np.arange(size)[:, None, None] - (size - 1) / 2) * 200 / size  # HU rises by 200 from side to side
    write_volume(tmp_path / "img" / "img0001.nii.gz", np.broadcast_to(column, (size, size, 3)), affine)
    label = np.zeros((size, size, 3), dtype=np.uint8)
    label[size // 2 :] = 1
    write_volume(tmp_path / "label" / "label0001.nii.gz", label, affine)
    run("btcv", source=tmp_path, target=tmp_path.parent / "target_ct")
    image = prepared(tmp_path.parent / "target_ct", "btcv_0001")
    values = image.get_fdata()[:, 128, 1]
    assert image.shape == (256, 256, 3)
    np.testing.assert_allclose(image.header.get_zooms(), (448 / 256 * 7 / 8, 448 / 256 * 7 / 8, 5), rtol=1e-5)
    np.testing.assert_allclose(values[[0, -1]], [-87.5, 87.5], atol=1)  # of the pixels' centers, half a pixel inside


def test_clean_ct_clips_to_the_window(tmp_path: Path) -> None:
    write_chaos_ct(tmp_path / "source", 1)
    run("chaos", source=tmp_path / "source", target=tmp_path / "target", part="ct")
    values = prepared(tmp_path / "target", "chaos_ct_01").get_fdata()
    assert values.min() == pytest.approx(-125, abs=1e-4)  # the air is at -300
    assert 90 < values.max() <= 109


def test_cardiac_planes_stay_as_acquired_and_fill_256(tmp_path: Path) -> None:
    write_mscmr(tmp_path / "source", 12)
    run("mscmr", source=tmp_path / "source", target=tmp_path / "target")
    image, label = (prepared(tmp_path / "target", "mscmr_12", key) for key in ("image", "label"))
    source = nibabel.load(tmp_path / "source" / "images" / "patient12_C0.nii.gz")
    assert image.shape == (256, 256, 5)
    directions = [volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0) for volume in (image, source)]
    np.testing.assert_allclose(*directions, atol=1e-6)
    assert set(np.unique(np.asarray(label.dataobj))) == {0, 200, 500, 600}
    assert label.get_data_dtype() == np.int16
    longer = 30 * 4.0  # mm, of columns; the rows are padded
    np.testing.assert_allclose(image.header.get_zooms()[:2], longer / 256, rtol=1e-5)


def config(name: str, **keys: Any) -> Any:
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / "train.yaml"), str(CONFIGS / f"{name}.yaml")])
    for key, value in keys.items():
        parser[key.replace("__", "#")] = value
    return parser.get_parsed_content("loading")


EXACT = {"orientation": None, "spacing": None, "intensity__low": 0.0, "intensity__high": 255.0}


@pytest.mark.parametrize(
    ("command", "name", "keys"),
    [
        ("chaos clean", "data_chaos_t2", {}),
        ("chaos reference", "data_chaos_t2", {}),
        ("btcv clean", "data_sabs_ct", {}),
        ("btcv reference", "data_sabs_ct", EXACT),
        ("mscmr", "data_mscmr", {}),
    ],
)
def test_the_configs_read_prepared_scans_unchanged(
    tmp_path: Path, command: str, name: str, keys: dict[str, Any]
) -> None:
    dataset, *arithmetic = command.split()
    size = 512 if "reference" in command else 24
    writers = {"chaos": write_chaos_mr, "mscmr": write_mscmr}
    if dataset == "btcv":
        write_btcv(tmp_path / "source", 1, size=(size, size, 3))
    else:
        writers[dataset](tmp_path / "source", 1)
    given = {"arithmetic": arithmetic[0]} if arithmetic else {}
    assert run(dataset, source=tmp_path / "source", target=tmp_path / "target", **given) == 0
    (file,) = (tmp_path / "target" / "images").iterdir()
    label_file = tmp_path / "target" / "labels" / file.name
    loaded = config(name, **keys)({"image": str(file), "label": str(label_file)})
    orientation = "PLS" if not keys and dataset != "mscmr" else None
    expected, expected_label = (
        SliceLayoutd("v", orientation)({"v": volume_of(path)})["v"][:, :256, :256] for path in (file, label_file)
    )
    if command == "btcv clean":
        expected = (expected + 125) * 255 / 400  # the config's window, in [0, 255]
    if dataset == "mscmr":
        expected = expected.clamp_max(float(np.percentile(np.asarray(expected), 99.5)))
    np.testing.assert_array_equal(np.asarray(loaded["label"]), np.asarray(expected_label))
    np.testing.assert_allclose(np.asarray(loaded["image"]), np.asarray(expected), atol=1e-4)


def volume_of(path: Path) -> MetaTensor:
    file = nibabel.load(path)
    values = torch.as_tensor(np.asarray(file.dataobj).astype(np.float32))
    return MetaTensor(values[None], affine=torch.as_tensor(file.affine))


def test_a_folder_of_volumes_is_kept_unchanged(tmp_path: Path) -> None:
    write_plain(tmp_path / "source", "scan_1", "scan_1", dtype=np.int16)
    write_plain(tmp_path / "source", "scan_2", "scan_2", dtype=np.float32)
    assert run("nifti", source=tmp_path / "source", target=tmp_path / "target") == 0
    for place in ("images/scan_1", "labels/scan_1", "images/scan_2"):
        before, after = (nibabel.load(tmp_path / where / f"{place}.nii.gz") for where in ("source", "target"))
        np.testing.assert_array_equal(np.asarray(before.dataobj), np.asarray(after.dataobj))
        np.testing.assert_array_equal(before.affine, after.affine)
        assert before.header.get_xyzt_units() == after.header.get_xyzt_units()


@pytest.mark.parametrize(
    ("options", "shape", "spacing"),
    [
        ({"size": 64}, (64, 64, 6), (1.875, 1.875, 10)),  # 24 x 5 mm fill 64 columns; rows: 20 x 6
        ({"size": "32,48", "spacing": "3,3,-1"}, (48, 32, 6), (3, 3, 10)),
        ({"spacing": "2,2,5"}, (256, 256, 11), (2, 2, 5)),
        ({"size": "64,64", "spacing": "fit", "orientation": "none"}, (64, 64, 6), (1.875, 1.875, 10)),
    ],
)
def test_a_folder_of_volumes_is_resampled_on_demand(
    tmp_path: Path, options: dict[str, Any], shape: Any, spacing: Any
) -> None:
    write_plain(tmp_path / "source", "scan_1", "scan_1")
    assert run("nifti", source=tmp_path / "source", target=tmp_path / "target", **options) == 0
    image, label = (prepared(tmp_path / "target", "scan_1", key) for key in ("image", "label"))
    assert image.shape == label.shape == shape
    np.testing.assert_allclose(image.header.get_zooms(), spacing, rtol=1e-5)
    for organ, place in centers(label).items():
        assert np.abs(place - ORGANS[organ][0]).max() < 5


@pytest.mark.parametrize(
    ("recipe", "shape", "values", "words"),
    [
        (ct_recipe("reference", None), (64, 64, 3), (-900, 200), "needs slices of 512 x 512"),
        (mr_recipe("reference"), (20, 24, 3), (0, 70000), "16-bit integers, got values from 0 to 70000"),
        (mr_recipe("reference"), (20, 24, 3), (0, 0.5), "16-bit integers"),
        (ct_recipe("reference", "ALS"), (20, 24, 3), (900, 1200), "a CT volume must vary inside the window"),
        (ct_recipe("clean", None), (20, 24, 3), (900, 1200), "a CT volume must vary inside the window"),
    ],
)
def test_what_a_recipe_is_not_made_for_is_refused(recipe: Recipe, shape: Any, values: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        recipe(volumes_of((1, 1, 5), image=np.linspace(*values, int(np.prod(shape))).reshape(shape)))


def test_equal_parameters_mean_equal_recipes() -> None:
    made = [
        mr_recipe("clean"),
        mr_recipe("reference"),
        ct_recipe("clean", None),
        ct_recipe("reference", None),
        nifti_recipe(None, None),
        nifti_recipe("fit", (64, 64)),
        nifti_recipe((1, 1, -1), (64, 64)),
        nifti_recipe("fit", (64, 32)),
        nifti_recipe("fit", (64, 64), None),
    ]
    parameters = [recipe.parameters for recipe in made]
    assert all(one != other for place, one in enumerate(parameters) for other in parameters[:place])
