"""Pictures: slices with masks drawn on them. Everything is ``(rows, columns, 3)`` uint8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bundle.files import written_whole
from bundle.keys import IMAGE, LABEL, SUPPORT_IMAGE, SUPPORT_MASK
from PIL import Image, ImageDraw, ImageFont
from skimage.segmentation import find_boundaries

# Colors of the organs, in their order; they repeat if there are more organs.
COLORS = [
    (230, 75, 53),
    (77, 187, 213),
    (0, 160, 135),
    (255, 200, 40),
    (132, 110, 220),
    (145, 209, 194),
    (243, 155, 127),
    (126, 97, 72),
]

Picture = np.ndarray


def to_gray(image: Any) -> Picture:
    """Turn a slice ``(H, W)`` of any range into a gray picture; the lowest and highest 0.5 % are clipped."""
    pixels = np.asarray(image, dtype=float)
    low, high = np.percentile(pixels, [0.5, 99.5])
    gray = np.clip((pixels - low) / max(high - low, 1e-6), 0, 1) * 255
    return np.repeat(gray.astype(np.uint8)[..., None], 3, axis=2)


def overlay(picture: Picture, mask: Any, color: Sequence[int], opacity: float = 0.35) -> Picture:
    """Draw a mask ``(H, W)`` on a picture: tinted inside, with a solid rim."""
    inside = np.asarray(mask).astype(bool)
    drawn = picture.astype(float)
    drawn[inside] = (1 - opacity) * drawn[inside] + opacity * np.array(color)
    drawn[find_boundaries(inside, mode="inner")] = color
    return drawn.astype(np.uint8)


def overlay_label(image: Any, label: Any, ids: Sequence[int]) -> Picture:
    """Draw a label map ``(H, W)`` on its slice, each organ in the color of its place in ``ids``."""
    picture = to_gray(image)
    for number, organ in enumerate(ids):
        picture = overlay(picture, np.asarray(label) == organ, COLORS[number % len(COLORS)])
    return picture


def enlarged(picture: Picture, least: int = 256) -> Picture:
    """Repeat the pixels of a small picture until it is at least ``least`` wide."""
    factor = max(1, -(-least // picture.shape[1]))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def caption(picture: Picture, text: str) -> Picture:
    """Put a line of text above a picture."""
    bar = Image.new("RGB", (picture.shape[1], 16))
    ImageDraw.Draw(bar).text((4, 2), text, fill=(255, 255, 255))
    return np.concatenate([np.asarray(bar), picture])


def legend(width: int, colors: Mapping[str, Sequence[int]]) -> Picture:
    """Draw names beside squares of their colors, in as many lines as it takes: ``(rows, width, 3)``."""
    font, line, left = ImageFont.load_default(), 0, 4
    places = []
    for name, color in colors.items():
        needed = 20 + round(font.getlength(name))
        if left > 4 and left + needed > width:
            line, left = line + 1, 4
        places.append((left, 2 + 16 * line, name, tuple(color)))
        left += needed + 12
    bar = Image.new("RGB", (width, 4 + 16 * (line + 1)))
    draw = ImageDraw.Draw(bar)
    for x, y, name, fill in places:
        draw.rectangle((x, y + 3, x + 9, y + 12), fill=fill)
        draw.text((x + 16, y + 1), name, fill=(255, 255, 255), font=font)
    return np.asarray(bar)


def side_by_side(pictures: Sequence[Picture], gap: int = 4) -> Picture:
    """Join pictures of the same height."""
    space = np.full((pictures[0].shape[0], gap, 3), 255, dtype=np.uint8)
    return np.concatenate([part for picture in pictures for part in (picture, space)][:-1], axis=1)


def stacked(rows: Sequence[Picture], gap: int = 4) -> Picture:
    """Join pictures of the same width, one below the other."""
    space = np.full((gap, rows[0].shape[1], 3), 255, dtype=np.uint8)
    return np.concatenate([part for row in rows for part in (row, space)][:-1])


def episode_picture(episode: Mapping[str, Any], prediction: Any) -> Picture:
    """Draw a training episode: first support with its pseudo-label, query with truth, query with prediction."""
    support = to_gray(episode[SUPPORT_IMAGE][0, 0])
    query = to_gray(episode[IMAGE][0])
    return side_by_side(
        [
            overlay(support, episode[SUPPORT_MASK][0, 0], COLORS[0]),
            overlay(query, episode[LABEL][0], COLORS[0]),
            overlay(query, prediction, COLORS[1]),
        ]
    )


def save_png(picture: Picture, path: Path) -> None:
    """Write a picture whole or not at all."""
    with written_whole(path) as unfinished:
        Image.fromarray(picture).save(unfinished, format="PNG")
