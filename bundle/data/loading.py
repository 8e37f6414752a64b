"""Run a transform on a scan; if it fails, the error names the file and the reason."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bundle import distributed
from bundle.data.reader import BROKEN_FILE, FileError, check_is_file, in_words
from bundle.keys import IMAGE, PROBLEM, SCAN_NAME
from monai.data import MetaTensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

# A scan's files: ``image``, and ``label`` where it has one.
Scan = Mapping[str, Any]

logger = logging.getLogger(__name__)


class ScanError(ValueError):
    """A scan that cannot be used; the message names the file and the reason."""


def read_scan(scan: Scan, transform: Callable[[Any], Any]) -> Any:
    """Return ``transform(scan)``.

    Raises:
        ScanError: If the files cannot be read or do not fit the transforms.
    """
    for key in ("image", "label"):
        if isinstance(scan.get(key), str | Path):
            _check_is_file(scan[key], key)
    try:
        return _with_name(transform(dict(scan)), scan)
    except BROKEN_FILE as error:
        reason = _reason(error)
        if not isinstance(reason, BROKEN_FILE):
            raise  # a bug in a transform, not a problem of the file
        # The reader names the file itself, since it may be the label's.
        name = scan["image"] if isinstance(scan["image"], str | Path) else "the volume"
        words = str(reason) if isinstance(reason, FileError) else f"{name}: {in_words(reason)}"
        raise ScanError(words) from error


def _with_name(volumes: Any, scan: Scan) -> Any:
    """Keep the name of a scan known in its image's meta, if its file's name does not tell it."""
    image = volumes.get(IMAGE) if SCAN_NAME in scan and isinstance(volumes, Mapping) else None
    if isinstance(image, MetaTensor):
        image.meta[SCAN_NAME] = scan[SCAN_NAME]
    return volumes


def _check_is_file(path: Any, what: str) -> None:
    try:
        check_is_file(Path(path), what)
    except (ValueError, OSError) as error:
        raise ScanError(f"{path}: {in_words(error)}") from None  # the message is complete


def _reason(error: BaseException) -> BaseException:
    # MONAI wraps a transform's error in "applying transform ..."; the innermost cause is the reason.
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    return error


class ScanDataset(Dataset[Any]):
    """Scans, read on demand; a broken one raises a ``ScanError`` with its name.

    Args:
        data: The scans' files, or a function that finds them, called when the first scan is requested.
        transform: Turns a scan's files into volumes.
        enabled: If false, the data set is empty, whatever ``data`` holds.
        check: A transform to try on every scan first: scans that fail are left out, instead of raising later.
        keep_going: Instead of raising over a broken scan, return ``{"problem": what is wrong}`` in its place.

    Attributes:
        problems: Why some scans were left out, a line each.
    """

    def __init__(
        self,
        data: Sequence[Scan] | Callable[[], Sequence[Scan]],
        transform: Callable[[Any], Any],
        enabled: bool = True,
        check: Callable[[Any], Any] | None = None,
        keep_going: bool = False,
    ) -> None:
        self._data = data if enabled else []
        self.transform = transform
        self.check = check
        self.keep_going = keep_going
        self.problems: list[str] = []

    @property
    def data(self) -> list[Scan]:
        """The scans' files."""
        if callable(self._data):
            self._data = self._data()
        if self.check is not None and self._data:
            self._data, self.problems = usable_scans(self._data, self.check)
            self.check = None  # check only once
        return list(self._data)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.read(self.data[index])
        except ScanError as error:
            if not self.keep_going:
                raise
            return {PROBLEM: str(error)}

    def read(self, scan: Scan) -> Any:
        """Read any scan with the data set's transform."""
        return read_scan(scan, self.transform)


class SupportPixel:
    """The pixel size of the annotated scans on the network's grid, for ``FitSlicesd``.

    Args:
        support: Annotated scans, preprocessed for the network.
        key: Where a scan's entry lists annotated scans of its own, which are used instead (MONAI Label).
    """

    def __init__(self, support: ScanDataset, key: str = "support_scans") -> None:
        self.support = support
        self.key = key
        self._known: dict[str | int, float] = {}

    def __call__(self, data: Mapping[Any, Any]) -> float | None:
        """Return the median over the annotated scans of a scan's entry, mm; ``None`` if there is no image to read.

        Problems of an annotated scan are reported when it is encoded; a ranking needs no annotated scan.
        """
        try:
            pixels = [self._pixel(scan) for scan in data.get(self.key) or self.support.data]
        except ValueError:
            return None
        known = [pixel for pixel in pixels if pixel is not None]
        return median(known) if known else None

    def _pixel(self, scan: Scan) -> float | None:
        image = scan["image"]
        known_as = str(image) if isinstance(image, str | Path) else id(image)
        if known_as not in self._known:
            try:
                read = self.support.read({"image": image, "label": scan["label"]})["image"]
            except ScanError:
                return None
            self._known[known_as] = float(read.pixdim[0])
        return self._known[known_as]


class _Trial(Dataset[str]):
    """Reads each scan and returns its problem, ``""`` if there is none."""

    def __init__(self, scans: Sequence[Scan], transform: Callable[[Any], Any]) -> None:
        self.scans, self.transform = scans, transform

    def __len__(self) -> int:
        return len(self.scans)

    def __getitem__(self, index: int) -> str:
        try:
            read_scan(self.scans[index], self.transform)
        except ScanError as error:
            return str(error)
        return ""


def usable_scans(
    scans: Sequence[Scan], transform: Callable[[Any], Any], num_workers: int = 2
) -> tuple[list[Scan], list[str]]:
    """Read every scan once, before hours of work depend on it; with several processes, each reads its share.

    Args:
        scans: The scans' files.
        transform: The transform that will be used on them.
        num_workers: Processes that read.

    Returns:
        The usable scans, and the problems of the others, a line each.
    """
    trial, share = _Trial(scans, transform), distributed.own_share(scans)
    loader = DataLoader(trial, batch_size=None, sampler=share, num_workers=min(num_workers, len(share)))
    bar = tqdm(loader, total=len(share), desc="checking scans", unit="scan", disable=not distributed.is_first())
    problems = distributed.gathered(list(bar))
    for problem in filter(None, problems if distributed.is_first() else []):
        logger.error("cannot use %s", problem)
    usable = [scan for scan, problem in zip(scans, problems, strict=True) if not problem]
    return usable, [problem for problem in problems if problem]


def report_problems(problems: Sequence[str]) -> None:
    """Raise at the end of a run if some scans could not be used, so that its exit code shows it.

    Raises:
        ScanError: If there is a problem; the message lists all.
    """
    if problems:
        lines = "\n  ".join(problems)
        scans = "1 scan" if len(problems) == 1 else f"{len(problems)} scans"
        raise ScanError(f"{scans} could not be used; all others are finished:\n  {lines}")
