"""Padding: what a file holds around the scan, cropped before anything is measured."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.config import KeysCollection
from monai.transforms import CropForegroundd, MapTransform
from torch import Tensor

from bundle.keys import IMAGE

Data = dict[Hashable, Any]


class CropPaddingd(MapTransform):
    """Crop volumes to the box outside of which an image holds nothing but its minimum.

    Rows, columns and slices of padding then change nothing: neither the statistics of the scan, nor its scale with
    ``spacing: fit``, nor what its slices are compared by. An image without padding stays as it is.

    Args:
        keys: Volumes ``(1, H, W, Z)`` on one grid; those that are missing are left out.
        image_key: The image that decides.
    """

    def __init__(self, keys: KeysCollection, image_key: str = IMAGE) -> None:
        super().__init__(keys, allow_missing_keys=True)
        self.image_key = image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        """Return ``data`` with its volumes cropped, their affines true."""
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
    """Tell where an image is above its minimum, which is what scans are padded with."""
    return image > image.min()
