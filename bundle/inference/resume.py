"""Resume an inference: find its finished masks, and check that they were made with the same settings."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import nibabel
from bundle import distributed
from bundle.data.loading import Scan
from bundle.data.names import name_of_scan
from bundle.data.organ_masks import stated_names
from bundle.files import read_json, write_json
from bundle.provenance import SHORT, changes, content_hash, describe, digest, file_records, library_versions
from nibabel.filebasedimages import ImageFileError

logger = logging.getLogger(__name__)

ANEW = "Choose another output_dir, or set resume to false, which makes all masks anew."

# The name among ``files`` of the annotated scans, which may change from one run to the next.
SUPPORT = "support"


class Resumption:
    """An inference that can resume: scans with a finished mask are not segmented again.

    ``made_with.json`` next to the masks records everything that determines them, and the header of each mask
    (``descrip``) holds its hash and that of the scan's file. A mask with other hashes is from an earlier run or of
    another scan of the same name, and is made again. A mask is written whole or not at all.

    Args:
        scans: The files of all scans.
        folder: Where the masks are.
        resume: Whether to resume, instead of making all masks again.
        settings: Settings that determine the masks, by name: numbers, texts, transforms, the network with its weights.
        files: Files that determine the masks, by name: ``None``, one or several. Their contents count, not their paths,
            and for ``support`` also the names of organs that are stated beside a label map, with their ids.

    Raises:
        ValueError: If ``resume`` is set and ``folder`` holds masks that were made with other settings. Another support
            is none of them: all masks are made again.
    """

    def __init__(
        self,
        scans: Sequence[Scan],
        folder: str | Path,
        resume: bool = False,
        settings: Mapping[str, Any] | None = None,
        files: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.made_with = {"versions": library_versions(), **describe(settings or {})}
        self.made_with |= {name: file_records(paths) for name, paths in (files or {}).items()}
        if SUPPORT in self.made_with:
            self.made_with[SUPPORT] += _organ_records((files or {})[SUPPORT])
        self.names = [name_of_scan(scan) for scan in scans]
        self.images = {name: str(scan["image"]) for name, scan in zip(self.names, scans, strict=True)}
        self.finished: list[str] = []
        self._support_changed = False
        if resume:
            self._refuse_changes()
            self.finished = distributed.from_first([name_of_scan(scan) for scan in scans if self._is_finished(scan)])
            if distributed.is_first():
                print(self._summary(len(scans)), flush=True)
        finished = set(self.finished)
        self.pending = [scan for scan, name in zip(scans, self.names, strict=True) if name not in finished]

    @property
    def path(self) -> Path:
        """The record of what the masks are made with."""
        return self.folder / "made_with.json"

    def description(self, image: str | Path) -> str:
        """Return the ``descrip`` of a mask's header, 47 characters: hashes of the record and of the scan's file."""
        return f"made_with {digest(self.made_with)} scan {content_hash(image)[:SHORT]}"

    def record(self) -> None:
        """Write the record of what the masks are made with; the first process does it for all."""
        if distributed.is_first():
            write_json(self.path, self.made_with)

    def _summary(self, scans: int) -> str:
        if self._support_changed:
            return f"resumed: the annotated scans or their organs' ids changed, so all {scans} masks are made again"
        return f"resumed: {len(self.finished)} of {scans} masks are already finished"

    def _refuse_changes(self) -> None:
        if not self.path.is_file():
            logger.warning("there is no record %s to resume from; starting with the first scan", self.path)
            return
        before = read_json(self.path, ANEW)
        self._support_changed = before.get(SUPPORT) != self.made_with.get(SUPPORT)
        # Correcting a mask and using it as support is what people resume for: that alone is no mistake.
        if changed := changes({**before, SUPPORT: None}, {**self.made_with, SUPPORT: None}):
            raise ValueError(
                f"the masks in {self.folder} were made with other settings: {changed}. Set them back, choose another "
                "output_dir, or set resume to false to make all masks again."
            )

    def _is_finished(self, scan: Scan) -> bool:
        try:
            mask = nibabel.load(self.folder / f"{name_of_scan(scan)}.nii.gz")
        except (FileNotFoundError, ImageFileError, EOFError):
            return False
        written = cast("nibabel.Nifti1Image", mask).header["descrip"].item()
        return bool(written == self.description(scan["image"]).encode())


def _organ_records(paths: str | Path | Iterable[str | Path] | None) -> list[str]:
    """Return a line for each organ whose name and id are stated beside label maps."""
    files = [paths] if isinstance(paths, str | Path) else paths or []
    named = {pair for path in files for pair in stated_names(path).items()}
    return [f"organ {organ}: {name}" for organ, name in sorted(named)]
