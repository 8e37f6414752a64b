"""Tests of ``bundle.networks.transformer``, with small transformers of random weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from bundle.networks import TransformerEncoder

SMALL = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
KINDS = {
    "dinov2": (transformers.Dinov2Model, transformers.Dinov2Config(**SMALL, image_size=56, patch_size=14)),
    "dinov2_registers": (
        transformers.Dinov2WithRegistersModel,
        transformers.Dinov2WithRegistersConfig(**SMALL, image_size=56, patch_size=14),
    ),
    "dinov3": (transformers.DINOv3ViTModel, transformers.DINOv3ViTConfig(**SMALL, intermediate_size=48)),
}


def saved(folder: Path, kind: str = "dinov2") -> Path:
    model, config = KINDS[kind]
    torch.manual_seed(3)
    model(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stride", [8, 5])
def test_features_of_any_size_have_the_stride_that_is_asked_for(tmp_path: Path, kind: str, stride: int) -> None:
    encoder = TransformerEncoder(saved(tmp_path, kind), layers=[1, -1], stride=stride).eval()
    assert encoder.out_channels == 48
    assert encoder(torch.randn(2, 3, 33, 40)).shape == (2, 48, -(-33 // stride), -(-40 // stride))


@pytest.mark.parametrize(("kind", "others"), [("dinov2", 1), ("dinov2_registers", 5), ("dinov3", 1)])
def test_features_are_the_tokens_of_the_patches_row_by_row(tmp_path: Path, kind: str, others: int) -> None:
    """``others`` is the number of class and register tokens, which stand for no patch."""
    encoder = TransformerEncoder(saved(tmp_path, kind), layers=[1], stride=KINDS[kind][1].patch_size).eval()
    image = torch.randn(1, 3, 3 * encoder.stride, 2 * encoder.stride)
    tokens = encoder.backbone(pixel_values=image, output_hidden_states=True).hidden_states[1][0]
    assert len(tokens) == others + 6
    expected = torch.nn.functional.normalize(tokens[others:], dim=1).reshape(3, 2, 24)
    torch.testing.assert_close(encoder(image)[0].movedim(0, -1), expected)


def test_layers_are_unit_vectors_one_behind_the_other(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    both = TransformerEncoder(folder, layers=[2, -1]).eval()
    image = torch.randn(1, 3, 32, 32)
    features = both(image)
    torch.testing.assert_close(features[:, :24].norm(dim=1), torch.ones(1, 4, 4))
    torch.testing.assert_close(features[:, 24:], TransformerEncoder(folder, layers=[3]).eval()(image))
    assert not torch.allclose(features[:, :24], features[:, 24:], atol=1e-3)


def test_the_transformer_is_trained_only_if_told(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    frozen = TransformerEncoder(folder, out_channels=5).train()
    assert [name for name, p in frozen.named_parameters() if p.requires_grad] == ["localconv.weight"]
    assert not frozen.backbone.training
    assert frozen(torch.randn(1, 3, 32, 32)).shape == (1, 5, 4, 4)
    trained = TransformerEncoder(folder, train_backbone=True).train()
    assert trained.backbone.training
    trained(torch.randn(1, 3, 32, 32)).square().sum().backward()
    assert trained.backbone.embeddings.patch_embeddings.projection.weight.grad is not None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": [0]}, "layers must be numbers from 1 to 3, or from -3 to -1"),
        ({"layers": [4]}, "layers must be numbers from 1 to 3"),
        ({"layers": [-4]}, "layers must be numbers from 1 to 3"),
        ({"layers": []}, "layers must be numbers from 1 to 3"),
        ({"stride": 0}, "stride must be at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TransformerEncoder(saved(tmp_path), **settings)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'ssl-alpnet-bundle\[transformers\]'"):
        TransformerEncoder(tmp_path)
