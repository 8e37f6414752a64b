"""The inferer of the server: annotated scans that cannot be used are left out by name, complaints are HTTP 409."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from bundle.data.names import scan_name
from bundle.inference.encoded_scans import AnnotatedScan
from bundle.inference.next_scan import ScanRanker
from bundle.inference.volume_inferer import VolumeInferer
from bundle.keys import IMAGE, ORGAN_IDS, SUPPORT
from bundle.monai_label.refusal import refuse
from bundle.monai_label.support import NEXT
from bundle.transforms.masks import plain
from monai.data import MetaTensor
from torch import Tensor

# In the meta of scores: what the answer says of the annotated scans.
REPORT = "support_report"


class AnsweringInferer(VolumeInferer):
    """``VolumeInferer`` for the requests of a server.

    An annotated scan that cannot be used is left out, and the answer says why; other complaints reach the client as
    one sentence (HTTP 409). A request with ``params.next_scan`` is answered with a ranking of the scans to annotate
    next, and an empty mask.

    Args:
        *args: As of ``VolumeInferer``.
        reader: A ``ScanDataset`` that reads scans without labels, for the ranking.
        num_components: Components that an organ may have, for the ranking; ``None``: as many as in the support.
        defaults: Annotated scans that the config names, to use if the server has none; any that is set will do.
        **kwargs: As of ``VolumeInferer``.
    """

    def __init__(
        self,
        *args: Any,
        reader: Any = None,
        num_components: int | None = None,
        defaults: Sequence[Any] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.has_default = any(bool(default) for default in defaults)
        self.ranker = ScanRanker(self, reader, num_components)

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> MetaTensor:
        """Score every organ; see ``VolumeInferer``."""
        meta = dict(getattr(inputs, "meta", {}))
        if SUPPORT not in meta and NEXT not in meta:
            return super().__call__(inputs, network, *args, **kwargs)
        usable, report = self._usable(meta.pop(SUPPORT, []), network, inputs.device)
        meta[REPORT] = report
        if usable:
            meta[SUPPORT] = usable
        elif NEXT not in meta and not self.has_default:
            refuse(_nothing_usable(report["not_used"]))
        try:
            if NEXT in meta:
                meta[NEXT] = self.ranker.rank(network, inputs.device, support=usable, **meta[NEXT])
                return MetaTensor(torch.full_like(plain(inputs), -1.0), meta=meta | {ORGAN_IDS: torch.ones(1, 1)})
            return super().__call__(MetaTensor(inputs, meta=meta), network, *args, **kwargs)
        except (ValueError, FileNotFoundError) as error:
            refuse(f"The scans cannot be ranked: {error}" if NEXT in meta else f"The scan cannot be segmented: {error}")

    def _usable(
        self, entries: Sequence[Mapping[str, Any]], network: Any, device: torch.device
    ) -> tuple[list[Mapping[str, Any]], dict[str, Any]]:
        """Return the annotated scans that can be used, and what the answer says of all of them."""
        usable = []
        report: dict[str, Any] = {"annotated": {}, "not_used": {}, "left_out": {}, "renamed": {}, "notices": []}
        for entry, known in zip(entries, self.library.tried(network, device, entries), strict=True):
            name, problem = scan_name(entry[IMAGE]), entry.get("problem") or _problem(known)
            if problem and entry.get("asked"):
                refuse(f"An annotated scan cannot be used: {problem}")
            if problem:
                report["not_used"][name] = problem
            else:
                usable.append(entry)
                _tell(report, name, entry, cast("AnnotatedScan", known))
        return usable, report


FINISHED = "its own label is finished, and the mask would only repeat it"


def _problem(known: AnnotatedScan | Exception) -> str:
    """Say why an annotated scan is not used; "" if it is."""
    if isinstance(known, Exception):
        return str(known)
    if known.encoded is None:
        return FINISHED
    if not list(known.encoded):
        return "its label map shows no organ that has a name here. Name its segments, or annotate one."
    return ""


def _nothing_usable(problems: Mapping[str, str]) -> str:
    if set(problems.values()) <= {FINISHED}:
        return "This is the only annotated scan, and it is finished. Ask for another scan, or annotate a second one."
    return "No annotated scan can be used: " + "; ".join(f"{name}: {problem}" for name, problem in problems.items())


def _tell(report: dict[str, Any], name: str, entry: Mapping[str, Any], known: AnnotatedScan) -> None:
    """Add a scan to the report: how its label was taken, and which of its organs have no part in the mask."""
    report["annotated"][name] = str(known.taken)
    if left_out := [*entry.get("left_out", []), *(f"value {value}" for value in known.left_out)]:
        report["left_out"][name] = left_out
    report["renamed"] |= {str(organ): organ_name for organ_name, organ in (entry.get("organs") or {}).items()}
    if unnamed := entry.get("unnamed"):
        report["notices"].append(
            f"{name}: {', '.join(unnamed)} is a name that Slicer gave. Name the segment after its organ; segments of "
            "equal names are taken for one organ in all scans."
        )
