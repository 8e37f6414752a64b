"""Encoders: images (B, C, H, W) -> features (B, D, h, w), with one feature for every 8 x 8 pixels of the image."""

from __future__ import annotations

import copy
from collections import OrderedDict
from pathlib import Path
from typing import Literal

import torch
from bundle.networks.weights import load_backbone_weights
from bundle.provenance import origin
from monai.networks.nets import ResNet
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

Depth = Literal[18, 34, 50, 101]
Stage = Literal["layer3", "layer4"]

# Kind of block and number of blocks in each stage, by depth (He et al. 2016).
BLOCKS = {
    18: ("basic", [2, 2, 2, 2]),
    34: ("basic", [3, 4, 6, 3]),
    50: ("bottleneck", [3, 4, 6, 3]),
    101: ("bottleneck", [3, 4, 23, 3]),
}


class ResNetEncoder(nn.Module):
    """A ResNet of output stride 8 and a 1 x 1 projection, as in the paper (section 4).

    The trunk is MONAI's ResNet with dilation in place of the strides of layer3 and layer4, the same as torchvision's
    DeepLabV3 backbone. Parameters are named ``backbone.<torchvision name>`` and ``localconv.weight``, so that
    checkpoints of torchvision and of the authors' code can be loaded.

    Args:
        depth: 18, 34, 50 or 101 layers.
        last_stage: Last stage of the trunk, ``"layer3"`` or ``"layer4"``.
        out_channels: Channels ``D`` of the features; ``None`` omits the projection.
        weights: A checkpoint file, or ``"imagenet"`` / ``"coco"`` to let torchvision download one, or
            ``None`` for random weights.
        train_batch_norm: If false, batch norm keeps its running statistics and its parameters.
        identity_projection: Initialize the projection as the identity; it needs ``out_channels`` equal to the
            channels of the last stage.
        in_channels: Channels ``C`` of the image.

    Raises:
        ValueError: If a choice is unknown, or the checkpoint does not fit the trunk.
        FileNotFoundError: If the checkpoint does not exist.
    """

    stride = 8

    def __init__(
        self,
        depth: Depth = 101,
        last_stage: Stage = "layer4",
        out_channels: int | None = 256,
        weights: str | Path | None = None,
        train_batch_norm: bool = True,
        identity_projection: bool = False,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        _check_switches(train_batch_norm=train_batch_norm, identity_projection=identity_projection)
        self.backbone = _dilated_resnet(depth, last_stage, in_channels)
        if weights is not None:
            load_backbone_weights(self.backbone, weights, depth)
        channels = {"layer3": 256, "layer4": 512}[last_stage] * (1 if depth < 50 else 4)
        self.out_channels = channels if out_channels is None else out_channels
        self.localconv = _projection(channels, out_channels, identity_projection)
        self.train_batch_norm = train_batch_norm
        self.start = origin(weights)
        if not train_batch_norm:
            self._freeze_batch_norm()

    def forward(self, image: Tensor) -> Tensor:
        """Return the ``(B, D, h, w)`` features of ``image (B, C, H, W)``, with ``h = ceil(H / 8)``."""
        return self.localconv(self.backbone(image))

    def train(self, mode: bool = True) -> ResNetEncoder:
        """Set the mode; frozen batch norm stays in eval mode."""
        super().train(mode)
        if not self.train_batch_norm:
            self._freeze_batch_norm()
        return self

    def for_inference(self) -> ResNetEncoder:
        """Return a faster copy with batch norm fused into the convolutions; features are equal up to rounding.

        Raises:
            ValueError: In training mode, where batch norm depends on the batch.
        """
        if self.training:
            raise ValueError("batch norm can be fused into convolutions in eval mode only. Call eval() first.")
        fast = copy.deepcopy(self)
        for module in fast.modules():
            parts = dict(module.named_children())
            # Each norm follows its convolution: bn1 follows conv1 in trunk and blocks, 1 follows 0 in shortcuts.
            for name, norm in parts.items():
                if isinstance(norm, nn.BatchNorm2d):
                    before = name.replace("bn", "conv") if name.startswith("bn") else str(int(name) - 1)
                    convolution = parts[before]
                    assert isinstance(convolution, nn.Conv2d)
                    setattr(module, before, fuse_conv_bn_eval(convolution, norm))
                    setattr(module, name, nn.Identity())
        return fast

    def _freeze_batch_norm(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
                for parameter in module.parameters():
                    parameter.requires_grad_(False)


def _check_switches(**switches: bool) -> None:
    """Refuse texts: ``--...#train_batch_norm false`` gives the text "false", which is true in Python."""
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be true or false, got the text {value!r}. Write True or False instead.")


def _dilated_resnet(depth: int, last_stage: str, in_channels: int) -> nn.Sequential:
    if depth not in BLOCKS:
        raise ValueError(f"depth must be 18, 34, 50 or 101, got {depth!r}. Set the encoder's depth to one of them.")
    if last_stage not in ("layer3", "layer4"):
        raise ValueError(f"last_stage must be 'layer3' or 'layer4', got {last_stage!r}. The paper uses layer4.")
    kind, layers = BLOCKS[depth]
    # Not MONAI's ResNetFeatures: its ResNet-18 and -34 have shortcuts without weights, unlike torchvision's.
    resnet = ResNet(
        kind,
        layers,
        block_inplanes=[64, 128, 256, 512],
        spatial_dims=2,
        n_input_channels=in_channels,
        conv1_t_stride=2,
        shortcut_type="B",
        bias_downsample=False,
        feed_forward=False,
    )
    # As in torchvision, the first block of a stage keeps the dilation of the previous stage.
    _dilate(resnet.layer3, first=1, rest=2)
    _dilate(resnet.layer4, first=2, rest=4)
    stages = ["conv1", "bn1", "act", "maxpool", "layer1", "layer2", "layer3", "layer4"]
    stages = stages[: stages.index(last_stage) + 1]
    return nn.Sequential(OrderedDict((name, getattr(resnet, name)) for name in stages))


def _dilate(stage: nn.Module, first: int, rest: int) -> None:
    for index, block in enumerate(stage.children()):
        dilation = rest if index else first
        for module in block.modules():
            if isinstance(module, nn.Conv2d):
                module.stride = (1, 1)
                if module.kernel_size == (3, 3):
                    module.dilation = module.padding = (dilation, dilation)


def _projection(channels: int, out_channels: int | None, identity: bool) -> nn.Module:
    if out_channels is None:
        return nn.Identity()
    projection = nn.Conv2d(channels, out_channels, kernel_size=1, bias=False)
    if identity:
        if channels != out_channels:
            raise ValueError(
                f"identity_projection needs out_channels equal to the trunk's channels, got {out_channels}. "
                f"Set out_channels to {channels}."
            )
        with torch.no_grad():
            projection.weight.copy_(torch.eye(channels)[..., None, None])
    return projection
