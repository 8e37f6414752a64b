"""Tests of ``bundle.networks.alpnet``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bundle.networks import AlignedALPNet, ALPNet, ClassPrototype, PrototypeHead, ResNetEncoder, TopKClassifier
from bundle.networks.alpnet import reduce_mask
from torch import Tensor, nn


def square(top: int, left: int) -> Tensor:
    """An 8 x 8 square in a 24 x 32 field, ``(1, 1, 24, 32)``."""
    mask = torch.zeros(1, 1, 24, 32)
    mask[..., top : top + 8, left : left + 8] = 1
    return mask


def as_image(mask: Tensor) -> Tensor:
    """Make an image whose two channels tell object from background, ``(B, 2, H, W)``."""
    return torch.cat([mask, 1 - mask], dim=1)


class TinyEncoder(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, 4, 1))


def episode(batch: int = 2, shots: int = 3, height: int = 64, width: int = 80) -> dict[str, Tensor]:
    mask = torch.zeros(batch, shots, 1, height, width)
    mask[..., 8:48, 16:56] = 1
    return {
        "query_image": torch.randn(batch, 3, height, width),
        "support_image": torch.randn(batch, shots, 3, height, width),
        "support_mask": mask,
    }


@pytest.mark.parametrize("shots", [1, 3])
@pytest.mark.parametrize("mode", [True, False])
def test_the_mask_follows_the_object_from_support_to_query(shots: int, mode: bool) -> None:
    """With the intensities themselves as features, the answer is known."""
    support, query = square(top=0, left=0), square(top=16, left=12)
    network = ALPNet(nn.Identity()).train(mode)
    logits = network(
        query_image=as_image(query),
        support_image=as_image(support).expand(1, shots, -1, -1, -1),
        support_mask=support.expand(1, shots, -1, -1, -1),
    )
    assert torch.equal(logits.argmax(dim=1, keepdim=True), query.long())


@pytest.mark.parametrize(("height", "width"), [(64, 80), (131, 117), (40, 33)])
def test_logits_have_two_channels_and_the_size_of_the_query(height: int, width: int) -> None:
    logits = ALPNet(TinyEncoder())(**episode(height=height, width=width))
    assert logits.shape == (2, 2, height, width)
    assert logits.isfinite().all()


def test_a_batch_gives_what_its_episodes_give_alone() -> None:
    network, batch = ALPNet(TinyEncoder()).eval(), episode(batch=2)
    batch["support_mask"][1] = batch["support_mask"][1].roll(20, -1)
    together = network(**batch)
    alone = torch.cat([network(**{key: value[[k]] for key, value in batch.items()}) for k in range(2)])
    torch.testing.assert_close(together, alone)


def test_the_order_of_the_shots_does_not_matter() -> None:
    network, batch = ALPNet(TinyEncoder()).eval(), episode()
    flipped = {key: value if key == "query_image" else value.flip(1) for key, value in batch.items()}
    torch.testing.assert_close(network(**flipped), network(**batch))


def test_support_and_query_are_not_interchangeable() -> None:
    network, batch = ALPNet(TinyEncoder()).eval(), episode(batch=1, shots=1)
    swapped = batch | {"query_image": batch["support_image"][:, 0], "support_image": batch["query_image"][:, None]}
    assert not torch.allclose(network(**swapped), network(**batch))


def test_batch_norm_sees_support_and_query_together() -> None:
    network, batch = ALPNet(TinyEncoder()).train(), episode(batch=1, shots=1)
    first = network(**batch)
    second = network(
        **(batch | {"query_image": batch["query_image"] * 1.0, "support_image": batch["support_image"] + 5})
    )
    assert not torch.allclose(first, second)
    seen = network.encoder[1].running_mean.clone()
    images = torch.cat([batch["support_image"].flatten(0, 1), batch["query_image"]])
    shifted = torch.cat([(batch["support_image"] + 5).flatten(0, 1), batch["query_image"]])
    means = [network.encoder[0](x).mean((0, 2, 3)) for x in (images, shifted)]
    torch.testing.assert_close(seen, 0.1 * means[1] + 0.9 * 0.1 * means[0], rtol=1e-4, atol=1e-5)


def test_an_empty_mask_scores_no_foreground() -> None:
    batch = episode()
    batch["support_mask"].zero_()
    logits = ALPNet(TinyEncoder())(**batch)
    assert bool((logits[:, 1] == 0).all())
    assert bool((logits[:, 0] != 0).any())


def test_a_full_mask_scores_no_background() -> None:
    batch = episode()
    batch["support_mask"].fill_(1)
    logits = ALPNet(TinyEncoder())(**batch)
    assert bool((logits[:, 0] == 0).all())
    assert bool((logits[:, 1] != 0).any())


def test_without_support_every_pixel_is_background() -> None:
    logits = ALPNet(TinyEncoder())(torch.randn(2, 3, 64, 80))
    torch.testing.assert_close(logits, torch.zeros(2, 2, 64, 80))


@pytest.mark.parametrize("shots", [1, 2])
def test_every_parameter_gets_a_gradient_through_both_branches(shots: int) -> None:
    network = ALPNet(TinyEncoder())
    query_logits, support_logits = AlignedALPNet(network)(**episode(shots=shots))
    assert support_logits.shape == (2, shots, 2, 64, 80)
    for logits in (query_logits, support_logits):
        network.zero_grad()
        logits.square().mean().backward(retain_graph=True)
        assert not [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]


def test_the_way_back_finds_the_object_in_the_support() -> None:
    support, query = square(top=0, left=0), square(top=16, left=12)
    network = AlignedALPNet(ALPNet(nn.Identity()))
    _, aligned = network(as_image(query), as_image(support)[None], support[None])
    assert torch.equal(aligned[0].argmax(dim=1, keepdim=True), support.long())


def test_inputs_are_left_as_they_were() -> None:
    batch = episode()
    before = {key: value.clone() for key, value in batch.items()}
    AlignedALPNet(ALPNet(TinyEncoder()))(**batch)
    assert all(torch.equal(batch[key], before[key]) for key in batch)


def test_a_pooling_can_be_swapped() -> None:
    plain = ALPNet(nn.Identity(), foreground=ClassPrototype(), background=ClassPrototype())
    background, foreground = plain.prototypes(torch.randn(1, 2, 24, 32), square(0, 0))
    assert background.shape == foreground.shape == (1, 2)


def test_a_head_pools_the_mask_and_what_is_outside_of_it() -> None:
    features, mask = torch.randn(2, 5, 6, 8), (torch.rand(2, 1, 6, 8) > 0.3).float()
    background, foreground = PrototypeHead(ClassPrototype(), ClassPrototype()).prototypes(features, mask)
    torch.testing.assert_close(foreground, ClassPrototype()(features, mask))
    torch.testing.assert_close(background, ClassPrototype()(features, 1 - mask))


def test_a_head_scores_the_background_first() -> None:
    query, background, foreground = torch.randn(5, 6, 8), torch.randn(7, 5), torch.randn(3, 5)
    classifier = TopKClassifier(k=2)
    logits = PrototypeHead(classifier=classifier).score(query, background, foreground)
    torch.testing.assert_close(logits, torch.stack([classifier(query, background), classifier(query, foreground)]))


def test_a_head_alone_has_no_parameter_and_is_the_networks_own_without_other_parts() -> None:
    head, network = PrototypeHead().eval(), ALPNet(nn.Identity()).eval()
    support, mask, query = torch.randn(1, 5, 12, 16), square(0, 0)[..., :12, :16], torch.randn(5, 12, 16)
    assert not head.state_dict()
    expected = network.segment(query[None], support[None], mask[None])[0]
    torch.testing.assert_close(head.score(query, *head.prototypes(support, mask)), expected)


def test_any_module_serves_as_encoder() -> None:
    from monai.networks.nets import UNet

    unet = UNet(2, 3, 8, channels=(4, 8), strides=(2,))
    assert ALPNet(unet)(**episode()).shape == (2, 2, 64, 80)


def test_it_saves_and_loads(tmp_path: Path) -> None:
    network, batch = ALPNet(ResNetEncoder(18, "layer3")).eval(), episode(batch=1)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    other = ALPNet(ResNetEncoder(18, "layer3")).eval()
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    torch.testing.assert_close(other(**batch), network(**batch))


def test_torchscript_gives_the_same_logits() -> None:
    network, batch = ALPNet(ResNetEncoder(18, "layer3")).eval(), episode()
    scripted = torch.jit.script(network)
    torch.testing.assert_close(scripted(*batch.values()), network(**batch), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scripted(batch["query_image"]), torch.zeros(2, 2, 64, 80))


def test_masks_are_reduced_to_the_mean_of_the_central_pixels_of_each_block() -> None:
    mask = (torch.rand(1, 1, 1, 64, 80) > 0.5).float()
    blocks = mask[0, 0, 0].unfold(0, 8, 8).unfold(1, 8, 8)[..., 3:5, 3:5]
    torch.testing.assert_close(reduce_mask(mask, torch.zeros(1, 4, 8, 10))[0, 0, 0], blocks.mean((-2, -1)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_image": torch.zeros(3, 64, 80)}, "an episode is query_image"),
        ({"support_image": torch.zeros(2, 3, 3, 64, 64)}, "support_image must be"),
        ({"support_image": torch.zeros(1, 3, 3, 64, 80)}, "support_image must be"),
        ({"support_image": torch.zeros(2, 0, 3, 64, 80)}, "K >= 1"),
        ({"support_mask": torch.zeros(2, 2, 1, 64, 80)}, "support_mask must be"),
        ({"support_mask": torch.zeros(2, 3, 1, 8, 10)}, "support_mask must be"),
    ],
)
def test_shapes_that_do_not_belong_together_are_refused(change: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ALPNet(TinyEncoder())(**(episode() | change))


class SeveralMaps(nn.Module):
    """An encoder that returns a feature map of each of two sizes, as MONAI's do."""

    def forward(self, image: Tensor) -> list[Tensor]:
        return [image[..., ::2, ::2], image[..., ::4, ::4] + 1]


@pytest.mark.parametrize(("level", "same"), [(0, 0), (1, 1), (-1, 1)])
def test_of_an_encoder_with_several_feature_maps_one_is_taken(level: int, same: int) -> None:
    class OneMap(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return SeveralMaps()(image)[same]

    episode = torch.randn(1, 3, 32, 32), torch.randn(1, 1, 3, 32, 32), torch.ones(1, 1, 1, 32, 32)
    found = ALPNet(SeveralMaps(), level=level).eval()(*episode)
    torch.testing.assert_close(found, ALPNet(OneMap()).eval()(*episode))


@pytest.mark.parametrize("level", [None, 2, -3])
def test_an_encoder_with_several_feature_maps_needs_a_level(level: int | None) -> None:
    with pytest.raises(
        ValueError, match=rf"the encoder returns 2 feature maps and the network needs one, got level {level}\. Set"
    ):
        ALPNet(SeveralMaps(), level=level)(torch.randn(1, 3, 32, 32))


def test_an_encoder_that_returns_no_feature_map_is_named() -> None:
    with pytest.raises(ValueError, match=r"an encoder must return features \(B, D, h, w\), got a tensor \(1, 3072\)"):
        ALPNet(nn.Flatten())(torch.randn(1, 3, 32, 32))


def test_what_training_runs_has_the_parameter_names_of_the_network() -> None:
    """In federated learning, a server's weights go to a trainer and to an evaluator."""
    network, other = ALPNet(ResNetEncoder(depth=18, out_channels=8)), ALPNet(ResNetEncoder(depth=18, out_channels=8))
    state = AlignedALPNet(network).state_dict()
    assert state.keys() == network.state_dict().keys()
    AlignedALPNet(other).load_state_dict(state)
    assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())
