"""From files to volumes on the network's grid, and back.

    LoadImaged, CheckVolumed -> SliceLayoutd -> CropPaddingd -> (intensity) -> FitSlicesd     RestoreGridd -> SaveMasks
    a valid volume              (1, H, W, Z)    no padding      see intensity  H x W of the   mask on the grid
                                                                               network        of the file

Every step updates the affine, so that the way back only needs the affines of mask and file.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from bundle.keys import LABEL
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Orientation, ResizeWithPadOrCrop, SpatialResample
from monai.utils import ImageMetaKey, MetaKeys, convert_to_tensor
from skimage.filters import gaussian
from torch import Tensor

Data = dict[Hashable, Any]

logger = logging.getLogger(__name__)

# Most voxels along an axis of a resampled scan, so that a wrong voxel size cannot fill the memory.
LONGEST_SIDE = 4096

# Smallest ratio of a new voxel size to the present one at which a scan is smoothed first.
LEAST_SHRINKING = 1.1


class SliceLayoutd(MapTransform):
    """Reorder volumes to rows, columns, slices ``(1, H, W, Z)``, by permuting and flipping axes only.

    Args:
        keys: Volumes ``(1, ., ., .)`` with an affine.
        orientation: Axis codes of rows, columns and slices, the same for every scan. ``"PLS"`` is a radiologist's
            view of an axial slice: front up, right side on the left. ``None`` keeps the planes as acquired: use it
            for cardiac short-axis stacks, whose affines differ from patient to patient.
        slice_axis: With ``orientation=None``, the file's slice axis: 0, 1 or 2. Of the other two axes, the second
            becomes rows and the first columns, as NIfTI files store planes.

    Raises:
        ValueError: If the orientation is not three codes of three axes, or ``slice_axis`` is not 0, 1 or 2.
    """

    def __init__(self, keys: KeysCollection, orientation: str | None = "PLS", slice_axis: int = 2) -> None:
        super().__init__(keys, allow_missing_keys=True)
        pairs = [{"L", "R"}, {"P", "A"}, {"I", "S"}]
        if orientation is not None and not (
            len(orientation) == 3 and all(len(pair & set(orientation)) == 1 for pair in pairs)
        ):
            raise ValueError(
                f"orientation must name one of L/R, one of P/A and one of I/S, got {orientation!r}. "
                "Set PLS for axial slices."
            )
        if slice_axis not in (0, 1, 2):
            raise ValueError(
                f"slice_axis, the file's axis that counts slices, must be 0, 1 or 2, got {slice_axis!r}. Try 2."
            )
        self.orientation = orientation
        self.slice_axis = slice_axis

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        """Return ``data`` with its volumes permuted and flipped."""
        result = dict(data)
        for key in self.key_iterator(data):
            codes = self.orientation or self._codes_of_planes(data[key])
            result[key] = Orientation(axcodes=codes, labels=None)(data[key])
        return result

    def _codes_of_planes(self, volume: MetaTensor) -> str:
        codes = nibabel.aff2axcodes(np.asarray(volume.affine))
        column, row = (axis for axis in (0, 1, 2) if axis != self.slice_axis)
        return "".join(codes[axis] for axis in (row, column, self.slice_axis))


class FitSlicesd(MapTransform):
    """Resample volumes, then crop or pad each slice around its center to the network's size.

    Labels are resampled by nearest neighbor. Padding takes the scan's minimum, or 0 for labels.

    Args:
        keys: Volumes ``(1, H, W, Z)`` with an affine.
        size: Rows and columns of the network's slices, pixels.
        spacing: Voxel size to resample to, mm, as (row, column, slice); -1 keeps an axis unchanged.
            ``"fit"`` chooses the pixel size of each scan so that its longer side fills ``size``. ``None``
            keeps the scan's own.
        support_pixel: With ``"fit"``, returns the pixel size of the annotated scans on the network's grid, mm, given
            the scan's entry; ``None`` if it is not known.
        tolerance: Largest ratio of a scan's pixel size to the annotated scans', up or down, >= 1. Beyond it, the scan
            is resampled to their pixel size, so that organs keep their size; what then lies outside ``size`` is
            cropped, with a warning.

    Raises:
        ValueError: If ``size``, ``spacing`` or ``tolerance`` is out of range.
    """

    def __init__(
        self,
        keys: KeysCollection,
        size: Sequence[int] = (256, 256),
        spacing: Sequence[float] | str | None = None,
        support_pixel: Callable[[Mapping[Hashable, Any]], float | None] | None = None,
        tolerance: float = 1.3,
    ) -> None:
        super().__init__(keys, allow_missing_keys=True)
        if not isinstance(size, list | tuple) or len(size) != 2 or min(size) < 16:
            raise ValueError(
                f"size must be two numbers of pixels, rows and columns, at least 16, got {size!r}. Set [256, 256]."
            )
        _check_spacing(spacing)
        if tolerance < 1:
            raise ValueError(
                f"tolerance, a ratio of pixel sizes, must be at least 1, got {tolerance}. The default is 1.3."
            )
        self.size = list(size)
        self.spacing = spacing
        self.support_pixel = support_pixel
        self.tolerance = tolerance

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        """Return ``data`` with its volumes ``(1, *size, Z')``."""
        result = dict(data)
        for key in self.key_iterator(data):
            is_label = key == LABEL
            volume = self._resampled(
                data[key], self._spacing_of(data[key], data), "nearest" if is_label else "bilinear"
            )
            fill = 0.0 if is_label else float(volume.min())
            result[key] = ResizeWithPadOrCrop([*self.size, volume.shape[-1]], mode="constant", value=fill)(volume)
        return result

    def _spacing_of(self, volume: MetaTensor, data: Mapping[Hashable, Any]) -> np.ndarray:
        """Return the voxel size to resample to, mm."""
        present = np.asarray(volume.pixdim, dtype=float)
        if self.spacing is None:
            return present
        if self.spacing != "fit":
            given = np.asarray(self.spacing, dtype=float)
            return np.where(given == -1, present, given)
        extent = present[:2] * volume.shape[1:3]
        pixel = float(max(extent / self.size))
        wanted = self.support_pixel(data) if self.support_pixel else None
        if wanted is not None and max(pixel / wanted, wanted / pixel) > self.tolerance:
            if pixel > wanted:
                _warn_of_crop(volume, pixel / wanted, wanted * np.asarray(self.size))
            pixel = wanted
        return np.array([pixel, pixel, present[2]])

    def _resampled(self, volume: MetaTensor, wanted: np.ndarray, mode: str) -> Any:
        present = np.asarray(volume.pixdim, dtype=float)
        if np.allclose(wanted, present, rtol=1e-4):
            return volume
        # Not MONAI's Spacing: with an oblique affine that is inexact in its last digits, it centers the new grid half
        # a voxel away. Here the first voxel always stays in place.
        factor = present / wanted
        shape = [int(n) for n in _nearest((np.asarray(volume.shape[1:]) - 1) * factor + 1)]
        if max(shape) > LONGEST_SIDE:
            raise ValueError(
                f"a resampled scan must have at most {LONGEST_SIDE} voxels along each axis, got {shape} of "
                f"{np.round(wanted, 4).tolist()} mm from {np.round(present, 4).tolist()} mm. Is its header's voxel "
                "size right? If so, set spacing to a larger one."
            )
        if mode == "bilinear":
            volume = _without_fine_detail(volume, 1 / factor)
        affine = volume.affine @ torch.as_tensor(np.diag([*1 / factor, 1.0]), dtype=volume.affine.dtype)
        return SpatialResample(mode=mode, padding_mode="border", dtype=np.float32)(volume, affine, shape)


def _without_fine_detail(volume: MetaTensor, shrinking: np.ndarray) -> MetaTensor:
    """Smooth a volume before it is shrunk: the coarser grid would else pick single voxels, with all their noise.

    Args:
        volume: ``(1, H, W, Z)``.
        shrinking: Ratio of the new voxel size to the present one along each axis; sigma is (ratio - 1) / 2 voxels, as
            scikit-image's ``resize`` takes it, and 0 up to ``LEAST_SHRINKING``.
    """
    sigma = [float(ratio - 1) / 2 if ratio > LEAST_SHRINKING else 0.0 for ratio in shrinking]
    if not any(sigma):
        return volume
    # Not MONAI's GaussianSmooth: it takes what lies around the volume as 0, which CT in HU is not.
    smooth = gaussian(volume[0].numpy(), sigma, mode="nearest", preserve_range=True)
    return MetaTensor(torch.as_tensor(smooth, dtype=volume.dtype)[None], meta=volume.meta)


def _check_spacing(spacing: Any) -> None:
    is_list = isinstance(spacing, list | tuple)
    if not is_list and spacing not in (None, "fit"):
        raise ValueError(f"spacing must be three numbers in mm, 'fit' or null, got {spacing!r}. Set fit if in doubt.")
    if is_list and not (len(spacing) == 3 and all(mm > 0 or mm == -1 for mm in spacing)):
        raise ValueError(
            f"spacing must be (row, column, slice) in mm, each above 0, got {list(spacing)}. Set -1 to keep an axis."
        )


def _warn_of_crop(volume: MetaTensor, ratio: float, kept: np.ndarray) -> None:
    logger.warning(
        "%s: the field of view is %.1f times the annotated scan's. Only the central %.0f x %.0f mm are segmented.",
        *(Path(str(volume.meta.get(ImageMetaKey.FILENAME_OR_OBJ, "scan"))).name, ratio, *kept),
    )


class RestoreGridd(MapTransform):
    """Resample predicted label maps back to the grid of the file: its shape, affine and orientation.

    Cropped voxels are 0.

    Args:
        keys: Label maps ``(1, H, W, Z)`` on the network's grid, whose meta is the loaded image's.
    """

    def __init__(self, keys: KeysCollection) -> None:
        super().__init__(keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        """Return ``data`` with its label maps, uint8 or int16, on the file's grid."""
        result = dict(data)
        for key in self.key_iterator(data):
            result[key] = restore_grid(data[key])
        return result


def restore_grid(label: MetaTensor) -> MetaTensor:
    """Resample label maps or masks ``(C, H, W, Z)`` by nearest neighbor to the original grid in their meta.

    The result is on the CPU, since it is written to a file; MONAI Label's server does not move it itself.
    """
    meta = label.meta
    shape = [int(n) for n in meta[MetaKeys.SPATIAL_SHAPE]]
    affine = np.asarray(meta[MetaKeys.ORIGINAL_AFFINE], dtype=np.float64)
    plain = convert_to_tensor(label, track_meta=False)
    to_network = np.linalg.inv(np.asarray(label.affine, dtype=np.float64)) @ affine
    values = torch.stack([_fetched(channel, to_network, shape) for channel in plain])
    values = values.to("cpu", torch.int16 if float(plain.max()) > 255 else torch.uint8)
    kept = {key: value for key, value in meta.items() if key != MetaKeys.AFFINE}
    return MetaTensor(values, affine=torch.as_tensor(affine), meta=kept)


def _fetched(volume: Tensor, to_volume: np.ndarray, shape: list[int]) -> Tensor:
    """Sample a volume on a grid of ``shape``, given the map of the grid's voxels ``(i, j, k, 1)`` into the volume.

    Loading only permuted, flipped, scaled and cropped axes, so each axis of the grid follows one axis of the volume.
    """
    axes = np.abs(to_volume[:3, :3]).argmax(axis=0)  # of the volume, for each axis of the result
    if sorted(axes) != [0, 1, 2]:
        raise ValueError(
            "a label map must not be rotated against its scan's grid. Keep it on the grid on which the scan was loaded."
        )
    result = volume.permute(*(int(axis) for axis in axes))
    for axis, (n, own) in enumerate(zip(shape, axes, strict=True)):
        places = _nearest(to_volume[own, axis] * np.arange(n) + to_volume[own, 3])
        inside = torch.as_tensor((places >= 0) & (places < volume.shape[own]), device=volume.device)
        index = torch.as_tensor(places.clip(0, volume.shape[own] - 1), device=volume.device)
        result = result.index_select(axis, index)
        result = result * inside.to(result.dtype).reshape([-1 if a == axis else 1 for a in range(3)])
    return result


def _nearest(places: np.ndarray) -> np.ndarray:
    """Round to whole numbers; ties are rounded alike even if affines differ in their last digits."""
    return np.rint(np.round(places, 3)).astype(int)
