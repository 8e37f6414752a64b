"""What the answer's JSON says: the scans used, how their labels were taken, and a quality for each organ."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from bundle.inference.next_scan import Ranking
from bundle.keys import EXPLAINED, NOTICES, QUALITY
from bundle.monai_label.inferer import REPORT
from bundle.monai_label.organs import known_organs
from bundle.monai_label.support import NEXT
from bundle.transforms.masks import organ_ids_of
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

Data = dict[Hashable, Any]


class AnswerOfScoresd(MapTransform):
    """Write what the answer's JSON says to ``data["result"]``: the scans used and a quality for each organ.

    Quality is what ``AssessScoresd`` estimated, 0.5 to 1; ``None`` for an organ that was not found. Notices are
    sentences that say what makes a mask doubtful, by organ; those of the whole scan stand under ``scan``, those of the
    annotated scans under ``support``.
    ``explained`` is how similar the scan's body is to its nearest prototypes, in logits: a scan with a low one is
    unlike those that are annotated. ``annotated`` says for each scan how its label was taken, ``not_used`` why a scan
    was left out, ``left_out`` which of its organs were.

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
                answer = _answer(data[key]) if ranking is None else _order(ranking, data[key])
                result["result"] = dict(data.get("result") or {}) | answer
        return result


def _answer(scores: MetaTensor) -> dict[str, Any]:
    names = {organ: name for name, organ in known_organs().items()}
    estimates = zip(organ_ids_of(scores), scores.meta[QUALITY].tolist(), strict=True)
    report = scores.meta.get(REPORT) or {}
    notices = scores.meta.get(NOTICES, {})
    told = {names.get(organ, "scan" if organ == 0 else f"organ_{organ}"): n for organ, n in notices.items()}
    renamed = {names.get(int(organ), organ): name for organ, name in report.get("renamed", {}).items()}
    return {
        "support_used": list(report.get("annotated", {})),
        "quality": {names.get(organ, f"organ_{organ}"): round(q, 4) or None for organ, q in estimates},
        "notices": told | ({"support": report["notices"]} if report.get("notices") else {}),
        "explained": round(float(scores.meta[EXPLAINED].flatten()[0]), 4),
        "renamed": {entry: name for entry, name in renamed.items() if entry != name},
    } | _told_of_support(scores)


def _told_of_support(scores: MetaTensor) -> dict[str, Any]:
    report = scores.meta.get(REPORT) or {}
    return {key: report[key] for key in ("annotated", "not_used", "left_out") if report.get(key)}


def _order(ranking: Ranking, scores: MetaTensor) -> dict[str, Any]:
    named = [{"scan": name, "score": round(score, 4)} for name, score in ranking.scans]
    problems = {"not_ranked": ranking.problems} if ranking.problems else {}
    return {NEXT: named, "ranked_by": ranking.by} | problems | _told_of_support(scores)


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
