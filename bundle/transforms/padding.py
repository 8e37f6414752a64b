"""Padding around the scan in a file: it is cropped before anything is measured."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from bundle.keys import IMAGE
from monai.config import KeysCollection
from monai.transforms import CropForegroundd, MapTransform
from torch import Tensor

Data = dict[Hashable, Any]


class CropPaddingd(MapTransform):
    """Crop volumes to the bounding box of the image's voxels above its minimum.

    Padding then affects neither the statistics of the scan, nor its scale with ``spacing: fit``, nor the comparison of
    its slices. An image without padding is left unchanged.

    Args:
        keys: Volumes ``(1, H, W, Z)`` on one grid; missing keys are skipped.
        image_key: The image that determines the box.
    """

    def __init__(self, keys: KeysCollection, image_key: str = IMAGE) -> None:
        super().__init__(keys, allow_missing_keys=True)
        self.image_key = image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        """Return ``data`` with its volumes cropped and their affines updated."""
        return CropForegroundd(
            self.keys,
            self.image_key,
            select_fn=above_minimum,
            allow_smaller=True,
            start_coord_key=None,
            end_coord_key=None,
            allow_missing_keys=True,
        )(data)


def above_minimum(image: Tensor) -> Tensor:
    """Return where an image is above its minimum, the usual value of padding."""
    return image > image.min()
