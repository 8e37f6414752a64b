"""Encode the slices of a volume: (1, H, W, Z) -> features (D, h, w) of each slice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Literal

import torch
from bundle.inference.features import kept_features
from bundle.inference.matching import Features
from bundle.networks.alpnet import ALPNet, one_feature_map
from bundle.provenance import fingerprint
from bundle.transforms.slices import to_network
from torch import Tensor, nn

Precision = Literal["float32", "bfloat16"]

# Hash of a network's weights, and whether it is in training mode.
Version = tuple[str, bool]


def version_of(network: nn.Module) -> Version:
    """Return a network's version: features of equal versions are equal, and may be reused.

    The weights' contents are hashed. PyTorch's version counter of a tensor misses some changes: fused optimizers and
    ``.data`` do not raise it, and tensors of inference mode have none.
    """
    return fingerprint(network), network.training


class SliceEncoder:
    """Encodes slices in batches, with the encoder's ``for_inference()`` if it has one.

    Args:
        slice_batch: Slices in a batch, >= 1.
        precision: The encoder's precision: ``"float32"``, or ``"bfloat16"`` on a device that is fast at it.

    Raises:
        ValueError: If a setting is out of range.
    """

    def __init__(self, slice_batch: int = 8, precision: Precision = "float32") -> None:
        if precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision must be 'float32' or 'bfloat16', got {precision!r}. The default is float32.")
        if slice_batch < 1:
            raise ValueError(f"slice_batch must be at least 1 slice, got {slice_batch}. The default is 8.")
        self.slice_batch = slice_batch
        self.precision = precision
        self._fast: tuple[Version, nn.Module] | None = None

    @torch.no_grad()
    def __call__(self, volume: Tensor, network: ALPNet) -> Features:
        """Encode the slices of ``volume (1, H, W, Z)``.

        Raises:
            ValueError: If the features are not finite.
        """
        encoder = self._for_inference(network.encoder)
        return kept_features(self._batches(volume, encoder, getattr(network, "level", None)), volume.shape[-1])

    def _batches(self, volume: Tensor, encoder: nn.Module, level: int | None) -> Iterator[Tensor]:
        """Yield the features of one batch of slices after the other, ``(S, D, h, w)``."""
        # Convolutions are fastest with channels last, on CPUs and GPUs.
        for z in range(0, volume.shape[-1], self.slice_batch):
            images = to_network(volume[..., z : z + self.slice_batch]).to(memory_format=torch.channels_last)
            coarser = torch.autocast(volume.device.type, torch.bfloat16)
            with coarser if self.precision == "bfloat16" else nullcontext():
                features = one_feature_map(encoder(images), level).float()
            if not bool(features.isfinite().all()):
                raise ValueError(
                    f"features must be finite, but those of slices {z} to {z + len(images) - 1} are not. The scan or "
                    "the weights hold NaN or too large numbers: check both."
                )
            yield features

    def _for_inference(self, encoder: nn.Module) -> nn.Module:
        """Return the encoder's version for inference with its present weights, or the encoder itself."""
        make = getattr(encoder, "for_inference", None)
        if make is None or encoder.training:
            return encoder
        version = version_of(encoder)
        if self._fast is None or self._fast[0] != version:
            self._fast = (version, make())
        return self._fast[1]
