"""Colors of organs as viewers usually show them."""

from __future__ import annotations

from collections.abc import Mapping

from bundle.evaluation.visuals import COLORS

Color = tuple[int, int, int]

# Colors that viewers usually give to organs; a name that has one of these words gets its color.
ANATOMY: dict[str, Color] = {
    "liver": (221, 130, 101),
    "spleen": (157, 108, 162),
    "kidney": (185, 102, 83),
    "pancreas": (249, 180, 111),
    "stomach": (216, 132, 105),
    "gallbladder": (139, 150, 98),
    "aorta": (224, 97, 76),
    "esophagus": (211, 171, 143),
    "lung": (197, 165, 145),
    "heart": (206, 110, 84),
    "bladder": (222, 154, 132),
    "prostate": (230, 158, 140),
    "brain": (250, 250, 225),
}


def organ_colors(organs: Mapping[str, int]) -> dict[str, Color]:
    """Return a color for each organ: its usual one, or one of the pictures' in the order of the organs."""
    return {name: ANATOMY.get(usual_name(name), COLORS[number % len(COLORS)]) for number, name in enumerate(organs)}


def usual_name(name: str) -> str:
    """Return the word of ``ANATOMY`` that an organ's name has, such as ``kidney`` of "left kidney"; "" if none."""
    return next((word for word in ANATOMY if word in name.lower()), "")
