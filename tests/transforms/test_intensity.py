"""Windows, clips and z-scores against numbers worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundle.transforms.intensity import ClipTopd, Region, Standardized, WindowCTd, read_statistics, statistics_file
from monai.data import MetaTensor

AFFINE = torch.diag(torch.tensor([-0.8, 1.1, 5.0, 1.0])).double()


def volume_of(*values: float) -> MetaTensor:
    """A volume ``(1, 2, 1, Z)`` that holds the values twice."""
    return MetaTensor(torch.tensor(values).repeat(2, 1)[None, :, None], affine=AFFINE)


def apply(transform: Any, volume: Any) -> MetaTensor:
    return transform({"image": volume})["image"]


@pytest.mark.parametrize(
    "transform", [WindowCTd("image"), ClipTopd("image"), Standardized("image")], ids=lambda t: type(t).__name__
)
class TestEveryIntensityTransform:
    def test_keeps_shape_and_affine(self, transform: Any) -> None:
        volume = volume_of(-50.0, 0.0, 40.0, 200.0)
        result = apply(transform, volume)
        assert result.shape == volume.shape
        torch.testing.assert_close(result.affine, AFFINE)

    def test_leaves_its_input_and_the_other_entries_alone(self, transform: Any) -> None:
        data = {"image": volume_of(-50.0, 0.0, 40.0, 2000.0), "label": 3}
        result = transform(data)
        torch.testing.assert_close(data["image"], volume_of(-50.0, 0.0, 40.0, 2000.0))
        assert result["label"] == 3
        assert result["image"] is not data["image"]


# --- CT window -------------------------------------------------------------------------------------------------


def test_the_window_goes_from_0_to_255_and_what_lies_beyond_is_clipped() -> None:
    windowed = apply(WindowCTd("image"), volume_of(-1024.0, -125.0, -25.0, 75.0, 275.0, 3000.0))
    torch.testing.assert_close(windowed.as_tensor()[0, 0, 0], torch.tensor([0.0, 0.0, 63.75, 127.5, 255.0, 255.0]))


def test_a_number_means_the_same_tissue_in_every_scan() -> None:
    narrow = apply(WindowCTd("image"), volume_of(0.0, 75.0, 100.0))
    wide = apply(WindowCTd("image"), volume_of(-1000.0, 75.0, 1000.0))
    assert float(narrow[0, 0, 0, 1]) == float(wide[0, 0, 0, 1]) == 127.5


def test_the_window_can_be_chosen() -> None:
    windowed = apply(WindowCTd("image", low=-1000.0, high=0.0), volume_of(-1200.0, -800.0, 5.0))
    torch.testing.assert_close(windowed.as_tensor()[0, 0, 0], torch.tensor([0.0, 51.0, 255.0]))


@pytest.mark.parametrize("values", [(276.0, 900.0), (-1000.0, -125.0)], ids=["above", "below"])
def test_a_volume_without_anything_inside_the_window_is_refused(values: tuple[float, float]) -> None:
    with pytest.raises(
        ValueError, match=rf"must vary inside the window \[-125, 275\] HU, .* {values[0]:g} to {values[1]:g}"
    ):
        apply(WindowCTd("image"), volume_of(*values))


@pytest.mark.parametrize(("low", "high"), [(275.0, -125.0), (40.0, 40.0)])
def test_an_empty_window_is_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match=rf"a CT window needs low < high, got low {low} and high {high} HU"):
        WindowCTd("image", low=low, high=high)


# --- MR clip ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("percentile", "limit"), [(99.5, 199.0), (50.0, 100.0), (25.0, 50.0), (100.0, 200.0)])
def test_values_above_the_percentile_become_it_and_the_others_stay(percentile: float, limit: float) -> None:
    values = torch.randperm(201).float().reshape(1, 3, 67, 1)  # 0 to 200: the p-th percentile is 2 p
    clipped = apply(ClipTopd("image", percentile), MetaTensor(values))
    torch.testing.assert_close(clipped.as_tensor(), torch.where(values > limit, limit, values))


def test_the_default_clips_at_the_percentile_of_the_paper() -> None:
    assert float(apply(ClipTopd("image"), volume_of(*range(201))).max()) == pytest.approx(199.0, abs=0.5)


def test_a_volume_that_is_nearly_all_background_is_not_clipped_to_a_constant() -> None:
    volume = torch.zeros(1, 20, 30, 4)
    volume[0, 3, 5, 1] = 700
    torch.testing.assert_close(apply(ClipTopd("image"), volume), volume)


@pytest.mark.parametrize("percentile", [0.0, -5.0, 100.5])
def test_a_percentile_out_of_range_is_refused(percentile: float) -> None:
    with pytest.raises(ValueError, match=rf"percentile must be in \(0, 100\], got {percentile}"):
        ClipTopd("image", percentile)


# --- z-score ---------------------------------------------------------------------------------------------------


def test_a_volumes_own_statistics_give_mean_0_and_standard_deviation_1() -> None:
    standardized = apply(Standardized("image"), volume_of(2.0, 4.0, 6.0, 12.0))
    # Mean 6; squares 16, 4, 0, 36: population variance 14.
    expected = torch.tensor([-4.0, -2.0, 0.0, 6.0]) / 14**0.5
    torch.testing.assert_close(standardized.as_tensor()[0, 0, 0], expected)


def test_each_volume_is_standardized_by_its_own_statistics() -> None:
    data = {"image": volume_of(2.0, 4.0), "other": volume_of(100.0, 300.0)}
    result = Standardized(["image", "other"])(data)
    torch.testing.assert_close(result["image"].as_tensor(), result["other"].as_tensor())


def statistics_in(form: str, folder: Path) -> Any:
    numbers = {"mean": 3.0, "std": 4.0}
    path = folder / "statistics.json"
    path.write_text(json.dumps(numbers))
    return {"dictionary": numbers, "path": path, "text": str(path)}[form]


@pytest.mark.parametrize("form", ["dictionary", "path", "text"])
def test_given_statistics_are_used_for_every_volume(form: str, tmp_path: Path) -> None:
    standardized = apply(Standardized("image", statistics_in(form, tmp_path)), volume_of(-5.0, 3.0, 9.0))
    torch.testing.assert_close(standardized.as_tensor()[0, 0, 0], torch.tensor([-2.0, 0.0, 1.5]))


def test_the_statistics_file_may_be_written_after_the_transform_is_made(tmp_path: Path) -> None:
    transform = Standardized("image", tmp_path / "statistics.json")
    statistics_in("path", tmp_path)
    assert float(apply(transform, volume_of(7.0, 7.0)).max()) == 1.0


def test_a_missing_statistics_file_is_named(tmp_path: Path) -> None:
    transform = Standardized("image", tmp_path / "nowhere.json")
    with pytest.raises(FileNotFoundError, match=r"no intensity statistics at .*nowhere\.json\. Training on CT writes"):
        apply(transform, volume_of(1.0, 2.0))


def test_statistics_of_a_large_volume_are_exact() -> None:
    values = np.random.default_rng(3).normal(400, 90, size=(1, 64, 80, 20)).astype(np.float32)
    exact = (values.astype(np.float64) - values.mean(dtype=np.float64)) / values.std(dtype=np.float64)
    standardized = apply(Standardized("image"), MetaTensor(torch.tensor(values)))
    np.testing.assert_allclose(standardized.numpy(), exact, atol=1e-4)


def test_statistics_of_the_training_set_lie_beside_the_weights() -> None:
    assert statistics_file("training_set", "runs/one/model.pt") == str(Path("runs/one/intensity.json"))


@pytest.mark.parametrize(("statistics", "weights"), [("volume", "model.pt"), ("training_set", None)])
def test_without_statistics_of_a_training_set_there_is_no_file(statistics: str, weights: str | None) -> None:
    assert statistics_file(statistics, weights) is None


def test_statistics_that_no_training_wrote_are_missed_in_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert statistics_file("training_set", tmp_path / "model.pt", needed=False) is None
    assert "each scan is standardized by its own mean and standard deviation" in caplog.text
    (tmp_path / "intensity.json").write_text("{}")
    assert statistics_file("training_set", tmp_path / "model.pt", needed=False) == str(tmp_path / "intensity.json")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "must hold mean and std as numbers"),
        ('{"mean": 1}', "must hold mean and std as numbers"),
        ("[1, 2]", "must hold mean and std as numbers"),
        ('{"mean": "x", "std": 1}', "must hold mean and std as numbers"),
        ('{"mean": NaN, "std": 1}', "must be finite and std above 0"),
        ('{"mean": 1, "std": Infinity}', "must be finite and std above 0"),
        ('{"mean": 1, "std": 0}', "must be finite and std above 0"),
        ('{"mean": 1, "std": -2}', "must be finite and std above 0"),
    ],
)
def test_a_file_without_usable_statistics_is_refused(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "intensity.json").write_text(text)
    with pytest.raises(ValueError, match=words):
        read_statistics(tmp_path / "intensity.json")


def test_statistics_may_be_given_as_numbers() -> None:
    assert read_statistics({"mean": 60, "std": 70}) == {"mean": 60.0, "std": 70.0}


def test_unknown_statistics_are_refused() -> None:
    with pytest.raises(ValueError, match=r"statistics must be 'volume' or 'training_set', got 'foo'\. Set one"):
        statistics_file("foo", "model.pt")


# --- regions -----------------------------------------------------------------------------------------------------


def body_scan() -> Any:
    """An uneven body of 100 to 200 with a hole, a bright fluid, a stray piece, and noise below 10 about them."""
    volume = torch.rand(1, 24, 30, 3) * 9 + 1
    volume[0, 4:20, 5:25] = 100 + 100 * torch.rand(16, 20, 3)
    volume[0, 10:12, 10:12] = 5  # a hole, which belongs to the body
    volume[0, 15:17, 15:20] = 2000
    volume[0, 22, 28] = 150  # too small a piece
    return volume


def test_robust_statistics_of_the_body_bring_it_to_the_center_and_the_spread_that_are_asked_for() -> None:
    volume = body_scan()
    transform = Standardized("image", method="robust", region="body", center=0.3, spread=0.7)
    body = volume[0, 4:20, 5:25].double()
    deviation = 1.4826 * (body - body.quantile(0.5)).abs().quantile(0.5)
    expected = 0.3 + 0.7 * (volume - body.quantile(0.5)) / deviation
    torch.testing.assert_close(apply(transform, volume), expected.to(volume), rtol=1e-3, atol=1e-3)


def test_a_bright_fluid_takes_the_contrast_of_tissues_under_the_z_score_and_not_under_robust_numbers() -> None:
    dark = body_scan()
    dark[0, 5, 6:8, 0] = torch.tensor([110.0, 190.0])
    bright = torch.where(dark == 2000, 9000.0, dark)
    contrasts = {}
    for method in ("zscore", "robust"):
        scans = [apply(Standardized("image", method=method, region="body"), volume) for volume in (dark, bright)]
        contrasts[method] = [float(scan[0, 5, 7, 0] - scan[0, 5, 6, 0]) for scan in scans]
    assert contrasts["robust"][1] == pytest.approx(contrasts["robust"][0], rel=1e-4)
    assert contrasts["zscore"][1] < 0.3 * contrasts["zscore"][0]


@pytest.mark.parametrize("region", ["scan", "body"])
@pytest.mark.parametrize("method", ["zscore", "robust"])
def test_padding_of_any_shape_changes_no_voxel_of_the_scan(method: Any, region: Region) -> None:
    volume = body_scan()
    volume[0, 0, 0, 0] = 0
    padded = torch.nn.functional.pad(volume, (2, 1, 5, 9, 7, 3))
    transform = Standardized("image", method=method, region=region)
    torch.testing.assert_close(apply(transform, padded)[..., 7:-3, 5:-9, 2:-1], apply(transform, volume))


def test_a_percentile_of_the_scan_does_not_count_padding() -> None:
    values = torch.arange(201.0).reshape(1, 3, 67, 1)
    padded = torch.nn.functional.pad(values, (0, 9))  # nine slices of zeros: a tenth of the voxels is the scan
    clipped = apply(ClipTopd("image", 50, region="scan"), padded)
    assert float(clipped.max()) == 100.5  # of 1 to 200
    assert float(apply(ClipTopd("image", 50), values).max()) == 100.0


def test_a_scan_of_two_values_is_standardized_by_the_volume() -> None:
    result = apply(Standardized("image", region="scan"), volume_of(0.0, 4.0))
    torch.testing.assert_close(result.as_tensor()[0, 0, 0], torch.tensor([-1.0, 1.0]))


def test_robust_statistics_of_a_volume_that_is_half_one_value_are_refused() -> None:
    with pytest.raises(ValueError, match=r"half of the voxels are 7.* method to zscore"):
        apply(Standardized("image", method="robust"), volume_of(7.0, 7.0, 7.0, 9.0))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"method": "minmax"}, "method must be 'zscore' or 'robust', got 'minmax'"),
        ({"region": "head"}, "region must be 'volume', 'scan' or 'body', got 'head'"),
        ({"spread": 0.0}, r"spread must be above 0, got 0\.0"),
    ],
)
def test_unknown_settings_of_the_standardization_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Standardized("image", **wrong)
