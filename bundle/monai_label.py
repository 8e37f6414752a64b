"""MONAI Label: where a request finds its annotated scans, and what its answer tells.

The stock ``monaibundle`` app runs this bundle's ``preprocessing``, ``inferer`` and ``postprocessing`` for each request
(docs/monai_label.md). Outside of that server everything here stands aside.
"""

from __future__ import annotations

import json
import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

import nibabel
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

from bundle.data.scans import IMAGE_SUFFIXES, scan_name
from bundle.inference.next_scan import Ranking, ScanRanker
from bundle.inference.volume_inferer import VolumeInferer
from bundle.keys import EXPLAINED, IMAGE, LABEL, NOTICES, ORGAN_IDS, QUALITY, SUPPORT
from bundle.root import bundle_root
from bundle.transforms.masks import organ_ids_of, plain

# The server's parts, where it runs: imported here and not in a call, because it takes the bundle off the path again.
try:
    from fastapi import HTTPException
    from monailabel.interfaces.utils.app import app_instance
except ImportError:
    HTTPException = app_instance = None

Data = dict[Hashable, Any]

METADATA = bundle_root() / "configs" / "metadata.json"
FOUND = "support_scans"
NEXT = "next_scan"


@dataclass(frozen=True)
class Annotation:
    """A scan of the server with its label map.

    Attributes:
        image: The scan's file.
        label: The label map's file.
        names: Names of the values in the label map, as Slicer submits them; empty if it did not.
    """

    image: str
    label: str
    names: Mapping[int, str]


class FindSupportd(MapTransform):
    """Find the annotated scans of a request, before its image is loaded.

    In this order: ``params.support`` of the request; a drawing on this very scan, sent with the request or submitted
    before; the labels that were submitted for other scans. A drawing is a label map of few slices (``is_drawing``): a
    finished label of the scan that is asked for is never used, or the answer would only repeat it.

    Args:
        keys: The image.
        defaults: Annotated scans that the config names, to use if the server has none; any that is set will do.
        roots: Folders, besides the server's studies, that ``params.support`` may name files of.
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
        known = submitted_annotations()
        if data.get(NEXT):
            spare = spare_organs(known)
            result[NEXT] = {
                "scans": _all_scans(),
                "support": [_entry(a, spare) for a in known],
                "has_support": self.has_default,
            }
            return result
        if data.get(SUPPORT):
            result[FOUND] = self._named(data[SUPPORT])
        else:
            result[FOUND] = _found(str(data["image_path"]), data.get(LABEL), known)
        result.pop(LABEL, None)
        result.pop(SUPPORT, None)
        if not result[FOUND] and not self.has_default:
            refuse(
                "This is the only annotated scan, and it is finished. Ask for another scan, or annotate a second one."
                if known
                else "No scan is annotated yet: label the organs in one scan and press Submit Label, "
                "then all other scans can be segmented."
            )
        return result

    def _named(self, support: Any) -> list[dict[str, Any]]:
        entries = [support] if isinstance(support, Mapping) else support
        if not isinstance(entries, list) or not all(
            isinstance(entry, Mapping) and {IMAGE, LABEL} <= set(entry) for entry in entries
        ):
            refuse("params.support must be a list of {image, label} with paths of files on the server.")
        for entry in entries:
            for key in (IMAGE, LABEL):
                self._check_path(key, str(entry[key]))
        return [{IMAGE: str(entry[IMAGE]), LABEL: str(entry[LABEL]), "ids": None} for entry in entries]

    def _check_path(self, key: str, path: str) -> None:
        studies = os.environ.get("MONAI_LABEL_STUDIES")
        roots = self.roots + ([Path(studies).resolve()] if studies else [])
        if not any(Path(path).resolve().is_relative_to(root) for root in roots):
            refuse(f"params.support names the {key} {path}, which does not lie in the studies folder.")
        if not Path(path).is_file():
            refuse(f"params.support names the {key} {path}, which does not exist.")


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


class AnsweringInferer(VolumeInferer):
    """``VolumeInferer`` whose complaints about a server's annotated scans reach the client as a sentence (HTTP 409).

    A request with ``params.next_scan`` is answered with a ranking of the scans to annotate next, and an empty mask.

    Args:
        *args: As of ``VolumeInferer``.
        reader: A ``ScanDataset`` that reads scans without labels, for the ranking.
        num_components: Components that an organ may have, for the ranking; ``None``: as many as in the support.
        **kwargs: As of ``VolumeInferer``.
    """

    def __init__(self, *args: Any, reader: Any = None, num_components: int | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ranker = ScanRanker(self, reader, num_components)

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> MetaTensor:
        """Score every organ; see ``VolumeInferer``."""
        meta = dict(getattr(inputs, "meta", {}))
        try:
            if meta.get(NEXT):
                meta[NEXT] = self.ranker.rank(network, inputs.device, **meta[NEXT])
                return MetaTensor(torch.full_like(plain(inputs), -1.0), meta=meta | {ORGAN_IDS: torch.ones(1, 1)})
            return super().__call__(inputs, network, *args, **kwargs)
        except (ValueError, FileNotFoundError) as error:
            if meta.get(NEXT):
                refuse(f"The scans cannot be ranked: {error}")
            if SUPPORT not in meta:
                raise
            refuse(f"An annotated scan cannot be used: {error}")


class AnswerOfScoresd(MapTransform):
    """Write what the answer's JSON tells to ``data["result"]``: the scans used and a quality per organ.

    Quality is what ``AssessScoresd`` estimated, 0.5 to 1; ``None`` for an organ that was not found. Notices are
    sentences that say what makes a mask doubtful, by organ; those of the whole scan stand under ``scan``.
    ``explained`` is how similar the scan's body is to its nearest prototypes, in logits: a scan with a low one is
    unlike those that are annotated.

    Args:
        keys: Scores of ``VolumeInferer``, before they become a label map.
    """

    def __init__(self, keys: KeysCollection) -> None:
        super().__init__(keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        """Return ``data`` with the answer, if it is a request of the server."""
        result = dict(data)
        if "image_path" in data:
            for key in self.key_iterator(data):
                ranking = data[key].meta.get(NEXT)
                answer = _answer(data[key], data.get(FOUND) or []) if ranking is None else _order(ranking)
                result["result"] = dict(data.get("result") or {}) | answer
        return result


def _answer(scores: MetaTensor, found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = {organ: name for name, organ in known_organs().items()}
    notices = scores.meta.get(NOTICES, {})
    estimates = zip(organ_ids_of(scores), scores.meta[QUALITY].tolist(), strict=True)
    return {
        "support_used": [scan_name(str(entry[IMAGE])) for entry in found],
        "quality": {names.get(organ, f"organ_{organ}"): round(q, 4) or None for organ, q in estimates},
        "notices": {names.get(organ, "scan" if organ == 0 else f"organ_{organ}"): n for organ, n in notices.items()},
        "explained": round(float(scores.meta[EXPLAINED].flatten()[0]), 4),
        "renamed": {names.get(v, str(v)): k for entry in found for k, v in (entry.get("renamed") or {}).items()},
    }


def _order(ranking: Ranking) -> dict[str, Any]:
    named = [{"scan": name, "score": round(score, 4)} for name, score in ranking.scans]
    return {NEXT: named, "ranked_by": ranking.by} | ({"not_ranked": ranking.problems} if ranking.problems else {})


class AnswerOfLabeld(MapTransform):
    """Write the voxels of each organ to ``data["result"]``.

    Args:
        keys: The label map, on the grid of the scan's file.
    """

    def __init__(self, keys: KeysCollection) -> None:
        super().__init__(keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        """Return ``data`` with the voxels in the answer, if it is a request of the server."""
        result = dict(data)
        answer = dict(data.get("result") or {})
        if "image_path" in data:
            organs = known_organs()
            for key in self.key_iterator(data):
                voxels = {
                    name: int((data[key] == organs[name]).sum()) for name in answer.get("quality", {}) if name in organs
                }
                result["result"] = answer | {"voxels": voxels}
        return result


def known_organs() -> dict[str, int]:
    """Return the names and ids of the organs that the server offers, from the metadata."""
    channels = json.loads(METADATA.read_text(encoding="utf-8"))["network_data_format"]["outputs"]["pred"]["channel_def"]
    return {name.lower(): int(organ) for organ, name in channels.items() if name.lower() != "background"}


def is_drawing(label: np.ndarray) -> bool:
    """Tell whether a label map is a drawing on single slices, and no finished label of a scan.

    It is one if at most three slices are annotated along some axis, or fewer slices than there are gaps between them.

    Args:
        label: Organ ids, three axes.
    """
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        slices = np.flatnonzero((label != 0).any(axis=others))
        if len(slices) and (len(slices) <= 3 or 2 * len(slices) <= slices[-1] - slices[0] + 1):
            return True
    return False


def _found(query: str, sent: Any, known: Sequence[Annotation]) -> list[dict[str, Any]]:
    """Return the drawing on this very scan (what came with the request, or else was submitted), then all others."""
    is_own = [Path(a.image).exists() and Path(a.image).samefile(query) for a in known]
    own = [a for a, is_query in zip(known, is_own, strict=True) if is_query]
    others = [a for a, is_query in zip(known, is_own, strict=True) if not is_query]
    drawings = [Annotation(query, str(sent), {})] if sent else own
    spare = spare_organs(known)
    drawn = [_entry(a, spare) | {"partial": True} for a in drawings if is_drawing(_label_array(a.label))]
    return drawn + [_entry(a, spare) for a in others]


def _label_array(path: str) -> np.ndarray:
    try:
        return np.squeeze(np.asarray(cast("nibabel.Nifti1Image", nibabel.load(path)).dataobj))
    except (OSError, EOFError, nibabel.filebasedimages.ImageFileError):
        # Other formats are read where all support is; whether it is a drawing is not known before.
        return np.zeros((1, 1, 1))


def _entry(annotation: Annotation, spare: Mapping[str, int]) -> dict[str, Any]:
    """Describe an annotated scan to the inferer: names in its label info go before the values in its file."""
    if not annotation.names:
        return {IMAGE: annotation.image, LABEL: annotation.label, "ids": None}
    organs = {**known_organs(), **spare}
    ids = {str(value): organs[name] for value, name in annotation.names.items() if name in organs}
    renamed = {name: organ for name, organ in spare.items() if name in annotation.names.values()}
    return {IMAGE: annotation.image, LABEL: annotation.label, "ids": ids, "renamed": renamed}


def spare_organs(annotations: Sequence[Annotation]) -> dict[str, int]:
    """Give the metadata's spare entries (``structure_1`` ...) to names that it does not have, in alphabetical order."""
    organs = known_organs()
    invented = sorted({name for a in annotations for name in a.names.values()} - set(organs) - {"background"})
    spare = [organ for name, organ in organs.items() if name.startswith("structure_")]
    return dict(zip(invented, spare, strict=False))


def submitted_annotations() -> list[Annotation]:
    """Return the finished labels that the server's datastore holds, by name of their scan."""
    if app_instance is not None:
        store = app_instance().datastore()
        found = []
        for image_id in sorted(store.get_labeled_images("final")):
            info = (store.get_label_info(image_id, "final") or {}).get("label_info") or []
            names = {int(item["idx"]): str(item["name"]).lower() for item in info if "idx" in item and "name" in item}
            label = str(store.get_label_uri(image_id, "final"))
            if Path(label).is_file():
                found.append(Annotation(str(store.get_image_uri(image_id)), label, names))
        return found
    studies = os.environ.get("MONAI_LABEL_STUDIES")
    return _labels_of_folder(Path(studies)) if studies else []


def _labels_of_folder(studies: Path) -> list[Annotation]:
    labels = {scan_name(path): path for path in (studies / "labels" / "final").glob("*") if path.is_file()}
    images = {scan_name(path): path for path in _scans_of_folder(studies)}
    return [Annotation(str(images[name]), str(labels[name]), {}) for name in sorted(set(images) & set(labels))]


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


def _scans_of_folder(studies: Path) -> list[Path]:
    return sorted(path for path in studies.glob("*") if path.name.lower().endswith(IMAGE_SUFFIXES))


def _all_scans() -> list[str]:
    """Return every scan of the server."""
    if app_instance is not None:
        store = app_instance().datastore()
        return [str(store.get_image_uri(image_id)) for image_id in sorted(store.list_images())]
    return [scan[IMAGE] for scan in unlabeled_scans(os.environ.get("MONAI_LABEL_STUDIES"))]


def unlabeled_scans(studies: str | None) -> list[dict[str, str]]:
    """Return every scan of the server's studies, for training: it hands over the annotated ones only."""
    return [{IMAGE: str(path)} for path in _scans_of_folder(Path(studies))] if studies else []


def refuse(sentence: str) -> NoReturn:
    """Answer a request with a sentence that a person understands, as HTTP 409.

    Raises:
        HTTPException: In the server.
        ValueError: Elsewhere.
    """
    raise ValueError(sentence) if HTTPException is None else HTTPException(status_code=409, detail=sentence)
