"""Episodes: repeatable, usable, and drawn by the rule that was chosen."""

from __future__ import annotations

import itertools
import json
import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundle.data import episodes as making
from bundle.data.cache import tried_scans
from bundle.data.episodes import EpisodeDataset, EpisodeSampler
from bundle.data.loading import ScanError
from bundle.transforms import Augmentation
from tests.data.scans import StoredScan, write_arrays
from torch import Tensor
from torch.utils.data import DataLoader

HEIGHT, WIDTH = 40, 56
# Changes nothing, so that a mask tells which superpixel was drawn.
STILL = Augmentation(rotate=(0, 0), translate=(0, 0), shear=(0, 0), zoom=(1, 1), gamma=(1, 1), elastic_magnitude=0.0)


# Slices this small are made faster by one thread than by several that wait for each other.
pytestmark = pytest.mark.usefixtures("one_thread")


def quarters(*ids: int) -> np.ndarray:
    """Four quarters of the body with these ids, in a border that is outside the body."""
    slice_ids = np.zeros((HEIGHT, WIDTH), dtype=np.int16)
    for number, (rows, columns) in zip(
        ids, itertools.product((slice(4, 20), slice(20, 36)), (slice(4, 28), slice(28, 52))), strict=True
    ):
        slice_ids[rows, columns] = number
    return slice_ids


def square(side: int) -> np.ndarray:
    slice_ids = np.zeros((HEIGHT, WIDTH), dtype=np.int16)
    slice_ids[12 : 12 + side, 20 : 20 + side] = 1
    return slice_ids


def all_but_a_corner(side: int) -> np.ndarray:
    slice_ids = np.ones((HEIGHT, WIDTH), dtype=np.int16)
    slice_ids[:side, :side] = 0
    return slice_ids


def scan(folder: Path, slice_ids: np.ndarray, depth: int = 3, level: float = 100.0) -> dict[str, str]:
    random = np.random.default_rng(depth)
    image = random.normal(level, 20, (*slice_ids.shape, depth)) + 5 * slice_ids[..., None]
    return write_arrays(folder / f"scan_{depth}_{level}.npz", image, np.repeat(slice_ids[..., None], depth, axis=2))


def episodes(folder: Path, slice_ids: np.ndarray, **settings: Any) -> EpisodeDataset:
    return EpisodeDataset([scan(folder, slice_ids)], StoredScan(), folder / "cache", num_workers=0, **settings)


def assert_equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for key in one:
        torch.testing.assert_close(one[key], other[key], rtol=0, atol=0)


def drawn_ids(dataset: EpisodeDataset, slice_ids: np.ndarray, count: int = 60) -> set[int | None]:
    """Return the superpixels that the queries' masks show; ``None`` is an empty mask."""
    masks = [dataset[index]["label"][0].numpy() for index in range(count)]
    ids = [np.unique(slice_ids[mask == 1]).tolist() for mask in masks]
    assert all(len(found) <= 1 for found in ids)
    return {found[0] if found else None for found in ids}


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("num_workers", [1, 4])
def test_workers_make_the_same_episodes_as_none(tmp_path: Path, num_workers: int) -> None:
    alone = DataLoader(episodes(tmp_path, quarters(1, 2, 3, 4), seed=5), batch_size=2, sampler=range(8))
    helped = DataLoader(
        episodes(tmp_path, quarters(1, 2, 3, 4), seed=5), batch_size=2, sampler=range(8), num_workers=num_workers
    )
    for one, other in zip(alone, helped, strict=True):
        assert_equal(one, other)


def test_another_seed_makes_other_episodes(tmp_path: Path) -> None:
    one, other = (episodes(tmp_path, quarters(1, 2, 3, 4), seed=seed) for seed in (5, 6))
    assert not any(torch.equal(one[index]["image"], other[index]["image"]) for index in range(5))


def test_episodes_of_one_seed_differ_from_each_other(tmp_path: Path) -> None:
    dataset = episodes(tmp_path, quarters(1, 2, 3, 4))
    assert not any(torch.equal(dataset[0]["image"], dataset[index]["image"]) for index in range(1, 6))


def test_an_episode_does_not_depend_on_those_before_it(tmp_path: Path) -> None:
    dataset = episodes(tmp_path, quarters(1, 2, 3, 4))
    forward = [dataset[index] for index in range(4)]
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    for index in (3, 1, 0, 2):
        assert_equal(dataset[index], forward[index])


def test_support_and_query_are_two_views_of_one_superpixel(tmp_path: Path) -> None:
    shifted = replace(STILL, translate=(-2, 2))
    episode = episodes(tmp_path, quarters(1, 2, 3, 4), augmentation=shifted)[0]
    query, support = episode["label"][0], episode["support_mask"][0, 0]
    assert not torch.equal(query, support)
    # At most 4 pixels apart along each side of 16 x 24.
    assert (query * support).sum() >= 11 * 19


def of_slices(folder: Path, *slices: np.ndarray, **settings: Any) -> EpisodeDataset:
    """One scan with these superpixels and slices of brightness 100, 200, ..."""
    ids = np.stack(slices, axis=-1)
    image = np.random.default_rng(0).normal(0, 1, ids.shape) + 100 * (1 + np.arange(len(slices)))
    files = write_arrays(folder / "slices.npz", image, ids)
    return EpisodeDataset([files], StoredScan(), folder / "cache", num_workers=0, augmentation=STILL, **settings)


def slice_of(view: Tensor) -> int:
    """Tell the slice by its brightness: 100 to 400, standardized by a mean of 250 and a deviation of 112."""
    return round(float(view.mean()) * 1.12 + 1.5)


def test_support_and_query_can_be_slices_that_show_the_same_supervoxel(tmp_path: Path) -> None:
    """Id 1 is in slices 0, 1 and 3, id 2 in slice 2 alone."""
    slices = (quarters(1, 0, 0, 0), quarters(0, 1, 0, 0), quarters(2, 0, 0, 0), quarters(1, 0, 0, 0))
    dataset = of_slices(tmp_path, *slices, query_distance=2)
    pairs = set()
    for index in range(80):
        episode = dataset[index]
        pair = slice_of(episode["support_image"]), slice_of(episode["image"])
        for z, mask in zip(pair, (episode["support_mask"][0, 0], episode["label"][0]), strict=True):
            assert torch.equal(mask > 0, torch.from_numpy(slices[z] > 0))
        pairs.add(pair)
    assert pairs == {(0, 0), (0, 1), (1, 0), (1, 1), (1, 3), (3, 1), (3, 3), (2, 2)}


def test_without_a_distance_the_query_is_the_supports_own_slice(tmp_path: Path) -> None:
    dataset = of_slices(tmp_path, *(quarters(1, 0, 0, 0) for _ in range(4)))
    assert all(torch.equal(dataset[i]["image"], dataset[i]["support_image"][0]) for i in range(20))


def test_a_negative_distance_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="query_distance must be at least 0 slices"):
        of_slices(tmp_path, quarters(1, 0, 0, 0), query_distance=-1)


@pytest.mark.parametrize(
    ("slice_ids", "min_area"), [(square(12), 140), (all_but_a_corner(14), 190)], ids=["foreground", "background"]
)
def test_every_view_has_min_area_of_foreground_and_background(
    tmp_path: Path, slice_ids: np.ndarray, min_area: int
) -> None:
    dataset = episodes(tmp_path, slice_ids, min_area=min_area, shots=2)
    for index in range(25):
        episode = dataset[index]
        masks = torch.cat([episode["support_mask"], episode["label"][None]])
        assert masks.sum(dim=(1, 2, 3)).min() >= min_area
        assert (1 - masks).sum(dim=(1, 2, 3)).min() >= min_area


def test_an_episode_without_a_usable_view_is_given_up(tmp_path: Path) -> None:
    dataset = episodes(tmp_path, square(12), min_area=144, augmentation=Augmentation(zoom=(0.6, 0.6)))
    with pytest.raises(RuntimeError, match="episode 3: 100 draws gave no view with 144 pixels"):
        dataset[3]


def test_the_present_rule_draws_every_id_there_is_and_no_other(tmp_path: Path) -> None:
    slice_ids = quarters(1, 2, 7, 9)
    assert drawn_ids(episodes(tmp_path, slice_ids, augmentation=STILL), slice_ids) == {1, 2, 7, 9}


def test_the_present_rule_draws_no_superpixel_below_min_area(tmp_path: Path) -> None:
    slice_ids = quarters(1, 2, 3, 4)
    slice_ids[4:12, 4:12] = 5
    assert drawn_ids(episodes(tmp_path, slice_ids, augmentation=STILL, min_area=65), slice_ids) == {1, 2, 3, 4}
    assert 5 in drawn_ids(episodes(tmp_path, slice_ids, augmentation=STILL, min_area=64), slice_ids)


def test_the_reference_rule_draws_absent_ids_and_never_the_largest(tmp_path: Path) -> None:
    slice_ids = quarters(1, 2, 3, 7)
    dataset = episodes(tmp_path, slice_ids, augmentation=STILL, id_rule="reference")
    assert drawn_ids(dataset, slice_ids) == {1, 2, 3, None}


def test_the_reference_rule_draws_superpixels_of_any_size(tmp_path: Path) -> None:
    slice_ids = square(12)
    slice_ids[0, 0] = 2
    dataset = episodes(tmp_path, slice_ids, augmentation=STILL, id_rule="reference", min_area=1000)
    assert drawn_ids(dataset, slice_ids, count=5) == {1}


def test_three_shots_have_the_shapes_that_are_promised(tmp_path: Path) -> None:
    episode = episodes(tmp_path, quarters(1, 2, 3, 4), shots=3, channels=2)[0]
    assert {key: tuple(value.shape) for key, value in episode.items()} == {
        "image": (2, HEIGHT, WIDTH),
        "label": (1, HEIGHT, WIDTH),
        "support_image": (3, 2, HEIGHT, WIDTH),
        "support_mask": (3, 1, HEIGHT, WIDTH),
    }
    assert {value.dtype for value in episode.values()} == {torch.float32}


def test_masks_are_zero_or_one_and_channels_are_copies(tmp_path: Path) -> None:
    episode = episodes(tmp_path, quarters(1, 2, 3, 4))[0]
    assert set(episode["support_mask"].unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(episode["image"][2], episode["image"][0], rtol=0, atol=0)


def test_the_length_is_the_number_of_slices_that_have_a_superpixel(tmp_path: Path) -> None:
    superpixels = np.stack([quarters(1, 2, 3, 4), quarters(0, 0, 0, 0), quarters(0, 1, 0, 0)], axis=-1)
    image = np.random.default_rng(0).normal(size=superpixels.shape)
    data = [write_arrays(tmp_path / "scan.npz", image, superpixels)]
    assert len(EpisodeDataset(data, StoredScan(), tmp_path / "cache", num_workers=0)) == 2


def two_scans(folder: Path) -> list[dict[str, str]]:
    """Of different depth and brightness, so that a mean of means is not the mean."""
    return [scan(folder, quarters(1, 2, 3, 4), 2, 100.0), scan(folder, quarters(1, 2, 3, 4), 5, 900.0)]


def images(data: list[dict[str, str]]) -> list[np.ndarray]:
    return [np.load(item["image"])["image"] for item in data]


def test_scans_that_cannot_be_used_are_named_and_the_others_train(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = two_scans(tmp_path)
    for name, content in (("empty", b""), ("damaged", b"no arrays")):
        (tmp_path / f"{name}.npz").write_bytes(content)
    bad = [{"image": str(tmp_path / f"{name}.npz")} for name in ("empty", "gone", "damaged")]
    mixed = [bad[2], good[0], bad[0], good[1], bad[1]]
    found = EpisodeDataset(mixed, StoredScan(), tmp_path / "cache", num_workers=0)
    assert [Path(problem.split(": ")[0]).name for problem in found.problems] == ["empty.npz", "gone.npz", "damaged.npz"]
    assert [record.message for record in caplog.records] == [f"cannot use {problem}" for problem in found.problems]
    alone = EpisodeDataset(good, StoredScan(), tmp_path / "cache", num_workers=0)
    assert (alone.problems, found.data) == ([], good)
    assert found.made_with()["scans"] == alone.made_with()["scans"]
    for key, value in alone[7].items():
        torch.testing.assert_close(found[7][key], value, rtol=0, atol=0)


def test_damaged_headers_are_named_before_any_superpixels(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = []

    def late(scans: Any, *args: Any) -> Any:
        said.append((len(scans), caplog.text))
        return tried_scans(scans, *args)

    (tmp_path / "empty.npz").touch()
    monkeypatch.setattr(making, "tried_scans", late)
    data = [*two_scans(tmp_path), {"image": str(tmp_path / "empty.npz")}]
    assert len(EpisodeDataset(data, StoredScan(), tmp_path / "cache", num_workers=0).scans) == 2
    [(number, text)] = said
    assert number == 2
    assert "empty.npz: the file is empty" in text


def test_where_no_scan_can_be_used_all_are_named(tmp_path: Path) -> None:
    bad = [{"image": str(tmp_path / name)} for name in ("a.npz", "b.npz")]
    with pytest.raises(ScanError, match=r"no scan can be used to train on:\n  \S*a\.npz: there .*\n  \S*b\.npz: there"):
        EpisodeDataset(bad, StoredScan(), tmp_path / "cache", num_workers=0)


def test_training_set_statistics_are_those_of_all_voxels_and_are_written(tmp_path: Path) -> None:
    data, file = two_scans(tmp_path), tmp_path / "models" / "intensity.json"
    settings: dict[str, Any] = {"statistics": "training_set", "statistics_file": file}
    EpisodeDataset(data, StoredScan(), tmp_path / "cache", num_workers=0, **settings)
    voxels = np.concatenate([image.ravel() for image in images(data)])
    written = json.loads(file.read_text())
    assert written.keys() == {"mean", "std"}
    np.testing.assert_allclose([written["mean"], written["std"]], [voxels.mean(), voxels.std()], rtol=1e-6)


@pytest.mark.parametrize("statistics", ["volume", "training_set"])
def test_a_slice_is_standardized_by_the_chosen_statistics(tmp_path: Path, statistics: Any) -> None:
    data = two_scans(tmp_path)
    dataset = EpisodeDataset(
        data, StoredScan(), tmp_path / "cache", statistics=statistics, augmentation=STILL, num_workers=0
    )
    voxels = np.concatenate([image.ravel() for image in images(data)])
    numbers = [
        (image.mean(), image.std()) if statistics == "volume" else (voxels.mean(), voxels.std())
        for image in images(data)
    ]
    expected = [
        (image[..., z] - mean) / std
        for image, (mean, std) in zip(images(data), numbers, strict=True)
        for z in range(image.shape[-1])
    ]
    for index in range(6):
        drawn = dataset[index]["image"][0].numpy()
        assert min(np.abs(drawn - slice_image).max() for slice_image in expected) < 1e-3


def test_volume_statistics_write_no_file(tmp_path: Path) -> None:
    episodes(tmp_path, quarters(1, 2, 3, 4), statistics="volume", statistics_file=tmp_path / "intensity.json")
    assert not (tmp_path / "intensity.json").exists()


def test_no_usable_superpixel_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no slice of the 1 scans has a superpixel of at least 145 pixels"):
        episodes(tmp_path, square(12), min_area=145)


def test_no_scan_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no scan to train on"):
        EpisodeDataset([], StoredScan(), tmp_path)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"shots": 0}, "shots must be a whole number of support views, at least 1, got 0"),
        ({"shots": 1.5}, "shots must be a whole number"),
        ({"shots": True}, "shots must be a whole number"),
        ({"min_area": 0}, "min_area must be at least 1 pixel, got 0"),
        ({"id_rule": "all"}, "id_rule must be 'present' or 'reference', got 'all'"),
        ({"statistics": "slice"}, "statistics must be 'volume' or 'training_set', got 'slice'"),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        EpisodeDataset([{"image": "never read"}], StoredScan(), tmp_path, **settings)


def test_the_sampler_starts_where_it_is_told_and_has_no_end() -> None:
    assert list(itertools.islice(EpisodeSampler(7), 4)) == [7, 8, 9, 10]
    assert next(itertools.islice(EpisodeSampler(), 100_000, None)) == 100_000


def test_the_sampler_can_be_set_before_it_is_used() -> None:
    sampler = EpisodeSampler()
    sampler.start = 30
    assert [next(iter(sampler)), next(iter(sampler))] == [30, 30]


@pytest.mark.parametrize("seed", [-1, 1.5, True])
def test_a_seed_that_is_no_whole_number_from_0_is_refused(tmp_path: Path, seed: Any) -> None:
    with pytest.raises(ValueError, match="seed must be a whole number from 0"):
        EpisodeDataset([{"image": "a"}], lambda scan: scan, tmp_path, seed=seed)


def test_a_spawned_process_is_told_where_the_slices_lie_and_not_what_they_hold(tmp_path: Path) -> None:
    made = episodes(tmp_path, quarters(1, 2, 3, 4))
    made.scans[0].image[0]  # open
    slices = made.scans[0].image.nbytes + made.scans[0].superpixels.nbytes
    many = EpisodeDataset(
        [scan(tmp_path, quarters(1, 2, 3, 4), depth=60)], StoredScan(), tmp_path / "cache", num_workers=0
    )
    growth = len(pickle.dumps(many)) - len(pickle.dumps(made))
    assert growth < 0.1 * (many.scans[0].image.nbytes + many.scans[0].superpixels.nbytes - slices)


def test_spawned_processes_make_the_same_episodes(tmp_path: Path) -> None:
    made = episodes(tmp_path, quarters(1, 2, 3, 4))
    loader = DataLoader(made, batch_size=2, num_workers=1, multiprocessing_context="spawn")
    batch = next(iter(loader))
    assert torch.equal(batch["image"], torch.stack([made[0]["image"], made[1]["image"]]))
    assert torch.equal(batch["support_mask"], torch.stack([made[0]["support_mask"], made[1]["support_mask"]]))
