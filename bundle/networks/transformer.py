"""A vision transformer as encoder: DINOv2, DINOv3 or another one that the transformers package loads."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bundle.provenance import origin


class TransformerEncoder(nn.Module):
    """Patch tokens of a pretrained vision transformer, as a feature map of any stride.

    The image is resized so that a patch covers ``stride x stride`` of its pixels; the transformer interpolates its
    position encodings to that size. Tokens of several layers are scaled to unit length and put one behind the other.

    Args:
        weights: A folder as ``save_pretrained`` leaves it, or a name such as ``"facebook/dinov2-small"``, which the
            transformers package downloads once and keeps.
        layers: Layers whose tokens are taken, from 1; negative ones count from the last.
        stride: Pixels of the image along a side of a feature.
        out_channels: Channels ``D`` of a 1 x 1 projection that training learns; ``None`` leaves it out.
        train_backbone: Whether training changes the transformer too.

    Raises:
        ImportError: If the transformers package is missing.
        ValueError: If a layer does not exist, or ``stride`` is below 1.
        OSError: If there are no such weights.
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
            raise ValueError(f"stride must be at least 1 pixel, got {stride}.")
        try:
            transformers = importlib.import_module("transformers")
        except ImportError as error:
            raise ImportError(
                "a vision transformer needs the transformers package: pip install 'ssl-alpnet-bundle[transformers]'."
            ) from error
        self.backbone = transformers.AutoModel.from_pretrained(str(weights))
        depth, width = self.backbone.config.num_hidden_layers, self.backbone.config.hidden_size
        self.layers = [layer + depth + 1 if layer < 0 else layer for layer in layers]
        if not self.layers or not all(1 <= layer <= depth for layer in self.layers):
            raise ValueError(f"layers must be numbers from 1 to {depth}, or from -{depth} to -1, got {list(layers)}.")
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
        # Class and register tokens come first, in numbers that differ between models.
        maps = [states[k][:, -h * w :].transpose(1, 2).unflatten(2, (h, w)) for k in self.layers]
        return self.localconv(torch.cat([F.normalize(tokens, dim=1) for tokens in maps], dim=1))

    def train(self, mode: bool = True) -> TransformerEncoder:
        """Set the mode; a transformer that is not trained stays in eval mode."""
        super().train(mode)
        if not self.train_backbone:
            self.backbone.eval()
        return self
