"""Tests of ``bundle.inference.slice_encoder``: whatever changes the weights is seen, in every way to train."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from bundle.inference.slice_encoder import SliceEncoder, version_of
from bundle.inference.volume_inferer import VolumeInferer
from bundle.networks import AlignedALPNet, ALPNet, ResNetEncoder
from torch import Tensor

SGD = {"momentum": 0.9, "weight_decay": 5e-4}

# How ``torch.optim.SGD`` of train.yaml may be set; it ships fused.
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "fused": {"fused": True, **SGD},
    "foreach": {"foreach": True, **SGD},
    "plain": {"foreach": False, **SGD},
}


def small_network(train_batch_norm: bool = True) -> ALPNet:
    return ALPNet(ResNetEncoder(18, "layer3", out_channels=8, train_batch_norm=train_batch_norm))


def annotated_scan() -> dict[str, Tensor]:
    label = torch.zeros(1, 32, 32, 3)
    label[0, 8:24, 8:24] = 1
    return {"image": torch.randn(1, 32, 32, 3) + 2 * label, "label": label}


def learn(network: ALPNet, optimizer: torch.optim.Optimizer) -> None:
    """Take a step of training on an episode of noise."""
    network.train()
    image, mask = torch.randn(1, 3, 32, 32), torch.zeros(1, 1, 1, 32, 32)
    mask[..., 8:24, 8:24] = 1
    logits, aligned = AlignedALPNet(network)(image, image[:, None], mask)
    optimizer.zero_grad()
    (logits.square().mean() + aligned.square().mean()).backward()
    optimizer.step()


@pytest.mark.parametrize("validated", [(0, 1, 2), (0,)], ids=["every step", "rarely"])
@pytest.mark.parametrize("train_batch_norm", [True, False], ids=["trained norm", "frozen norm"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_inferer_that_watched_a_training_scores_as_a_new_one(
    optimizer: str, train_batch_norm: bool, validated: tuple[int, ...]
) -> None:
    network = small_network(train_batch_norm)
    steps = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=1e-3, **OPTIMIZERS[optimizer])
    support, query = annotated_scan(), annotated_scan()["image"][None]
    watching, results = VolumeInferer([support]), []
    for step in range(3):
        if step in validated:
            results.append(watching(query, network.eval()))
        learn(network, steps)
    results.append(watching(query, network.eval()))
    written = small_network(train_batch_norm)
    written.load_state_dict(copy.deepcopy(network.state_dict()))
    assert torch.equal(results[-1], VolumeInferer([support])(query, written.eval()))
    assert not any(torch.equal(one, other) for one, other in itertools.pairwise(results))


def with_data(network: ALPNet) -> None:
    network.encoder.backbone.conv1.weight.data[0, 0, 0, 0] += 1e-3


def with_a_buffer(network: ALPNet) -> None:
    network.encoder.backbone.layer3[0].bn1.running_mean.data[0] += 1e-3


def with_other_tensors(network: ALPNet) -> None:
    network.load_state_dict({k: v + (v.is_floating_point() * 1e-3) for k, v in network.state_dict().items()})


def with_the_mode(network: ALPNet) -> None:
    network.foreground.train()
    network.training = True


@pytest.mark.parametrize("change", [with_data, with_a_buffer, with_other_tensors, with_the_mode])
def test_every_way_to_change_a_network_changes_its_version(change: Callable[[ALPNet], None]) -> None:
    network = small_network().eval()
    before = version_of(network)
    assert version_of(copy.deepcopy(network)) == before
    change(network)
    assert version_of(network) != before


def test_a_network_of_inference_mode_has_the_version_of_its_twin() -> None:
    twin = small_network().eval()
    with torch.inference_mode():
        network = small_network().eval()
        network.load_state_dict(twin.state_dict())
    assert version_of(network) == version_of(twin)
    query = annotated_scan()["image"][None]
    support = annotated_scan()
    assert torch.equal(VolumeInferer([support])(query, network), VolumeInferer([support])(query, twin))


def test_the_encoder_is_made_ready_for_inference_once_for_equal_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    ready = ResNetEncoder.for_inference

    def counted(self: ResNetEncoder) -> ResNetEncoder:
        made.append(self)
        return ready(self)

    monkeypatch.setattr(ResNetEncoder, "for_inference", counted)
    network, encode = small_network().eval(), SliceEncoder()
    volume = annotated_scan()["image"]
    for _ in range(2):
        encode(volume, network)
    assert len(made) == 1
    with_data(network)
    encode(volume, network)
    assert len(made) == 2


@pytest.mark.parametrize("value", [float("nan"), 3e38])
def test_a_scan_or_weights_that_leave_no_numbers_are_refused(value: float) -> None:
    network, volume = small_network().eval(), annotated_scan()["image"]
    broken = volume.clone()
    broken[..., 2] = value
    with pytest.raises(
        ValueError, match=r"features must be finite, but those of slices 0 to 2 are not\. The scan or the weights"
    ):
        SliceEncoder()(broken, network)
    network.encoder.localconv.weight.data[:] = value
    with pytest.raises(ValueError, match="features must be finite"):
        SliceEncoder()(volume, network)


def test_of_several_feature_maps_the_networks_level_is_encoded() -> None:
    class TwoMaps(torch.nn.Module):
        def forward(self, image: Tensor) -> list[Tensor]:
            return [image, 2 * image[..., ::2, ::2]]

    volume = annotated_scan()["image"]
    found = SliceEncoder()(volume, ALPNet(TwoMaps(), level=1))
    torch.testing.assert_close(torch.as_tensor(found)[:, 0], 2 * volume[0].movedim(-1, 0)[:, ::2, ::2])
