"""A label map with a grid of its own, as a DICOM segmentation has, -> the grid of its image."""

from __future__ import annotations

import numpy as np
import torch
from bundle.keys import OWN_GRID
from monai.data import MetaTensor
from torch import Tensor


def on_grid_of(label: Tensor, image: MetaTensor) -> Tensor:
    """Return a label map on the grid of its image, each voxel with the id at its center.

    MONAI's resampling needs two planes along each axis; a segmentation may have one.

    Args:
        label: Organ ids ``(1, X, Y, Z)``. Unless its meta says that it has its own grid, it is returned as it is.
        image: The image ``(1, H, W, Z)`` with its affine.

    Returns:
        Organ ids ``(1, H, W, Z)``; 0 where the label map has no voxel.

    Raises:
        ValueError: If no voxel of an organ lies on the image.
    """
    if not isinstance(label, MetaTensor) or not label.meta.get(OWN_GRID):
        return label
    values = label.cpu().numpy()[0]
    steps = np.linalg.inv(np.asarray(label.affine, dtype=float)) @ np.asarray(image.affine, dtype=float)
    rows, columns, slices = image.shape[1:]
    plane = np.einsum("ij,jhw->ihw", steps[:3, :2], np.indices((rows, columns))) + steps[:3, 3, None, None]
    found = np.stack([_at(values, plane + steps[:3, 2, None, None] * z) for z in range(slices)], axis=-1)
    if values.any() and not found.any():
        raise ValueError(
            "a segmentation must lie on its image, but none of its voxels does. Are the two files of the same scan?"
        )
    meta = {key: value for key, value in label.meta.items() if key not in (OWN_GRID, "affine")}
    return MetaTensor(torch.from_numpy(found)[None], affine=image.affine, meta=meta)


def _at(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the values nearest to places ``(3, H, W)`` in voxels, 0 outside."""
    index = np.rint(places).astype(int)
    inside = ((index >= 0) & (index < np.array(values.shape)[:, None, None])).all(axis=0)
    found = np.zeros(inside.shape, values.dtype)
    found[inside] = values[tuple(index[:, inside])]
    return found
