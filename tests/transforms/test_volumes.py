"""From files to the network's grid and back, on scans that are stored in many ways."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bundle.data import ScanReader
from bundle.transforms.checks import CheckLabeld, CheckVolumed
from bundle.transforms.padding import CropPaddingd
from bundle.transforms.volumes import FitSlicesd, RestoreGridd, SliceLayoutd
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, ResizeWithPadOrCrop, SaveImaged
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from scipy.ndimage import center_of_mass, map_coordinates
from scipy.spatial.transform import Rotation

SHAPE = (36, 44, 12)
BLOCK = (slice(9, 25), slice(14, 35), slice(3, 8))  # off-center along every axis


def affine_of(columns: Sequence[Sequence[float]], spacing: Sequence[float], angles: Sequence[float] = ()) -> np.ndarray:
    """Axes of the file in the world, before a rotation about x, y and z in degrees."""
    affine = np.eye(4)
    rotation = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() if angles else np.eye(3)
    affine[:3, :3] = rotation @ np.array(columns, dtype=float).T * spacing
    affine[:3, 3] = (-31.5, 17.25, 102.0)
    return affine


X, Y, Z = (1, 0, 0), (0, 1, 0), (0, 0, 1)
LEFT, BACK, DOWN = (-1, 0, 0), (0, -1, 0), (0, 0, -1)
AFFINES = {
    "RAS": affine_of([X, Y, Z], (1.2, 0.9, 4.0)),
    "LPS": affine_of([LEFT, BACK, Z], (1.2, 0.9, 4.0)),
    "LAI": affine_of([LEFT, Y, DOWN], (0.9, 1.3, 2.5)),
    "slices along x": affine_of([BACK, DOWN, X], (1.2, 0.9, 4.0)),
    "slices first": affine_of([Z, X, BACK], (1.2, 0.9, 2.0)),
    "oblique": affine_of([LEFT, BACK, Z], (1.2, 0.9, 4.0), (9.0, -14.0, 21.0)),
    "short axis": affine_of([LEFT, BACK, Z], (1.3, 1.1, 8.0), (38.0, -33.0, 27.0)),
}
LAYOUTS = {
    "PLS": {"orientation": "PLS"},
    "RAI": {"orientation": "RAI"},
    "acquired 0": {"orientation": None, "slice_axis": 0},
    "acquired 1": {"orientation": None, "slice_axis": 1},
    "acquired 2": {"orientation": None, "slice_axis": 2},
}
every_affine = pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


def block_scan() -> tuple[np.ndarray, np.ndarray]:
    """A noisy dark scan with one bright block, and the block's mask."""
    truth = np.zeros(SHAPE, dtype=np.uint8)
    truth[BLOCK] = 1
    noise = np.random.default_rng(5).uniform(0, 50, SHAPE)
    return (1000.0 * truth + noise).astype(np.float32), truth


def write(folder: Path, values: np.ndarray, affine: np.ndarray, name: str = "scan") -> str:
    path = folder / f"{name}.nii.gz"
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return str(path)


def load(path: str, *steps: Any) -> MetaTensor:
    """The image of a file after ``LoadImaged``, ``EnsureChannelFirstd`` and more steps."""
    first = [LoadImaged("image", reader=ScanReader), EnsureChannelFirstd("image")]
    return Compose([*first, *steps])({"image": path})["image"]


def restore(prediction: MetaTensor) -> MetaTensor:
    return RestoreGridd("pred")({"pred": prediction})["pred"]


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * float((one * other).sum()) / float(one.sum() + other.sum())


def world(affine: Any, voxel: Sequence[int]) -> np.ndarray:
    return (np.asarray(affine, dtype=float) @ [*voxel, 1])[:3]


# --- the way there and back ------------------------------------------------------------------------------------


@every_layout
@every_affine
def test_what_is_found_on_the_networks_grid_lies_voxel_for_voxel_on_the_files(
    affine: np.ndarray, layout: dict[str, Any], tmp_path: Path
) -> None:
    image, truth = block_scan()
    path = write(tmp_path, image, affine)
    volume = load(path, CheckVolumed("image"), SliceLayoutd("image", **layout), FitSlicesd("image", size=(48, 52)))
    restored = restore(volume > 500)
    assert volume.shape[:3] == (1, 48, 52)
    np.testing.assert_array_equal(restored[0].numpy(), truth)
    np.testing.assert_allclose(restored.affine, nibabel.load(path).affine, atol=1e-6)


@pytest.mark.parametrize("spacing", ["fit", (1.0, 1.0, -1), (1.1, 1.5, 2.2)], ids=str)
@every_affine
def test_a_resampled_scans_mask_comes_back_to_its_place_in_the_file(
    affine: np.ndarray, spacing: str | tuple[float, ...], tmp_path: Path
) -> None:
    image, truth = block_scan()
    path = write(tmp_path, image, affine)
    layout = SliceLayoutd("image", orientation=None, slice_axis=2)
    volume = load(path, layout, FitSlicesd("image", size=(60, 64), spacing=spacing))
    restored = restore(volume > 500)
    np.testing.assert_allclose(restored.affine, nibabel.load(path).affine, atol=1e-6)
    assert dice(restored[0].numpy(), truth) > 0.9
    np.testing.assert_allclose(center_of_mass(restored[0].numpy()), center_of_mass(truth), atol=0.51)


@pytest.mark.parametrize(
    ("spacing", "size"),
    [
        ("fit", (80, 80)),
        ("fit", (60, 60)),
        ("fit", (100, 100)),
        ((3.0, 3.0, -1), (20, 20)),
        ((0.9, 1.1, 2.0), (64, 64)),
    ],
    ids=str,
)
def test_a_scan_turned_in_space_gets_the_same_slices_and_the_same_mask(
    spacing: str | tuple[float, ...], size: tuple[int, int], tmp_path: Path
) -> None:
    values = np.random.default_rng(0).integers(0, 1000, (40, 40, 9)).astype(np.int16)
    straight = np.diag([-1.5, 1.5, 6.0, 1.0])
    rotation = np.eye(4)
    rotation[:3, :3] = nibabel.eulerangles.euler2mat(z=0.25, y=0.15, x=-0.2)
    layout = SliceLayoutd("image")
    volumes, masks = [], []
    for name, affine in (("straight", straight), ("turned", rotation @ straight)):
        path = tmp_path / f"{name}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(values, affine), path)
        volumes.append(load(path, layout, FitSlicesd("image", size=size, spacing=spacing)))
        masks.append(restore(volumes[-1] > 500))
    np.testing.assert_allclose(volumes[1].numpy(), volumes[0].numpy(), atol=0.05)
    assert (masks[1].numpy() == masks[0].numpy()).mean() > 0.999  # a shift would leave about a half


@pytest.mark.parametrize("name", ["LAI", "slices along x", "slices first"])
def test_a_scan_resampled_in_another_orientation_comes_back(name: str, tmp_path: Path) -> None:
    image, truth = block_scan()
    path = write(tmp_path, image, AFFINES[name])
    volume = load(path, SliceLayoutd("image"), FitSlicesd("image", size=(64, 60), spacing=(1.1, 0.8, 1.7)))
    assert dice(restore(volume > 500)[0].numpy(), truth) > 0.9


@every_affine
def test_a_saved_mask_has_the_files_shape_affine_and_place(affine: np.ndarray, tmp_path: Path) -> None:
    image, truth = block_scan()
    path = write(tmp_path, image, affine)
    volume = load(path, SliceLayoutd("image"), FitSlicesd("image", size=(48, 52)))
    save = SaveImaged("pred", output_dir=tmp_path, output_postfix="mask", separate_folder=False, resample=False)
    save({"pred": restore(volume > 500)})
    saved = nibabel.load(tmp_path / "scan_mask.nii.gz")
    np.testing.assert_array_equal(np.asarray(saved.dataobj), truth)
    np.testing.assert_allclose(saved.affine, nibabel.load(path).affine, atol=1e-4)


def test_voxels_that_were_cropped_away_come_back_as_0(tmp_path: Path) -> None:
    path = write(tmp_path, block_scan()[0], AFFINES["LPS"])
    layout = SliceLayoutd("image", orientation=None, slice_axis=2)
    volume = load(path, layout, FitSlicesd("image", size=(20, 16)))
    expected = np.zeros(SHAPE, dtype=np.uint8)
    expected[10:26, 12:32] = 1  # 16 of 36 columns and 20 of 44 rows about the center
    np.testing.assert_array_equal(restore(torch.ones_like(volume))[0].numpy(), expected)


@pytest.mark.parametrize(("organ", "dtype"), [(255, torch.uint8), (500, torch.int16)])
def test_a_restored_label_map_keeps_its_ids(organ: int, dtype: torch.dtype, tmp_path: Path) -> None:
    image, truth = block_scan()
    volume = load(write(tmp_path, image, AFFINES["oblique"]), SliceLayoutd("image"))
    restored = restore((volume > 500) * organ)
    assert restored.dtype == dtype
    np.testing.assert_array_equal(restored[0].numpy(), truth.astype(int) * organ)


def test_a_restored_label_map_still_knows_its_file(tmp_path: Path) -> None:
    path = write(tmp_path, block_scan()[0], AFFINES["oblique"])
    restored = restore(load(path, SliceLayoutd("image")) > 500)
    assert restored.meta["filename_or_obj"] == path


# --- layout ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", ["RAS", "LPS", "LPI", "RSA", "PIR", "ASL", "SLA", "IRP"])
def test_one_scan_stored_in_many_ways_becomes_one_array(stored: str, tmp_path: Path) -> None:
    values = np.random.default_rng(1).normal(size=(9, 7, 5)).astype(np.float32)
    ras = nibabel.Nifti1Image(values, affine_of([X, Y, Z], (1.2, 0.9, 4.0)))
    copy = ras.as_reoriented(ornt_transform(io_orientation(ras.affine), axcodes2ornt(stored)))
    volume = load(write(tmp_path, np.asarray(copy.dataobj), copy.affine), SliceLayoutd("image"))
    # Rows run from front to back and columns from right to left: against y, and against x.
    np.testing.assert_array_equal(volume[0].numpy(), values.transpose(1, 0, 2)[::-1, ::-1])


@pytest.mark.parametrize(("slice_axis", "order"), [(0, (2, 1, 0)), (1, (2, 0, 1)), (2, (1, 0, 2))])
@every_affine
def test_without_an_orientation_the_acquired_planes_are_only_permuted(
    affine: np.ndarray, slice_axis: int, order: tuple[int, int, int], tmp_path: Path
) -> None:
    values = np.random.default_rng(2).normal(size=(9, 7, 5)).astype(np.float32)
    layout = SliceLayoutd("image", orientation=None, slice_axis=slice_axis)
    volume = load(write(tmp_path, values, affine), layout)
    np.testing.assert_array_equal(volume[0].numpy(), values.transpose(order))


@every_layout
def test_image_and_label_are_laid_out_alike(layout: dict[str, Any]) -> None:
    values = torch.rand(1, 9, 7, 5)
    data = {key: MetaTensor(values.clone(), affine=torch.tensor(AFFINES["short axis"])) for key in ("image", "label")}
    laid_out = SliceLayoutd(["image", "label"], **layout)(data)
    torch.testing.assert_close(laid_out["label"].as_tensor(), laid_out["image"].as_tensor())
    torch.testing.assert_close(laid_out["label"].affine, laid_out["image"].affine)


@pytest.mark.parametrize("orientation", ["PL", "PPS", "PLR", "xyz", "", "pls", "PLSX", "PPLS", "PLSS"])
def test_an_orientation_that_is_not_three_codes_of_three_axes_is_refused(orientation: str) -> None:
    with pytest.raises(ValueError, match=r"orientation must name one of L/R, one of P/A and one of I/S"):
        SliceLayoutd("image", orientation=orientation)


@pytest.mark.parametrize("slice_axis", [-1, 3])
def test_a_slice_axis_that_the_file_does_not_have_is_refused(slice_axis: int) -> None:
    with pytest.raises(ValueError, match=r"slice_axis, the file.s axis that counts slices, must be 0, 1 or 2"):
        SliceLayoutd("image", orientation=None, slice_axis=slice_axis)


# --- the network's size ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(17, 63), (48, 18)], ids=str)
@every_layout
@every_affine
def test_a_voxel_stays_in_its_place_in_the_world(
    affine: np.ndarray, layout: dict[str, Any], size: tuple[int, int]
) -> None:
    voxel = (17, 23, 6)  # near the center, so that no crop loses it
    values = torch.zeros(1, *SHAPE)
    values[(0, *voxel)] = 1
    data = {"image": MetaTensor(values, affine=torch.tensor(affine))}
    fitted = FitSlicesd("image", size=size)(SliceLayoutd("image", **layout)(data))["image"]
    found = torch.nonzero(fitted[0].as_tensor()).tolist()
    assert len(found) == 1
    np.testing.assert_allclose(world(fitted.affine, found[0]), world(affine, voxel), atol=1e-5)


def test_slices_are_padded_with_the_scans_smallest_value_about_their_center() -> None:
    values = torch.rand(1, 20, 26, 3) - 7
    fitted = FitSlicesd("image", size=(24, 36))({"image": MetaTensor(values)})["image"].as_tensor()
    torch.testing.assert_close(fitted[:, 2:22, 5:31], values)
    fitted[:, 2:22, 5:31] = values.min()
    torch.testing.assert_close(fitted, torch.full_like(fitted, float(values.min())))


def test_labels_are_padded_with_0() -> None:
    fitted = FitSlicesd("label", size=(24, 36))({"label": MetaTensor(torch.full((1, 20, 26, 3), 4.0))})["label"]
    assert float(fitted.sum()) == 4 * 20 * 26 * 3


def test_slices_are_cropped_about_their_center() -> None:
    values = torch.rand(1, 40, 26, 3)
    fitted = FitSlicesd("image", size=(16, 20))({"image": MetaTensor(values)})["image"]
    torch.testing.assert_close(fitted.as_tensor(), values[:, 12:28, 3:23])


@pytest.mark.parametrize(
    ("shape", "spacing", "expected"),
    [((20, 40, 3), (2.0, 1.5, 5.0), 60 / 64), ((40, 20, 3), (0.5, 0.9, 5.0), 20 / 48), ((96, 64, 3), (1, 1, 4.0), 2)],
)
def test_fit_gives_square_pixels_of_which_the_longer_side_fills_the_size(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], expected: float
) -> None:
    volume = MetaTensor(torch.rand(1, *shape), affine=torch.diag(torch.tensor([*spacing, 1.0])).double())
    fitted = FitSlicesd("image", size=(48, 64), spacing="fit")({"image": volume})["image"]
    assert fitted.shape == (1, 48, 64, 3)
    np.testing.assert_allclose(fitted.pixdim, [expected, expected, spacing[2]], rtol=1e-5)


def test_a_spacing_of_minus_1_keeps_its_axis() -> None:
    volume = MetaTensor(torch.rand(1, 20, 24, 7), affine=torch.diag(torch.tensor([2.0, 1.5, 5.0, 1.0])).double())
    fitted = FitSlicesd("image", size=(32, 48), spacing=(1.25, -1, -1))({"image": volume})["image"]
    np.testing.assert_allclose(fitted.pixdim, [1.25, 1.5, 5.0], rtol=1e-5)
    assert fitted.shape[-1] == 7


def test_resampling_an_image_is_linear_and_a_label_is_never_mixed() -> None:
    affine = torch.diag(torch.tensor([2.0, 2.0, 5.0, 1.0])).double()
    values = (torch.arange(20) // 4 * 3.0)[None, :, None, None].expand(1, 20, 24, 3)
    data = {key: MetaTensor(values.clone(), affine=affine) for key in ("image", "label")}
    fitted = FitSlicesd(["image", "label"], size=(40, 48), spacing=(0.7, 0.7, -1))(data)
    assert set(fitted["label"].unique().tolist()) == {0, 3, 6, 9, 12}
    assert fitted["image"].unique().numel() > 5


def test_label_and_image_still_match_after_resampling() -> None:
    image, truth = block_scan()
    data = {"image": torch.tensor(image)[None], "label": torch.tensor(truth)[None].float()}
    data = {key: MetaTensor(value, affine=torch.tensor(AFFINES["oblique"])) for key, value in data.items()}
    fitted = FitSlicesd(["image", "label"], size=(60, 64), spacing=(1.0, 1.0, -1))(data)
    torch.testing.assert_close(fitted["label"].affine, fitted["image"].affine)
    assert dice(fitted["label"].numpy(), (fitted["image"] > 500).numpy()) > 0.95


@pytest.mark.parametrize("size", [(64,), (64, 64, 20), (15, 64), (64, 0)], ids=str)
def test_a_size_that_is_not_two_numbers_of_at_least_16_is_refused(size: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"size must be two numbers of pixels, rows and columns, at least 16"):
        FitSlicesd("image", size=size)


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (1.0, 0.0, 3.0), (1.0, -2.0, 3.0), [1.0, 1.0, 1.0, 1.0]], ids=str)
def test_a_spacing_that_is_not_three_sizes_is_refused(spacing: Sequence[float]) -> None:
    rule = r"spacing must be \(row, column, slice\) in mm, each above 0, got .* Set -1 to keep an axis"
    with pytest.raises(ValueError, match=rule):
        FitSlicesd("image", spacing=spacing)


def test_a_wrong_voxel_size_does_not_fill_the_memory() -> None:
    volume = MetaTensor(torch.rand(1, 20, 24, 7), affine=torch.diag(torch.tensor([3000.0, 3.0, 5.0, 1.0])).double())
    with pytest.raises(
        ValueError, match=r"at most 4096 voxels along each axis, got \[57001, 70, 7\] of \[1\.0, 1\.0, 5"
    ):
        FitSlicesd("image", size=(32, 48), spacing=(1.0, 1.0, -1))({"image": volume})


def test_an_unknown_word_for_the_spacing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"spacing must be three numbers in mm, 'fit' or null, got 'isotropic'"):
        FitSlicesd("image", spacing="isotropic")


# --- what is no scan -------------------------------------------------------------------------------------------


def with_value(value: float) -> np.ndarray:
    image = block_scan()[0]
    image[30, 5, 2] = value
    return image


NO_SCANS = {
    "2-D": (
        np.ones((36, 44), np.float32),
        r"must be a 3-D volume, got 2-D data of shape \(36, 44\)\. Stack the slices",
    ),
    "4-D": (np.ones((9, 7, 5, 3), np.float32), r"got 4-D data: 3 volumes of shape \(9, 7, 5\)\. Split the file"),
    "single slice": (np.ones((9, 7, 1), np.float32), r"at least 2 voxels along each axis, got \(9, 7, 1\)"),
    "NaN": (with_value(np.nan), r"every voxel must be a finite number, got 1 NaN or inf"),
    "inf": (with_value(-np.inf), r"every voxel must be a finite number, got 1 NaN or inf"),
    "constant": (np.full(SHAPE, 7.5, np.float32), r"an image must not be constant, but every voxel is 7\.5"),
}


@pytest.mark.parametrize(("values", "message"), NO_SCANS.values(), ids=NO_SCANS)
def test_a_file_that_is_no_scan_is_refused(values: np.ndarray, message: str, tmp_path: Path) -> None:
    volume = load(write(tmp_path, values, AFFINES["LPS"]))
    with pytest.raises(ValueError, match=message):
        CheckVolumed("image")({"image": volume})


def test_a_scan_passes_the_check_unchanged(tmp_path: Path) -> None:
    volume = load(write(tmp_path, block_scan()[0], AFFINES["LPS"]))
    assert CheckVolumed("image")({"image": volume})["image"] is volume


# --- what is no label ------------------------------------------------------------------------------------------


def check_label(folder: Path, label: np.ndarray, affine: np.ndarray = AFFINES["oblique"]) -> dict[str, Any]:
    """Write a label beside the block scan, which lies obliquely, load both and check the label."""
    image = write(folder, block_scan()[0], AFFINES["oblique"], "image")
    data = {"image": load(image), "label": load(write(folder, label, affine, "label"))}
    return CheckLabeld("label")(data)


def moved(millimeters: float) -> np.ndarray:
    affine = AFFINES["oblique"].copy()
    affine[1, 3] += millimeters
    return affine


def stretched(factor: float) -> np.ndarray:
    """Keeps the first voxel in its place: only the far corners move."""
    return AFFINES["oblique"] @ np.diag([1, factor, 1, 1])


TRUTH = block_scan()[1].astype(np.float32)
NO_LABELS = {
    "another shape": (TRUTH[:-1], r"must have its image's shape \(36, 44, 12\), got \(35, 44, 12\)"),
    "2-D": (TRUTH[..., 5], r"got 2-D data"),
    "4-D": (np.stack([TRUTH, TRUTH], axis=-1), r"got 4-D data: 2 volumes"),
    "fractions": (TRUTH * 0.5, r"whole organ ids from 0.*not as probabilities"),
    "negative": (-TRUTH, r"whole organ ids from 0, got values such as \[-1\.0, .*0\.0\]"),
    "NaN": (np.where(TRUTH == 1, np.nan, TRUTH).astype(np.float32), r"whole organ ids from 0"),
    "empty": (np.zeros_like(TRUTH), r"a label map must show an organ"),
    "0.002 off": (TRUTH * 1.002, r"whole organ ids from 0, got values such as \[0\.0, 1\.00"),
    "an image": (
        np.arange(TRUTH.size, dtype=np.float32).reshape(TRUTH.shape) % 257,
        r"at most 255 organs, got 257 different values\. Is it an image and no label map\?",
    ),
}


@pytest.mark.parametrize(("label", "message"), NO_LABELS.values(), ids=NO_LABELS)
def test_a_file_that_is_no_label_of_its_image_is_refused(label: np.ndarray, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        check_label(tmp_path, label)


@pytest.mark.parametrize(
    ("affine", "apart"),
    [(moved(1.5), r"1\.5 mm"), (stretched(1.05), r"\d\.\d mm"), (AFFINES["LPS"], r"\d+\.\d mm")],
    ids=["moved", "stretched", "turned"],
)
def test_a_label_that_lies_elsewhere_is_refused(affine: np.ndarray, apart: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"must lie on its image, .*{apart} apart \(at most 0\.1 mm\)"):
        check_label(tmp_path, TRUTH, affine)


@pytest.mark.parametrize("affine", [moved(0.05), stretched(1.0005)], ids=["moved", "stretched"])
def test_a_label_may_lie_off_by_less_than_the_tolerance(affine: np.ndarray, tmp_path: Path) -> None:
    checked = check_label(tmp_path, TRUTH * 7, affine)
    np.testing.assert_array_equal(checked["label"][0].numpy(), TRUTH * 7)


@pytest.mark.parametrize("off", [-9e-4, -6e-8, 9e-4])
def test_organ_ids_that_were_rounded_are_whole_again(off: float, tmp_path: Path) -> None:
    checked = check_label(tmp_path, (TRUTH * 7 + off * TRUTH).astype(np.float32))
    np.testing.assert_array_equal(checked["label"][0].numpy(), TRUTH * 7)


def test_255_organs_are_a_label_map(tmp_path: Path) -> None:
    label = (np.arange(TRUTH.size).reshape(TRUTH.shape) % 256).astype(np.float32)
    np.testing.assert_array_equal(check_label(tmp_path, label)["label"][0].numpy(), label)


def test_a_label_map_without_an_organ_is_taken_where_a_scan_may_show_none() -> None:
    data = {key: MetaTensor(torch.zeros(1, 9, 7, 5)) for key in ("image", "label")}
    assert not CheckLabeld("label", may_be_empty=True)(data)["label"].any()


def test_a_label_without_background_is_a_label(tmp_path: Path) -> None:
    np.testing.assert_array_equal(check_label(tmp_path, np.full_like(TRUTH, 2))["label"].numpy(), 2)


def test_a_scan_without_a_label_passes() -> None:
    data = {"image": MetaTensor(torch.rand(1, 9, 7, 5))}
    assert CheckLabeld("label")(data).keys() == {"image"}


def test_resampling_neither_goes_beyond_the_last_slice_nor_darkens_the_border() -> None:
    volume = MetaTensor(torch.full((1, 40, 40, 9), 5.0), affine=torch.diag(torch.tensor([1.5, 1.5, 6.0, 1.0])).double())
    fitted = FitSlicesd("image", size=(60, 60), spacing=(1.0, 1.0, 2.0))({"image": volume})["image"]
    assert fitted.shape == (1, 60, 60, 25)  # 8 gaps of 6 mm are 24 of 2 mm
    np.testing.assert_allclose(fitted.numpy(), 5.0, rtol=1e-5)


# --- padding and field of view -----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, -1024.0])
def test_padding_is_cropped_and_the_voxels_stay_in_their_places(value: float) -> None:
    scan = torch.rand(1, 6, 9, 4) + 1
    scan[0, 2, 3, 1] = value  # air inside the scan is no padding
    scan[0, 0, 0, 0] = 1.5
    affine = torch.diag(torch.tensor([2.0, 1.5, 5.0, 1.0])).double()
    padded = F.pad(scan, (3, 1, 2, 0, 1, 4), value=value)
    data = {key: MetaTensor(padded.clone(), affine=affine) for key in ("image", "label")}
    cropped = CropPaddingd(["image", "label"])(data)
    for key in ("image", "label"):
        torch.testing.assert_close(cropped[key].as_tensor(), scan)
        np.testing.assert_allclose(cropped[key].affine[:3, 3], [2.0 * 1, 1.5 * 2, 5.0 * 3])


def test_a_scan_without_padding_and_without_label_stays_as_it_is() -> None:
    image = MetaTensor(torch.rand(1, 6, 9, 4))
    cropped = CropPaddingd(["image", "label"])({"image": image})
    assert set(cropped) == {"image"}
    torch.testing.assert_close(cropped["image"], image)


@pytest.mark.parametrize(
    ("support_pixel", "expected"), [(1.0, 1.0), (1.2, 1.5), (1.9, 1.5), (2.0, 2.0), (None, 1.5)], ids=str
)
def test_a_scan_takes_the_pixels_of_the_annotated_scan_if_they_differ_more_than_tolerated(
    support_pixel: float | None, expected: float
) -> None:
    """The longer side, 60 mm, fills 40 pixels of 1.5 mm."""
    volume = MetaTensor(torch.rand(1, 20, 40, 3), affine=torch.diag(torch.tensor([2.0, 1.5, 5.0, 1.0])).double())
    fit = FitSlicesd("image", size=(40, 40), spacing="fit", support_pixel=lambda data: support_pixel)
    np.testing.assert_allclose(fit({"image": volume})["image"].pixdim, [expected, expected, 5.0], rtol=1e-5)


def test_a_larger_field_of_view_is_told_with_what_is_kept_of_it(caplog: pytest.LogCaptureFixture) -> None:
    volume = MetaTensor(torch.rand(1, 40, 40, 3), meta={"filename_or_obj": "folder/wide.nii.gz"})
    FitSlicesd("image", size=(20, 24), spacing="fit", support_pixel=lambda data: 1.0)({"image": volume})
    assert caplog.messages == [
        "wide.nii.gz: the field of view is 2.0 times the annotated scan's. Only the central 20 x 24 mm are segmented."
    ]


def test_a_smaller_field_of_view_loses_nothing_and_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    volume = MetaTensor(torch.rand(1, 40, 40, 3))
    fitted = FitSlicesd("image", size=(40, 48), spacing="fit", support_pixel=lambda data: 2.0)({"image": volume})
    np.testing.assert_allclose(fitted["image"].pixdim, [2.0, 2.0, 1.0])
    assert not caplog.messages


def test_a_tolerance_below_1_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tolerance, a ratio of pixel sizes, must be at least 1, got 0\.5"):
        FitSlicesd("image", tolerance=0.5)


def shrunk(volume: torch.Tensor, key: str = "image", size: int = 32) -> torch.Tensor:
    """The volume on a grid of ``size`` pixels in each direction."""
    affine = torch.diag(torch.tensor([1.0, 1.0, 3.0, 1.0], dtype=torch.float64))
    return FitSlicesd(key, (size, size), "fit")({key: MetaTensor(volume, affine=affine)})[key].as_tensor()


def test_a_scan_that_shrinks_to_half_its_size_loses_noise() -> None:
    noise = torch.randn(1, 64, 64, 6)
    assert float(shrunk(noise)[:, 4:-4, 4:-4].std()) < 0.7  # of 1; single voxels would keep all of it
    torch.testing.assert_close(
        shrunk(noise, size=60), interpolated(noise, 60), rtol=0, atol=1e-4
    )  # 64 to 60 is nearly the same size


def interpolated(volume: torch.Tensor, size: int) -> torch.Tensor:
    """Bilinear, from the first voxel on, by SciPy."""
    ratio = 64 / size
    count = int(63 / ratio + 1.5)
    places = np.meshgrid(np.arange(count) * ratio, np.arange(count) * ratio, np.arange(6), indexing="ij")
    found = torch.as_tensor(map_coordinates(volume[0].numpy(), places, order=1, mode="nearest"))[None]
    return ResizeWithPadOrCrop([size, size, 6], mode="constant", value=float(found.min()))(found).as_tensor()


def test_smoothing_before_shrinking_keeps_slices_apart_and_the_borders_level() -> None:
    volume = torch.full((1, 64, 64, 6), -125.0)
    volume[..., 3] = 275
    found = shrunk(volume)
    assert (found[..., [0, 1, 2, 4, 5]] == -125).all()
    torch.testing.assert_close(found[..., 3], torch.full((1, 32, 32), 275.0))


def test_labels_that_shrink_keep_their_ids() -> None:
    label = torch.zeros(1, 64, 64, 6)
    label[:, 10:30, 20:50] = 7
    assert shrunk(label, "label").unique().tolist() == [0, 7]
