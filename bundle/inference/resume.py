"""Which masks of an inference are there already, and whether they were made as the others will be."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import nibabel
from nibabel.filebasedimages import ImageFileError

from bundle import distributed
from bundle.data.loading import Scan
from bundle.data.scans import scan_name
from bundle.files import written_whole
from bundle.provenance import SHORT, changes, content_hash, describe, digest, file_records, library_versions

logger = logging.getLogger(__name__)

SUPPORT = "support"
"""The name among ``files`` of the annotated scans, which may change from one run to the next."""


class Resumption:
    """An inference that may go on where it was stopped: scans whose mask is finished are not segmented again.

    ``made_with.json`` beside the masks tells all that decides how they look, and the header of each mask
    (``descrip``) has its hash and that of the scan's file. A mask with another one is of an earlier run or of another
    scan of the same name, and is made anew. A mask is written beside its place and renamed: it is finished or absent.

    Args:
        scans: The scans' files, all of them.
        folder: Where the masks are.
        resume: Go on, instead of making all masks anew.
        settings: What decides how masks look, by name: numbers, texts, transforms, the network with its weights.
        files: Files that do, by name: ``None``, one or several. Their contents count, not their places.

    Raises:
        ValueError: If ``folder`` holds masks that were made with something else, and ``resume`` is set. Other files
            called ``support`` are no such thing: all masks are made anew.
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
        self.names = [scan_name(scan["image"]) for scan in scans]
        self.images = {name: str(scan["image"]) for name, scan in zip(self.names, scans, strict=True)}
        self.finished: list[str] = []
        self._support_changed = False
        if resume:
            self._refuse_changes()
            self.finished = distributed.from_first(
                [scan_name(scan["image"]) for scan in scans if self._is_finished(scan)]
            )
            if distributed.is_first():
                print(self._told(len(scans)), flush=True)
        finished = set(self.finished)
        self.pending = [scan for scan, name in zip(scans, self.names, strict=True) if name not in finished]

    @property
    def path(self) -> Path:
        """Where it stands what the masks are made with."""
        return self.folder / "made_with.json"

    def description(self, image: str | Path) -> str:
        """Return what the header of a scan's mask says: what it is made with, and of which file; 47 characters."""
        return f"made_with {digest(self.made_with)} scan {content_hash(image)[:SHORT]}"

    def record(self) -> None:
        """Write what the masks are made with; the first process does it for all."""
        if distributed.is_first():
            with written_whole(self.path) as unfinished:
                unfinished.write_text(json.dumps(self.made_with, indent=2) + "\n", encoding="utf-8")

    def _told(self, scans: int) -> str:
        if self._support_changed:
            return f"resumed: the annotated scans changed, so every mask is made anew: {scans}"
        return f"resumed: {len(self.finished)} of {scans} masks are there already"

    def _refuse_changes(self) -> None:
        if not self.path.is_file():
            logger.warning("there is no %s to resume from; starting with the first scan", self.path)
            return
        before = json.loads(self.path.read_text(encoding="utf-8"))
        self._support_changed = before.get(SUPPORT) != self.made_with.get(SUPPORT)
        # Correcting a mask and taking it for support is what one resumes for: that alone is no mistake.
        if changed := changes({**before, SUPPORT: None}, {**self.made_with, SUPPORT: None}):
            raise ValueError(
                f"the masks in {self.folder} were made with something else: {changed}. Set it back, choose another "
                "output_dir, or set resume to false, which makes all masks anew."
            )

    def _is_finished(self, scan: Scan) -> bool:
        try:
            mask = nibabel.load(self.folder / f"{scan_name(scan['image'])}.nii.gz")
        except (FileNotFoundError, ImageFileError, EOFError):
            return False
        written = cast("nibabel.Nifti1Image", mask).header["descrip"].item()
        return bool(written == self.description(scan["image"]).encode())
