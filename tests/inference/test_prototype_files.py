"""Tests of ``bundle.inference.prototype_files``, and of ``VolumeInferer`` that writes and reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import bundle.inference.prototype_files
import pytest
import safetensors.torch
import torch
from bundle.inference.matching import ChunkMatching, Matching, SliceMatching
from bundle.inference.matching.slices import SliceSupport
from bundle.inference.prototype_files import PrototypeRecord, read_prototypes, refuse_other_making, write_prototypes
from bundle.inference.volume_inferer import VolumeInferer
from bundle.networks import ALPNet, ForegroundPrototypes, PrototypeHead, ResNetEncoder, TopKClassifier
from bundle.provenance import tensors_hash
from monai.data import MetaTensor
from torch import Tensor

SHOWN: dict[str, Any] = {"organs": ["liver"], "shapes": {"liver": [1, None]}, "profile": [0.5]}
RECORD = PrototypeRecord({"liver": 1}, [{"name": "a", **SHOWN}, {"name": "b", **SHOWN}], {"encoder": "f00d"})
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
    assert record == replace(RECORD, content=record.content)
    assert [set(scan) for scan in scans] == [{"x", "y.z"}, {"x"}]
    for scan, expected in zip(scans, TENSORS, strict=True):
        assert all(torch.equal(scan[name], expected[name]) for name in expected)
    assert json.loads((tmp_path / "deep" / "p.json").read_text())["organs"] == {"liver": 1}
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["p.json", "p.safetensors"]


def test_the_json_is_not_needed(tmp_path: Path) -> None:
    write_prototypes(tmp_path / "p.safetensors", TENSORS, RECORD)
    (tmp_path / "p.json").unlink()
    assert read_prototypes(tmp_path / "p.safetensors")[1].organs == RECORD.organs


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
    with pytest.raises(ValueError, match=r"p\.safetensors cannot be read as a file of prototypes .*truncated"):
        read_prototypes(path)


@pytest.mark.parametrize("metadata", [None, {"record": json.dumps({"format": 99})}])
def test_a_file_of_another_kind_or_format_is_refused(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    path = tmp_path / "p.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(1)}, path, metadata=metadata)
    with pytest.raises(
        ValueError, match=r"cannot be read as a file of prototypes \(the format must be 2, got (None|99)\)"
    ):
        read_prototypes(path)


def test_without_the_package_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle.inference.prototype_files, "safetensors", None)
    with pytest.raises(ValueError, match="pip install safetensors"):
        read_prototypes(tmp_path / "p.safetensors")


def test_what_differs_is_named_with_both_values() -> None:
    record = PrototypeRecord({}, [], {"encoder": "a", "preprocessing": {"size": [2, 2]}})
    refuse_other_making("p", record, {"encoder": "a", "preprocessing": {"size": (2, 2)}})
    with pytest.raises(
        ValueError,
        match=r"made with another preprocessing: preprocessing::size was \[2, 2\], is \[2, 3\]\. Set it back",
    ):
        refuse_other_making("p", record, {"encoder": "a", "preprocessing": {"size": (2, 3)}})
    with pytest.raises(ValueError, match="made with another pooling: pooling was null, is 'c'"):
        refuse_other_making("p", record, {"encoder": "a", "pooling": "c"})


def damaged(path: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], Any]) -> Path:
    """Write a file whose record or tensors are changed, and whose hash is right all the same."""
    with safetensors.safe_open(path, framework="pt") as file:
        record = json.loads(file.metadata()["record"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(record, tensors)
    record["content"] = tensors_hash(dict(sorted(tensors.items())))
    kept = {name: tensor.contiguous() for name, tensor in tensors.items()}
    safetensors.torch.save_file(kept, path, metadata={"record": json.dumps(record)})
    return path


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("organs", {"liver": 0}),
        ("organs", {"liver": 1.5}),
        ("organs", {"liver": True}),
        ("organs", {"liver": 1, "spleen": 1}),
        ("organs", ["liver"]),
        ("scans", {"a": 1}),
        ("scans", [3, 4]),
        ("scans", [{"name": "a", **SHOWN, "organs": [{}]}] * 2),
        ("scans", [{"name": "a", **SHOWN, "organs": ["spleen"]}] * 2),
        ("scans", [{"name": "a", **SHOWN, "shapes": {"liver": [1]}}] * 2),
        ("scans", [{"name": "a", **SHOWN, "profile": ["x"]}] * 2),
        ("scans", [{"name": "a", **SHOWN}]),
        ("made_with", None),
        ("version", 5),
    ],
)
def test_a_record_that_is_none_is_refused(tmp_path: Path, field: str, value: Any) -> None:
    path = tmp_path / "p.safetensors"
    write_prototypes(path, TENSORS, RECORD)
    with pytest.raises(ValueError, match=r"p\.safetensors cannot be read as a file of prototypes \(.+\)\. It may"):
        read_prototypes(damaged(path, lambda record, _: record.update({field: value})))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("0.x", torch.tensor([1.0, torch.nan])),
        ("0.x", torch.tensor([torch.inf])),
        ("7.x", torch.zeros(1)),
        ("x", torch.zeros(1)),
    ],
)
def test_tensors_that_belong_to_no_scan_or_are_not_finite_are_refused(tmp_path: Path, name: str, value: Tensor) -> None:
    path = tmp_path / "p.safetensors"
    write_prototypes(path, TENSORS, RECORD)
    with pytest.raises(ValueError, match=r"belongs to none of its 2 scans|holds NaN or infinity"):
        read_prototypes(damaged(path, lambda _, tensors: tensors.update({name: value})))


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    write_prototypes(path, TENSORS, RECORD)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"p\.safetensors is damaged: its tensors do not match their hash"):
        read_prototypes(path)


@pytest.mark.parametrize("content", [b"", b"\xff" * 7, b"\xff" * 200, (1 << 40).to_bytes(8, "little") + b"{}"])
def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"p\.safetensors cannot be read as a file of prototypes"):
        read_prototypes(tmp_path / "p.safetensors")


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
        if isinstance(value, Tensor):
            torch.testing.assert_close(value, expected.meta[key], rtol=0, atol=0, equal_nan=True)


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
    told = [(scan["name"], scan["organs"]) for scan in record.scans]
    assert told == [("ann.nii.gz", ["liver", "spleen"]), ("", ["spleen"])]
    # A component, no volume without an affine, and the thickness of a block of 20 x 30 pixels: 20 (90 - 20) / 90.
    assert [list(scan["shapes"]) for scan in record.scans] == [["liver", "spleen"], ["spleen"]]
    shapes = [shape for scan in record.scans for shape in scan["shapes"].values()]
    assert [shape[:2] for shape in shapes] == [[1, None]] * 3
    assert [shape[2] for shape in shapes] == pytest.approx([15.6] * 3, abs=0.5)
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
        with pytest.raises(NotImplementedError, match=r"Own cannot (write|read) encoded scans"):
            method({})


# --- damaged tensors, and organs by name -----------------------------------------------------------------------------


DAMAGES: dict[str, tuple[str, Callable[[dict[str, Tensor]], Any]]] = {
    "no features": ("chunks", lambda t: t.pop("0.features")),
    "other features": ("chunks", lambda t: t.update({"0.features": t["0.features"][0]})),
    "other masks": ("chunks", lambda t: t.update({"0.organ_3.masks": t["0.organ_3.masks"][..., 1:]})),
    "a slice outside": ("chunks", lambda t: t["0.organ_3.slices"].fill_(99)),
    "an extent outside": ("chunks", lambda t: t["0.organ_3.extent"].mul_(3)),
    "slices that are no numbers": ("chunks", lambda t: t.update({"0.organ_3.slices": t["0.organ_3.slices"].float()})),
    "an organ without a number": ("chunks", lambda t: t.update({"0.organ_x.slices": torch.tensor([0])})),
    "no descriptions": ("slices", lambda t: t.pop("0.descriptions")),
    "other descriptions": ("slices", lambda t: t.update({"0.descriptions": t["0.descriptions"][:, 1:]})),
    "fewer prototypes": ("slices", lambda t: t.update({"0.prototypes": t["0.prototypes"][1:]})),
    "an organ that the record has not": ("slices", lambda t: t["0.slice_class_number"][:, 1].add_(5)),
    "a negative class": ("slices", lambda t: t["0.slice_class_number"][:, 1].fill_(-1)),
    "a flat table": ("slices", lambda t: t.update({"0.slice_class_number": t["0.slice_class_number"].flatten()})),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_tensors_end_in_one_sentence(network: ALPNet, tmp_path: Path, name: str) -> None:
    kind, damage = DAMAGES[name]
    path = saved(tmp_path, network, scan(0), matching=MATCHINGS[kind])
    damaged(path, lambda _, tensors: damage(tensors))
    with pytest.raises(ValueError, match=r"the prototypes .*p\.safetensors are damaged: .*\. Make them again"):
        VolumeInferer([], prototypes=path, matching=MATCHINGS[kind]).pool(network, torch.device("cpu"))


def named(folder: Path, network: ALPNet, seed: int, **organs: int) -> Path:
    """A file of prototypes of organs with names."""
    folder.mkdir()
    return saved(folder, network, scan(seed, tuple(organs.values())), organs=organs, matching=SliceMatching())


def pooled(network: ALPNet, *files: Path, **settings: Any) -> tuple[dict[str, int], dict[int, list[float]]]:
    """Names of the organs, and how many of each organ's scans show it, told by their first prototype."""
    inferer = VolumeInferer([], prototypes=files, matching=SliceMatching(), **settings)
    support = inferer.pool(network, torch.device("cpu"))
    assert isinstance(support, SliceSupport)
    first = {
        organ: [float(next(s[organ] for s in one.prototypes if organ in s)[0, 0]) for one in scans]
        for organ, scans in support.sources.items()
    }
    return inferer.organ_names(), first


def test_organs_of_files_go_together_by_name_and_not_by_id(network: ALPNet, tmp_path: Path) -> None:
    liver, spleen = named(tmp_path / "a", network, 0, liver=1), named(tmp_path / "b", network, 2, spleen=1)
    names, of_liver = pooled(network, liver)
    assert names == {"liver": 1}
    assert pooled(network, spleen)[0] == {"spleen": 1}
    names, both = pooled(network, liver, spleen)
    assert names == {"liver": 1, "spleen": 2}
    assert both == {1: of_liver[1], 2: pooled(network, spleen)[1][1]}
    again = named(tmp_path / "c", network, 2, liver=7)
    names, one = pooled(network, liver, again)
    assert names == {"liver": 1}
    assert one == {1: [*of_liver[1], *pooled(network, again)[1][7]]}


def test_organs_that_are_asked_for_are_found_by_name_and_get_the_ids_that_are_asked_for(
    network: ALPNet, tmp_path: Path
) -> None:
    file = named(tmp_path / "a", network, 0, liver=1, spleen=2)
    of_file = pooled(network, file)[1]
    assert pooled(network, file, organs={"spleen": 1}) == ({"spleen": 1}, {1: of_file[2]})
    swapped = pooled(network, file, organs={"liver": 2, "spleen": 1})
    assert swapped == ({"liver": 2, "spleen": 1}, {2: of_file[1], 1: of_file[2]})
    with pytest.raises(ValueError, match=r"pancreas \(id 1\) has no voxel in any of the 1 support label maps"):
        pooled(network, file, organs={"pancreas": 1})


def test_an_organ_without_a_name_is_known_by_its_id(network: ALPNet, tmp_path: Path) -> None:
    unnamed = saved(tmp_path, network, scan(0, (3, 7)), matching=SliceMatching())
    assert pooled(network, unnamed, organs={"liver": 3})[0] == {"liver": 3}
    liver = named(tmp_path / "a", network, 2, liver=3)
    names, both = pooled(network, liver, unnamed)
    assert names == {"liver": 3, "organ_7": 7}
    assert len(both[3]) == 2
    spleen = named(tmp_path / "b", network, 2, spleen=3)
    with pytest.raises(ValueError, match="id 3 of the label maps may mean liver or spleen"):
        pooled(network, liver, spleen, unnamed)


def test_an_organ_that_is_asked_for_and_lost_on_the_grid_leaves_no_file(network: ALPNet, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tumor \(id 9\) has no voxel"):
        saved(tmp_path, network, scan(0), organs={"liver": 3, "tumor": 9})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["chunks", "slices"])
def test_a_scan_without_an_organ_is_left_out_and_that_is_said(
    network: ALPNet, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = saved(tmp_path, network, scan(0), scan(1, organs=()), matching=MATCHINGS[name])
    assert len(read_prototypes(path)[1].scans) == 1
    assert "1 of 2 annotated scans show no organ and are left out" in caplog.text


def test_a_file_tells_the_shapes_and_intensities_of_its_scan(network: ALPNet, tmp_path: Path) -> None:
    support = scan(0)
    support["label"] = MetaTensor(support["label"], affine=torch.diag(torch.tensor([2.0, 1.0, 5.0, 1.0])))
    support["label"][0, 40:60, 50:60, 2:7] = 3  # a second part of a third of the first one's size
    path = saved(tmp_path, network, support, organs={"liver": 3, "spleen": 7})
    query = scan(5)["image"][None]
    expected = VolumeInferer([support])(query, network)
    assert expected.meta["support_components"].tolist() == [[2, 1]]
    liver = (20 * 30 + 20 * 10) * 5 * 10 / 1000  # slices of 20 x 30 and 20 x 10 pixels; 10 mm3 a voxel
    assert expected.meta["support_milliliters"][0, 0].tolist() == pytest.approx([liver, liver])
    found = VolumeInferer([], prototypes=path)(query, network)
    for key in ("support_components", "support_milliliters", "intensity_distance"):
        torch.testing.assert_close(found.meta[key], expected.meta[key])
