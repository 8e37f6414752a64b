"""Find the annotated scans of a request, and carry them to the inferer."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bundle.data.names import scan_name
from bundle.keys import IMAGE, LABEL, SUPPORT
from bundle.monai_label.datastore import Annotation, all_scans, organ_entries, submitted_annotations
from bundle.monai_label.organs import is_default_name, organ_name
from bundle.monai_label.refusal import refuse, shortened
from bundle.transforms.annotated import checked_annotated
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

Data = dict[Hashable, Any]

FOUND = "support_scans"
NEXT = "next_scan"
ANNOTATED = "annotated"

# Folder of a datastore in which its annotated scans are kept encoded.
ENCODED = ".encoded"


class FindSupportd(MapTransform):
    """Find the annotated scans of a request, before its image is loaded.

    In this order: ``params.support`` of the request; a label of this very scan, sent with the request or submitted
    before, and the labels that were submitted for other scans. Of the scan's own label only a drawing is used (the
    inferer decides): a finished one would only be repeated.

    ``params.annotated`` says which slices of the label maps are annotated: ``drawn``, ``all`` or ``auto``, or one of
    these for each scan. What was submitted with a label as ``annotated`` comes after it, then the config's.

    Args:
        keys: The image.
        defaults: Annotated scans that the config names, to use if the server has none; any that is set will do.
        roots: Folders, besides the server's studies, that a request may name files of.
    """

    def __init__(self, keys: KeysCollection, defaults: Sequence[Any] = (), roots: Sequence[str] = ()) -> None:
        super().__init__(keys)
        self.has_default = any(bool(default) for default in defaults)
        self.roots = [Path(root).resolve() for root in roots]

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        """Return ``data`` with the files of its support, if it is a request of the server.

        Raises:
            HTTPException: 409 with one sentence, if nothing is annotated yet or the request is wrong.
        """
        result = dict(data)
        if "image_path" not in data:
            return result
        said, asks_next = _said(data.get(ANNOTATED)), _asks_next(data.get(NEXT))
        if "result" in data:
            refuse("params.result is the server's own entry. Leave it out.")
        if data.get(SUPPORT) and not asks_next:
            result[FOUND] = self._named(data[SUPPORT], said)
        else:
            query = None if asks_next else str(data["image_path"])
            result[FOUND] = self._submitted(query, data.get(LABEL), said)
        result.pop(NEXT, None)
        if asks_next:
            result[NEXT] = {"scans": all_scans(), "has_support": self.has_default}
        elif not result[FOUND] and not self.has_default:
            refuse(
                "No scan is annotated yet: label the organs in one scan and press Submit Label, then all other scans "
                "can be segmented."
            )
        for key in (LABEL, SUPPORT, ANNOTATED):
            result.pop(key, None)
        return result

    def _submitted(self, query: str | None, sent: Any, said: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return the label of this very scan (what came with the request, or else was submitted), then all others."""
        known = submitted_annotations()
        organs = organ_entries(known)
        is_own = [query is not None and _is_same_file(a.image, query) for a in known]
        own = [a for a, is_query in zip(known, is_own, strict=True) if is_query]
        others = [a for a, is_query in zip(known, is_own, strict=True) if not is_query]
        if sent and query is not None:
            self._check_path("label", str(sent), [Path(tempfile.gettempdir()).resolve()])
            own = [Annotation(query, str(sent), annotated="drawn")]
        first = [_entry(a, organs, said) | {"own": True, "asked": bool(sent)} for a in own]
        return first + [_entry(a, organs, said) for a in others]

    def _named(self, support: Any, said: Mapping[str, str]) -> list[dict[str, Any]]:
        entries = [support] if isinstance(support, Mapping) else support
        if not isinstance(entries, list) or not all(
            isinstance(entry, Mapping) and {IMAGE, LABEL} <= set(entry) for entry in entries
        ):
            refuse("params.support must be a list of {image, label} with paths of files on the server.")
        for entry in entries:
            for key in (IMAGE, LABEL):
                self._check_path(f"support names the {key}", str(entry[key]))
        named = [Annotation(str(entry[IMAGE]), str(entry[LABEL])) for entry in entries]
        return [_entry(annotation, {}, said) | {"asked": True} for annotation in named]

    def _check_path(self, what: str, path: str, more: Sequence[Path] = ()) -> None:
        studies = os.environ.get("MONAI_LABEL_STUDIES")
        roots = [*self.roots, *more] + ([Path(studies).resolve()] if studies else [])
        shown = shortened(path)
        try:
            real = Path(path).resolve()
            is_file = real.is_file()
        except (ValueError, OSError, RuntimeError):  # a NUL byte, a name that is too long, a link to itself
            refuse(f"params.{what} {shown}, which cannot be the path of a file. Name a file in the studies folder.")
        if not any(real.is_relative_to(root) for root in roots):
            refuse(f"params.{what} {shown}, which does not lie in the studies folder. Name a file in there.")
        if not is_file:
            refuse(f"params.{what} {shown}, which does not exist. Name a file that does.")


def _is_same_file(image: str, query: str) -> bool:
    return Path(image).exists() and Path(query).exists() and Path(image).samefile(query)


def _asks_next(value: Any) -> bool:
    """Return whether the request asks for the scan to annotate next; ``None`` and 0 are no, 1 is yes."""
    words = {"true": True, "false": False, "none": False, "0": False, "1": True, "": False}
    if str(value).lower() not in words:
        refuse(f"params.next_scan must be true or false, got {shortened(value)}. Leave it out to segment the scan.")
    return words[str(value).lower()]


def _said(annotated: Any) -> dict[str, str]:
    """Return what the request says of annotated slices, by scan; ``""`` stands for every scan."""
    said = annotated if isinstance(annotated, Mapping) else {"": annotated} if annotated else {}
    try:
        return {str(scan): checked_annotated(value) for scan, value in said.items()}
    except ValueError as error:
        refuse(f"params: {error}")


def _entry(annotation: Annotation, organs: Mapping[str, int], said: Mapping[str, str]) -> dict[str, Any]:
    """Describe an annotated scan to the inferer: names in its label info go before the values in its file."""
    names = {value: organ_name(name) for value, name in annotation.names.items()}
    wanted = {value: name for value, name in names.items() if name not in ("", "background")}
    missing = [annotation.names[value] for value, name in wanted.items() if name not in organs]
    return {
        IMAGE: annotation.image,
        LABEL: annotation.label,
        "ids": {str(value): organs[name] for value, name in wanted.items() if name in organs} if names else None,
        ANNOTATED: said.get(scan_name(annotation.image)) or said.get("") or annotation.annotated,
        "organs": {name: organs[name] for name in wanted.values() if name in organs},
        "left_out": missing,
        "stored_in": _folder_beside(Path(annotation.label)),
        "problem": annotation.problem,
        "unnamed": [name for name in annotation.names.values() if is_default_name(name)],
    }


def _folder_beside(label: Path) -> str | None:
    """Return where the scans of a datastore are kept encoded: beside its labels; ``None`` for a label of elsewhere."""
    in_store = label.parent.name == "final" and label.parents[1].name == "labels"
    return str(label.parents[2] / ENCODED) if in_store else None


class CarrySupportd(MapTransform):
    """Put what ``FindSupportd`` found into the image's meta, where the inferer sees it.

    Args:
        keys: The image, loaded.
    """

    def __init__(self, keys: KeysCollection) -> None:
        super().__init__(keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        """Return ``data`` with the support in its image's meta."""
        result = dict(data)
        carried = {key: value for key, value in ((SUPPORT, result.get(FOUND)), (NEXT, result.get(NEXT))) if value}
        if carried:
            for key in self.key_iterator(data):
                result[key] = MetaTensor(data[key], meta=dict(data[key].meta) | carried)
        return result
