"""DICOM files as scanners and segmentation programs write them, of the phantom of ``tests.prepare.downloads``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    SegmentationStorage,
    generate_uid,
)
from tests.prepare.downloads import Acquisition, image_at, label_at, numbers, write_dicom

TILT = float(np.cos(0.3)), float(np.sin(0.3))

ACQUISITIONS = {
    "axial": Acquisition(),
    "axial, head first": Acquisition(backward=True),
    "axial, rows to the front": Acquisition(down=(0, -1, 0), backward=True),
    "coronal": Acquisition(down=(0, 0, -1), size=(32, 48, 14)),
    "sagittal": Acquisition(right=(0, 1, 0), down=(0, 0, -1), size=(32, 40, 16)),
    "oblique": Acquisition(right=(TILT[0], 0, TILT[1]), backward=True, size=(40, 52, 12)),
}


def write_series(
    folder: Path, taken: Acquisition | None = None, uid: str = "", kept: Sequence[int] | None = None, **tags: Any
) -> list[Path]:
    """Write the slices of a CT, HU as stored values less 1024; return its files in the order of writing."""
    taken = taken or Acquisition(size=(24, 20, 6), spacing=(5.0, 6.0, 9.0))
    places, uid = taken.places(), uid or generate_uid()
    image = image_at(places)
    files = []
    for k in range(taken.size[2]) if kept is None else kept:
        files.append(folder / f"{tags.get('SeriesNumber', '')}slice{k + 1}.dcm")
        about = {
            "SOPClassUID": CTImageStorage,
            "Modality": "CT",
            "SeriesInstanceUID": uid,
            "InstanceNumber": taken.size[2] - k,
            "ImagePositionPatient": numbers(places[0, 0, k] * (-1, -1, 1)),
            "ImageOrientationPatient": numbers(np.array([*taken.right, *taken.down])),
            "PixelSpacing": numbers(np.array(taken.spacing[:2])),
            "RescaleSlope": 2,
            "RescaleIntercept": -1024,
        }
        write_dicom(files[-1], image[..., k], **{**about, **tags})
    return files


def groups_of(place: np.ndarray, **more: Any) -> Dataset:
    """What an enhanced file says of a frame."""
    position, item = Dataset(), Dataset()
    position.ImagePositionPatient = numbers(place * (-1, -1, 1))
    item.PlanePositionSequence = [position]
    for name, value in more.items():
        setattr(item, name, value)
    return item


def shared_of(taken: Acquisition, **rescale: float) -> Dataset:
    orientation, measures, values, item = Dataset(), Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = numbers(np.array([*taken.right, *taken.down]))
    measures.PixelSpacing = numbers(np.array(taken.spacing[:2]))
    measures.SpacingBetweenSlices = measures.SliceThickness = taken.spacing[2]
    item.PlaneOrientationSequence, item.PixelMeasuresSequence = [orientation], [measures]
    if rescale:
        values.RescaleSlope, values.RescaleIntercept = rescale["slope"], rescale["intercept"]
        item.PixelValueTransformationSequence = [values]
    return item


def write_frames(path: Path, frames: np.ndarray, kind: str, bits: int, **tags: Any) -> Path:
    """Write frames ``(N, rows, columns)`` into one file."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = kind
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.NumberOfFrames, data.Rows, data.Columns = frames.shape
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated = data.BitsStored = bits
    data.HighBit = bits - 1
    if bits == 1:
        packed = np.packbits(frames.ravel().astype(bool), bitorder="little").tobytes()
        data.PixelData = packed + b"\0" * (len(packed) % 2)
    else:
        data.PixelData = frames.astype(f"uint{bits}").tobytes() + b"\0" * (frames.size * bits // 8 % 2)
    for tag, value in tags.items():
        setattr(data, tag, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def write_enhanced(path: Path, taken: Acquisition, order: Sequence[int], placed: int | None = None) -> Path:
    """Write a series as one file of frames, in any order."""
    places = taken.places()
    frames = np.moveaxis(image_at(places), -1, 0)[list(order)]
    return write_frames(
        path, frames, EnhancedCTImageStorage, 16,
        SeriesInstanceUID=generate_uid(),
        SharedFunctionalGroupsSequence=[shared_of(taken, slope=2, intercept=-1024)],
        PerFrameFunctionalGroupsSequence=[groups_of(places[0, 0, k]) for k in order][:placed],
    )  # fmt: skip


def write_segmentation(
    path: Path, taken: Acquisition, organs: dict[int, str], series: str = "1.2", planes: Sequence[int] | None = None,
    label: np.ndarray | None = None, **tags: Any,
) -> Path:  # fmt: skip
    """Write a binary segmentation; planes without a voxel of an organ have no frame, as programs write it.

    Args:
        path: The file.
        taken: The planes of the series that it lies on.
        organs: Names of the ids of the phantom's organs.
        series: The series that it refers to.
        planes: Which planes to write; all by default.
        label: Instead of the phantom's organs, ``(rows, columns, slices)``.
        **tags: Further attributes.
    """
    places = taken.places()
    label = label_at(places) if label is None else label
    found = [(organ, k) for organ in organs for k in range(taken.size[2]) if (label[..., k] == organ).any()]
    found = [(organ, k) for organ, k in found if planes is None or k in planes]
    segments, frames = [], []
    for organ, name in organs.items():
        segments.append(Dataset())
        segments[-1].SegmentNumber, segments[-1].SegmentLabel = organ, name
    for organ, k in found:
        identity = Dataset()
        identity.ReferencedSegmentNumber = organ
        frames.append(groups_of(places[0, 0, k], SegmentIdentificationSequence=[identity]))
    referred = Dataset()
    referred.SeriesInstanceUID = series
    about = {
        "SegmentationType": "BINARY",
        "SeriesInstanceUID": generate_uid(),
        "SegmentSequence": segments,
        "ReferencedSeriesSequence": [referred],
        "SharedFunctionalGroupsSequence": [shared_of(taken)],
        "PerFrameFunctionalGroupsSequence": frames,
    }
    masks = np.array([label[..., k] == organ for organ, k in found])
    return write_frames(path, masks, SegmentationStorage, 1, **{**about, **tags})


def write_without_pixels(path: Path, modality: str) -> Path:
    """Write what archives export beside images: a report (SR), structures (RTSTRUCT), a presentation state (PR)."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.SeriesInstanceUID, data.Modality = generate_uid(), modality
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path
