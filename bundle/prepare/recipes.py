"""How a scan's volumes are prepared, and the parameters that ``dataset.json`` records.

    clean        MONAI's resampling in floating point, cropped or padded to exactly 256 x 256
    reference    the authors' arithmetic (``bundle.transforms.reference``), with an affine that follows the crop

Volumes come in as they are stored, ``(1, X, Y, Z)``, and are returned as columns, rows, slices.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import nibabel
import numpy as np
import torch
from bundle.keys import IMAGE, LABEL
from bundle.transforms.intensity import ClipTopd, WindowCTd
from bundle.transforms.reference import center_crop_or_pad, clip_top, resample, resample_label, window_ct
from bundle.transforms.volumes import Data, FitSlicesd, SliceLayoutd
from monai.data import MetaTensor
from monai.transforms import Orientation

Step = Callable[[Data], Data]

BOTH = (IMAGE, LABEL)
SIZE = 256
MR_SPACING = (1.25, 1.25, 7.7)
MR_PERCENTILE = 99.5
CT_WINDOW = (-125.0, 275.0)
CT_SIZE, CT_MARGIN = 512, 32
# Share of each side of a CT slice that is kept.
CT_FIELD = (CT_SIZE - 2 * CT_MARGIN) / CT_SIZE


@dataclass(frozen=True)
class Recipe:
    """How a scan is prepared.

    Attributes:
        parameters: Everything that determines the result: equal parameters give equal results.
        steps: Applied in order; none leaves the scan unchanged.
        overrides: Further options on the command line with which the data set's config reads the result unchanged.
    """

    parameters: dict[str, Any]
    steps: Sequence[Step] = ()
    overrides: str = ""

    def __call__(self, volumes: Data) -> Data:
        """Return the prepared volumes."""
        for step in self.steps:
            volumes = step(volumes)
        return volumes


def mr_recipe(arithmetic: str) -> Recipe:
    """Abdominal MR: clip the top 0.5 %, 1.25 x 1.25 x 7.7 mm, 256 x 256 around the center."""
    parameters = {"clip_percentile": MR_PERCENTILE, "spacing_mm": [*MR_SPACING], "size": [SIZE, SIZE]}
    if arithmetic == "reference":
        # The orientation of the authors' files matters, since they resample from the first voxel.
        steps: list[Step] = [SliceLayoutd(BOTH, "ALS"), functools.partial(_each, _reference_mr)]
    else:
        steps = [SliceLayoutd(BOTH, "PLS"), ClipTopd(IMAGE, MR_PERCENTILE), FitSlicesd(BOTH, (SIZE, SIZE), MR_SPACING)]
    return Recipe({"arithmetic": arithmetic} | parameters, [*steps, _columns_first])


def ct_recipe(arithmetic: str, orientation: str | None) -> Recipe:
    """Abdominal CT: clip to the window, keep 448 / 512 of each side around the center, 256 x 256, slices unchanged.

    Args:
        arithmetic: ``"clean"`` keeps HU, clipped; ``"reference"`` scales to [0, 255].
        orientation: Orientation of rows, columns and slices in the reference's arithmetic; ``None``: the file's.
    """
    parameters = {"window_hu": [*CT_WINDOW], "field_of_view": CT_FIELD, "size": [SIZE, SIZE]}
    if arithmetic == "reference":
        steps: list[Step] = [SliceLayoutd(BOTH, orientation), _check_window, functools.partial(_each, _reference_ct)]
        overrides = "--orientation '$None' --spacing '$None' --intensity#low 0 --intensity#high 255"
    else:
        steps, overrides = [SliceLayoutd(BOTH, "PLS"), _clip_hu, _fit_field], ""
    return Recipe({"arithmetic": arithmetic} | parameters, [*steps, _columns_first], overrides)


def cardiac_recipe() -> Recipe:
    """Cardiac MR: planes and slices as acquired; the longer side of a plane fills 256 pixels."""
    return _fitted(None, "fit", (SIZE, SIZE))


def nifti_recipe(
    spacing: Sequence[float] | str | None, size: Sequence[int] | None, orientation: str | None = "PLS"
) -> Recipe:
    """Any volumes: unchanged, or resampled if ``spacing`` or ``size`` is given; see ``FitSlicesd``.

    Args:
        spacing: (row, column, slice) in mm, -1 keeps; or ``"fit"``, the default if only ``size`` is given.
        size: Rows and columns; 256 x 256 if only ``spacing`` is given.
        orientation: Orientation of rows, columns and slices, see ``SliceLayoutd``.

    Raises:
        ValueError: If one of them is out of range.
    """
    if spacing is None and size is None:
        return Recipe({"arithmetic": "none"})
    return _fitted(orientation, spacing or "fit", size or (SIZE, SIZE))


def _fitted(orientation: str | None, spacing: Sequence[float] | str, size: Sequence[int]) -> Recipe:
    steps: list[Step] = [SliceLayoutd(BOTH, orientation), FitSlicesd(BOTH, size, spacing), _columns_first]
    numbers = spacing if isinstance(spacing, str) else [*spacing]
    parameters = {"orientation": orientation, "spacing_mm": numbers, "size": [*size]}
    return Recipe({"arithmetic": "clean"} | parameters, steps)


def _columns_first(volumes: Data) -> Data:
    """Transpose (rows, columns, slices) to the order of NIfTI files."""
    result = dict(volumes)
    for key in result:
        row, column, out = nibabel.aff2axcodes(np.asarray(result[key].affine))
        result[key] = Orientation(axcodes=f"{column}{row}{out}", labels=None)(result[key])
    return result


def _clip_hu(volumes: Data) -> Data:
    low, high = CT_WINDOW
    windowed = WindowCTd(IMAGE, low, high)(volumes)
    return windowed | {IMAGE: windowed[IMAGE] * ((high - low) / 255) + low}


def _fit_field(volumes: Data) -> Data:
    """Resample so that the kept share of the longer side fills the slice: for 512 pixels, 448 of them."""
    extent = np.asarray(volumes[IMAGE].pixdim, dtype=float)[:2] * volumes[IMAGE].shape[1:3]
    pixel = float(max(extent)) * CT_FIELD / SIZE
    return FitSlicesd(BOTH, (SIZE, SIZE), (pixel, pixel, -1))(volumes)


def _check_window(volumes: Data) -> Data:
    WindowCTd(IMAGE, *CT_WINDOW)(volumes)
    return volumes


def _each(change: Callable[[MetaTensor, bool], MetaTensor], volumes: Data) -> Data:
    return {key: change(volume, key == LABEL) for key, volume in volumes.items()}


def _reference_mr(volume: MetaTensor, is_label: bool) -> MetaTensor:
    values = _whole(volume)
    # NIfTI stores voxel sizes as float32.
    old = np.linalg.norm(np.asarray(volume.affine)[:3, :3], axis=0).astype(np.float32).astype(float)
    if is_label:
        resampled = resample_label(values, old, MR_SPACING)
    else:
        resampled = resample(clip_top(values, MR_PERCENTILE), old, MR_SPACING)
    cropped = center_crop_or_pad(resampled, (SIZE, SIZE), fill=0 if is_label else None)
    starts = [n // 2 - SIZE // 2 for n in resampled.shape[:2]]
    step = np.array(MR_SPACING) / old
    return _regridded(cropped, volume, start=step * [*starts, 0], step=step)


def _reference_ct(volume: MetaTensor, is_label: bool) -> MetaTensor:
    if tuple(volume.shape[1:3]) != (CT_SIZE, CT_SIZE):
        raise ValueError(
            f"the reference's arithmetic needs slices of {CT_SIZE} x {CT_SIZE}, got {tuple(volume.shape[1:3])}. "
            "Use --arithmetic clean."
        )
    step = (CT_FIELD * CT_SIZE / SIZE, CT_FIELD * CT_SIZE / SIZE, 1.0)
    inside = (slice(CT_MARGIN, -CT_MARGIN), slice(CT_MARGIN, -CT_MARGIN))
    if is_label:
        values = resample_label(_whole(volume)[inside], (1, 1, 1), step)
    else:
        values = resample(window_ct(np.asarray(volume)[0], *CT_WINDOW)[inside], (1, 1, 1), step)
    return _regridded(values, volume, start=np.array([CT_MARGIN, CT_MARGIN, 0]), step=np.array(step))


def _whole(volume: MetaTensor) -> np.ndarray:
    """Return a volume as 16-bit integers, as the authors use."""
    values = np.asarray(volume)[0]
    limits = np.iinfo(np.int16)
    if (values != np.rint(values)).any() or values.min() < limits.min or values.max() > limits.max:
        raise ValueError(
            "the reference's arithmetic needs 16-bit integers, got values from "
            f"{values.min():g} to {values.max():g}. Use --arithmetic clean."
        )
    return values.astype(np.int16)


def _regridded(values: np.ndarray, old: MetaTensor, start: np.ndarray, step: np.ndarray) -> MetaTensor:
    """Give values ``(H, W, Z)`` an affine: voxel ``i`` lies at voxel ``start + step * i`` of the old volume."""
    change = np.diag([*step, 1.0])
    change[:3, 3] = start
    affine = np.asarray(old.affine, dtype=float) @ change
    return MetaTensor(torch.as_tensor(values.astype(np.float32))[None], affine=torch.as_tensor(affine))
