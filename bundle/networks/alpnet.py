"""ALPNet: segment a query image from one annotated support set."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from bundle.networks.classifier import CosineClassifier
from bundle.networks.prototypes import BackgroundPrototypes, ForegroundPrototypes
from torch import Tensor, nn


class PrototypeHead(nn.Module):
    """Support features -> prototypes of two classes -> scores of a query. It has no parameters.

    Args:
        foreground: Maps features ``(K, D, h, w)`` and a mask ``(K, 1, h, w)`` to prototypes ``(N, D)``.
        background: The same for the pixels outside the mask.
        classifier: Maps features ``(D, h, w)`` and prototypes ``(N, D)`` to scores ``(h, w)``.
    """

    def __init__(
        self,
        foreground: nn.Module | None = None,
        background: nn.Module | None = None,
        classifier: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.foreground = ForegroundPrototypes() if foreground is None else foreground
        self.background = BackgroundPrototypes() if background is None else background
        self.classifier = CosineClassifier() if classifier is None else classifier

    def prototypes(self, support: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Pool support features ``(K, D, h, w)`` to background ``(N, D)`` and foreground ``(M, D)`` prototypes."""
        return self.background(support, 1 - mask), self.foreground(support, mask)

    def score(self, query: Tensor, background: Tensor, foreground: Tensor) -> Tensor:
        """Return the ``(2, h, w)`` logits of ``query (D, h, w)``, given the prototypes of the two classes."""
        return torch.stack([self.classifier(query, background), self.classifier(query, foreground)])


class ALPNet(PrototypeHead):
    """Adaptive local prototype network (Ouyang et al. 2020, section 3).

        support ──┐                ┌──> pooling ──> prototypes ──┐
                  ├──> encoder ────┤                             ├──> classifier ──> logits
        query  ───┘                └──> query features ──────────┘

    The defaults are the paper's head: cells of 4 x 4 in training mode and 2 x 2 in eval mode, coverage above 0.95,
    cosine times 20.

    Args:
        encoder: Maps images ``(B, C, H, W)`` to features ``(B, D, h, w)``.
        foreground: Maps features ``(K, D, h, w)`` and a mask ``(K, 1, h, w)`` to prototypes ``(N, D)``.
        background: The same for the pixels outside the mask.
        classifier: Maps features ``(D, h, w)`` and prototypes ``(N, D)`` to scores ``(h, w)``.
        level: Which feature map to use if the encoder returns several, as MONAI's do; -1 is the last.

    Raises:
        ValueError: In ``forward``, if the encoder returns several feature maps and ``level`` selects none of them.
    """

    def __init__(
        self,
        encoder: nn.Module,
        foreground: nn.Module | None = None,
        background: nn.Module | None = None,
        classifier: nn.Module | None = None,
        level: int | None = None,
    ) -> None:
        super().__init__(foreground, background, classifier)
        self.encoder = encoder
        self.level = level

    def forward(
        self, query_image: Tensor, support_image: Tensor | None = None, support_mask: Tensor | None = None
    ) -> Tensor:
        """Segment in each query the class of its support masks.

        Args:
            query_image: ``(B, C, H, W)``.
            support_image: The K shots of each episode, ``(B, K, C, H, W)``. ``None`` means K = 0: both scores are 0
                and every pixel is background.
            support_mask: Their foreground in {0, 1}, ``(B, K, 1, H, W)``.

        Returns:
            Background and foreground logits, ``(B, 2, H, W)``, in [-scale, scale]. An empty support mask
            gives foreground logits of 0, a full one background logits of 0.

        Raises:
            ValueError: If the three shapes do not match.
        """
        if support_image is None or support_mask is None:
            batch, _, height, width = query_image.shape
            return self.features(query_image).new_zeros(batch, 2, height, width)
        query, support = self.encode_episode(query_image, support_image, support_mask)
        logits = self.segment(query, support, reduce_mask(support_mask, query))
        return upsample(logits, query_image)

    def features(self, images: Tensor) -> Tensor:
        """Return the ``(B, D, h, w)`` features of ``images (B, C, H, W)``."""
        features = self.encoder(images)
        if not torch.jit.is_scripting():  # TorchScript only takes encoders that return one tensor
            features = one_feature_map(features, self.level)
        return features

    def encode_episode(self, query_image: Tensor, support_image: Tensor, support_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return query features ``(B, D, h, w)`` and support features ``(B, K, D, h, w)``."""
        _check_episode(query_image, support_image, support_mask)
        batch, shots = support_image.shape[0], support_image.shape[1]
        # One pass for both: batch norm must see support and query together.
        features = self.features(torch.cat([support_image.flatten(0, 1), query_image]))
        support = features[: batch * shots].unflatten(0, (batch, shots))
        return features[batch * shots :], support

    def segment(self, query: Tensor, support: Tensor, mask: Tensor) -> Tensor:
        """Return the ``(B, 2, h, w)`` logits of query features, given support features and soft masks.

        Args:
            query: ``(B, D, h, w)``.
            support: ``(B, K, D, h, w)``.
            mask: Foreground in [0, 1] at feature resolution, ``(B, K, 1, h, w)``.
        """
        # One episode at a time: the number of prototypes differs between episodes.
        logits = []
        for episode in range(query.shape[0]):
            background, foreground = self.prototypes(support[episode], mask[episode])
            logits.append(self.score(query[episode], background, foreground))
        return torch.stack(logits)


class AlignedALPNet(nn.Module):
    """ALPNet in training, with prototypical alignment from query to support (paper, section 3.4; PANet).

    The query with its predicted mask becomes the support, and each support image becomes a query. This is a module of
    its own so that ``ALPNet`` always returns one tensor, and so that it can be compiled or distributed as a whole. Its
    state dictionary has the same names as ``ALPNet``'s, so that federated learning can exchange weights between them.

    Args:
        network: The network that is trained; it holds all parameters.
    """

    def __init__(self, network: ALPNet) -> None:
        super().__init__()
        self.network = network
        self.register_state_dict_post_hook(_as_named_by_the_network)
        self.register_load_state_dict_pre_hook(_as_named_by_the_module)

    def forward(self, query_image: Tensor, support_image: Tensor, support_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Segment the queries from the supports, then the supports from the queries.

        Args:
            query_image: ``(B, C, H, W)``.
            support_image: ``(B, K, C, H, W)``.
            support_mask: ``(B, K, 1, H, W)`` in {0, 1}.

        Returns:
            Query logits ``(B, 2, H, W)`` and support logits ``(B, K, 2, H, W)``.
        """
        query, support = self.network.encode_episode(query_image, support_image, support_mask)
        logits = self.network.segment(query, support, reduce_mask(support_mask, query))
        aligned = self.align(query, support, logits)
        return upsample(logits, query_image), upsample(aligned.flatten(0, 1), query_image).unflatten(
            0, aligned.shape[:2]
        )

    def align(self, query: Tensor, support: Tensor, logits: Tensor) -> Tensor:
        """Return the ``(B, K, 2, h, w)`` logits of the supports, given the queries and their predicted masks.

        The predicted mask is the argmax of ``logits`` at feature resolution, without gradient; ties are background.
        """
        mask = logits.argmax(dim=1, keepdim=True).to(query.dtype)
        aligned = []
        for episode in range(query.shape[0]):
            prototypes = self.network.prototypes(query[episode, None], mask[episode, None])
            aligned.append(torch.stack([self.network.score(shot, *prototypes) for shot in support[episode]]))
        return torch.stack(aligned)


def one_feature_map(output: Any, level: int | None = None) -> Tensor:
    """Return the feature map ``(B, D, h, w)`` of an encoder's output; of several maps, the one at ``level``.

    Raises:
        ValueError: If the output is not a feature map, or there are several and ``level`` selects none of them.
    """
    if isinstance(output, list | tuple):
        if level is None or not -len(output) <= level < len(output):
            raise ValueError(
                f"the encoder returns {len(output)} feature maps and the network needs one, got level {level}. Set the "
                f"network's level to a number from 0 to {len(output) - 1}, or to -1 for the last."
            )
        output = output[level]
    if not isinstance(output, Tensor) or output.ndim != 4:
        shape = f"a tensor {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise ValueError(f"an encoder must return features (B, D, h, w), got {shape}. Wrap it in a module that does.")
    return output


def _as_named_by_the_network(_: nn.Module, state: dict[str, Tensor], prefix: str, *__: Any) -> None:
    """Remove the prefix ``network.`` from the names, in place."""
    for key in [key for key in state if key.startswith(f"{prefix}network.")]:
        state[prefix + key.removeprefix(f"{prefix}network.")] = state.pop(key)


def _as_named_by_the_module(_: nn.Module, state: dict[str, Tensor], prefix: str, *__: Any) -> None:
    """Add the prefix ``network.`` to the names, in place."""
    for key in [key for key in state if key.startswith(prefix)]:
        state[f"{prefix}network.{key.removeprefix(prefix)}"] = state.pop(key)


def reduce_mask(mask: Tensor, features: Tensor) -> Tensor:
    """Resize masks ``(B, K, 1, H, W)`` to the feature map: bilinear, not antialiased, values in [0, 1]."""
    shots = mask.shape[1]
    reduced = F.interpolate(mask.flatten(0, 1).to(features.dtype), size=features.shape[-2:], mode="bilinear")
    return reduced.unflatten(0, (-1, shots))


def upsample(logits: Tensor, image: Tensor) -> Tensor:
    """Resize logits ``(B, 2, h, w)`` to the size of the image, bilinear."""
    return F.interpolate(logits, size=image.shape[-2:], mode="bilinear")


def _check_episode(query_image: Tensor, support_image: Tensor, support_mask: Tensor) -> None:
    if query_image.dim() != 4 or support_image.dim() != 5 or support_mask.dim() != 5:
        raise ValueError(
            "an episode is query_image (B, C, H, W), support_image (B, K, C, H, W) and support_mask (B, K, 1, H, W), "
            f"got {list(query_image.shape)}, {list(support_image.shape)} and {list(support_mask.shape)}. Add the "
            "missing axes."
        )
    same_batch = query_image.shape[0] == support_image.shape[0]
    same_size = query_image.shape[1:] == support_image.shape[2:]
    if not same_batch or not same_size or support_image.shape[1] < 1:
        raise ValueError(
            f"support_image must be (B, K, C, H, W) with K >= 1 and the query's B, C, H, W = "
            f"{list(query_image.shape)}, got {list(support_image.shape)}. Bring the support to the query's shape."
        )
    if support_mask.shape[:2] != support_image.shape[:2] or support_mask.shape[3:] != support_image.shape[3:]:
        raise ValueError(
            f"support_mask must be (B, K, 1, H, W) and match support_image {list(support_image.shape)}, "
            f"got {list(support_mask.shape)}. Give one mask for each support image."
        )
