"""Organs by name: those of the metadata, and those that annotators invent, which take its spare entries for good."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping

from bundle.root import bundle_root

METADATA = bundle_root() / "configs" / "metadata.json"

# What the metadata's entries for organs of one's own begin with.
SPARE = "structure_"


def known_organs() -> dict[str, int]:
    """Return the names and ids of the organs that the server offers, from the metadata."""
    channels = json.loads(METADATA.read_text(encoding="utf-8"))["network_data_format"]["outputs"]["pred"]["channel_def"]
    return {organ_name(name): int(organ) for organ, name in channels.items() if name.lower() != "background"}


def organ_name(name: str) -> str:
    """Return a name as it is compared: "Right Kidney", "right-kidney" and "right_kidney " are one organ."""
    return re.sub(r"[\W_]+", "_", name.lower()).strip("_")


def is_default_name(name: str) -> bool:
    """Tell whether 3D Slicer gave a segment its name, as ``Segment_1``: nobody said what it is."""
    return re.fullmatch(r"segment(_?\d+)?", organ_name(name)) is not None


def merged_entries(remembered: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Put together which entries organs were given; of two organs with the same one the first keeps it."""
    given: dict[str, int] = {}
    for entries in remembered:
        for name, organ in entries.items():
            if name not in given and organ not in given.values():
                given[name] = organ
    return given


def with_new_entries(given: Mapping[str, int], names: Iterable[str]) -> dict[str, int]:
    """Give spare entries to organs that have none.

    Args:
        given: Ids of the spare entries that were given before, by name.
        names: Names of organs in the annotated scans, in the order of their annotation.

    Returns:
        All that are given now. An organ for which no entry is left is not among them. A spare entry whose own name
        is used for an organ, such as ``structure_2``, belongs to that one.
    """
    known, names = known_organs(), list(names)
    spare = [organ for name, organ in known.items() if name.startswith(SPARE) and name not in names]
    result = dict(given)
    for name in names:
        free = [organ for organ in spare if organ not in result.values()]
        if name not in known and name not in result and name not in ("background", "") and free:
            result[name] = free[0]
    return result
