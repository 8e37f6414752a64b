"""DICOM segmentations: a label map, cut into the planes of the series that its scan came from.

label map (1, H, W, Z) + files of the series  ->  one binary plane for each organ and slice  ->  <scan>.seg.dcm
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import bundle
import numpy as np
from bundle.data.names import IMAGE_SUFFIXES
from bundle.data.reader import FileError
from bundle.evaluation.organ_colors import ANATOMY, organ_colors
from bundle.files import written_whole
from bundle.keys import SERIES
from monai.data import MetaTensor

# Largest distance, in voxels, between the pixels of a slice and the voxels of its plane in the label map.
MOST_ASIDE = 0.1

# Characters of a segment's label (value representation LO).
LONGEST_LABEL = 64

# What an image must have to be referred to; anonymizers may empty other attributes.
NEEDED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
NEEDED_ONCE = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
NEEDED_GEOMETRY = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns")
MAY_BE_EMPTY = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID")
MAY_BE_EMPTY_TOO = ("AccessionNumber", "ReferringPhysicianName")

# What to do where no DICOM segmentation can be written.
OTHERS = "Choose nifti, seg.nrrd or per_organ."


def check_sources(images: Sequence[str | Path]) -> None:
    """Raise if DICOM segmentations cannot be written: before the work starts.

    Args:
        images: The scans' files or folders.

    Raises:
        ValueError: If highdicom is not installed, or a scan is no DICOM series.
    """
    if find_spec("highdicom") is None:
        raise ValueError("output_format dicom_seg needs the package highdicom: pip install 'ssl-alpnet-bundle[dicom]'.")
    others = [str(image) for image in images if str(image).lower().endswith(IMAGE_SUFFIXES)]
    if others:
        raise ValueError(
            f"output_format dicom_seg needs scans that are DICOM series, but {len(others)} of {len(images)} are other "
            f"files, such as {others[0]}. {OTHERS}"
        )


def check_series(image: str) -> None:
    """Raise if no segmentation can refer to a DICOM series, from its headers alone.

    Args:
        image: The folder of the series, or a file of it.

    Raises:
        FileError: If it is no series of single slices, a header lacks what a reference needs, or a slice lies aside of
            the grid of the stack.
    """
    from bundle.data.dicom import one_series  # needs the extra
    from bundle.data.dicom_slices import head_of, read_slices, stacked

    files = one_series(Path(image)).files
    heads = [head_of(file, [*NEEDED, *NEEDED_GEOMETRY, "NumberOfFrames"]) for file in files]
    _check_heads(heads, list(map(str, files)), image)
    slices, affine = stacked([one for file in files for one in read_slices(file, pixels=False)])
    for place, one in enumerate(slices):
        aside = np.linalg.inv(affine) @ one.affine - np.eye(4)
        aside[2, 3] -= place
        # At the last pixel, where the errors of steps add up to that of the position.
        if (np.abs(aside[:3, [0, 1, 3]]) @ (*one.shape, 1.0)).max() > MOST_ASIDE:
            raise FileError(
                f"{image}: slices must lie on one grid for a DICOM segmentation, but {one} lies aside. {OTHERS}"
            )


def save_dicom_seg(label: MetaTensor, place: Path, organs: Mapping[str, int], like: str) -> None:
    """Write ``<place>.seg.dcm``: a segment for each organ, with its name and color, on the scan's own series.

    Each frame refers to the image that it lies on. Planes without a voxel of an organ have no frame for it.

    Args:
        label: Organ ids on the series' grid, ``(1, H, W, Z)``; its meta has the files of the series under ``series``.
        place: Folder and name of the scan.
        organs: Names and ids; all of them become segments, those without a voxel, too.
        like: The scan's file or folder, for messages.

    Raises:
        ValueError: If the scan is no series of single slices, or a slice does not lie on the label map's grid.
    """
    slices = _read_headers(label.meta.get(SERIES) or (), like)
    for one in slices:
        thickness = abs(np.linalg.det(np.asarray(label.affine)[:3, :3])) / float(np.prod(one.PixelSpacing))
        one.setdefault("SliceThickness", f"{thickness:.6g}")
    planes = np.stack([_plane(label, one, like) for one in slices])
    segments = np.zeros(max(organs.values()) + 1, dtype=np.uint16)
    segments[list(organs.values())] = range(1, len(organs) + 1)
    with written_whole(place.with_name(f"{place.name}.seg.dcm")) as unfinished:
        _segmentation(slices, segments[planes], organs).save_as(unfinished)


def _read_headers(files: Sequence[str], like: str) -> list[Any]:
    import pydicom  # an extra

    slices = [pydicom.dcmread(file, stop_before_pixels=True) for file in files]
    _check_heads(slices, files, like)
    for one in slices:
        for name in (*MAY_BE_EMPTY, *MAY_BE_EMPTY_TOO):
            one.setdefault(name, None)
    return slices


def _check_heads(heads: Sequence[Any], files: Sequence[str], like: str) -> None:
    if not heads or any("NumberOfFrames" in one for one in heads):
        raise FileError(f"{like}: a DICOM segmentation needs a series of single slices. {OTHERS}")
    for one, file in zip(heads, files, strict=True):
        if missing := [name for name in (*NEEDED, *NEEDED_GEOMETRY) if not one.get(name)]:
            raise FileError(
                f"{file}: a DICOM segmentation must refer to its images, but the header has no {missing[0]}. {OTHERS}"
            )
    for name in NEEDED_ONCE:
        if (count := len({str(one[name].value) for one in heads})) > 1:
            raise FileError(
                f"{like}: a DICOM segmentation needs images with one {name}, but these have {count}. {OTHERS}"
            )


def _plane(label: MetaTensor, one: Any, like: str) -> np.ndarray:
    """Return the label map's values ``(rows, columns)`` at the pixels of a slice."""
    from bundle.data.dicom_slices import frame_affine  # needs the extra

    rows, columns = int(one.Rows), int(one.Columns)
    to_voxels = np.linalg.inv(np.asarray(label.affine, dtype=np.float64)) @ frame_affine(one, 0)
    values = np.asarray(label)[0]
    row, column = np.indices((rows, columns)).reshape(2, -1)
    exact = to_voxels[:3] @ np.stack([column, row, np.zeros_like(row), np.ones_like(row)])
    index = np.rint(exact).astype(int)
    outside = (index < 0) | (index >= np.array(values.shape)[:, None])
    if outside.any() or np.abs(exact - index).max() > MOST_ASIDE:
        raise ValueError(
            f"{like}: the image {one.SOPInstanceUID} of the series does not lie on the grid of the mask. {OTHERS}"
        )
    return np.asarray(values[tuple(index)].reshape(rows, columns))


def _segmentation(slices: Sequence[Any], planes: np.ndarray, organs: Mapping[str, int]) -> Any:
    import highdicom  # an extra

    return highdicom.seg.Segmentation(
        source_images=slices,
        pixel_array=planes,
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=_descriptions(organs),
        series_instance_uid=highdicom.UID(),
        series_number=int(slices[0].get("SeriesNumber") or 1) + 1000,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="SSL-ALPNet bundle",
        manufacturer_model_name="SSL-ALPNet",
        software_versions=bundle.__version__,
        device_serial_number="0",
        content_label="SEGMENTATION",
        series_description="SSL-ALPNet segmentation",
    )


def _descriptions(organs: Mapping[str, int]) -> list[Any]:
    """Describe the segments: their names, colors and codes of SNOMED CT; an unknown organ is an organ."""
    import highdicom
    from pydicom.sr.codedict import codes

    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="SSL-ALPNet", family=codes.DCM.ArtificialIntelligence, version=bundle.__version__
    )
    return [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=" ".join(name.split())[:LONGEST_LABEL],
            segmented_property_category=codes.SCT.AnatomicalStructure,
            segmented_property_type=getattr(codes.SCT, _term(name)),
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            display_color=highdicom.color.CIELabColor.from_rgb(*color),
        )
        for number, (name, color) in enumerate(organ_colors(organs).items(), start=1)
    ]


def _term(name: str) -> str:
    """Return pydicom's name of an organ's code: ``Kidney`` of "left kidney", ``Organ`` of "liver tumor"."""
    words = [word for word in re.findall("[a-z]+", name.lower()) if word not in ("left", "right")]
    known = [form for form in ("".join(words), "".join(words).removesuffix("s")) if form in ANATOMY]
    return known[0].capitalize() if known and len(words) == 1 else "Organ"
