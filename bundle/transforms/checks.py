"""Checks of scans and label maps: what is invalid is refused with a message."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from bundle.transforms.own_grid import on_grid_of
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor

Data = dict[Hashable, Any]

# Largest organ id of a label map: masks are uint8, or int16 where an id needs it.
MAX_ORGAN = 32767


# Most organs of a label map: a file with more values is an image.
MAX_ORGANS = 255

# Largest distance of an organ id from a whole number; scaled files and floats have rounding errors.
NEAR_WHOLE = 1e-3


class CheckVolumed(MapTransform):
    """Check image volumes: each ``data[key]`` must be ``(1, H, W, Z)``, finite and not constant.

    Args:
        keys: Image volumes, as loaded and channel first.
    """

    def __init__(self, keys: KeysCollection) -> None:
        super().__init__(keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        """Return ``data`` unchanged.

        Raises:
            ValueError: If a volume is not 3-D, has one slice only, holds NaN or inf, or is constant.
        """
        for key in self.key_iterator(data):
            volume = data[key]
            check_shape(volume)
            if not bool(torch.isfinite(volume).all()):
                bad = int((~torch.isfinite(volume)).sum())
                raise ValueError(f"every voxel must be a finite number, got {bad} NaN or inf. Repair the file.")
            if bool(volume.min() == volume.max()):
                raise ValueError(
                    f"an image must not be constant, but every voxel is {float(volume.min()):g}. Give another file."
                )
        return dict(data)


class CheckLabeld(MapTransform):
    """Check label maps: each must hold organ ids, on the grid of its image. DICOM segmentations are put onto it.

    Args:
        keys: Label maps, as loaded and channel first.
        image_key: The image that the label belongs to.
        tolerance: Largest distance between corresponding voxels, mm.
        may_be_empty: Accept a label map without an organ: an annotated scan may show none.
    """

    def __init__(
        self, keys: KeysCollection, image_key: str = "image", tolerance: float = 0.1, may_be_empty: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys=True)
        self.image_key = image_key
        self.tolerance = tolerance
        self.may_be_empty = may_be_empty

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        """Return ``data`` with its labels in whole numbers.

        Raises:
            ValueError: If a label has another shape or affine than its image, holds fractions or negative
                numbers, or more than 255 organs, or is empty.
        """
        result = dict(data)
        for key in self.key_iterator(data):
            image = data[self.image_key]
            label = on_grid_of(data[key], image)
            check_shape(label)
            if label.shape != image.shape:
                raise ValueError(
                    f"a label must have its image's shape {tuple(image.shape[1:])}, got {tuple(label.shape[1:])}. "
                    "Are the two files of the same scan?"
                )
            self._check_affine(label, image)
            result[key] = whole_ids(label)
            self._check_organs(torch.unique(result[key]))
        return result

    def _check_organs(self, ids: Tensor) -> None:
        if ids.numel() == 1 and ids[0] == 0 and not self.may_be_empty:
            raise ValueError("a label map must show an organ, but every voxel is 0. Annotate at least one voxel.")
        if ids.max() > MAX_ORGAN:
            raise ValueError(f"organ ids must be at most {MAX_ORGAN}, got {int(ids.max())}. Renumber the organs.")
        if ids.numel() - 1 > MAX_ORGANS:
            raise ValueError(
                f"a label map must hold at most {MAX_ORGANS} organs, got {ids.numel()} different values. "
                "Is it an image and no label map?"
            )

    def _check_affine(self, label: Any, image: Any) -> None:
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in image.shape[1:]], [1])).reshape(4, -1)
        apart = np.abs((np.asarray(label.affine) - np.asarray(image.affine)) @ corners).max()
        if apart > self.tolerance:
            raise ValueError(
                f"a label must lie on its image, but their affines place the corners {apart:.1f} mm apart "
                f"(at most {self.tolerance} mm). Resample the label to the image, or repair its header."
            )


def whole_ids(label: Tensor) -> Tensor:
    """Return a label map in whole numbers; values within 0.001 of one are rounded.

    Args:
        label: Organ ids, any shape.

    Raises:
        ValueError: If it holds fractions, negative numbers, NaN or inf.
    """
    whole = label.round()
    if not bool(((label - whole).abs() <= NEAR_WHOLE).all()) or bool((whole < 0).any()):
        raise ValueError(
            f"a label map must hold whole organ ids from 0, got values such as {torch.unique(label)[:6].tolist()}. "
            "Save it as an integer label map, not as probabilities."
        )
    return whole


def check_shape(volume: Tensor) -> None:
    """Raise ``ValueError`` unless ``volume`` is ``(1, H, W, Z)`` with Z, H and W above 1."""
    if volume.ndim != 4:
        raise ValueError(
            f"a scan must be a 3-D volume, got {volume.ndim - 1}-D data of shape {tuple(volume.shape[1:])}. "
            "Stack the slices of a scan into one file."
        )
    if volume.shape[0] != 1:
        raise ValueError(
            f"a scan must be a 3-D volume with one value a voxel, got 4-D data: {volume.shape[0]} volumes of shape "
            f"{tuple(volume.shape[1:])}. Split the file and give one volume."
        )
    if min(volume.shape[1:]) < 2:
        raise ValueError(
            f"a scan must have at least 2 voxels along each axis, got {tuple(volume.shape[1:])}. "
            "Give a volume, not a single slice."
        )
