"""A vision transformer as encoder: DINOv2, DINOv3 or any other that the transformers package can load."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from bundle.provenance import origin
from torch import Tensor, nn


class TransformerEncoder(nn.Module):
    """Patch tokens of a pretrained vision transformer, as a feature map of any stride.

    The image is resized so that a patch covers ``stride x stride`` of its pixels; the transformer interpolates its
    position encodings to that size. Tokens of several layers are normalized to unit length and concatenated.

    Args:
        weights: A folder written by ``save_pretrained``, or a name such as ``"facebook/dinov2-small"``, which the
            transformers package downloads once.
        layers: Layers whose tokens are used, from 1; negative numbers count from the last.
        stride: Image pixels along each side of a feature, >= 1.
        out_channels: Channels ``D`` of a trained 1 x 1 projection; ``None`` omits it.
        train_backbone: Whether the transformer is trained too.

    Raises:
        ImportError: If the transformers package is missing.
        ValueError: If a layer does not exist, or ``stride`` is below 1.
        OSError: If the weights do not exist.
    """

    def __init__(
        self,
        weights: str | Path,
        layers: Sequence[int] = (-1,),
        stride: int = 8,
        out_channels: int | None = None,
        train_backbone: bool = False,
    ) -> None:
        super().__init__()
        if stride < 1:
            raise ValueError(f"stride must be at least 1 pixel, got {stride}. The default is 8.")
        self.backbone = _pretrained(weights)
        depth, width = self.backbone.config.num_hidden_layers, self.backbone.config.hidden_size
        self.layers = _checked_layers(layers, depth)
        self.patch = int(self.backbone.config.patch_size)
        self.stride = stride
        self.train_backbone = train_backbone
        self.start = origin(weights)
        channels = width * len(self.layers)
        self.out_channels = channels if out_channels is None else out_channels
        self.localconv = nn.Identity() if out_channels is None else nn.Conv2d(channels, out_channels, 1, bias=False)
        for parameter in self.backbone.parameters():
            parameter.requires_grad_(train_backbone)
        self.train(self.training)

    def forward(self, image: Tensor) -> Tensor:
        """Return the ``(B, D, h, w)`` features of ``image (B, 3, H, W)``, with ``h = ceil(H / stride)``."""
        h, w = (-(-side // self.stride) for side in image.shape[-2:])
        resized = F.interpolate(image, size=(h * self.patch, w * self.patch), mode="bilinear", antialias=True)
        states = self.backbone(pixel_values=resized, output_hidden_states=True).hidden_states
        # Class and register tokens come first; their number differs between models.
        maps = [states[k][:, -h * w :].transpose(1, 2).unflatten(2, (h, w)) for k in self.layers]
        return self.localconv(torch.cat([F.normalize(tokens, dim=1) for tokens in maps], dim=1))

    def train(self, mode: bool = True) -> TransformerEncoder:
        """Set the mode; a transformer that is not trained stays in eval mode."""
        super().train(mode)
        if not self.train_backbone:
            self.backbone.eval()
        return self


def _pretrained(weights: str | Path) -> Any:
    try:
        transformers = importlib.import_module("transformers")
    except ImportError as error:
        raise ImportError(
            "a vision transformer needs the transformers package: pip install 'ssl-alpnet-bundle[transformers]'."
        ) from error
    return transformers.AutoModel.from_pretrained(str(weights))


def _checked_layers(layers: Sequence[int], depth: int) -> list[int]:
    """Return the numbers of the layers, counted from 1."""
    counted = [layer + depth + 1 if layer < 0 else layer for layer in layers]
    if not counted or not all(1 <= layer <= depth for layer in counted):
        raise ValueError(
            f"layers must be numbers from 1 to {depth}, or from -{depth} to -1, got {list(layers)}. "
            "Set [-1] for the last layer."
        )
    return counted
