"""Volumes of a caller's own program: any type in, what ``LoadImaged`` gives out, and masks back in that type.

path | nibabel image | MetaTensor | SimpleITK image  ->  MetaTensor (H, W, Z)  ->  mask of the same kind
"""

from __future__ import annotations

import sys
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from bundle.data.geometry import affine_of, check_affine
from bundle.data.nifti import NIFTI_SUFFIXES, read_header, with_geometry, without_trailing_ones
from bundle.data.reader import ScanReader
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import LoadImage, MapTransform
from monai.utils import MetaKeys, SpaceKeys
from nibabel.spatialimages import SpatialImage

# SimpleITK's directions to those of NIfTI.
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


class AsVolumed(MapTransform):
    """``LoadImaged`` that takes volumes, too; see ``as_volume``.

    Args:
        keys: Paths or volumes; keys that are missing are left out.
    """

    def __init__(self, keys: KeysCollection) -> None:
        super().__init__(keys, allow_missing_keys=True)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return ``data`` with its volumes ``(H, W, Z)``."""
        return dict(data) | {key: as_volume(data[key]) for key in self.key_iterator(data)}


def as_volume(given: Any) -> MetaTensor:
    """Return a volume ``(H, W, Z)``, float32, with its affine in RAS, mm, and the meta that ``LoadImage`` gives.

    Args:
        given: A path, a nibabel image, a ``MetaTensor`` of ``(H, W, Z)`` or ``(1, H, W, Z)`` with its affine, or a
            SimpleITK image. NIfTI images are placed as files are: see ``affine_of``.

    Raises:
        ValueError: If it is of another type, has other axes, or its affine gives voxels no place.
        FileError: If it is a path and cannot be read.
    """
    if isinstance(given, str | Path):
        return LoadImage(reader=ScanReader(), image_only=True)(given)
    values, affine = _parts(given)
    values = without_trailing_ones(values)
    if values.ndim != 3:
        raise ValueError(f"a volume must have three axes, got {' x '.join(map(str, values.shape))}. Give one volume.")
    check_affine(affine)
    meta = {
        MetaKeys.ORIGINAL_AFFINE: affine.copy(),
        MetaKeys.SPATIAL_SHAPE: np.array(values.shape),
        MetaKeys.SPACE: SpaceKeys.RAS,
        MetaKeys.ORIGINAL_CHANNEL_DIM: float("nan"),
    }
    tensor = torch.from_numpy(np.array(values, dtype=np.float32, order="C"))
    return MetaTensor(tensor, affine=torch.as_tensor(affine), meta=meta)


def _parts(given: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of a volume, and its affine in RAS."""
    if isinstance(given, SpatialImage):
        header = given.header
        affine = affine_of(header) if isinstance(header, nibabel.Nifti1Header) else given.affine
        return np.asarray(given.dataobj), np.asarray(affine, dtype=np.float64)
    if isinstance(given, MetaTensor):
        values = given.detach().cpu().numpy()
        is_channel_first = values.ndim == 4 and values.shape[0] == 1
        return (values[0] if is_channel_first else values), np.asarray(given.affine.cpu(), dtype=np.float64)
    if _is_simple_itk(given):
        return _simple_itk().GetArrayFromImage(given).T, _affine_of_simple_itk(given)
    raise ValueError(
        f"a volume must be a path, a nibabel image, a MetaTensor or a SimpleITK image, got {type(given).__name__}. "
        "An array does not say where its voxels lie: give MetaTensor(array, affine=affine)."
    )


def mask_like(mask: MetaTensor, given: Any) -> Any:
    """Return a mask in the type of the volume that it is of.

    Args:
        mask: Organ ids on the volume's grid, ``(1, H, W, Z)``.
        given: The volume, of the types that ``as_volume`` takes.

    Returns:
        A nibabel image for a path or a nibabel image, with the place of its header unchanged; a ``MetaTensor`` of the
        shape of a ``MetaTensor``, quality and notices in its meta; else a SimpleITK image.
    """
    values = mask.cpu().numpy()[0]
    if isinstance(given, MetaTensor):
        return mask if given.ndim == 4 and given.shape[0] == 1 else mask[0]
    if _is_simple_itk(given):
        image = _simple_itk().GetImageFromArray(np.ascontiguousarray(values.T))
        image.CopyInformation(given)
        return image
    if isinstance(given, str | Path) and str(given).lower().endswith(NIFTI_SUFFIXES):
        return _placed(with_geometry(values, read_header(given)))
    if isinstance(given, SpatialImage) and isinstance(given.header, nibabel.Nifti1Header):
        return _placed(with_geometry(values, given.header))
    return nibabel.Nifti1Image(values, np.asarray(mask.affine))


def _placed(image: nibabel.Nifti1Image) -> nibabel.Nifti1Image:
    """Return the image with the affine that nibabel reads from its header, as after a file is loaded."""
    return type(image)(np.asarray(image.dataobj), image.header.get_best_affine(), image.header)


def _is_simple_itk(given: Any) -> bool:
    # Whoever has such an image has imported it: the package is neither needed nor loaded here.
    return "SimpleITK" in sys.modules and isinstance(given, _simple_itk().Image)


def _simple_itk() -> Any:
    return sys.modules["SimpleITK"]


def _affine_of_simple_itk(image: Any) -> np.ndarray:
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise ValueError(
            f"a SimpleITK image must have three axes and one number a voxel, got {image.GetDimension()} axes and "
            f"{image.GetNumberOfComponentsPerPixel()} numbers. Give one volume."
        )
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return LPS_TO_RAS @ affine
