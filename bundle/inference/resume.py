"""Which masks of an inference are there already, and whether they were made as the others will be."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import nibabel
from nibabel.filebasedimages import ImageFileError
from torch import nn

from bundle import distributed
from bundle.data.cache import describe
from bundle.data.loading import Scan
from bundle.data.scans import scan_name
from bundle.files import written_whole

logger = logging.getLogger(__name__)

LONGEST_TEXT = 100
"""Characters of a setting that ``made_with.json`` spells out; of a longer one it keeps the hash."""

PLAIN = (bool, int, float, str, list, tuple)
"""Kinds of attributes that are settings of a module."""


class Resumption:
    """An inference that may go on where it was stopped: scans whose mask is finished are not segmented again.

    ``made_with.json`` beside the masks tells all that decides how they look, and the header of each mask
    (``descrip``) has its hash. A mask with another one is of an earlier run, and is made anew, as is one that is older
    than its scan. A mask is written beside its place and renamed, so it is finished or absent.

    Args:
        scans: The scans' files, all of them.
        folder: Where the masks are.
        resume: Go on, instead of making all masks anew.
        settings: What decides how masks look, by name: numbers, texts, transforms, the network with its weights.
        files: Files that do, by name: ``None``, one or several. Their contents count, not their places.

    Raises:
        ValueError: If ``folder`` holds masks that were made with something else, and ``resume`` is set.
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
        self.made_with = {name: _text(setting) for name, setting in (settings or {}).items()}
        self.made_with |= {name: _contents(paths) for name, paths in (files or {}).items()}
        self.description = f"made_with {_hash(json.dumps(self.made_with, sort_keys=True))}"
        self.names = [scan_name(scan["image"]) for scan in scans]
        self.finished: list[str] = []
        if resume:
            self._refuse_changes()
            self.finished = distributed.from_first(
                [scan_name(scan["image"]) for scan in scans if self._is_finished(scan)]
            )
            if distributed.is_first():
                print(f"resumed: {len(self.finished)} of {len(scans)} masks are there already", flush=True)
        finished = set(self.finished)
        self.pending = [scan for scan, name in zip(scans, self.names, strict=True) if name not in finished]

    @property
    def path(self) -> Path:
        """Where it stands what the masks are made with."""
        return self.folder / "made_with.json"

    def record(self) -> None:
        """Write what the masks are made with; the first process does it for all."""
        if distributed.is_first():
            with written_whole(self.path) as unfinished:
                unfinished.write_text(json.dumps(self.made_with, indent=2) + "\n")

    def _refuse_changes(self) -> None:
        if not self.path.is_file():
            logger.warning("there is no %s to resume from; starting with the first scan", self.path)
            return
        before = json.loads(self.path.read_text())
        names = [name for name in {**before, **self.made_with} if before.get(name) != self.made_with.get(name)]
        if names:
            changed = ", ".join(f"{name} (was {before.get(name)}, is {self.made_with.get(name)})" for name in names)
            raise ValueError(
                f"the masks in {self.folder} were made with something else: {changed}. Set it back, choose another "
                "output_dir, or set resume to false, which makes all masks anew."
            )

    def _is_finished(self, scan: Scan) -> bool:
        image, path = Path(scan["image"]), self.folder / f"{scan_name(scan['image'])}.nii.gz"
        try:
            if image.exists() and image.stat().st_mtime > path.stat().st_mtime:
                return False  # the scan was replaced since
            mask = cast("nibabel.Nifti1Image", nibabel.load(path))
        except (FileNotFoundError, ImageFileError, EOFError):
            return False
        return bool(mask.header["descrip"].item() == self.description.encode())


def _text(setting: Any) -> str:
    text = describe(_parts(setting) if isinstance(setting, nn.Module) else setting)
    return text if len(text) <= LONGEST_TEXT else _hash(text)


def _parts(network: nn.Module) -> list[Any]:
    """Return a network's weights, and the plain settings of each of its modules."""
    settings = {}
    for name, module in network.named_modules():
        plain = {key: value for key, value in vars(module).items() if isinstance(value, PLAIN) and key != "training"}
        settings[name] = [type(module), plain]
    return [settings, network.state_dict()]


def _contents(paths: Any) -> str:
    listed = [paths] if isinstance(paths, str | Path) else list(paths or [])
    return " ".join(f"{Path(path).name} {_file_hash(Path(path))}" for path in listed) or "none"


def _file_hash(path: Path) -> str:
    # A file that is missing is refused where it is read, in better words.
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else "missing"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
