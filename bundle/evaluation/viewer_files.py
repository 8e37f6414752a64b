"""Label maps as viewers open them with names and colors: 3D Slicer, ITK-SNAP, DICOM, a file for each organ.

label map + {organ: id}  ->  <scan>.seg.nrrd | <scan>.seg.dcm | <scan>/<organ>.nii.gz
{organ: id}              ->  organs.json, itksnap_labels.txt, slicer_colors.ctbl
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from bundle.data.loading import Scan
from bundle.data.nifti import save_nifti
from bundle.evaluation.dicom_seg import check_series, check_sources, save_dicom_seg
from bundle.evaluation.organ_colors import organ_colors
from bundle.files import safe_name, written_whole
from monai.data import MetaTensor

# From NIfTI's directions to those of NRRD as 3D Slicer writes it.
LPS = np.array([-1.0, -1.0, 1.0])


def write_names(folder: Path, organs: Mapping[str, int]) -> None:
    """Write what the ids of a folder's masks mean: for programs, for ITK-SNAP, and for 3D Slicer."""
    colors, by_id = organ_colors(organs), sorted(organs.items(), key=lambda item: item[1])
    told = [{"id": organ, "name": name, "color": list(colors[name])} for name, organ in by_id]
    snap = ['0 0 0 0 0 0 0 "Clear Label"']
    slicer = ["# Color table of 3D Slicer: id, name, red, green, blue, opacity", "0 background 0 0 0 0"]
    for name, organ in by_id:
        color = " ".join(map(str, colors[name]))
        snap.append(f'{organ} {color} 1 1 1 "{_line(name).replace(chr(34), chr(39))}"')
        slicer.append(f"{organ} {_line(name).replace(' ', '_')} {color} 255")
    texts = {
        "organs.json": json.dumps(told, indent=2, ensure_ascii=False),
        "itksnap_labels.txt": "\n".join(snap),
        "slicer_colors.ctbl": "\n".join(slicer),
    }
    for file, text in texts.items():
        with written_whole(folder / file) as unfinished:
            unfinished.write_text(text + "\n", encoding="utf-8")


def save_nothing(label: MetaTensor, place: Path, organs: Mapping[str, int], like: str) -> None:
    """Leave it at the label map that is written anyway."""


def save_segmentation(label: MetaTensor, place: Path, organs: Mapping[str, int], like: str) -> None:
    """Write ``<place>.seg.nrrd``, a segmentation of 3D Slicer with the organs' names and colors.

    Args:
        label: Organ ids on the scan's grid, ``(1, H, W, Z)``, uint8 or int16.
        place: Folder and name of the scan.
        organs: Names and ids; all of them become segments, those without a voxel, too.
        like: The scan's file; not used, since the label map has its affine.
    """
    values = np.asarray(label)[0]
    header = [*_geometry(values, np.asarray(label.affine, dtype=np.float64)), *_segments(values.shape, organs)]
    with written_whole(place.with_name(f"{place.name}.seg.nrrd")) as unfinished:
        voxels = gzip.compress(values.astype(values.dtype.newbyteorder("<")).tobytes(order="F"), mtime=0)
        unfinished.write_bytes("\n".join([*header, "", ""]).encode() + voxels)


def save_per_organ(label: MetaTensor, place: Path, organs: Mapping[str, int], like: str) -> None:
    """Write ``<place>/<organ>.nii.gz``, a mask {0, 1} of each organ, on the scan's grid; see ``save_segmentation``."""
    for name, organ in organs.items():
        mask = MetaTensor((label == organ).byte(), meta=label.meta)
        save_nifti(mask, place / f"{safe_name(name)}.nii.gz", like=like)


Writer = Callable[[MetaTensor, Path, Mapping[str, int], str], None]

FORMATS: dict[str, Writer] = {
    "nifti": save_nothing,
    "seg.nrrd": save_segmentation,
    "dicom_seg": save_dicom_seg,
    "per_organ": save_per_organ,
}


def writer_of(output_format: str) -> Writer:
    """Return what writes masks in a format besides the label map.

    Raises:
        ValueError: If there is no such format.
    """
    if output_format not in FORMATS:
        raise ValueError(f"output_format must be one of {', '.join(FORMATS)}, got {output_format!r}. Choose one.")
    return FORMATS[output_format]


def check_format(output_format: str, scans: Sequence[Scan]) -> None:
    """Raise if the masks of some scans cannot be written in a format: before the work starts.

    Raises:
        ValueError: If there is no such format, a package is missing, or scans are no DICOM series.
    """
    if writer_of(output_format) is save_dicom_seg:
        check_sources([scan["image"] for scan in scans])


def check_source(image: str, output_format: str) -> None:
    """Raise if the mask of a scan cannot be written in a format; the header of the scan is known to be readable.

    Raises:
        FileError: If a DICOM segmentation cannot refer to its images.
    """
    if writer_of(output_format) is save_dicom_seg:
        check_series(image)


def _geometry(values: np.ndarray, affine: np.ndarray) -> list[str]:
    directions = " ".join(f"({','.join(f'{n:.17g}' for n in LPS * affine[:3, axis])})" for axis in range(3))
    return [
        "NRRD0004",
        f"type: {'short' if values.dtype == np.int16 else 'unsigned char'}",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, values.shape))}",
        f"space directions: {directions}",
        "kinds: domain domain domain",
        "endian: little",
        "encoding: gzip",
        f"space origin: ({','.join(f'{n:.17g}' for n in LPS * affine[:3, 3])})",
    ]


def _segments(shape: tuple[int, ...], organs: Mapping[str, int]) -> list[str]:
    extent = " ".join(f"0 {size - 1}" for size in shape)
    lines = ["Segmentation_MasterRepresentation:=Binary labelmap", "Segmentation_ReferenceImageExtentOffset:=0 0 0"]
    for number, (name, color) in enumerate(organ_colors(organs).items()):
        fields = {
            "ID": f"Segment_{organs[name]}",
            "Name": _line(name),
            "Color": " ".join(f"{value / 255:.6f}" for value in color),
            "LabelValue": str(organs[name]),
            "Layer": "0",
            "Extent": extent,
        }
        lines += [f"Segment{number}_{field}:={value}" for field, value in fields.items()]
    return lines


def _line(name: str) -> str:
    """Return a name that does not leave its line."""
    return " ".join(name.split())
