"""Tests of ``bundle.networks.encoders`` and ``bundle.networks.weights``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from bundle.networks import ALPNet, ResNetEncoder, load_network
from torch import nn

ENCODERS = [(depth, stage) for depth in (18, 34, 50, 101) for stage in ("layer3", "layer4")]


@pytest.mark.parametrize(("depth", "stage"), ENCODERS)
def test_the_output_stride_is_8_for_odd_sizes_too(depth: Any, stage: Any) -> None:
    encoder = ResNetEncoder(depth, stage, out_channels=5).eval()
    with torch.no_grad():
        assert encoder(torch.randn(1, 3, 33, 42)).shape == (1, 5, 5, 6)


@pytest.mark.parametrize(("depth", "stage"), [(18, "layer3"), (50, "layer4")])
def test_every_parameter_gets_a_gradient(depth: Any, stage: Any) -> None:
    encoder = ResNetEncoder(depth, stage)
    encoder(torch.randn(2, 3, 32, 40)).square().mean().backward()
    assert not [name for name, p in encoder.named_parameters() if p.grad is None]


@pytest.mark.parametrize(
    ("depth", "stage", "dilations"),
    [(18, "layer4", {"layer3": [1, 2], "layer4": [2, 4]}), (101, "layer4", {"layer3": [1, 2], "layer4": [2, 4]})],
)
def test_the_first_block_of_a_stage_keeps_the_dilation_before_it(
    depth: Any, stage: Any, dilations: dict[str, list[int]]
) -> None:
    backbone = ResNetEncoder(depth, stage).backbone
    for name, (first, rest) in dilations.items():
        blocks = list(getattr(backbone, name).children())
        convolutions = [m for m in blocks[0].modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
        assert {m.dilation for m in convolutions} == {(first, first)}
        assert blocks[-1].conv2.dilation == (rest, rest)


def test_resnet18_has_torchvisions_parameter_names() -> None:
    names = {name for name, _ in ResNetEncoder(18).named_parameters()}
    assert "backbone.layer2.0.downsample.0.weight" in names
    assert "backbone.layer4.1.bn2.bias" in names
    assert len(names) == 60 + 1  # torchvision's 62 without fc, and the projection


def test_frozen_batch_norm_keeps_statistics_and_parameters_in_training_mode() -> None:
    encoder = ResNetEncoder(18, "layer3", train_batch_norm=False).train()
    before = {key: value.clone() for key, value in encoder.state_dict().items() if "bn" in key}
    encoder(torch.randn(2, 3, 32, 40)).mean().backward()
    assert all(torch.equal(encoder.state_dict()[key], value) for key, value in before.items())
    assert not [n for n, p in encoder.named_parameters() if ".bn" in n and p.requires_grad]


def test_the_identity_projection_leaves_the_trunks_features() -> None:
    encoder = ResNetEncoder(18, "layer3", identity_projection=True).eval()
    image = torch.randn(1, 3, 32, 40)
    torch.testing.assert_close(encoder(image), encoder.backbone(image))


def test_without_projection_the_features_are_the_trunks() -> None:
    encoder = ResNetEncoder(50, "layer3", out_channels=None).eval()
    assert encoder.out_channels == 1024
    assert encoder(torch.randn(1, 3, 32, 40)).shape[1] == 1024


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 20}, "depth must be 18, 34, 50 or 101"),
        ({"last_stage": "layer5"}, "last_stage must be"),
        ({"train_batch_norm": "false"}, "train_batch_norm must be true or false, got the text 'false'"),
        ({"identity_projection": 1}, "identity_projection must be true or false"),
        ({"depth": 50, "identity_projection": True}, "identity_projection needs out_channels equal"),
    ],
)
def test_unknown_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResNetEncoder(**settings)


def published(encoder: ResNetEncoder, prefix: str, extra: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A checkpoint as others publish it: other prefixes, and heads that a trunk does not need."""
    return {f"{prefix}{key}": value for key, value in encoder.backbone.state_dict().items()} | extra


@pytest.mark.parametrize(
    ("prefix", "extra"),
    [
        ("", {"fc.weight": torch.zeros(2, 2), "fc.bias": torch.zeros(2)}),  # torchvision's classifier
        ("backbone.", {"classifier.4.weight": torch.zeros(1), "aux_classifier.0.weight": torch.zeros(1)}),  # DeepLab
        ("encoder.backbone.", {"encoder.localconv.weight": torch.zeros(1)}),  # ours and the authors'
    ],
)
def test_published_checkpoints_load(prefix: str, extra: dict[str, torch.Tensor], tmp_path: Path) -> None:
    trained = ResNetEncoder(18)
    torch.save(published(trained, prefix, extra), tmp_path / "weights.pth")
    loaded = ResNetEncoder(18, weights=tmp_path / "weights.pth")
    for key, value in trained.backbone.state_dict().items():
        assert torch.equal(loaded.backbone.state_dict()[key], value), key


def test_a_cut_trunk_takes_a_whole_checkpoint(tmp_path: Path) -> None:
    torch.save(ResNetEncoder(18).backbone.state_dict(), tmp_path / "weights.pth")
    ResNetEncoder(18, "layer3", weights=tmp_path / "weights.pth")


def test_a_whole_trunk_refuses_a_cut_checkpoint_and_lists_what_is_missing(tmp_path: Path) -> None:
    torch.save(ResNetEncoder(18, "layer3").backbone.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"do not fit a ResNet-18: missing layer4\.0\.conv1\.weight"):
        ResNetEncoder(18, weights=tmp_path / "weights.pth")


def test_weights_of_the_wrong_architecture_are_refused(tmp_path: Path) -> None:
    torch.save(ResNetEncoder(18).backbone.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"do not fit a ResNet-50: missing .*conv3.*of another shape"):
        ResNetEncoder(50, weights=tmp_path / "weights.pth")


def test_a_file_that_is_no_state_dictionary_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="must hold a dictionary of tensors, got list"):
        ResNetEncoder(18, weights=tmp_path / "weights.pth")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no weights at .*none\.pth"):
        ResNetEncoder(18, weights=tmp_path / "none.pth")


def test_a_download_without_torchvision_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(ValueError, match="Install torchvision, or give the path"):
        ResNetEncoder(101, weights="coco")


def test_a_download_that_torchvision_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="no 'coco' weights for depth 18"):
        ResNetEncoder(18, weights="coco")


def test_a_network_refuses_weights_of_another(tmp_path: Path) -> None:
    torch.save(ALPNet(ResNetEncoder(18, "layer3")).state_dict(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"do not fit ALPNet: missing none; .*another shape encoder\.localconv"):
        load_network(ALPNet(ResNetEncoder(18, "layer3", out_channels=7)), tmp_path / "model.pt")


def test_a_network_loads_a_trainings_checkpoint(tmp_path: Path) -> None:
    trained = ALPNet(ResNetEncoder(18, "layer3"))
    torch.save({"network": trained.state_dict(), "step": 3}, tmp_path / "last.pt")
    loaded = load_network(ALPNet(ResNetEncoder(18, "layer3")), tmp_path / "last.pt")
    assert torch.equal(loaded.encoder.localconv.weight, trained.encoder.localconv.weight)


def test_a_network_refuses_weights_that_lack_a_tensor(tmp_path: Path) -> None:
    state = ALPNet(ResNetEncoder(18, "layer3")).state_dict()
    del state["encoder.localconv.weight"]
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"missing encoder\.localconv\.weight; unexpected none"):
        load_network(ALPNet(ResNetEncoder(18, "layer3")), tmp_path / "model.pt")


def test_a_trunk_refuses_a_checkpoint_with_stages_it_does_not_know(tmp_path: Path) -> None:
    state = ResNetEncoder(18).backbone.state_dict()
    torch.save(state | {"layer5.0.conv1.weight": torch.zeros(1)}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"unexpected layer5\.0\.conv1\.weight"):
        ResNetEncoder(18, weights=tmp_path / "weights.pth")


@pytest.mark.parametrize(("depth", "last_stage"), [(18, "layer3"), (50, "layer4")])
def test_the_copy_for_inference_gives_the_same_features_without_batch_norm(depth: Any, last_stage: Any) -> None:
    encoder = ResNetEncoder(depth, last_stage).eval()
    norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        for tensor in (norm.running_mean, norm.weight, norm.bias):
            nn.init.normal_(tensor, mean=0.5, std=0.2)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    image = torch.randn(2, 3, 64, 80)
    with torch.no_grad():
        expected, fast = encoder(image), encoder.for_inference()
        found = fast(image)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert len(norms) > 10
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


def test_there_is_no_copy_for_inference_in_training_mode() -> None:
    with pytest.raises(ValueError, match=r"in eval mode only. Call eval\(\) first"):
        ResNetEncoder(18, "layer3").for_inference()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    network = ALPNet(ResNetEncoder(18, "layer3", out_channels=4))
    network.encoder.localconv.weight.data[0, 0] = value
    torch.save(network.state_dict(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"model\.pt holds NaN or infinity in encoder\.localconv\.weight\."):
        load_network(network, tmp_path / "model.pt")
