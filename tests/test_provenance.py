"""What something was made with: equal things are described alike, and what changed is named."""

from __future__ import annotations

import functools
import hashlib
import os
import random
import subprocess
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundle import provenance
from bundle.data import EpisodeDataset
from bundle.networks import ALPNet, ForegroundPrototypes, ResNetEncoder
from bundle.provenance import (
    changes,
    code_hash,
    content_hash,
    describe,
    digest,
    file_records,
    fingerprint,
    origin,
    versions,
)
from bundle.training.checkpoints import Checkpoints
from bundle.transforms import ClipTopd
from monai.transforms import Compose, LoadImaged
from tests.data.scans import StoredScan
from torch import nn

SEGMENTER = """
import numpy as np
SIGMA = {sigma}
TABLE = {{"a": [1, {entry}]}}
SIZE = {size}
def smooth(image):
    '''{words}'''
    return image * {factor}
def segment(image, min_size=SIZE, *, scale={scale}):
    return smooth(image) > SIGMA * min_size * np.pi
class Segmenter:
    steps = {steps}
    def __call__(self, image):
        return [segment(image) for _ in range(self.steps)]
class Better(Segmenter):
    # {words}
    def also(self):
        return TABLE["a"]
"""

AS_IT_WAS = {"sigma": 1.0, "size": 100, "factor": 2, "scale": 3, "steps": 1, "words": "Smooth.", "entry": 5}


def module(**changed: Any) -> Mapping[str, Any]:
    """A user's module that makes superpixels."""
    names: dict[str, Any] = {"__name__": "my_segmenter"}
    exec(SEGMENTER.format(**(AS_IT_WAS | changed)), names)
    return names


@pytest.mark.parametrize("changed", [{"sigma": 1.5}, {"size": 400}, {"factor": 3}, {"scale": 4}])
@pytest.mark.parametrize("name", ["segment", "Segmenter", "Better"])
def test_segmenters_of_another_body_default_or_constant_are_told_apart(changed: dict[str, Any], name: str) -> None:
    assert code_hash(module()[name]) != code_hash(module(**changed)[name])


def test_what_code_does_not_refer_to_does_not_count() -> None:
    assert code_hash(module()["segment"]) == code_hash(module(steps=2, entry=6)["segment"])
    assert code_hash(module()["Segmenter"]) != code_hash(module(steps=2)["Segmenter"])
    assert code_hash(module()["Segmenter"]) == code_hash(module(entry=6)["Segmenter"])
    assert code_hash(module()["Better"]) != code_hash(module(entry=6)["Better"])


def test_words_about_code_do_not_count() -> None:
    other = module(words="Smooth it, and say so at length.")
    for name in ("segment", "Better"):
        assert code_hash(module()[name]) == code_hash(other[name])


def test_code_that_refers_to_itself_has_a_hash() -> None:
    def again(depth: int) -> Any:
        return again(depth - 1) if depth else table

    table = {"again": again}
    assert code_hash(again) == code_hash(again)


def test_a_librarys_code_is_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    before = code_hash(LoadImaged)
    monkeypatch.setattr("monai.__version__", "0.0")
    assert code_hash(LoadImaged) != before


def test_a_constant_of_the_bundle_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = code_hash(provenance.changes)
    monkeypatch.setattr(provenance, "MOST_CHANGES", 7)
    assert code_hash(provenance.changes) != before


def test_the_same_code_has_the_same_hash_in_another_process() -> None:
    command = "import sys, random; from bundle.data import EpisodeDataset; from bundle.training import checkpoints; "
    command += (
        "from bundle.provenance import code_hash; print(code_hash(EpisodeDataset), code_hash(checkpoints.Checkpoints))"
    )
    done = [
        subprocess.run([sys.executable, "-c", command], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True)
        for seed in ("1", "2")
    ]
    here = f"{code_hash(EpisodeDataset)} {code_hash(Checkpoints)}"
    assert [one.stdout.decode().strip() for one in done] == [here, here], done[0].stderr


def segmenter(image: np.ndarray, min_size: int = 1) -> np.ndarray:
    return image


def clipping(percentile: float) -> Compose:
    return Compose([LoadImaged(keys="image", image_only=True), ClipTopd(keys="image", percentile=percentile)])


def closure(value: int) -> Callable[[], int]:
    def inner() -> int:
        return value

    return inner


class Slotted:
    """An object that keeps its settings in slots."""

    __slots__ = ("kind", "size")

    def __init__(self, size: int, kind: str = "a") -> None:
        self.size, self.kind = size, kind


class Holder:
    """An object that holds something."""

    def __init__(self, held: Any) -> None:
        self.held = held


def in_a_circle() -> Holder:
    holder = Holder(None)
    holder.held = [holder]
    return holder


@pytest.mark.parametrize(
    "make",
    [
        StoredScan,
        lambda: clipping(99.5),
        lambda: functools.partial(segmenter, min_size=100),
        lambda: {"b": 1, "a": [2, (3, None)]},
        lambda: Slotted(3),
        lambda: Holder(object()),
        lambda: Holder(np.random.default_rng()),
        lambda: Holder(np.random.default_rng(3)),
        lambda: Holder(random.Random(3)),
        lambda: Holder(torch.Generator().manual_seed(3)),
        in_a_circle,
    ],
)
def test_equal_things_are_described_alike(make: Callable[[], Any]) -> None:
    assert digest(describe(make())) == digest(describe(make()))


def test_random_states_are_left_out() -> None:
    one, other = clipping(99.5), clipping(99.5)
    other.set_random_state(seed=7)
    assert describe(one) == describe(other)
    used = np.random.default_rng(3)
    used.random(5)
    assert describe(used) == describe(np.random.default_rng(3))


def test_the_order_of_keywords_and_of_sets_does_not_matter() -> None:
    assert digest(describe({"a": 1, "b": 2})) == digest(describe({"b": 2, "a": 1}))
    assert list({0, 8}) != list({8, 0})
    assert describe({0, 8}) == describe({8, 0})


DIFFERENT = {
    "parameter": (StoredScan(1.0), StoredScan(2.0)),
    "parameter inside Compose": (clipping(99.5), clipping(99)),
    "keyword of a partial": (functools.partial(segmenter, min_size=100), functools.partial(segmenter, min_size=400)),
    "function of a partial": (functools.partial(segmenter, min_size=1), functools.partial(closure, min_size=1)),
    "argument of a partial": (functools.partial(segmenter, 1), functools.partial(segmenter, 2)),
    "class": (StoredScan(), Holder(1.0)),
    "nesting": ([[1], 2], [[1, 2]]),
    "type of a number": (1, 1.0),
    "order of a list": ([1, 2], [2, 1]),
    "middle of a long array": (np.arange(3000), np.where(np.arange(3000) == 1500, -1, np.arange(3000))),
    "tensor": (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0])),
    "bfloat16": (torch.ones(2, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.bfloat16)),
    "method of another object": (StoredScan(1.0).__call__, StoredScan(2.0).__call__),
    "lambda": (lambda image: image + 1, lambda image: image + 2),
    "closure": (closure(1), closure(2)),
    "slot": (Slotted(1), Slotted(2)),
    "an attribute called kind": (Slotted(1, "a"), Slotted(1, "b")),
    "seed of a generator": (Holder(np.random.default_rng(3)), Holder(np.random.default_rng(4))),
    "weight": (nn.Linear(2, 3), nn.Linear(2, 3)),
    "depth": (ResNetEncoder(18, out_channels=None), ResNetEncoder(34, out_channels=None)),
    "rate": (torch.optim.SGD([nn.Parameter()], lr=1.0), torch.optim.SGD([nn.Parameter()], lr=2.0)),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_different_things_are_described_differently(case: str) -> None:
    one, other = DIFFERENT[case]
    assert digest(describe(one)) != digest(describe(other))


def test_a_network_can_be_described_without_its_weights() -> None:
    one, other = (ALPNet(nn.Conv2d(3, 2, 1)) for _ in range(2))
    assert describe(one) != describe(other)
    assert describe(one, weights=False) == describe(other, weights=False)
    assert describe(one.eval(), weights=False) == describe(other.train(), weights=False)


def test_settings_are_spelled_out_without_code_for_other_versions_to_read() -> None:
    assert describe(ForegroundPrototypes(3, None, 0.5, 2), code=False) == {
        "kind": "ForegroundPrototypes",
        "rule_window": [2, 2],
        "min_coverage": 0.5,
        "local": {"kind": "LocalPrototypes", "window": [3, 3], "eval_window": [3, 3], "min_coverage": 0.5},
    }
    assert describe({1: (None, "a", 2.5)}, code=False) == {"1": [None, "a", 2.5]}


def test_what_tells_what_it_is_made_with_is_described_by_that() -> None:
    told = types.SimpleNamespace(made_with=lambda: {"scans": ["a"]}, counter=3)
    assert describe(told) | {"kind": ""} == {"kind": "", "scans": ["a"]}


def test_what_changed_is_named_with_both_values() -> None:
    before = {"fold": 0, "size": [64, 64], "loss": {"weight": 0.5, "kind": "Loss"}, "steps": [{"n": 1}, {"n": 2}]}
    now = {"size": (64, 64), "loss": {"weight": 1.0, "kind": "Loss"}, "steps": [{"n": 1}, {"n": 3}], "amp": False}
    assert changes(before, before) == ""
    assert changes(before, now).split("; ") == [
        "loss::weight was 0.5, is 1.0",
        "steps::1::n was 2, is 3",
        "amp was not set, is false",
        "fold was 0, is not set",
    ]
    assert changes({}, {str(n): n for n in range(9)}).endswith("5 was not set, is 5 and 3 more")


def test_a_file_is_its_name_and_its_content(tmp_path: Path) -> None:
    for folder, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "scan.nii").write_bytes(content)
    one, same, other = (file_records(tmp_path / folder / "scan.nii") for folder in "abc")
    assert one == same != other
    assert one == [f"scan.nii {hashlib.sha256(b'1').hexdigest()[:16]}"]
    assert file_records(None) == []
    assert file_records([tmp_path / "none.nii"]) == ["none.nii missing"]
    assert content_hash(tmp_path / "a") == content_hash(tmp_path / "b") != content_hash(tmp_path / "c")


def test_a_file_of_the_same_size_with_another_content_is_another(tmp_path: Path) -> None:
    path = tmp_path / "label.nii"
    path.write_bytes(b"liver")
    before = content_hash(path)
    path.write_bytes(b"lever")
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))
    assert content_hash(path) != before == hashlib.sha256(b"liver").hexdigest()


def test_a_file_is_read_once_while_it_stays_the_same(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    reads = provenance._content_hash.cache_info().misses
    assert content_hash(tmp_path / "a") == content_hash(str(tmp_path / "a"))
    assert provenance._content_hash.cache_info().misses == reads + 1


def test_weights_come_from_chance_a_download_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"1")
    assert [origin(None), origin("imagenet")] == ["random", "imagenet"]
    assert origin(tmp_path / "w.pth") == file_records(tmp_path / "w.pth")[0]


def test_equal_weights_have_equal_fingerprints_and_others_have_not() -> None:
    one, same, other = nn.BatchNorm2d(2), nn.BatchNorm2d(2), nn.BatchNorm2d(2)
    same.num_batches_tracked += 5
    with torch.no_grad():
        other.weight[1] += 1e-6
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)
    wide = nn.Linear(4, 2, bias=False)
    tall = nn.Linear(2, 4, bias=False)
    tall.weight.data = wide.weight.data.reshape(4, 2)
    assert fingerprint(wide) != fingerprint(tall)


def test_the_fingerprint_does_not_depend_on_the_layout_in_memory() -> None:
    one, other = (ResNetEncoder(18, "layer3", out_channels=16) for _ in range(2))
    other.load_state_dict(one.state_dict())
    assert fingerprint(other.to(memory_format=torch.channels_last)) == fingerprint(one)


def test_versions_are_told_for_all_that_computes() -> None:
    names = ("bundle", "monai", "torch", "scikit-image", "scipy", "numpy", "nibabel", "python")
    assert [*versions()] == [*(f"version: {name}" for name in names), "machine"]
