"""Which masks to check first: quality and notices of predicted masks, as columns of a table and as a closing line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from bundle.data.names import scan_name
from bundle.keys import LEAST_CONFIDENT, NOTICES, ORGAN_IDS, QUALITY

# The id of notices about the whole scan.
SCAN = 0

# Scans that the closing line names.
SHOWN = 3


def doubts_of(mask: Any, organs: Mapping[str, int]) -> dict[str, list[str]]:
    """Return quality and notices of each organ as cells of a table; "" where there are none.

    Args:
        mask: A predicted label map whose meta may hold ``quality``, ``organ_ids`` and ``notices``.
        organs: Names and ids.
    """
    meta = getattr(mask, "meta", {})
    quality: dict[int, float] = {}
    if QUALITY in meta and ORGAN_IDS in meta:
        ids, values = (torch.as_tensor(meta[key]).flatten().tolist() for key in (ORGAN_IDS, QUALITY))
        quality = {int(organ): value for organ, value in zip(ids, values, strict=True)}
    notices: Mapping[int, list[str]] = meta.get(NOTICES) or {}
    return {
        name: [
            f"{quality[organ]:.4f}" if organ in quality else "",
            "; ".join([*notices.get(SCAN, []), *notices.get(organ, [])]),
        ]
        for name, organ in organs.items()
    }


def quality_path(folder: Path, name: str) -> Path:
    """Return where quality, notices and places of a scan are kept: ``{organ: [quality, notices, place if any]}``."""
    return folder / "quality" / f"{name}.json"


def least_confident_places(mask: Any, organs: Mapping[str, int]) -> dict[str, list[float]]:
    """Return each organ's slice of the lowest confidence: a point in it, RAS, mm, and the confidence.

    Args:
        mask: A predicted label map whose meta may hold ``least_confident`` and ``organ_ids``.
        organs: Names and ids.
    """
    meta = getattr(mask, "meta", {})
    if LEAST_CONFIDENT not in meta:
        return {}
    ids, places = (torch.as_tensor(meta[key]).tolist() for key in (ORGAN_IDS, LEAST_CONFIDENT))
    known = {organ: place for organ, place in zip(ids, places, strict=True) if not math.isnan(place[3])}
    return {name: known[organ] for name, organ in organs.items() if organ in known}


def least_confident(mask: Any, organs: Mapping[str, int], most: int = 12) -> dict[str, int]:
    """Return the organs to draw of a predicted label map: all of them, or those of the lowest quality of very many.

    Args:
        mask: As for ``doubts_of``.
        organs: Names and ids; the result keeps their order.
        most: How many to return at most.
    """
    quality = {name: float(told[0] or 1) for name, told in doubts_of(mask, organs).items()}
    chosen = sorted(organs, key=quality.__getitem__)[:most]
    return {name: organ for name, organ in organs.items() if name in chosen}


def closing_line(folder: Path, rows: Sequence[Sequence[str]]) -> str:
    """Return a line with the number of masks, their folder, and which to check first.

    Args:
        folder: Folder of the masks.
        rows: Rows of the table: scan, organ, voxels, milliliters, quality, notice.
    """
    doubtful: dict[str, int] = {}
    worst: dict[str, float] = {}
    for scan, _, _, _, quality, notice in rows:
        doubtful[scan] = doubtful.get(scan, 0) + bool(notice)
        worst[scan] = min(worst.get(scan, 1.0), float(quality or 1))
    first = sorted(doubtful, key=lambda scan: (-doubtful[scan], worst[scan]))[:SHOWN]
    number = sum(count > 0 for count in doubtful.values())
    noticed = f"{number} with a notice" if number else "none with a notice"
    masks = "1 mask" if len(doubtful) == 1 else f"{len(doubtful)} masks"
    return f"{masks} in {folder}, {noticed} (volumes.csv). Look first at {', '.join(first)}."


def leftover_lines(folder: Path, scans: Sequence[str]) -> list[str]:
    """Return a line about masks of an earlier run, whose scans this run does not segment; none if there are none.

    A mask that was corrected and put beside the labels leaves its old form so: its scan is annotated now.

    Args:
        folder: Folder of the masks.
        scans: Names of the scans of this run.
    """
    names = {scan_name(path) for path in folder.glob("*.nii.gz") if not path.name.startswith(".")}
    if not (left := sorted(names - set(scans))):
        return []
    named = ", ".join(left[:SHOWN]) + (f" and {len(left) - SHOWN} more" if len(left) > SHOWN else "")
    masks = "1 other mask" if len(left) == 1 else f"{len(left)} other masks"
    return [f"{folder} also holds {masks} of an earlier run, of scans that are annotated now or gone: {named}."]
