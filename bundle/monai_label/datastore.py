"""The server's datastore: its scans, the labels that were submitted, and what it remembers of organs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from bundle.data.names import IMAGE_SUFFIXES, scan_name
from bundle.keys import IMAGE
from bundle.monai_label.organs import known_organs, merged_entries, organ_name, with_new_entries
from bundle.monai_label.refusal import shortened

# The server's part, where it runs: imported here and not in a call, because it takes the bundle off the path again.
try:
    from monailabel.datastore.local import LocalDatastore
    from monailabel.interfaces.exception import ImageNotFoundException
    from monailabel.interfaces.utils.app import app_instance
except ImportError:
    LocalDatastore = app_instance = None
    ImageNotFoundException = KeyError
try:
    import pydicom
except ImportError:
    pydicom = None  # type: ignore[assignment]

Found = TypeVar("Found")

# In a scan's info: which entries its organs were given, by name.
ENTRIES = "organ_entries"


@dataclass(frozen=True)
class Annotation:
    """A scan of the server with its label map.

    Attributes:
        image: The scan's file.
        label: The label map's file.
        names: Names of the values in the label map, as Slicer submits them; empty if it did not.
        annotated: What was submitted with the label about its slices; ``None`` if nothing was.
        entries: What the datastore remembers of organs with this scan.
        scan: The scan's id in the datastore.
        problem: Why it cannot be used; "" if it can.
    """

    image: str
    label: str
    names: Mapping[int, str] = field(default_factory=dict)
    annotated: str | None = None
    entries: Mapping[str, int] = field(default_factory=dict)
    scan: str = ""
    problem: str = ""


def submitted_annotations() -> list[Annotation]:
    """Return the labels that were submitted to the server as final, in the order of their submission."""
    store = _datastore()
    if store is None:
        studies = os.environ.get("MONAI_LABEL_STUDIES")
        return _labels_of_folder(Path(studies)) if studies else []
    if type(store) is not LocalDatastore:
        # An archive's own list is minutes old, and its labels' files are known by other ids: it is asked to fetch all
        # labels into its folder, and what lies there counts.
        store.datalist()
    return [annotation for annotation in _settled(lambda: _listed(store)) if Path(annotation.label).is_file()]


def _settled(read: Callable[[], Found]) -> Found:
    """Return what is read twice alike.

    After each change of a file the datastore clears its lists and fills them again, in another thread: what is read
    meanwhile lacks scans, or fails.
    """
    last: Any = None
    for _ in range(100):
        try:
            now = read()
        except (KeyError, RuntimeError, ImageNotFoundException):
            now = None
        if now is not None and now == last:
            return now
        last = now
        time.sleep(0.002)
    return read()


def _listed(store: Any) -> list[Annotation]:
    labeled = list(_local(store).get_labeled_images(store, "final"))
    infos = {scan: dict(store.get_label_info(scan, "final") or {}) for scan in labeled}
    order = sorted(infos, key=lambda scan: (infos[scan].get("ts", 0), scan))
    return [_annotation(store, scan, infos[scan]) for scan in order]


def _local(store: Any) -> Any:
    """Return the class whose methods tell of the datastore's folder."""
    return LocalDatastore if LocalDatastore is not None and isinstance(store, LocalDatastore) else type(store)


def _annotation(store: Any, scan: str, info: Mapping[str, Any]) -> Annotation:
    label = str(_local(store).get_label_uri(store, scan, "final"))
    names, problem = _submitted_names(info.get("label_info"))
    remembered = (store.get_image_info(scan) or {}).get(ENTRIES)
    return Annotation(
        image=str(store.get_image_uri(scan)),
        label=label,
        names=names or _names_of_segmentation(Path(label).parent / str(info.get("SeriesInstanceUID", ""))),
        annotated=info.get("annotated"),
        entries=_checked_entries(remembered),
        scan=scan,
        problem=problem,
    )


def _submitted_names(label_info: Any) -> tuple[dict[int, str], str]:
    """Return the names of values that came with a label, and what is wrong with them; "" if nothing is."""
    items = label_info or []
    if isinstance(items, list) and all(isinstance(item, Mapping) for item in items):
        try:
            return {_whole(item["idx"]): str(item["name"]) for item in items if {"idx", "name"} <= set(item)}, ""
        except (TypeError, ValueError, OverflowError):
            pass  # named below, with the other mistakes
    return {}, (
        "its label_info must be a list of {name, idx}, with the whole numbers of the label map as idx, got "
        f"{shortened(label_info)}. Submit the label again."
    )


def _whole(value: Any) -> int:
    if isinstance(value, float | bool) and not float(value).is_integer():
        raise ValueError(value)
    return int(value)


def _checked_entries(remembered: Any) -> dict[str, int]:
    """Return the entries of organs that a scan's info holds; what is no name with an id is none of ours."""
    entries = remembered if isinstance(remembered, Mapping) else {}
    return {str(name): organ for name, organ in entries.items() if type(organ) is int and organ > 0}


def _names_of_segmentation(folder: Path) -> dict[int, str]:
    """Return the names of the segments of a DICOM segmentation that came from an archive; none if there is none."""
    files = sorted(folder.glob("*.dcm"))
    if not files or pydicom is None:
        return {}
    segments = pydicom.dcmread(files[0], stop_before_pixels=True).get("SegmentSequence", [])
    return {int(segment.SegmentNumber): str(segment.SegmentLabel) for segment in segments}


def organ_entries(annotations: Sequence[Annotation]) -> dict[str, int]:
    """Return the ids of all organs by name; what an organ is given here is remembered with the data.

    Args:
        annotations: The server's annotated scans.
    """
    store = _datastore()
    every = [] if store is None else _settled(lambda: _entries_of_scans(store))
    names = [organ_name(name) for a in annotations for _, name in sorted(a.names.items())]
    given = with_new_entries(merged_entries([*every, *(a.entries for a in annotations)]), names)
    for annotation in annotations:
        own = {name: given[name] for name in map(organ_name, annotation.names.values()) if name in given}
        if store is not None and not own.items() <= annotation.entries.items():
            _remember(store, annotation.scan, {**annotation.entries, **own})
    return {**known_organs(), **given}


def _remember(store: Any, scan: str, entries: Mapping[str, int]) -> None:
    def remembered() -> bool:
        store.update_image_info(scan, {ENTRIES: dict(entries)})
        return (store.get_image_info(scan) or {}).get(ENTRIES) == entries

    _settled(remembered)


def _entries_of_scans(store: Any) -> list[Mapping[str, int]]:
    """Return the entries that each scan remembers, in the order of ids: a scan without a label may remember some."""
    infos = [store.get_image_info(image) or {} for image in sorted(store.list_images())]
    return [_checked_entries(info.get(ENTRIES)) for info in infos]


def all_scans() -> list[str]:
    """Return every scan of the server."""
    store = _datastore()
    if store is not None:
        return _settled(lambda: [str(store.get_image_uri(image_id)) for image_id in sorted(store.list_images())])
    return [scan[IMAGE] for scan in unlabeled_scans(os.environ.get("MONAI_LABEL_STUDIES"))]


def _datastore() -> Any:
    return None if app_instance is None else app_instance().datastore()


def _labels_of_folder(studies: Path) -> list[Annotation]:
    labels = {scan_name(path): path for path in (studies / "labels" / "final").glob("*") if path.is_file()}
    images = {scan_name(path): path for path in _scans_of_folder(studies)}
    return [Annotation(str(images[name]), str(labels[name])) for name in sorted(set(images) & set(labels))]


def _scans_of_folder(studies: Path) -> list[Path]:
    return sorted(path for path in studies.glob("*") if path.name.lower().endswith(IMAGE_SUFFIXES))


def unlabeled_scans(studies: str | None) -> list[dict[str, str]]:
    """Return every scan of the server's studies, for training: it hands over the annotated ones only."""
    return [{IMAGE: str(path)} for path in _scans_of_folder(Path(studies))] if studies else []


def training_mode(dataset_dir: str | None, alone: Mapping[str, Any], label_server: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a training that the Train button of MONAI Label starts, or of any other one.

    Args:
        dataset_dir: Folder of scans; the server names none.
        alone: Settings of a training that a command starts.
        label_server: Those of one that the server starts.

    Returns:
        The settings, with ``studies``, the server's folder (``None`` without a server).
    """
    studies = None if dataset_dir else os.environ.get("MONAI_LABEL_STUDIES")
    return {**(alone if studies is None else label_server), "studies": studies}
