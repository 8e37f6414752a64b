"""Organs of several files of prototypes: an organ is identified by its name, whatever its id in each file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import count


def unnamed(organ: int) -> str:
    """Return the name of an organ that has none of its own."""
    return f"organ_{organ}"


def common_names(files: Sequence[Mapping[str, int]], label_ids: Iterable[int] = ()) -> dict[str, int]:
    """Give each organ one name and one id.

    Args:
        files: Names and ids of the organs in each file.
        label_ids: Ids in label maps. Like unnamed organs of files, they are identified by the id.

    Returns:
        Names and ids, sorted by id: the first file's ids stay, and a name whose id is taken gets the next free one.

    Raises:
        ValueError: If an id of the label maps could mean several of the files' names.
    """
    named = [(name, organ) for organs in files for name, organ in organs.items() if name != unnamed(organ)]
    by_id = sorted(
        {*label_ids, *(organ for organs in files for name, organ in organs.items() if name == unnamed(organ))}
    )
    taken, names = {*by_id, *(organ for _, organ in named)}, dict[str, int]()
    for name, organ in named:
        if name not in names:
            names[name] = max(taken) + 1 if organ in names.values() else organ
            taken.add(names[name])
    for organ in by_id:
        meant = {name for name, value in named if value == organ}
        if len(meant) > 1:
            raise ValueError(
                f"id {organ} of the label maps may mean {' or '.join(sorted(meant))}: files of prototypes use it for "
                "each of them. Set organs, or name the organs when making the files."
            )
        if not meant:
            names[unnamed(organ)] = organ
    return dict(sorted(names.items(), key=lambda item: item[1]))


def names_of_labels(labels: Sequence[Mapping[int, str]], shown: Iterable[int]) -> dict[str, int]:
    """Return the names and ids of organs that the files of label maps state.

    Args:
        labels: The names of the ids in each label map; empty if its file states none.
        shown: Ids to name.

    Raises:
        ValueError: If label maps use one name for two ids, or two names for one id.
    """
    pairs = {(name, organ) for names in labels for organ, name in names.items() if organ in set(shown)}
    named = dict(sorted(pairs, key=lambda pair: pair[1]))
    if len(named) < len(pairs) or len(set(named.values())) < len(pairs):
        found = ", ".join(f"{name}: {organ}" for name, organ in sorted(pairs))
        raise ValueError(f"an organ must have one name and one id in all label maps, got {found}. Set organs.")
    return named


def new_ids(of_file: Mapping[str, int], wanted: Mapping[str, int]) -> dict[int, int]:
    """Return the new id of each organ of a file.

    A wanted organ gets the id of its name. An unnamed or unwanted organ keeps its id, unless another organ has it:
    then it gets a free one.

    Args:
        of_file: Names and ids of the organs in the file.
        wanted: Names and ids of the organs to segment.
    """
    given = {organ: wanted[name] for name, organ in of_file.items() if name in wanted}
    free = count(max([*of_file.values(), *wanted.values()]) + 1)
    for name, organ in of_file.items():
        if organ not in given:
            taken = set(given.values()) if name == unnamed(organ) else {*given.values(), *wanted.values()}
            given[organ] = next(free) if organ in taken else organ
    return given
