"""Prototypes: a class of the support, represented by a few feature vectors.

    features (K, D, h, w)  +  mask (K, 1, h, w)   ->   prototypes (N, D)

Every pooling here has this signature, so the config can swap one for another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Side of a square cell, or its rows and columns, in feature-map pixels: the paper's L_H x L_W.
Window = int | Sequence[int]


def masked_average_pool(features: Tensor, mask: Tensor, eps: float = 1e-5) -> Tensor:
    """Average the features under a mask: the class-level prototype of each shot (paper, eq. 2).

    Args:
        features: Support features, ``(K, D, h, w)``.
        mask: Soft mask in [0, 1] at feature resolution, ``(K, 1, h, w)``.
        eps: Added to the mask's area in feature-map pixels, so that an empty mask gives zeros and not NaN.

    Returns:
        One prototype a shot, ``(K, D)``; zeros for a shot whose mask is empty.

    Raises:
        ValueError: If features and mask differ in shots or in spatial size.
    """
    _check_aligned(features, mask)
    area = mask.sum(dim=(-2, -1)) + eps
    return (features * mask).sum(dim=(-2, -1)) / area


class ClassPrototype(nn.Module):
    """One prototype for the whole class: the mean over shots of each shot's masked mean (PANet)."""

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Return the ``(1, D)`` prototype; zeros if every mask is empty."""
        return masked_average_pool(features, mask).mean(dim=0, keepdim=True)


class LocalPrototypes(nn.Module):
    """Adaptive local prototype pooling (paper, section 3.2, eq. 1).

    Each cell of the feature map gives one prototype, its unweighted mean, if the mask covers more than
    ``min_coverage`` of the cell. Cells start at the top left; rows and columns that do not fill a whole cell are
    left out.

    Args:
        window: Side of a cell in training mode, or its ``(rows, columns)``, in feature-map pixels, >= 1.
        eval_window: The same in eval mode; ``None`` means as in training.
        min_coverage: Share of a cell that the mask must cover, in [0, 1).

    Raises:
        ValueError: If a window is below 1 or ``min_coverage`` lies outside [0, 1).
    """

    def __init__(self, window: Window = 4, eval_window: Window | None = 2, min_coverage: float = 0.95) -> None:
        super().__init__()
        self.window = _checked_window("window", window)
        self.eval_window = _checked_window("eval_window", window if eval_window is None else eval_window)
        self.min_coverage = _checked_coverage(min_coverage)

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Return the ``(N, D)`` prototypes of the covered cells, shot by shot, row by row; ``N`` may be 0."""
        _check_aligned(features, mask)
        window = self.window if self.training else self.eval_window
        if not _fits(window, features):
            return features.new_zeros(0, features.shape[1])
        cells = F.avg_pool2d(features, window)
        coverage = F.avg_pool2d(mask, window).squeeze(1)
        return cells.movedim(1, -1)[coverage > self.min_coverage]


class ForegroundPrototypes(nn.Module):
    """The paper's foreground: local prototypes and one class-level prototype for each shot.

    If no cell is covered, only the class-level prototype is used, averaged over shots. Coverage is decided on cells of
    size ``rule_window``, in training and at test time, as in the authors' code (docs/method.md): a small organ has no
    local prototypes although a 2 x 2 cell would fit.

    Args:
        window: Side of a cell in training mode, or its ``(rows, columns)``, in feature-map pixels, >= 1.
        eval_window: The same in eval mode; ``None`` means as in training.
        min_coverage: Share of a cell that the mask must cover, in [0, 1).
        rule_window: Side, or ``(rows, columns)``, of the cells that decide whether local prototypes are used, >= 1.

    Raises:
        ValueError: If a window is below 1 or ``min_coverage`` lies outside [0, 1).
    """

    def __init__(
        self, window: Window = 4, eval_window: Window | None = 2, min_coverage: float = 0.95, rule_window: Window = 4
    ) -> None:
        super().__init__()
        self.local = LocalPrototypes(window, eval_window, min_coverage)
        self.rule_window = _checked_window("rule_window", rule_window)
        self.min_coverage = min_coverage

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Return the ``(N, D)`` prototypes, class-level ones last; an empty mask gives one of zeros."""
        class_level = masked_average_pool(features, mask)
        if self._covers_a_cell(mask):
            return torch.cat([self.local(features, mask), class_level])
        return class_level.mean(dim=0, keepdim=True)

    def _covers_a_cell(self, mask: Tensor) -> bool:
        if not _fits(self.rule_window, mask):
            return False
        return bool((F.avg_pool2d(mask, self.rule_window) >= self.min_coverage).any())


class BackgroundPrototypes(nn.Module):
    """The paper's background: local prototypes alone.

    Where no cell is covered the authors' code raises, and its training loop skips the episode. Here the
    class-level prototype is used instead, so that every episode has a result (docs/method.md).

    Cells that are neither covered by the foreground nor free of it are mixed. The paper's text gives every cell that
    the foreground does not cover to the background (section 3.2); the authors' code drops the mixed cells.

    Args:
        window: Side of a cell in training mode, or its ``(rows, columns)``, in feature-map pixels, >= 1.
        eval_window: The same in eval mode; ``None`` means as in training.
        min_coverage: Share of a cell that the mask must cover, in [0, 1).
        mixed_cells: ``"drop"`` as in the authors' code, or ``"background"`` as in the paper's text: a cell is
            background if the foreground (the complement of ``mask``) covers less than ``min_coverage`` of it.

    Raises:
        ValueError: If a window is below 1, ``min_coverage`` lies outside [0, 1), or ``mixed_cells`` is unknown.
    """

    def __init__(
        self,
        window: Window = 4,
        eval_window: Window | None = 2,
        min_coverage: float = 0.95,
        mixed_cells: Literal["drop", "background"] = "drop",
    ) -> None:
        super().__init__()
        if mixed_cells not in ("drop", "background"):
            raise ValueError(f"mixed_cells must be 'drop' or 'background', got {mixed_cells!r}. The default is 'drop'.")
        if mixed_cells == "background" and min_coverage == 0:
            raise ValueError(
                "min_coverage must be above 0 with mixed_cells 'background', or no cell is background, got 0. "
                "The paper uses 0.95."
            )
        self.mixed_cells = mixed_cells
        coverage = _checked_coverage(min_coverage)
        self.local = LocalPrototypes(window, eval_window, coverage if mixed_cells == "drop" else 1 - coverage)

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Return the ``(N, D)`` prototypes; an empty mask gives one of zeros."""
        local = self.local(features, mask)
        if local.shape[0] > 0:
            return local
        return masked_average_pool(features, mask).mean(dim=0, keepdim=True)


def _check_aligned(features: Tensor, mask: Tensor) -> None:
    same_shots = features.shape[0] == mask.shape[0] and mask.shape[1] == 1
    if not same_shots or features.shape[-2:] != mask.shape[-2:]:
        raise ValueError(
            f"mask must be (K, 1, h, w) and match features (K, D, h, w) = {list(features.shape)}, "
            f"got {list(mask.shape)}. Resize the mask to the feature map first."
        )


def _checked_window(name: str, window: Window) -> tuple[int, int]:
    """Return the rows and columns of a cell."""
    sides = list(window) if isinstance(window, Sequence) and not isinstance(window, str) else [window, window]
    whole = all(isinstance(side, int) and not isinstance(side, bool) and side >= 1 for side in sides)
    if not whole or len(sides) != 2:
        raise ValueError(
            f"{name} must be a whole number of feature-map pixels, at least 1, or two of them, rows and columns, got "
            f"{window!r}. Write 4, or [3, 5]."
        )
    return int(sides[0]), int(sides[1])


def _fits(window: tuple[int, int], features: Tensor) -> bool:
    """Return whether a map ``(..., h, w)`` holds a whole cell."""
    return window[0] <= features.shape[-2] and window[1] <= features.shape[-1]


def _checked_coverage(min_coverage: float) -> float:
    if not 0 <= min_coverage < 1:
        raise ValueError(
            f"min_coverage, a share of the cell, must be in [0, 1), got {min_coverage}. The paper uses 0.95."
        )
    return float(min_coverage)
