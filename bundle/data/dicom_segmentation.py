"""A DICOM segmentation -> a label map on its own grid, with the names of its segments.

    frames (C, R), each of one segment  ->  sorted by position  ->  organ ids (C, R, Z), affine in RAS, mm

Planes without a voxel have no frame. ``transforms.on_grid_of`` puts the label map onto the grid of its image.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from bundle.data.dicom_slices import BROKEN_SLICE, attribute, damaged, frame_affine, frames_of

# Largest distance of a plane from its place on a regular grid, as a share of the distance between planes.
OFF_GRID = 0.1


def read_segmentation(path: Path) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Read a segmentation.

    Args:
        path: The file; binary, or a label map (DICOM 2024).

    Returns:
        Organ ids, the numbers of the segments, float32 ``(C, R, Z)``; the affine, RAS, mm; and the names of the ids.

    Raises:
        ValueError: If it is damaged, holds probabilities, segments that overlap, or planes that are not parallel.
    """
    try:
        head = pydicom.dcmread(path)
        kind = str(head.get("SegmentationType"))
        if kind not in ("BINARY", "LABELMAP"):
            raise ValueError(f"its type must be BINARY or LABELMAP, got {kind}; save it as a binary segmentation")
        names = {int(one.SegmentNumber): str(one.SegmentLabel).strip() for one in head.SegmentSequence}
        count = int(head.get("NumberOfFrames") or 1)
        if (placed := len(head.PerFrameFunctionalGroupsSequence)) != count:
            raise ValueError(f"a file of {count} frames must place each of them, but places {placed}")
        values = frames_of(head, count)
        affines = [frame_affine(head, number) for number in range(count)]
        segments = [_segment(head, number, kind) for number in range(count)]
    except BROKEN_SLICE as error:
        raise damaged(path, error) from error
    affine, places = _grid(affines, _stated_steps(head))
    label = _label(values, segments, places, names)
    return label, affine, {number: name for number, name in names.items() if name and number > 0}


def _segment(head: Any, number: int, kind: str) -> int | None:
    """Return the segment of a frame; ``None`` if the frame holds the ids themselves."""
    if kind == "LABELMAP":
        return None
    for groups, place in (("PerFrameFunctionalGroupsSequence", number), ("SharedFunctionalGroupsSequence", 0)):
        for item in head[groups][place].get("SegmentIdentificationSequence", []):
            return int(item.ReferencedSegmentNumber)
    raise ValueError(f"frame {number + 1} must name its segment, but does not")


def _stated_steps(head: Any) -> list[float]:
    """Return the distances between planes that the header states, the surest first, mm."""
    stated = [attribute(head, 0, name) for name in ("SpacingBetweenSlices", "SliceThickness")]
    return [abs(float(mm)) for mm in stated if mm]


def _grid(affines: Sequence[np.ndarray], stated: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return the affine of the grid that planes lie on, and the index of each plane."""
    first = affines[0]
    apart = np.array([one[:3, 3] - first[:3, 3] for one in affines])
    heights = apart @ first[:3, 2]
    pixel = np.linalg.norm(first[:3, :2], axis=0)
    turned = max(float((np.abs(one[:3, :2] - first[:3, :2]) / pixel).max()) for one in affines)
    aside = np.linalg.norm(apart - np.outer(heights, first[:3, 2]), axis=1)
    if turned > 1e-3 or aside.max() > pixel.min() / 2:
        raise ValueError("the planes of a segmentation must be parallel and above each other. Save it again.")
    gaps = np.diff(np.unique(heights.round(3)))
    # A plane without a voxel has no frame, so that the smallest gap may be several planes wide.
    for step in (*stated, *([gaps.min()] if gaps.size else [1.0])):
        places = (heights - heights.min()) / step
        if np.abs(places - np.rint(places)).max() <= OFF_GRID:
            affine = first.copy()
            affine[:3, 3] += heights.min() * first[:3, 2]
            affine[:3, 2] *= step
            return affine, np.rint(places).astype(int)
    raise ValueError(f"the planes of a segmentation must be equally spaced, got gaps of {gaps[:4].tolist()} mm.")


def _label(values: np.ndarray, segments: Sequence[int | None], places: np.ndarray, names: dict[int, str]) -> np.ndarray:
    _, rows, columns = values.shape
    label = np.zeros((columns, rows, int(places.max()) + 1), dtype=np.float32)
    for frame, segment, place in zip(values, segments, places, strict=True):
        ids = frame.T if segment is None else (frame.T > 0) * segment
        plane = label[..., place]
        both = (ids > 0) & (plane > 0)
        if both.any():
            one, other = (names.get(int(found[both][0]), "?") for found in (plane, ids))
            raise ValueError(
                f"a voxel can belong to one organ, but {one} and {other} overlap. Separate the segments, or save one."
            )
        plane[ids > 0] = ids[ids > 0]
    return label
