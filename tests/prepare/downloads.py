"""Downloads as their sites give them, of a phantom that is defined in the patient's space, mm.

Nothing about it is symmetric: each organ has its own side, front or back, and height.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from bundle.__main__ import main
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
from pydicom.valuerep import DS

Vector = tuple[float, float, float]

# Organ id -> center in RAS coordinates and radius, mm.
ORGANS: dict[int, tuple[Vector, float]] = {
    1: ((28.0, 12.0, 8.0), 18.0),  # liver: right, front, high
    2: ((24.0, -22.0, -14.0), 10.0),  # right kidney: back, lowest
    3: ((-22.0, -24.0, -6.0), 10.0),  # left kidney
    4: ((-32.0, -6.0, 14.0), 9.0),  # spleen: left, highest
}

GRAYS = {0: 0, 1: 63, 2: 126, 3: 189, 4: 252}


@dataclass(frozen=True)
class Acquisition:
    """How slices were taken, in DICOM's LPS coordinates.

    Attributes:
        right: Where the columns of a slice go.
        down: Where its rows go.
        backward: Whether file names run against the slices' normal.
        instance: What ``InstanceNumber`` says: "up" or "down" with the file names, or "shuffled".
        size: Rows, columns, slices.
        spacing: Of rows, columns and slices, mm.
    """

    right: Vector = (1, 0, 0)
    down: Vector = (0, 1, 0)
    backward: bool = False
    instance: str = "up"
    size: tuple[int, int, int] = (40, 48, 8)
    spacing: Vector = (3.0, 2.5, 8.0)

    def places(self) -> np.ndarray:
        """RAS coordinates of all voxels, ``(rows, columns, slices, 3)``; the slices in the order of their files."""
        right, down = np.array(self.right, float), np.array(self.down, float)
        out = np.cross(right, down) * (-1 if self.backward else 1)
        index = np.stack(np.meshgrid(*map(np.arange, self.size), indexing="ij"), axis=-1) * 1.0
        index = (index - (np.array(self.size) - 1) / 2) * self.spacing
        lps = index[..., :1] * down + index[..., 1:2] * right + index[..., 2:] * out
        return lps * (-1, -1, 1)


def label_at(places: np.ndarray) -> np.ndarray:
    label = np.zeros(places.shape[:-1], dtype=np.uint8)
    for organ, (center, radius) in ORGANS.items():
        label[np.linalg.norm(places - center, axis=-1) <= radius] = organ
    return label


def image_at(places: np.ndarray) -> np.ndarray:
    """Air 0, body 100, organs 400; each with a little of its place, so that no two voxels are alike."""
    body = (places[..., 0] / 55) ** 2 + (places[..., 1] / 50) ** 2 < 1
    ramp = np.rint((places @ (0.05, 0.11, 0.23)) % 9)
    return (100 * body + 300 * (label_at(places) > 0) + ramp).astype(np.uint16)


def write_dicom(path: Path, pixels: np.ndarray, **tags: Any) -> None:
    """Write one slice ``(rows, columns)``, uint16."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = MRImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    dataset.PixelData = pixels.astype(np.uint16).tobytes()
    for tag, value in tags.items():
        if value is not None:
            setattr(dataset, tag, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


def write_png(path: Path, gray: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(gray).save(path)


def numbers(values: np.ndarray) -> list[DS]:
    return [DS(float(value), auto_format=True) for value in values]


def write_chaos_mr(train: Path, number: int, taken: Acquisition | None = None) -> Path:
    """Write ``MR/<number>``: T2-SPIR slices and labels, names 1, 2 ... 10 without zeros in front."""
    taken = taken or Acquisition()
    places = taken.places()
    image, label = image_at(places), label_at(places)
    files = taken.size[2]
    said = {"up": range(1, files + 1), "down": range(files, 0, -1), "shuffled": [(3 * k) % files for k in range(files)]}
    scan, series = train / "MR" / str(number) / "T2SPIR", generate_uid()
    for k in range(files):
        write_dicom(
            scan / "DICOM_anon" / f"IMG-0004-{k + 1}.dcm",
            image[..., k],
            SeriesInstanceUID=series,
            InstanceNumber=said[taken.instance][k],
            ImagePositionPatient=numbers(places[0, 0, k] * (-1, -1, 1)),
            ImageOrientationPatient=numbers(np.array([*taken.right, *taken.down])),
            PixelSpacing=numbers(np.array(taken.spacing[:2])),
        )
        write_png(scan / "Ground" / f"IMG-0004-{k + 1}.png", np.vectorize(GRAYS.get)(label[..., k]).astype(np.uint8))
    return scan


def write_chaos_ct(train: Path, number: int, size: int = 24, slices: int = 4) -> Path:
    """Write ``CT/<number>``: HU as stored values less 1024, file names against the slices' heights, as in CHAOS."""
    taken = Acquisition(backward=True, size=(size, size, slices), spacing=(120 / size, 120 / size, 10.0))
    places = taken.places()
    image, label = image_at(places), label_at(places)
    scan, series = train / "CT" / str(number), generate_uid()
    for k in range(slices):
        write_dicom(
            scan / "DICOM_anon" / f"i{k:04d},0000b.dcm",
            image[..., k] + 724,  # HU -300 to 109
            SeriesInstanceUID=series,
            ImagePositionPatient=numbers(places[0, 0, k] * (-1, -1, 1)),
            ImageOrientationPatient=numbers(np.array([*taken.right, *taken.down])),
            PixelSpacing=numbers(np.array(taken.spacing[:2])),
            RescaleSlope=1,
            RescaleIntercept=-1024,
        )
        write_png(scan / "Ground" / f"liver_GT_{k:03d}.png", label[..., k] == 1)
    return scan


def write_volume(path: Path, values: np.ndarray, affine: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(values, affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    return path


def grid(size: tuple[int, int, int], spacing: Vector, flips: Vector = (-1, 1, 1)) -> tuple[np.ndarray, np.ndarray]:
    """A grid about the center as NIfTI files have it: affine, and RAS coordinates of all voxels."""
    affine = np.diag([*(np.array(spacing) * flips), 1.0])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(size) - 1) / 2)
    index = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), axis=-1)
    return affine, index @ affine[:3, :3].T + affine[:3, 3]


def write_btcv(training: Path, number: int, size: tuple[int, int, int] = (24, 24, 5)) -> None:
    affine, places = grid(size, (120 / size[0], 120 / size[1], 50 / size[2]))
    organs = np.array([0, 6, 2, 3, 1], dtype=np.uint8)  # as BTCV numbers liver, kidneys and spleen
    write_volume(training / "img" / f"img{number:04d}.nii.gz", image_at(places).astype(np.int16) - 300, affine)
    write_volume(training / "label" / f"label{number:04d}.nii.gz", organs[label_at(places)], affine)


def write_mscmr(folder: Path, number: int, size: tuple[int, int, int] = (30, 26, 5), labeled: bool = True) -> None:
    turned = np.array([[0.6, 0, 0.8], [0, 1, 0], [-0.8, 0, 0.6]])  # a short-axis plane
    affine, places = grid(size, (4.0, 4.0, 9.0))
    affine[:3] = turned @ affine[:3]
    organs = np.array([0, 200, 500, 600, 0], dtype=np.int16)
    write_volume(folder / "images" / f"patient{number}_C0.nii.gz", image_at(places).astype(np.int16), affine)
    write_volume(folder / "images" / f"patient{number}_LGE.nii.gz", image_at(places).astype(np.int16), affine)
    if labeled:
        write_volume(folder / "c0gt" / f"patient{number}_C0_manual.nii.gz", organs[label_at(places)], affine)


def write_plain(folder: Path, name: str, label_name: str | None, dtype: Any = np.int16, seed: int = 0) -> None:
    affine, places = grid((20, 24, 6), (6.0, 5.0, 10.0))
    write_volume(folder / "images" / f"{name}.nii.gz", (image_at(places) + seed).astype(dtype), affine)
    if label_name:
        write_volume(folder / "labels" / f"{label_name}.nii.gz", label_at(places), affine)


def tree(folder: Path) -> dict[str, str]:
    """Every file's content, by a hash."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def run(*words: Any, **options: Any) -> int:
    """Run a command in this process; return its exit code. What it says of an error goes to stderr, as it would."""
    given = [str(word) for word in words] + [f"--{name}={value}" for name, value in options.items()]
    try:
        main(["prepare", *given])
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
            return 1
        return int(stop.code or 0)
    return 0


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """What went to stderr, without the progress bar."""
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    return "\n".join(line for line in lines if line and not line.startswith("preparing "))


def centers(label: Any, ids: Mapping[int, Any] = ORGANS) -> dict[int, np.ndarray]:
    """Where each organ's center of mass lies, RAS, mm."""
    values, affine = np.asarray(label.dataobj), label.affine
    return {organ: affine[:3, :3] @ np.argwhere(values == organ).mean(axis=0) + affine[:3, 3] for organ in ids}
