"""The two views of an episode: geometry on image and mask together, intensity on the image (paper, section 3.1).

All random numbers are drawn in ``Augmentation.draw``; ``Augmentation.apply`` is then deterministic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch import Tensor

Range = Sequence[float]


@dataclass(frozen=True)
class View:
    """The parameters drawn for one view.

    Attributes:
        rotate: Rotation, degrees, counter-clockwise as seen with row 0 on top. Its center is column ``H / 2``, row
            ``W // 2``, as in the authors' code: the slice's center in square slices only (docs/method.md).
        translate: Shift along columns and rows, pixels.
        shear: Shear of columns by rows about the top left corner, degrees.
        zoom: Magnification about the same point; above 1 the object grows.
        displacement: Elastic field along columns and rows, ``(2, H, W)``, pixels.
        gamma: Exponent of the intensities.
    """

    rotate: float
    translate: tuple[float, float]
    shear: float
    zoom: float
    displacement: np.ndarray
    gamma: float

    def matrix(self, height: int, width: int) -> np.ndarray:
        """Return the forward map of pixels ``(column, row, 1)``, ``(3, 3)``: Zoom * Shear * Translate * Rotate."""
        translate = np.array([[1, 0, self.translate[0]], [0, 1, self.translate[1]], [0, 0, 1.0]])
        shear = np.deg2rad(self.shear)
        shearing = np.array([[1, -np.sin(shear), 0], [0, np.cos(shear), 0], [0, 0, 1.0]])
        center = (height / 2, width // 2)
        return _about(center, 0, self.zoom) @ shearing @ translate @ _about(center, self.rotate, 1)


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the random transformations; the defaults are the paper's.

    Args:
        rotate: Degrees.
        translate: Pixels, along each axis.
        shear: Degrees.
        zoom: Factor.
        gamma: Exponent.
        elastic_magnitude: Factor of the smoothed uniform(-1, 1) field, pixels; 0 for no deformation.
        elastic_sigma: Standard deviation of the smoothing, pixels.

    Raises:
        ValueError: If a range is not (low, high), or zoom or gamma can be 0 or negative.
    """

    rotate: Range = (-5.0, 5.0)
    translate: Range = (-5.0, 5.0)
    shear: Range = (-5.0, 5.0)
    zoom: Range = (0.9, 1.2)
    gamma: Range = (0.5, 1.5)
    elastic_magnitude: float = 10.0
    elastic_sigma: float = 5.0

    def __post_init__(self) -> None:
        for name in ("rotate", "translate", "shear", "zoom", "gamma"):
            span = getattr(self, name)
            if len(span) != 2 or span[0] > span[1]:
                raise ValueError(
                    f"augmentation {name} must be [low, high] with low <= high, got {list(span)}. Swap the ends."
                )
            if name in ("zoom", "gamma") and span[0] <= 0:
                raise ValueError(f"augmentation {name} must be above 0, got {list(span)}. Raise its lower end.")

    def draw(self, random: np.random.Generator, height: int, width: int) -> View:
        """Draw one view for slices of ``height`` x ``width`` pixels."""
        rotate = _uniform(random, self.rotate)
        translate = (_uniform(random, self.translate), _uniform(random, self.translate))
        shear = _uniform(random, self.shear)
        zoom = _uniform(random, self.zoom)
        field = random.uniform(-1, 1, size=(2, height, width))
        return View(rotate, translate, shear, zoom, self.smooth(field), _uniform(random, self.gamma))

    def smooth(self, field: np.ndarray) -> np.ndarray:
        """Turn a field of uniform(-1, 1) draws ``(2, H, W)`` into displacements in pixels."""
        smooth = [gaussian_filter(axis, self.elastic_sigma, mode="mirror", truncate=2.0) for axis in field]
        return np.stack(smooth) * self.elastic_magnitude

    def apply(self, view: View, image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Apply the same geometry to a slice and its mask, and the gamma to the slice.

        Args:
            view: The drawn parameters.
            image: ``(H, W)``.
            mask: ``(H, W)`` in {0, 1}.

        Returns:
            The image, float32 ``(H, W)``, and the mask, uint8 ``(H, W)``: 1 where the resampled mask is above one half,
            0 outside the original field of view.
        """
        channels = torch.as_tensor(np.stack([image, mask]), dtype=torch.float64)
        channels = warp_elastic(warp_affine(channels, view.matrix(*image.shape)), view.displacement)
        return change_gamma(channels[0], view.gamma).float().numpy(), (channels[1] > 0.5).numpy().astype(np.uint8)


def warp_affine(channels: Tensor, matrix: np.ndarray) -> Tensor:
    """Warp ``channels (C, H, W)`` by a forward map of ``(column, row, 1)``; bilinear, 0 outside."""
    height, width = channels.shape[-2:]
    inverse = torch.as_tensor(np.linalg.inv(matrix))
    pixels = torch.stack([*_pixels(height, width), torch.ones(height, width, dtype=torch.float64)])
    column, row = torch.einsum("ij,jhw->ihw", inverse[:2], pixels)
    return _sample(channels, column, row, padding="zeros")


def warp_elastic(channels: Tensor, displacement: np.ndarray) -> Tensor:
    """Sample each pixel of ``channels (C, H, W)`` at a displaced position; bilinear, reflected at the edges."""
    height, width = channels.shape[-2:]
    column, row = _pixels(height, width) + torch.as_tensor(displacement)
    return _sample(channels, column, row, padding="reflection")


def change_gamma(image: Tensor, gamma: float) -> Tensor:
    """Raise the intensities, scaled to their range, to the power ``gamma``."""
    low = image.min()
    span = image.max() - low + 1e-5
    return span * ((image - low + 1e-5) / span) ** gamma + low


def _uniform(random: np.random.Generator, span: Range) -> float:
    return float(random.uniform(span[0], span[1]))


def _about(center: tuple[float, float], degrees: float, zoom: float) -> np.ndarray:
    """Return the rotation and magnification about a center, ``(3, 3)``, for points ``(column, row, 1)``."""
    angle = np.deg2rad(degrees)
    a, b = zoom * np.cos(angle), zoom * np.sin(angle)
    x, y = center
    return np.array([[a, b, (1 - a) * x - b * y], [-b, a, b * x + (1 - a) * y], [0, 0, 1.0]])


def _pixels(height: int, width: int) -> Tensor:
    """Return the column and the row of every pixel, ``(2, H, W)``."""
    rows = torch.arange(height, dtype=torch.float64)
    columns = torch.arange(width, dtype=torch.float64)
    return torch.stack(torch.meshgrid(columns, rows, indexing="xy"))


def _sample(channels: Tensor, column: Tensor, row: Tensor, padding: str) -> Tensor:
    height, width = channels.shape[-2:]
    grid = torch.stack([(2 * column + 1) / width - 1, (2 * row + 1) / height - 1], dim=-1)
    return F.grid_sample(channels[None], grid[None], mode="bilinear", padding_mode=padding, align_corners=False)[0]
