"""A download -> its scans: the files of each, and how they are read.

Only file names are read here; the files themselves are opened later, scan by scan.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from bundle.data.names import (
    DICOM_SUFFIXES,
    IMAGE_FOLDERS,
    IMAGE_SUFFIXES,
    LABEL_FOLDERS,
    SEGMENTATION_SUFFIX,
    is_scan_folder,
    name_of_scan,
    of_channel,
    scan_name,
    subfolder,
)
from bundle.data.organ_masks import organ_ids
from bundle.data.reader import ScanReader, is_dicom, names_beside
from bundle.data.scans import other_layout
from bundle.keys import IMAGE, LABEL
from bundle.transforms.volumes import Data
from monai.transforms import EnsureChannelFirstd, LoadImaged

CHAOS_MR_GRAYS = {1: (55, 70), 2: (110, 135), 3: (175, 200), 4: (240, 255)}
CHAOS_MR_ORGANS = {"liver": 1, "right_kidney": 2, "left_kidney": 3, "spleen": 4}
BTCV_ORGANS = {
    "spleen": 1,
    "right_kidney": 2,
    "left_kidney": 3,
    "gallbladder": 4,
    "esophagus": 5,
    "liver": 6,
    "stomach": 7,
    "aorta": 8,
    "ivc": 9,
    "portal_splenic_vein": 10,
    "pancreas": 11,
    "right_adrenal": 12,
    "left_adrenal": 13,
}
MSCMR_ORGANS = {"lv_myocardium": 200, "lv_blood_pool": 500, "rv": 600}

# Suffixes of label maps; the first is 3D Slicer's.
LABEL_SUFFIXES = (SEGMENTATION_SUFFIX, *IMAGE_SUFFIXES, *DICOM_SUFFIXES)

# Folders that are skipped: test sets have no labels, and macOS adds hidden copies of zipped files.
LEFT_OUT = {"Test_Sets", "Testing", "__MACOSX"}


@dataclass(frozen=True)
class SourceScan:
    """A scan's files in a download.

    Attributes:
        name: Its name in the prepared data set; the last number is the scan's id.
        place: Path in the download, for messages.
        image: Files of its image; none if they are missing.
        label: Files of its label, in the order of the image's; none if it has no label.
    """

    name: str
    place: Path
    image: tuple[Path, ...]
    label: tuple[Path, ...]


@dataclass(frozen=True)
class Source:
    """A download.

    Attributes:
        name: Name of the data set.
        folder: Its folder.
        modality: ``"mr"`` or ``"ct"``.
        organs: Names and ids; ``None`` takes the ids that the labels hold.
        origin: Origin of the data.
        licence: Terms of use.
        config: The data set's override in ``configs/``.
        scans: Scans in the order of their ids.
        read: Reads a scan's volumes.
    """

    name: str
    folder: Path
    modality: str
    organs: Mapping[str, int] | None
    origin: str
    licence: str
    config: str
    scans: Sequence[SourceScan]
    read: Callable[[SourceScan], Data]


def open_chaos(folder: Path, part: str) -> Source:
    """Find the scans of the unzipped CHAOS training set.

    Args:
        folder: ``MR`` or ``CT``, or any folder above.
        part: ``"mr"`` for the T2-SPIR scans, or ``"ct"``.

    Raises:
        ValueError: If there are no scans, two of the same number, or pydicom is missing.
    """
    if find_spec("pydicom") is None:
        raise ValueError("CHAOS comes as DICOM, which needs pydicom. Install it: pip install pydicom.")
    grays = CHAOS_MR_GRAYS if part == "mr" else {1: (1, 65535)}
    return Source(
        name=f"chaos_{part}",
        folder=folder,
        modality=part,
        organs=CHAOS_MR_ORGANS if part == "mr" else {"liver": 1},
        origin="CHAOS, Kavur et al. 2019, doi:10.5281/zenodo.3362844",
        licence="CC BY-NC-SA 4.0",
        config="data_chaos_t2" if part == "mr" else "data_sabs_ct",
        scans=_chaos_scans(folder, part),
        read=functools.partial(_read_dicom, grays=grays),
    )


def _chaos_scans(folder: Path, part: str) -> list[SourceScan]:
    found: dict[int, list[Path]] = {}
    for scan in _chaos_folders(folder, part):
        found.setdefault(int(scan.name), []).append(scan)
    _refuse_twice(found.values())
    pattern = {"mr": "MR/<number>/T2SPIR/DICOM_anon/*.dcm", "ct": "CT/<number>/DICOM_anon/*.dcm"}[part]
    _refuse_none(found, folder, f"{pattern} of the CHAOS training set")
    below = Path("T2SPIR") if part == "mr" else Path()
    return [
        SourceScan(
            f"chaos_{part}_{number:02d}",
            scan,
            _files(scan / below / "DICOM_anon", ".dcm"),
            _files(scan / below / "Ground", ".png"),
        )
        for number, (scan,) in sorted(found.items())
    ]


def open_btcv(folder: Path) -> Source:
    """Find the scans of BTCV, Synapse's ``RawData``, in a folder or below.

    Raises:
        ValueError: If there are no scans, or two of the same number.
    """
    looked_for = "Training/img/img0001.nii.gz and the like, of Synapse's RawData"
    scans = _numbered_scans(folder, r"img(\d+)", r"label(\d+)", "btcv_{:04d}", looked_for)
    return Source(
        name="btcv",
        folder=folder,
        modality="ct",
        organs=BTCV_ORGANS,
        origin="BTCV (SABS), Landman et al. 2015, Synapse syn3193805, RawData",
        licence="terms of Synapse",
        config="data_sabs_ct",
        scans=scans,
        read=read_files,
    )


def open_mscmr(folder: Path) -> Source:
    """Find the bSSFP scans (C0) of MS-CMRSeg 2019 in a folder or below.

    Raises:
        ValueError: If there are no scans, or two of the same number.
    """
    looked_for = "patient1_C0.nii.gz and the like, of MS-CMRSeg 2019"
    scans = _numbered_scans(folder, r"patient(\d+)_C0", r"patient(\d+)_C0_manual", "mscmr_{:02d}", looked_for)
    return Source(
        name="mscmr",
        folder=folder,
        modality="mr",
        organs=MSCMR_ORGANS,
        origin="MS-CMRSeg 2019, Zhuang et al., bSSFP (C0)",
        licence="terms of the challenge",
        config="data_mscmr",
        scans=scans,
        read=read_files,
    )


def open_nifti(
    folder: Path,
    labels: Path | None,
    organs: Mapping[str, int] | None,
    modality: str,
    channel: int = 0,
    series: str | int | None = None,
) -> Source:
    """Find the scans of any folder.

    Args:
        folder: Folder of images, or with ``images/`` (and ``labels/``), or nnU-Net's ``imagesTr`` (and ``labelsTr``);
            or another layout that ``list_scans`` reads, such as DICOM series.
        labels: Folder of labels, with the names of their images, or else with the same last numbers.
        organs: Names and ids; ``None`` takes those of a mask for each organ or of the Decathlon's ``dataset.json``, or
            else the ids that the labels hold.
        modality: ``"mr"`` or ``"ct"``.
        channel: As of ``list_scans``.
        series: As of ``list_scans``.

    Raises:
        ValueError: If there is no image, or labels cannot be matched to images.
    """
    found = subfolder(folder, IMAGE_FOLDERS)
    place = found if found.is_dir() else folder
    label_files = _by_name(labels or subfolder(folder, LABEL_FOLDERS), LABEL_SUFFIXES)
    images = of_channel(_by_name(place), label_files, place, channel)
    others = [] if images else other_layout(place, series)
    images |= {name_of_scan(scan): Path(scan["image"]) for scan in others}
    label_files |= {name_of_scan(scan): Path(scan["label"]) for scan in others if "label" in scan}
    _refuse_none(images, folder, f"images ({', '.join(IMAGE_SUFFIXES)}), directly or in images/")
    label_of = _matched(images, label_files)
    return Source(
        name=(folder.parent if folder.name in IMAGE_FOLDERS else folder).name,
        folder=folder,
        modality=modality,
        organs=organs or _stated_organs(label_of.values()),
        origin="the user's own files",
        licence="as the files'",
        config="data_nifti" if modality == "mr" else "data_sabs_ct",
        scans=[
            SourceScan(name, path, (path,), (label_of[name],) if name in label_of else ())
            for name, path in images.items()
        ],
        read=read_files,
    )


def _stated_organs(labels: Iterable[Path]) -> dict[str, int] | None:
    """Return the names of organs and their ids, if the files beside label maps state them."""
    label = next(iter(labels), None)
    if label is None:
        return None
    if label.is_dir() and not is_dicom(label):
        return organ_ids(label)
    return {name: organ for organ, name in names_beside(label).items()} or None


def read_files(scan: SourceScan) -> Data:
    """Read a scan with one file for the image and one for the label: float32 ``(1, X, Y, Z)``, as stored."""
    if not scan.image:
        raise ValueError("a label must have an image, got none. Add the image, or remove the label.")
    files = {IMAGE: scan.image[0]} | ({LABEL: scan.label[0]} if scan.label else {})
    volumes = LoadImaged(list(files), reader=ScanReader, image_only=True)(files)
    return EnsureChannelFirstd(list(files))(volumes)


def _read_dicom(scan: SourceScan, grays: Mapping[int, tuple[int, int]]) -> Data:
    from bundle.prepare.dicom import read_stack  # the other sources do not need pydicom

    return read_stack(scan.image, scan.label, grays)


def _chaos_folders(folder: Path, part: str) -> set[Path]:
    """Return a part's numbered folders, complete or not, without the test sets."""
    contents = {"mr": ("T1DUAL", "T2SPIR"), "ct": ("DICOM_anon", "Ground")}[part]
    found = {path.parent for name in contents for path in _below(folder, name)}
    return {scan for scan in found if scan.name.isdecimal()}


def _below(folder: Path, pattern: str) -> list[Path]:
    """Return the matching paths below a folder, without hidden ones and those in ``LEFT_OUT``."""
    return [
        path
        for path in folder.rglob(pattern)
        if not any(part.startswith(".") or part in LEFT_OUT for part in path.relative_to(folder).parts)
    ]


def _files(folder: Path, suffixes: str | tuple[str, ...]) -> tuple[Path, ...]:
    """Return the visible files of a folder in natural order; none if the folder is missing."""
    found = folder.iterdir() if folder.is_dir() else []
    visible = [path for path in found if path.name.lower().endswith(suffixes) and not path.name.startswith(".")]
    return tuple(sorted(visible, key=_natural))


def _natural(path: Path) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.name)]


def _numbered(folder: Path, pattern: str) -> dict[int, Path]:
    found: dict[int, list[Path]] = {}
    for path in sorted(_below(folder, "*.nii*")):
        if match := re.fullmatch(rf"{pattern}\.nii(\.gz)?", path.name):
            found.setdefault(int(match[1]), []).append(path)
    _refuse_twice(found.values())
    return {number: path for number, (path,) in found.items()}


def _numbered_scans(folder: Path, image: str, label: str, name: str, looked_for: str) -> list[SourceScan]:
    """Return the scans whose files have numbered names, given as patterns without their suffix."""
    images, labels = _numbered(folder, image), _numbered(folder, label)
    _refuse_none(images, folder, looked_for)
    return [
        SourceScan(
            name.format(number),
            images.get(number) or labels[number],
            tuple(path for path in [images.get(number)] if path),
            tuple(path for path in [labels.get(number)] if path),
        )
        for number in sorted({*images, *labels})
    ]


def _by_name(folder: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> dict[str, Path]:
    found: dict[str, list[Path]] = {}
    is_place = folder.is_dir() and (folder.name in IMAGE_FOLDERS or suffixes == LABEL_SUFFIXES)
    folders = [path for path in sorted(folder.iterdir()) if is_scan_folder(path, suffixes)] if is_place else []
    for path in (*_files(folder, suffixes), *folders):
        found.setdefault(scan_name(path), []).append(path)
    _refuse_twice(found.values())
    return {name: path for name, (path,) in found.items()}


def _matched(images: Mapping[str, Path], labels: Mapping[str, Path]) -> dict[str, Path]:
    """Return the label of each image that has one, by name.

    Raises:
        ValueError: If a label matches no image, or several.
    """
    if labels.keys() <= images.keys():
        return dict(labels)
    image_of, label_of = _by_last_number(images), _by_last_number(labels)
    if image_of is None or label_of is None or not label_of.keys() <= image_of.keys():
        orphans = ", ".join(sorted(labels.keys() - images.keys())[:5])
        raise ValueError(
            f"a label must have the name of its image, or the same last number if no other has it: {orphans} cannot "
            "be matched. Give labels the names of their images."
        )
    return {image_of[number]: labels[name] for number, name in label_of.items()}


def _by_last_number(names: Iterable[str]) -> dict[int, str] | None:
    """Return the names by their last numbers, or ``None`` if a number is missing or repeated."""
    numbers = {name: re.findall(r"\d+", name) for name in names}
    by_number = {int(found[-1]): name for name, found in numbers.items() if found}
    return by_number if len(by_number) == len(numbers) else None


def _refuse_twice(found: Iterable[Sequence[Path]]) -> None:
    for paths in found:
        if len(paths) > 1:
            raise ValueError(
                f"a scan must be there once, got {paths[0]} and {paths[1]}. Keep one, or give a narrower --source."
            )


def _refuse_none(found: Sized, folder: Path, looked_for: str) -> None:
    if not found:
        raise ValueError(f"{folder} holds no {looked_for}. Give the folder that was downloaded and unzipped.")
