"""Tests of ``bundle.inference.volume_inferer``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import bundle.inference.features
import pytest
import torch
from bundle.inference.matching import ChunkMatching, Matching, SliceMatching
from bundle.inference.matching.chunks import ChunkSupport, OrganPrototypes
from bundle.inference.matching.slices import SliceSupport
from bundle.inference.volume_inferer import VolumeInferer
from bundle.networks import ALPNet, ClassPrototype, PrototypeHead, ResNetEncoder, TopKClassifier
from bundle.transforms import LargestComponentsd
from monai.data import MetaTensor, decollate_batch
from torch import Tensor, nn


class Intensities(nn.Module):
    """Features that tell three gray values apart: the answer of a phantom is then known."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))
        self.calls = 0
        self.images = 0

    def forward(self, image: Tensor) -> Tensor:
        self.calls += 1
        self.images += image.shape[0]
        gray = image[:, :1]
        return self.gain * torch.cat([(gray == value).float() for value in (0, 1, 2)], dim=1)


def scan(shift: int, depth: int = 12, organ_slices: range = range(3, 9)) -> dict[str, Tensor]:
    """Two blocks of gray 1 and 2 in slices of 24 x 32, as organs 3 and 7."""
    label = torch.zeros(1, 24, 32, depth)
    for z in organ_slices:
        label[0, 4:12, 4 + shift : 14 + shift, z] = 3
        label[0, 14:22, 8:18, z] = 7
    image = torch.where(label == 3, 1.0, 0.0) + torch.where(label == 7, 2.0, 0.0)
    return {"image": image, "label": label}


def label_of(scores: Tensor, ids: list[int]) -> Tensor:
    best, channel = scores.max(dim=1)
    return torch.where(best > 0, torch.tensor(ids)[channel], 0)[:, None]


@pytest.fixture
def network() -> ALPNet:
    return ALPNet(Intensities()).eval()


def test_all_organs_of_another_scan_are_found(network: ALPNet) -> None:
    query = scan(shift=9, depth=15, organ_slices=range(5, 13))
    inferer = VolumeInferer([scan(shift=0)])
    scores = inferer(query["image"][None], network)
    assert scores.shape == (1, 2, 24, 32, 15)
    assert list(inferer.organ_names().values()) == [3, 7]
    assert torch.equal(label_of(scores, [3, 7]), query["label"][None].long())


def test_the_truth_of_the_query_is_not_used_in_the_volume_protocol(network: ALPNet) -> None:
    query, inferer = scan(shift=9), VolumeInferer([scan(shift=0)])
    blind = inferer(query["image"][None], network)
    told = inferer(query["image"][None], network, label=torch.randint(0, 8, (1, 1, 24, 32, 12)))
    assert torch.equal(blind, told)


def test_the_paper_protocol_scores_nothing_outside_the_organs_extent(network: ALPNet) -> None:
    query = scan(shift=9)
    query["image"][..., 0] = query["image"][..., 5]  # looks like the organ, where the label has none
    inferer = VolumeInferer([scan(shift=0)], protocol="paper")
    scores = inferer(query["image"][None], network, label=query["label"][None])
    assert torch.equal(label_of(scores, [3, 7]), query["label"][None].long())


def test_the_paper_protocol_without_a_label_is_refused(network: ALPNet) -> None:
    with pytest.raises(ValueError, match="the 'paper' protocol needs the query's label"):
        VolumeInferer([scan(0)], protocol="paper")(scan(1)["image"][None], network)


def test_an_organ_that_the_query_does_not_have_is_not_found_in_the_paper_protocol(network: ALPNet) -> None:
    query = scan(shift=9)
    query["label"][query["label"] == 7] = 0
    scores = VolumeInferer([scan(0)], protocol="paper")(query["image"][None], network, label=query["label"][None])
    assert bool((scores[:, 1] < 0).all())


def test_each_query_slice_is_encoded_once_for_all_organs_and_the_support_once_for_all_queries(network: ALPNet) -> None:
    inferer = VolumeInferer([scan(0)], slice_batch=5)
    inferer(scan(5)["image"][None], network)
    after_first = network.encoder.images
    assert after_first == 3 + 12  # three slices that show both organs, then the query's
    inferer(scan(7)["image"][None], network)
    assert network.encoder.images == after_first + 12


def test_new_weights_encode_the_support_again(network: ALPNet) -> None:
    inferer = VolumeInferer([scan(0)])
    inferer(scan(5)["image"][None], network)
    before = network.encoder.images
    with torch.no_grad():
        network.encoder.gain.mul_(2)
    inferer(scan(5)["image"][None], network)
    assert network.encoder.images == before + 3 + 12


def test_what_an_encoder_makes_of_itself_for_inference_follows_its_weights() -> None:
    network = ALPNet(ResNetEncoder(18, "layer3", out_channels=8)).eval()
    query, inferer = torch.randn(1, 1, 24, 32, 12), VolumeInferer([scan(0)])
    before = inferer(query, network)
    with torch.no_grad():
        network.encoder.backbone.layer3[0].bn1.running_mean.add_(0.5)
    after = inferer(query, network)
    assert not torch.equal(after, before)
    assert torch.equal(after, VolumeInferer([scan(0)])(query, network))


def test_an_encoder_is_used_as_it_is_in_training_mode() -> None:
    network = ALPNet(ResNetEncoder(18, "layer3", out_channels=8)).train()
    VolumeInferer([scan(0)])(torch.randn(1, 1, 24, 32, 12), network)
    assert network.encoder.backbone.bn1.num_batches_tracked > 0


@pytest.mark.parametrize("slice_batch", [1, 5, 64])
def test_the_batch_of_slices_changes_nothing(network: ALPNet, slice_batch: int) -> None:
    query = scan(9)["image"][None]
    expected = VolumeInferer([scan(0)], slice_batch=12)(query, network)
    torch.testing.assert_close(VolumeInferer([scan(0)], slice_batch=slice_batch)(query, network), expected)


@pytest.mark.parametrize("matching", [ChunkMatching(), SliceMatching(slices=3)], ids=["chunks", "slices"])
def test_features_in_a_file_give_the_same_scores(monkeypatch: pytest.MonkeyPatch, matching: Matching) -> None:
    network = ALPNet(ResNetEncoder(18, "layer3", out_channels=8)).eval()
    query = torch.randn(1, 1, 24, 32, 12)
    in_memory = VolumeInferer([scan(0)], matching=matching)(query, network)
    monkeypatch.setattr(bundle.inference.features, "FEATURES_IN_MEMORY", 0)
    from_file = VolumeInferer([scan(0)], matching=matching)(query, network)
    assert torch.equal(from_file, in_memory)
    assert from_file.meta["explained"] == in_memory.meta["explained"]


@pytest.mark.parametrize("matching", [ChunkMatching(), SliceMatching(slices=3)], ids=["chunks", "slices"])
def test_channels_last_gives_the_same_masks_but_for_ties(matching: Matching) -> None:
    network = ALPNet(ResNetEncoder(18, "layer3", out_channels=8), classifier=TopKClassifier(k=1, scale=1e3)).eval()
    query = torch.randn(1, 1, 24, 32, 12)
    plain = VolumeInferer([scan(0)], matching=matching)(query, network)
    fast = VolumeInferer([scan(0)], matching=matching)(query, network.to(memory_format=torch.channels_last))
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-2)
    certain = plain.abs() > 1e-2
    assert certain.float().mean() > 0.3
    assert torch.equal((fast > 0)[certain], (plain > 0)[certain])


def test_the_encoder_may_compute_in_bfloat16() -> None:
    network = ALPNet(ResNetEncoder(18, "layer3", out_channels=8)).eval()
    query = torch.randn(1, 1, 24, 32, 12)
    fine, coarse = (VolumeInferer([scan(0)], precision=p)(query, network) for p in ("float32", "bfloat16"))
    assert coarse.dtype == torch.float32
    assert not torch.equal(coarse, fine)
    torch.testing.assert_close(coarse, fine, rtol=0, atol=0.5)


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="precision must be 'float32' or 'bfloat16', got 'float16'"):
        VolumeInferer([scan(0)], precision="float16")


def test_several_support_scans_are_several_shots(network: ALPNet) -> None:
    query = scan(shift=9)
    scores = VolumeInferer([scan(0), scan(2, depth=9), scan(4)])(query["image"][None], network)
    assert torch.equal(label_of(scores, [3, 7]), query["label"][None].long())


def chunks_of(network: ALPNet, *scans: dict[str, Tensor]) -> dict[int, OrganPrototypes]:
    support = VolumeInferer(scans).pool(network, torch.device("cpu"))
    assert isinstance(support, ChunkSupport)
    return dict(support.prototypes)


def test_every_support_scan_gives_its_prototypes(network: ALPNet) -> None:
    one, three = (chunks_of(network, *map(scan, shifts)) for shifts in ([0], [0, 2, 4]))
    assert three[3].chunks[0][0].shape[0] > 2 * one[3].chunks[0][0].shape[0]


def test_each_third_of_an_organ_is_found_by_the_support_slice_of_its_own_third(network: ALPNet) -> None:
    """The organ is gray 1 below and gray 2 above: with the slices mixed up nothing would be found."""
    support, query = scan(0), scan(9)
    for volumes in (support, query):
        volumes["label"][volumes["label"] == 7] = 0
        gray = torch.where(torch.arange(12) < 5, 1.0, 2.0)
        volumes["image"] = torch.where(volumes["label"] == 3, gray, 0.0)
    scores = VolumeInferer([support])(query["image"][None], network)
    assert torch.equal(label_of(scores, [3])[..., [3, 4, 7, 8]], query["label"][None].long()[..., [3, 4, 7, 8]])


def test_the_extent_of_an_organ_ends_after_its_last_slice(network: ALPNet) -> None:
    prototypes = chunks_of(network, scan(0), scan(0, depth=24))
    assert prototypes[3].extent == pytest.approx(((3 / 12 + 3 / 24) / 2, (9 / 12 + 9 / 24) / 2))


def test_an_organ_may_be_in_one_of_the_support_scans_only(network: ALPNet) -> None:
    first, second = scan(0), scan(2)
    first["label"][first["label"] == 7] = 0
    second["label"][second["label"] == 3] = 0
    query = scan(9)
    scores = VolumeInferer([first, second])(query["image"][None], network)
    assert bool((label_of(scores, [3, 7]) == 7).any())
    assert bool((label_of(scores, [3, 7]) == 3).any())


def test_only_the_organs_that_are_asked_for_are_segmented(network: ALPNet) -> None:
    inferer = VolumeInferer([scan(0)], organs={"second": 7})
    assert inferer(scan(9)["image"][None], network).shape[1] == 1
    assert inferer.organ_names() == {"second": 7}


def test_scores_carry_the_querys_meta(network: ALPNet) -> None:
    affine = torch.diag(torch.tensor([1.5, 2.0, 5.0, 1.0], dtype=torch.float64))
    query = MetaTensor(scan(9)["image"][None], affine=affine, meta={"filename_or_obj": "a.nii.gz"})
    scores = VolumeInferer([scan(0)])(query, network)
    assert scores.meta["filename_or_obj"] == "a.nii.gz"
    torch.testing.assert_close(scores.affine, affine)


def test_an_organ_without_a_voxel_in_the_support_is_named(network: ALPNet) -> None:
    with pytest.raises(ValueError, match=r"liver \(id 9\) has no voxel in any of the 1 support label maps"):
        VolumeInferer([scan(0)], organs={"liver": 9})(scan(1)["image"][None], network)


def test_no_support_is_refused(network: ALPNet) -> None:
    with pytest.raises(ValueError, match="there is no annotated scan"):
        VolumeInferer([])(scan(1)["image"][None], network)


class Files:
    """Support scans by file name, which count how often they are read."""

    def __init__(self, folder: Path, **scans: dict[str, Tensor]) -> None:
        self.folder, self.scans, self.reads = folder, scans, 0
        for name in scans:
            for kind in ("image", "label"):
                (folder / f"{name}_{kind}").touch()

    def entry(self, name: str, **more: Any) -> dict[str, Any]:
        return {kind: str(self.folder / f"{name}_{kind}") for kind in ("image", "label")} | more

    def read(self, files: dict[str, str]) -> dict[str, Tensor]:
        self.reads += 1
        return self.scans[Path(files["label"]).name.removesuffix("_label")]


def asked(query: dict[str, Tensor], *entries: dict[str, Any]) -> MetaTensor:
    return MetaTensor(query["image"][None], meta={"support": list(entries)})


def test_a_query_may_name_its_own_support(network: ALPNet, tmp_path: Path) -> None:
    files = Files(tmp_path, a=scan(0), b=scan(3))
    scores = VolumeInferer(files)(asked(scan(9), files.entry("a"), files.entry("b")), network)
    assert scores.meta["organ_ids"].tolist() == [[3, 7]]
    assert torch.equal(label_of(scores, [3, 7]), scan(9)["label"][None].long())


def test_a_named_support_is_read_once_until_its_file_changes(network: ALPNet, tmp_path: Path) -> None:
    files = Files(tmp_path, a=scan(0))
    inferer = VolumeInferer(files)
    for _ in range(2):
        inferer(asked(scan(9), files.entry("a")), network)
    assert files.reads == 1
    os.utime(tmp_path / "a_label", ns=(1, 1))
    inferer(asked(scan(9), files.entry("a")), network)
    assert files.reads == 2


def test_values_of_a_named_support_can_be_renumbered_and_left_out(network: ALPNet, tmp_path: Path) -> None:
    files = Files(tmp_path, a=scan(0))
    scores = VolumeInferer(files)(asked(scan(9), files.entry("a", ids={"7": 2})), network)
    assert scores.meta["organ_ids"].tolist() == [[2]]


def test_what_is_drawn_on_the_scan_itself_goes_before_other_scans(network: ALPNet, tmp_path: Path) -> None:
    """The other scan's organ looks different here: only the drawn slice can tell."""
    drawn, other = scan(9), scan(0)
    for z in range(12):
        if z != 5:
            drawn["label"][..., z] = 0
    other["image"] = torch.where(other["label"] == 3, 2.0, 0.0)
    files = Files(tmp_path, drawn=drawn, other=other)
    scores = VolumeInferer(files)(
        asked(scan(9), files.entry("drawn", annotated="drawn", own=True), files.entry("other")), network
    )
    assert torch.equal(label_of(scores, [3, 7]), scan(9)["label"][None].long())


def tapered(shift: int) -> dict[str, Tensor]:
    """A scan whose organs get small in their first and last slice."""
    made = scan(shift)
    for z in (3, 8):
        made["label"][0, 6:, :, z] = made["image"][0, 6:, :, z] = 0
    return made


def test_a_finished_label_of_the_query_itself_is_not_used(network: ALPNet, tmp_path: Path) -> None:
    files = Files(tmp_path, own=tapered(9), other=scan(0))
    inferer = VolumeInferer(files, annotated="auto")
    scores = inferer(asked(scan(9), files.entry("own", own=True), files.entry("other")), network)
    assert scores.meta["organ_ids"].tolist() == [[3, 7]]
    (known,) = inferer.library.encoded(network, torch.device("cpu"), [files.entry("own", own=True)])
    assert known.encoded is None


def test_undrawn_slices_of_a_drawing_are_no_background_for_other_scans(network: ALPNet, tmp_path: Path) -> None:
    """One slice of the organs is drawn; the same organs in the other slices would say that they are background."""
    drawing = scan(0)
    drawing["label"][..., [3, 4, 6, 7, 8]] = 0
    files = Files(tmp_path, drawing=drawing)
    query, entry = scan(9), files.entry("drawing")
    found = by_slices(files, annotated="auto")(asked(query, entry), network)
    assert torch.equal(label_of(found, [3, 7]), query["label"][None].long())
    spoiled = by_slices(files, annotated="all")(asked(query, entry), network)
    assert not bool((label_of(spoiled, [3, 7]) > 0).any())
    said = by_slices(files, annotated="all")(asked(query, entry | {"annotated": "drawn"}), network)
    assert torch.equal(said, found)


def test_a_value_of_the_label_map_says_which_slices_are_not_annotated(network: ALPNet, tmp_path: Path) -> None:
    drawing = scan(0)
    drawing["label"][..., [3, 4, 6, 7, 8]] = 255
    files = Files(tmp_path, drawing=drawing)
    inferer = by_slices(files, annotated="all", ignore_value=255)
    scores = inferer(asked(scan(9), files.entry("drawing", ids={"3": 5, "7": 2})), network)
    assert torch.equal(label_of(scores, [7, 3]), scan(9)["label"][None].long())
    entry = files.entry("drawing", ids={"3": 5, "7": 2})
    (known,) = inferer.library.encoded(network, torch.device("cpu"), [entry])
    assert str(known.taken) == "all: 7 of 12 slices"


def test_the_configs_support_is_taken_by_the_same_rule(network: ALPNet, capsys: pytest.CaptureFixture[str]) -> None:
    drawing = scan(0)
    drawing["label"][..., [3, 4, 6, 7, 8]] = 0
    inferer = by_slices([drawing], annotated="auto")
    scores = inferer(scan(9)["image"][None], network)
    assert torch.equal(label_of(scores, [3, 7]), scan(9)["label"][None].long())
    inferer.library.report(network, torch.device("cpu"))
    assert "drawn: 1 of 12 slices count as annotated" in capsys.readouterr().out


def test_a_new_inferer_finds_named_scans_encoded_on_disk(network: ALPNet, tmp_path: Path) -> None:
    """Whether a label is the query's own is told by the request, whatever lies on disk."""
    files = Files(tmp_path, a=tapered(0))
    entry = files.entry("a", stored_in=str(tmp_path / "encoded"))
    first = by_slices(files, annotated="auto")(asked(scan(9), entry), network)
    encoded = network.encoder.images
    assert encoded == 12 + 12
    later = by_slices(files, annotated="auto")
    assert torch.equal(later(asked(scan(9), entry), network), first)
    assert network.encoder.images == encoded + 12  # the query's own slices
    (known,) = by_slices(files, annotated="auto").library.encoded(network, torch.device("cpu"), [entry | {"own": True}])
    assert known.encoded is None
    assert files.reads == 1


class Folder(list[dict[str, Tensor]]):
    """Annotated scans with their files, as a data set has them."""

    def __init__(self, place: Path, **scans: dict[str, Tensor]) -> None:
        super().__init__(scans.values())
        self.data = [{key: str(place / f"{name}.{key}") for key in ("image", "label")} for name in scans]
        for files, made in zip(self.data, scans.values(), strict=True):
            for key, path in files.items():
                Path(path).write_bytes(made[key].numpy().tobytes())


def test_the_next_run_encodes_only_new_scans_of_the_support(network: ALPNet, tmp_path: Path) -> None:
    def run(**scans: dict[str, Tensor]) -> tuple[Tensor, int]:
        before, inferer = network.encoder.images, by_slices(Folder(tmp_path, **scans), annotated="auto")
        inferer.library.stored_in = tmp_path / ".encoded"
        return inferer(scan(9)["image"][None], network), network.encoder.images - before - 12  # the query's own slices

    first, encoded = run(a=tapered(0))
    assert encoded == 12
    again, encoded = run(a=tapered(0))
    assert encoded == 0
    assert torch.equal(again, first)
    _, encoded = run(a=tapered(0), b=tapered(2))
    assert encoded == 12
    corrected = tapered(0)
    corrected["label"][0, 0, 0, 5] = 3
    other, encoded = run(a=corrected, b=tapered(2))
    assert encoded == 12
    without = by_slices([corrected, tapered(2)], annotated="auto")
    assert torch.equal(other, without(scan(9)["image"][None], network)), "files change nothing but the time"


def test_a_mask_beside_that_changes_the_ids_of_organs_lets_the_next_run_encode_anew(
    network: ALPNet, tmp_path: Path
) -> None:
    def run() -> int:
        support = Folder(tmp_path, a=tapered(0))
        support.data[0]["label"] = str(tmp_path / "labels/a")
        before, inferer = network.encoder.images, by_slices(support, annotated="auto")
        inferer.library.stored_in = tmp_path / ".encoded"
        inferer(scan(9)["image"][None], network)
        return network.encoder.images - before - 12  # the query's own slices

    for name in ("a/liver", "b/liver"):
        (tmp_path / f"labels/{name}.nii.gz").parent.mkdir(parents=True)
        (tmp_path / f"labels/{name}.nii.gz").touch()
    assert [run(), run()] == [12, 0]
    (tmp_path / "labels/b/aorta.nii.gz").touch()  # liver was 1 and is 2 now
    assert [run(), run()] == [12, 0]


def test_scans_whose_files_have_one_name_are_all_kept_on_disk(network: ALPNet, tmp_path: Path) -> None:
    """TotalSegmentator calls every image ``ct.nii.gz``; their folders name the scans."""
    encoded = []
    for _ in range(2):
        support = Folder(tmp_path, **{name: tapered(number) for number, name in enumerate("abcde")})
        for files, name in zip(support.data, "abcde", strict=True):
            image = tmp_path / name / "ct.nii.gz"
            image.parent.mkdir(exist_ok=True)
            image.write_bytes(Path(files["image"]).read_bytes())
            files |= {"image": str(image), "name": name}
        before, inferer = network.encoder.images, by_slices(support, annotated="auto")
        inferer.library.stored_in = tmp_path / ".encoded"
        inferer(scan(9)["image"][None], network)
        encoded.append(network.encoder.images - before - 12)  # the query's own slices
    assert encoded == [5 * 12, 0]


def test_other_weights_do_not_use_what_lies_on_disk(network: ALPNet, tmp_path: Path) -> None:
    files = Files(tmp_path, a=scan(0))
    entry = files.entry("a", stored_in=str(tmp_path / "encoded"))
    by_slices(files)(asked(scan(9), entry), network)
    with torch.no_grad():
        network.encoder.gain.mul_(2)
    by_slices(files)(asked(scan(9), entry), network)
    assert files.reads == 2


def test_an_organ_of_the_ignored_value_is_refused() -> None:
    with pytest.raises(ValueError, match="organs has the id 255, but ignore_value marks"):
        VolumeInferer([], organs={"liver": 255}, ignore_value=255)


# --- another matching, another head ----------------------------------------------------------------------------------


def by_slices(support: Any, annotated: Any = "all", ignore_value: int | None = None, **settings: Any) -> VolumeInferer:
    matching, head = SliceMatching(**settings), PrototypeHead(classifier=TopKClassifier())
    return VolumeInferer(support, matching=matching, head=head, annotated=annotated, ignore_value=ignore_value)


@pytest.mark.parametrize("slices", [3, None])
def test_slices_of_all_support_scans_find_all_organs(network: ALPNet, slices: int | None) -> None:
    query = scan(shift=9, depth=15, organ_slices=range(5, 13))
    scores = by_slices([scan(0), scan(2, depth=9)], slices=slices)(query["image"][None], network)
    assert torch.equal(label_of(scores, [3, 7]), query["label"][None].long())


def test_slices_of_the_support_are_encoded_once_for_all_queries(network: ALPNet) -> None:
    inferer = by_slices([scan(0, depth=11)])
    for shift in (5, 7):
        inferer(scan(shift)["image"][None], network)
    assert network.encoder.images == 11 + 2 * 12


def test_of_a_scan_that_is_drawn_on_only_the_drawn_slices_are_encoded(network: ALPNet, tmp_path: Path) -> None:
    drawn = scan(9)
    drawn["label"][..., [3, 4, 6, 7, 8]] = 0
    files = Files(tmp_path, drawn=drawn)
    scores = by_slices(files)(asked(scan(9), files.entry("drawn", annotated="drawn", own=True)), network)
    assert network.encoder.images == 1 + 12
    assert torch.equal(label_of(scores, [3, 7]), scan(9)["label"][None].long())


def test_slices_score_nothing_outside_the_organs_extent_in_the_paper_protocol(network: ALPNet) -> None:
    query = scan(shift=9)
    query["image"][..., 0] = query["image"][..., 5]  # looks like the organ, where the label has none
    inferer = by_slices([scan(shift=0)])
    assert bool((inferer(query["image"][None], network)[..., 0] > 0).any())
    inferer.protocol = "paper"
    scores = inferer(query["image"][None], network, label=query["label"][None])
    assert torch.equal(label_of(scores, [3, 7]), query["label"][None].long())


@pytest.mark.parametrize("matching", [None, SliceMatching()], ids=["chunks", "slices"])
def test_a_head_scores_in_place_of_the_networks(matching: SliceMatching | None) -> None:
    network = ALPNet(Intensities(), classifier=TopKClassifier(k=1, scale=20.0)).eval()
    head = PrototypeHead(classifier=TopKClassifier(k=1, scale=5.0))
    query = scan(9)["image"][None]
    own = VolumeInferer([scan(0)], matching=matching)(query, network)
    torch.testing.assert_close(VolumeInferer([scan(0)], matching=matching, head=head)(query, network), own / 4)


@pytest.mark.parametrize("head", [None, PrototypeHead(foreground=ClassPrototype())], ids=["networks", "own"])
def test_a_head_pools_in_place_of_the_networks(network: ALPNet, head: PrototypeHead | None) -> None:
    support = VolumeInferer([scan(0)], head=head).pool(network, torch.device("cpu"))
    assert isinstance(support, ChunkSupport)
    counts = [len(foreground) for _, foreground in support.prototypes[3].chunks]
    assert (counts == [1, 1, 1]) == (head is not None)


@pytest.mark.parametrize("head", [None, PrototypeHead(foreground=ClassPrototype())], ids=["networks", "own"])
def test_a_head_pools_every_slice_in_place_of_the_networks(network: ALPNet, head: PrototypeHead | None) -> None:
    inferer = VolumeInferer([scan(0)], matching=SliceMatching(), head=head)
    support = inferer.pool(network, torch.device("cpu"))
    assert isinstance(support, SliceSupport)
    counts = [len(shown[3]) for shown in support.sources[3][0].prototypes if 3 in shown]
    assert (counts == [1] * 6) == (head is not None)


@pytest.mark.parametrize("matching", [None, SliceMatching()], ids=["chunks", "slices"])
def test_an_organ_that_is_not_asked_for_is_background(matching: SliceMatching | None) -> None:
    """Organ 7 looks more like organ 3 than like what is around them."""
    mixing = nn.Conv2d(3, 3, 1, bias=False)
    mixing.weight.data = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.5], [0.0, 0.0, 1.0]])[..., None, None]
    network = ALPNet(nn.Sequential(Intensities(), mixing), classifier=TopKClassifier(k=1)).eval()
    query = scan(9)
    scores = VolumeInferer([scan(0)], organs={"first": 3}, matching=matching)(query["image"][None], network)
    assert torch.equal(scores[0] > 0, query["label"] == 3)


def test_a_head_is_in_eval_mode() -> None:
    head = PrototypeHead()
    VolumeInferer([scan(0)], head=head)
    assert not head.training
    assert not head.background.local.training


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"protocol": "slices"}, "protocol must be 'volume' or 'paper'"),
        ({"organs": {}}, "organs must give each organ's name its own id"),
        ({"organs": [500]}, "organs must give each organ's name its own id"),
        ({"organs": {"a": "500"}}, "organs must give each organ's name its own id"),
        ({"organs": {"a": 500, "b": 500}}, "organs must give each organ's name its own id"),
        ({"slice_batch": 0}, "slice_batch must be at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VolumeInferer([scan(0)], **settings)


# --- what the meta of scores tells -----------------------------------------------------------------------------------


def test_a_scan_that_is_nowhere_above_its_mean_is_explained_as_a_whole(network: ALPNet) -> None:
    """As a scan that was standardized by the training set and is darker than it everywhere."""
    dark = torch.full((1, 1, 24, 32, 12), -1.0)
    scores = VolumeInferer([scan(0)])(dark, network)
    assert scores.meta["explained"].isfinite().all()


def kidneys(one: int, other: int) -> dict[str, Tensor]:
    """Two blocks of one organ, at columns that are given."""
    label = torch.zeros(1, 24, 32, 12)
    for left in (one, other):
        label[0, 4:12, left : left + 8, 3:9] = 1
    return {"image": label.clone(), "label": label}


@pytest.mark.parametrize("matching", [ChunkMatching(), SliceMatching()], ids=["chunks", "slices"])
@pytest.mark.parametrize(("supports", "parts"), [([(0, 22)], 2), ([(0, 8)], 1), ([(0, 22), (0, 8)], 2)])
def test_an_organ_keeps_as_many_parts_as_it_has_in_the_annotated_scans(
    network: ALPNet, matching: Matching, supports: list[tuple[int, int]], parts: int
) -> None:
    query = kidneys(1, 20)
    scores = VolumeInferer([kidneys(*columns) for columns in supports], matching=matching)(
        query["image"][None], network
    )
    assert scores.meta["support_components"].tolist() == [[parts]]
    (item,) = decollate_batch({"pred": scores})
    kept = LargestComponentsd("pred")({"pred": item["pred"]})["pred"]
    found = int((kept > 0).sum())
    assert found == int(query["label"].sum()) * parts // 2


def test_of_a_drawing_the_parts_are_those_of_its_slices_and_the_volume_is_not_known(
    network: ALPNet, tmp_path: Path
) -> None:
    drawn = kidneys(0, 22)
    drawn["label"][..., [3, 5, 7]] = 0
    files = Files(tmp_path, drawn=drawn)
    meta = VolumeInferer(files)(asked(scan(9), files.entry("drawn", annotated="drawn")), network).meta
    assert meta["support_components"].tolist() == [[2]]
    assert meta["support_milliliters"].isnan().all()


def test_intensities_are_compared_with_the_most_similar_annotated_scan(network: ALPNet) -> None:
    query = torch.randn(1, 1, 24, 32, 12)
    moved = [{**scan(0), "image": query[0] + shift} for shift in (3.0, -0.25)]
    distance = VolumeInferer(moved)(query, network).meta["intensity_distance"]
    torch.testing.assert_close(distance, torch.full((1, 1), 0.25))
