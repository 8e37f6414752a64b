"""Where a mask is least confident: the slice to look at first."""

from __future__ import annotations

import math

from monai.data import MetaTensor
from torch import Tensor

# Share of an organ's largest slice below which a slice does not count: at its ends, masks are small and doubtful.
LEAST_AREA = 0.25


def least_confident_slice(probabilities: Tensor, slices: Tensor, volume: Tensor) -> list[float]:
    """Find the slice in which a mask has the lowest mean probability.

    Args:
        probabilities: Of the mask's voxels, ``(N,)`` in [0, 1].
        slices: The slice of each of these voxels, ``(N,)``.
        volume: A volume ``(O, H, W, Z)`` on the mask's grid, with an affine in RAS, mm.

    Returns:
        The slice's first voxel, RAS, mm, and the mean probability. All are NaN if the mask is empty, nothing places
        the volume, or its slices are not axial.
    """
    if not len(slices) or not isinstance(volume, MetaTensor):
        return [math.nan] * 4
    affine = volume.affine.cpu().double()
    if int(affine[:3, 2].abs().argmax()) != 2:
        return [math.nan] * 4
    where = slices.cpu()
    areas = where.bincount()
    means = where.bincount(weights=probabilities.cpu().double()) / areas.clamp(min=1)
    means[areas < LEAST_AREA * areas.max()] = math.inf
    place = int(means.argmin())
    return [*(affine[:3, 2] * place + affine[:3, 3]).tolist(), float(means[place])]
