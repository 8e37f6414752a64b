"""Organs of several files of prototypes: equal names are one organ, other names are others, whatever their ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import count


def unnamed(organ: int) -> str:
    """Return how an organ without a name is called."""
    return f"organ_{organ}"


def common_names(files: Sequence[Mapping[str, int]], label_ids: Iterable[int] = ()) -> dict[str, int]:
    """Give each organ one name and one id.

    Args:
        files: Names and ids of the organs in each file.
        label_ids: Ids in label maps. They have no names, as some organs of files: the id tells which organ it is.

    Returns:
        Names and ids, by id: the first file's ids stay, a name that finds its id taken gets the next free one.

    Raises:
        ValueError: If several names of the files could be meant by an id of the label maps.
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
                f"id {organ} of the label maps may be {' or '.join(sorted(meant))}: files of prototypes give it to "
                "each of them. Give organs, or name the organs when the files are made."
            )
        if not meant:
            names[unnamed(organ)] = organ
    return dict(sorted(names.items(), key=lambda item: item[1]))


def names_of_labels(labels: Sequence[Mapping[int, str]], shown: Iterable[int]) -> dict[str, int]:
    """Return the names and ids of organs that the files of label maps tell.

    Args:
        labels: The names of the ids in each label map; empty where its file tells none.
        shown: Ids to name.

    Raises:
        ValueError: If label maps give one name to two ids, or two names to one.
    """
    pairs = {(name, organ) for names in labels for organ, name in names.items() if organ in set(shown)}
    named = dict(sorted(pairs, key=lambda pair: pair[1]))
    if len(named) < len(pairs) or len(set(named.values())) < len(pairs):
        told = ", ".join(f"{name}: {organ}" for name, organ in sorted(pairs))
        raise ValueError(f"an organ must have one name and one id in all label maps, got {told}. Set organs.")
    return named


def new_ids(of_file: Mapping[str, int], wanted: Mapping[str, int]) -> dict[int, int]:
    """Return which id each organ of a file gets.

    An organ gets the id that its name is wanted with. One without a name keeps its id, and so does one that is not
    wanted, unless another organ has it: then it gets one that nobody has.

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
