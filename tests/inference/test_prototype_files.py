"""Tests of ``bundle.inference.prototype_files``, and of ``VolumeInferer`` that writes and reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from monai.data import MetaTensor
from torch import Tensor

import bundle.inference.prototype_files
from bundle.inference.matching import ChunkMatching, Matching, SliceMatching
from bundle.inference.prototype_files import PrototypeRecord, read_prototypes, refuse_other_making, write_prototypes
from bundle.inference.volume_inferer import VolumeInferer
from bundle.networks import ALPNet, ForegroundPrototypes, PrototypeHead, ResNetEncoder, TopKClassifier

RECORD = PrototypeRecord({"liver": 1}, [{"name": "a"}, {"name": "b"}], {"encoder": "f00d"})
TENSORS = [{"x": torch.arange(6.0).reshape(2, 3).T, "y.z": torch.tensor([3])}, {"x": torch.zeros(0, 4)}]

MATCHINGS: dict[str, Any] = {
    "chunks": ChunkMatching(),
    "one chunk": ChunkMatching(chunks=1),
    "slices": SliceMatching(slices=3),
    "by height": SliceMatching(by="height"),
}


def scan(seed: int, organs: tuple[int, ...] = (3, 7), name: str | None = None) -> dict[str, Any]:
    """Two bright blocks in noise, in slices 2 to 6 of 8."""
    image = torch.randn(1, 64, 64, 8, generator=torch.Generator().manual_seed(seed))
    label = torch.zeros(1, 64, 64, 8)
    for number, organ in enumerate(organs):
        rows, columns = slice(8 + 24 * number, 28 + 24 * number), slice(10 + seed, 40 + seed)
        label[0, rows, columns, 2:7] = organ
        image[0, rows, columns, 2:7] += 3 + 3 * number
    if name is not None:
        image = MetaTensor(image, meta={"filename_or_obj": f"/patients/{name}"})
    return {"image": image, "label": label}


@pytest.fixture(scope="module")
def network() -> ALPNet:
    torch.manual_seed(0)
    return ALPNet(ResNetEncoder(18, "layer3", out_channels=16)).eval()


def saved(path: Path, network: ALPNet, *scans: Any, **settings: Any) -> Path:
    VolumeInferer(scans, **settings).save_prototypes(path / "p.safetensors", network)
    return path / "p.safetensors"


# --- files ---------------------------------------------------------------------------------------------------------


def test_tensors_and_record_come_back(tmp_path: Path) -> None:
    write_prototypes(tmp_path / "deep" / "p.safetensors", TENSORS, RECORD)
    scans, record = read_prototypes(tmp_path / "deep" / "p.safetensors")
    assert record == RECORD
    assert [set(scan) for scan in scans] == [{"x", "y.z"}, {"x"}]
    for scan, expected in zip(scans, TENSORS, strict=True):
        assert all(torch.equal(scan[name], expected[name]) for name in expected)
    assert json.loads((tmp_path / "deep" / "p.json").read_text())["organs"] == {"liver": 1}
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["p.json", "p.safetensors"]


def test_the_json_is_not_needed(tmp_path: Path) -> None:
    write_prototypes(tmp_path / "p.safetensors", TENSORS, RECORD)
    (tmp_path / "p.json").unlink()
    assert read_prototypes(tmp_path / "p.safetensors")[1] == RECORD


def test_another_ending_is_refused(tmp_path: Path) -> None:
    for use in (lambda path: write_prototypes(path, TENSORS, RECORD), read_prototypes):
        with pytest.raises(ValueError, match=r"must end in \.safetensors, got .*p\.pt"):
            use(tmp_path / "p.pt")


def test_a_missing_file_is_said_with_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file of prototypes .*p\.safetensors.*bundle encoding"):
        read_prototypes(tmp_path / "p.safetensors")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    write_prototypes(path, TENSORS, RECORD)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"p\.safetensors cannot be read .*truncated"):
        read_prototypes(path)


@pytest.mark.parametrize("metadata", [None, {"record": json.dumps({"format": 99})}])
def test_a_file_of_another_kind_or_format_is_refused(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    path = tmp_path / "p.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(1)}, path, metadata=metadata)
    with pytest.raises(ValueError, match=r"must be a file of prototypes of format 1, got (None|99)"):
        read_prototypes(path)


def test_without_the_package_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle.inference.prototype_files, "safetensors", None)
    with pytest.raises(ValueError, match="pip install safetensors"):
        read_prototypes(tmp_path / "p.safetensors")


def test_what_differs_is_named_with_both_values() -> None:
    record = PrototypeRecord({}, [], {"encoder": "a", "preprocessing": {"size": [2, 2]}})
    refuse_other_making("p", record, {"encoder": "a", "preprocessing": {"size": (2, 2)}})
    with pytest.raises(
        ValueError, match=r"made with another preprocessing: preprocessing::size was \[2, 2\], is \[2, 3\]\. Use"
    ):
        refuse_other_making("p", record, {"encoder": "a", "preprocessing": {"size": (2, 3)}})
    with pytest.raises(ValueError, match="made with another pooling: pooling was null, is 'c'"):
        refuse_other_making("p", record, {"encoder": "a", "pooling": "c"})


# --- annotated scans -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MATCHINGS)
def test_prototypes_give_exactly_the_scores_of_the_scans_they_stand_for(
    network: ALPNet, tmp_path: Path, name: str
) -> None:
    settings = {"matching": MATCHINGS[name], "head": PrototypeHead(classifier=TopKClassifier())}
    query = scan(5)["image"][None]
    path = saved(tmp_path, network, scan(0), scan(2, organs=(7,)), **settings)
    expected = VolumeInferer([scan(0), scan(2, organs=(7,))], **settings)(query, network)
    from_file = VolumeInferer([], prototypes=path, **settings)(query, network)
    assert torch.equal(from_file, expected)
    assert (expected > 0).any()
    assert from_file.meta.keys() == expected.meta.keys()
    for key, value in from_file.meta.items():
        assert not isinstance(value, Tensor) or torch.equal(value, expected.meta[key])


def test_files_of_several_scans_and_scans_with_images_go_together(network: ALPNet, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    files = [saved(tmp_path, network, scan(0)), saved(tmp_path / "a", network, scan(2))]
    query = scan(5)["image"][None]
    expected = VolumeInferer([scan(3), scan(0), scan(2)])(query, network)
    assert torch.equal(VolumeInferer([scan(3)], prototypes=files)(query, network), expected)


def test_a_file_is_read_once_for_all_queries(network: ALPNet, tmp_path: Path) -> None:
    path = saved(tmp_path, network, scan(0))
    inferer = VolumeInferer([], prototypes=path)
    first = inferer(scan(5)["image"][None], network)
    names = inferer.organ_names()
    path.unlink()
    assert torch.equal(inferer(scan(5)["image"][None], network), first)
    assert inferer.organ_names() == names == {"organ_3": 3, "organ_7": 7}


def test_the_file_tells_scans_organs_and_names(network: ALPNet, tmp_path: Path) -> None:
    organs = {"liver": 3, "spleen": 7}
    path = saved(tmp_path, network, scan(0, name="ann.nii.gz"), scan(1, organs=(7,)), organs=organs)
    record = read_prototypes(path)[1]
    assert record.organs == organs
    assert record.scans == [{"name": "ann.nii.gz", "organs": ["liver", "spleen"]}, {"name": "", "organs": ["spleen"]}]
    inferer = VolumeInferer([scan(2, organs=(4,))], prototypes=path)
    assert inferer.organ_names() == {"liver": 3, "organ_4": 4, "spleen": 7}


def test_a_file_may_be_made_from_files(network: ALPNet, tmp_path: Path) -> None:
    path = saved(tmp_path, network, scan(0, name="ann.nii.gz"), organs={"liver": 3})
    both = tmp_path / "both.safetensors"
    VolumeInferer([scan(2)], prototypes=path).save_prototypes(both, network)
    record = read_prototypes(both)[1]
    assert record.organs == {"liver": 3, "organ_7": 7}
    assert [one["name"] for one in record.scans] == ["", "ann.nii.gz"]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("matching", {"matching": SliceMatching(grid=3)}),
        ("matching", {"matching": ChunkMatching()}),
        ("pooling", {"head": PrototypeHead(foreground=ForegroundPrototypes(window=1))}),
        ("preprocessing", {"preprocessing": {"spacing": [1.0, 1.0]}}),
    ],
)
def test_prototypes_of_other_settings_are_refused(
    network: ALPNet, tmp_path: Path, name: str, change: dict[str, Any]
) -> None:
    settings: dict[str, Any] = {"matching": SliceMatching(), "preprocessing": {"spacing": "fit"}}
    path = saved(tmp_path, network, scan(0), **settings)
    # How many slices speak, and how they are scored, is free.
    free = settings | {"matching": SliceMatching(slices=2), "head": PrototypeHead(classifier=TopKClassifier())}
    VolumeInferer([], prototypes=path, **free)(scan(5)["image"][None], network)
    with pytest.raises(ValueError, match=f"p.safetensors were made with another {name}"):
        VolumeInferer([], prototypes=path, **(settings | change))(scan(5)["image"][None], network)


def test_prototypes_of_other_weights_are_refused(network: ALPNet, tmp_path: Path) -> None:
    path = saved(tmp_path, network, scan(0))
    torch.manual_seed(1)
    other = ALPNet(ResNetEncoder(18, "layer3", out_channels=16)).eval()
    with pytest.raises(ValueError, match="were made with another encoder"):
        VolumeInferer([], prototypes=path)(scan(5)["image"][None], other)


def test_a_scan_without_an_organ_leaves_no_file(network: ALPNet, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none of the annotated scans shows an organ"):
        saved(tmp_path, network, scan(0, organs=()))
    assert list(tmp_path.iterdir()) == []


def test_a_matching_of_ones_own_that_knows_no_files_says_so() -> None:
    class Own(SliceMatching):
        to_tensors = Matching.to_tensors
        from_tensors = Matching.from_tensors

    for method in (Own().to_tensors, Own().from_tensors):
        with pytest.raises(NotImplementedError, match="Own cannot keep annotated scans in files"):
            method({})
