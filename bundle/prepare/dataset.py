"""All scans of a download -> a folder that the configs read. A rerun resumes where it stopped.

    <target>/images/<scan>.nii.gz
    <target>/labels/<scan>.nii.gz
    <target>/dataset.json           the data set, how it was prepared, and a record of each finished scan

``dataset.json`` is written again after every scan. Every file is written whole or not at all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import bundle
import numpy as np
import torch
from bundle.data.loading import ScanError
from bundle.data.nifti import save_nifti
from bundle.data.reader import BROKEN_FILE, in_words
from bundle.files import UNFINISHED, alone_in, remove_abandoned, written_whole
from bundle.keys import IMAGE, LABEL
from bundle.prepare.recipes import Recipe
from bundle.prepare.sources import Source, SourceScan
from bundle.provenance import changes, content_hash, digest
from bundle.transforms.checks import CheckLabeld, CheckVolumed
from bundle.transforms.volumes import Data
from monai.data import MetaTensor
from tqdm import tqdm

RECORD = "dataset.json"
FOLDERS = {IMAGE: "images", LABEL: "labels"}


def prepare(source: Source, recipe: Recipe, target: Path, need_labels: bool = True) -> list[str]:
    """Prepare every scan of a download that is not prepared yet.

    Args:
        source: The download.
        recipe: How its scans are prepared.
        target: Output folder; made if missing.
        need_labels: Whether a scan without a label is an error.

    Returns:
        One line for each scan that could not be prepared; all others are done.

    Raises:
        ValueError: If the target overlaps the source or holds something else; nothing is written then.
    """
    _refuse_overlap(source, target)
    Dataset(source, recipe, target)  # refuses a wrong target before anything is written
    problems = []
    with alone_in(target):
        dataset = Dataset(source, recipe, target)
        for folder in (target, *(target / name for name in FOLDERS.values())):
            remove_abandoned(folder, alone=True)
        dataset.write()
        for scan in tqdm(source.scans, desc=f"preparing {source.name}", unit="scan"):
            try:
                volumes, digest = dataset.volumes(scan, need_labels)
            except ScanError as error:
                problems.append(str(error))
                continue
            if volumes:
                dataset.add(scan, digest, volumes)
    return problems


class Dataset:
    """A prepared data set, finished or not.

    Args:
        source: The download that it is made from.
        recipe: How its scans are prepared.
        folder: Its folder.

    Raises:
        ValueError: If the folder holds something else.
    """

    def __init__(self, source: Source, recipe: Recipe, folder: Path) -> None:
        self.source, self.recipe, self.folder = source, recipe, folder
        self.header: dict[str, Any] = {
            "name": source.name,
            "modality": source.modality,
            "organs": None if source.organs is None else dict(source.organs),
            "organs_as_found": source.organs is None,
            "recipe": recipe.parameters,
        }
        self.records = self._present()

    def volumes(self, scan: SourceScan, need_label: bool) -> tuple[Data, str]:
        """Return a scan's prepared volumes, none if it is done already, and the checksum of its files.

        Raises:
            ScanError: If the scan cannot be used; the message states its name, its path and the reason.
        """
        try:
            # Slices and labels are paired in the order of their names.
            files = [[path.name, content_hash(path)] for path in (*scan.image, *scan.label)]
            content = digest(files, length=64)
            if self._is_done(scan, content):
                return {}, content
            if need_label and not scan.label:
                raise ValueError(
                    "the scan must have a label, got none. Use --unlabeled keep to keep such scans, or "
                    "--unlabeled skip to skip them."
                )
            return _checked(self.recipe, self.source.read(scan), self.source.organs), content
        except BROKEN_FILE as error:
            place = os.path.relpath(scan.place, self.source.folder)
            raise ScanError(f"{scan.name} (from {place}): {in_words(error)}") from error

    def add(self, scan: SourceScan, digest: str, volumes: Data) -> None:
        """Write a scan's files, and then its record."""
        record: dict[str, Any] = {"name": scan.name, "image": None, "label": None, "label_sha256": None}
        for key, files in {IMAGE: scan.image, LABEL: scan.label}.items():
            place = Path(FOLDERS[key]) / f"{scan.name}.nii.gz"
            if key not in volumes:
                (self.folder / place).unlink(missing_ok=True)  # from an earlier run, when the source had a label
                continue
            like = None if self.recipe.steps else str(files[0])
            save_nifti(_small(volumes[key], key), self.folder / place, like)
            record |= {key: place.as_posix(), f"{key}_sha256": content_hash(self.folder / place)}
        image = volumes[IMAGE]
        relative = [os.path.relpath(path, self.source.folder) for path in (*scan.image, *scan.label)]
        self.records[scan.name] = record | {
            "source_files": [Path(path).as_posix() for path in relative],
            "source_sha256": digest,
            "shape": list(image.shape[1:]),
            "spacing_mm": np.round(np.linalg.norm(np.asarray(image.affine)[:3, :3], axis=0), 5).tolist(),
            "voxels": _voxels(volumes, self.source.organs),
        }
        self.write()

    def write(self) -> None:
        """Write the record if it changed; the folder is made if it is missing."""
        text = json.dumps(self._document(), indent=2) + "\n"
        path = self.folder / RECORD
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            with written_whole(path) as unfinished:
                unfinished.write_text(text, encoding="utf-8")

    def summary(self) -> list[str]:
        """Return a line with the number of scans, and one for each scan that lacks an organ."""
        lines = [f"{self.source.name}: {len(self.records)} scans prepared in {self.folder}"]
        for record in self._document()["scans"]:
            if record["absent"]:
                lines.append(f"  {record['name']} does not show: {', '.join(record['absent'])}")
        return lines

    def _present(self) -> dict[str, dict[str, Any]]:
        """Return the records of the finished scans."""
        path = self.folder / RECORD
        if not path.is_file():
            self._refuse_other_content()
            return {}
        try:
            present = json.loads(path.read_text(encoding="utf-8"))
            records = {record["name"]: record for record in present["scans"]}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} must be the record of a prepared data set, but cannot be read. Choose another --target."
            ) from error
        given = [key for key in self.header if key != "organs" or self.source.organs is not None]
        if changed := changes({key: present.get(key) for key in given}, {key: self.header[key] for key in given}):
            raise ValueError(
                f"{self.folder} holds a data set that was prepared differently: {changed}. Choose another --target."
            )
        return records

    def _refuse_other_content(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"--target {self.folder} is a file. Give a folder.")
        content = self.folder.iterdir() if self.folder.is_dir() else []
        if any(path.name != ".lock" and not path.name.startswith(UNFINISHED) for path in content):
            raise ValueError(
                f"--target must be empty or a prepared data set, got other files in {self.folder}. "
                "Choose another --target."
            )

    def _is_done(self, scan: SourceScan, digest: str) -> bool:
        record = self.records.get(scan.name, {})
        files = [self.folder / record[key] for key in FOLDERS if record.get(key)]
        return record.get("source_sha256") == digest and all(path.is_file() for path in files)

    def _document(self) -> dict[str, Any]:
        known = list(self.records.values())
        organs = self.header["organs"]
        if organs is None:
            found = {organ for record in known for organ in record["voxels"]}
            organs = {f"organ_{number}": number for number in sorted(int(organ[len("organ_") :]) for organ in found)}
        origin = {"origin": self.source.origin, "licence": self.source.licence, "bundle_version": bundle.__version__}
        scans = [
            record | {"absent": [organ for organ in organs if record["label"] and not record["voxels"].get(organ)]}
            for record in known
        ]
        order = {scan.name: place for place, scan in enumerate(self.source.scans)}
        scans.sort(key=lambda record: order.get(record["name"], len(order)))
        return self.header | {"organs": organs} | origin | {"scans": scans}


def _refuse_overlap(source: Source, target: Path) -> None:
    folders = {source.folder} | {path.parent for scan in source.scans for path in (*scan.image, *scan.label)}
    wanted = target.resolve()
    for folder in sorted(path.resolve() for path in folders):
        if wanted == folder or wanted in folder.parents or folder in wanted.parents:
            raise ValueError(
                f"the prepared data and the source must not overlap, got --target {target} and {folder}. "
                "Choose another --target."
            )


def _checked(recipe: Recipe, volumes: Data, organs: Mapping[str, int] | None) -> Data:
    """Check the contents of a scan's files, and prepare it."""
    volumes = CheckLabeld(LABEL, may_be_empty=True)(CheckVolumed(IMAGE)(volumes))
    if LABEL in volumes and organs is not None:
        unknown = sorted({int(value) for value in torch.unique(volumes[LABEL])} - {0, *organs.values()})
        if unknown:
            raise ValueError(
                f"a label must hold ids of {dict(organs)}, got {unknown[:5]}. Give the labels of this data set."
            )
    prepared = recipe(volumes)
    if LABEL in prepared and bool(volumes[LABEL].any()) and not bool(prepared[LABEL].any()):
        raise ValueError(
            "the label must lie in the prepared field of view, but nothing of it is left. Check spacing and size."
        )
    return prepared


def _small(volume: MetaTensor, key: str) -> Any:
    """Return a volume in the smallest type that holds it exactly: uint8 (labels only), int16 or float32."""
    low, high = float(volume.min()), float(volume.max())
    if key == LABEL and high <= 255:
        return volume.to(torch.uint8)
    fits = torch.iinfo(torch.int16).min <= low and high <= torch.iinfo(torch.int16).max
    return volume.to(torch.int16) if fits and bool((volume == volume.round()).all()) else volume.to(torch.float32)


def _voxels(volumes: Data, organs: Mapping[str, int] | None) -> dict[str, int]:
    """Count each organ's voxels; organs without a name are named ``organ_<id>``."""
    if LABEL not in volumes:
        return {}
    ids, counts = np.unique(np.asarray(volumes[LABEL]).astype(int), return_counts=True)
    found = {int(organ): int(count) for organ, count in zip(ids, counts, strict=True) if organ}
    names = organs or {f"organ_{organ}": organ for organ in found}
    return {name: found.get(organ, 0) for name, organ in names.items()}
