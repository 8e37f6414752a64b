"""The page of an inference: one HTML file with everything within, the scans in the order to look at them.

volumes.csv + masks + scans  ->  table of all scans, contours on slices of those to look at first  ->  index.html
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from bundle import distributed
from bundle.data.reader import ScanReader
from bundle.evaluation.doubts import quality_path
from bundle.evaluation.visuals import COLORS, to_gray
from bundle.files import read_csv, read_json, written_whole
from bundle.inference.resume import Resumption
from bundle.inference.volume_inferer import VolumeInferer
from ignite.engine import Engine, Events
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from monai.data import MetaTensor
from monai.transforms import LoadImage, Orientation
from pandas import DataFrame, Series
from PIL import Image, ImageDraw, ImageFont
from skimage.segmentation import find_boundaries

Color = tuple[int, int, int]

# Rows to the back, columns to the patient's left, slices up: as radiologists look at them.
AXIAL = "PLS"

# Pixels of a picture.
WIDTH = 288

# Organs of a scan that get a picture, and organs that get a column: of 117 organs the page stays one to look at.
MOST_ORGANS = 12

# Scans from which on a volume can be unusual among them.
LEAST_COHORT = 8

# Interquartile ranges beyond the quartiles, from which on a volume is unusual (Tukey).
FENCE = 1.5


class Slice(NamedTuple):
    """A slice with an organ's contour: its number, a data URI, and what it shows."""

    number: int
    data: str
    text: str


class Picture(NamedTuple):
    """An organ of a scan: its color, and slices with its contour."""

    organ: str
    color: str
    text: str
    slices: list[Slice]


class SavePage:
    """Write the page when an inference is done; the first process does it for all.

    Args:
        folder: Of the masks and ``volumes.csv``.
        path: The page.
        inferer: Knows the organs.
        resumption: Knows the files of the scans.
        shown: How many scans get pictures: those to look at first.
    """

    def __init__(
        self, folder: str | Path, path: str | Path, inferer: VolumeInferer, resumption: Resumption, shown: int = 20
    ) -> None:
        self.folder, self.path = Path(folder), Path(path)
        self.inferer, self.resumption, self.shown = inferer, resumption, shown

    def attach(self, engine: Engine) -> None:
        """Wait for the end; the table must be written before."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the page, if there is any mask."""
        if distributed.is_first() and (self.folder / "volumes.csv").is_file():
            write_page(self.path, self.folder, self.inferer.organ_names(), self.resumption.images, self.shown)


def write_page(path: Path, folder: Path, organs: Mapping[str, int], images: Mapping[str, str], shown: int = 20) -> None:
    """Write the page of a folder of masks. Same input, same bytes.

    Args:
        path: The page.
        folder: Of the masks and ``volumes.csv``.
        organs: Names and ids.
        images: The file of each scan, by the name of its mask.
        shown: How many scans get pictures.
    """
    header, *rows = read_csv(folder / "volumes.csv")
    table = DataFrame(rows, columns=header)
    table["ml"], table["q"] = table["milliliters"].astype(float), _numbers(table["quality"])
    bounds = {organ: _bounds(volumes) for organ, volumes in table.groupby("organ")["ml"]}
    told = zip(table["organ"], table["ml"], table["notice"], strict=True)
    table["reason"] = [_reason(ml, notice, bounds[organ]) for organ, ml, notice in told]
    scans = sorted((_told(name, of_scan) for name, of_scan in table.groupby("scan", sort=False)), key=_urgency)
    for scan in scans[:shown]:
        if scan["name"] in images:
            scan["pictures"], scan["left_out"] = _pictures(scan, table, organs, images, folder)
    page = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)
    html = page.get_template("inference_page.html.j2").render(
        title="Masks to look at",
        scans=scans,
        doubtful=sum(bool(scan["reasons"]) for scan in scans),
        columns=list(organs) if len(organs) <= MOST_ORGANS else [],
        legend=[{"name": name, "color": _css(color)} for name, color in _colors(organs).items()],
    )
    with written_whole(path) as unfinished:
        unfinished.write_text(html + "\n", encoding="utf-8", newline="\n")


def _numbers(column: Any) -> Any:
    return column.replace("", "nan").astype(float)


def _bounds(volumes: Series) -> tuple[float, float] | None:
    """Return between which volumes, ml, an organ is usual among the scans; ``None`` if there are too few."""
    if len(volumes) < LEAST_COHORT:
        return None
    low, high = volumes.quantile([0.25, 0.75])
    return low - FENCE * (high - low), high + FENCE * (high - low)


def _reason(ml: float, notice: str, bounds: tuple[float, float] | None) -> str:
    """Return what makes an organ of a scan worth a look, ``""`` if nothing does."""
    unusual = bounds is not None and not bounds[0] <= ml <= bounds[1]
    return "; ".join(filter(None, [notice, f"unusual volume of {ml:.1f} ml" if unusual else ""]))


def _told(name: Any, rows: DataFrame) -> dict[str, Any]:
    """Return what the page says of a scan."""
    lowest = rows["q"].min()
    return {
        "name": str(name),
        "anchor": f"scan-{rows.index[0]}",
        "reasons": [
            f"{organ}: {reason}" for organ, reason in zip(rows["organ"], rows["reason"], strict=True) if reason
        ],
        "milliliters": {organ: f"{ml:.1f}" for organ, ml in zip(rows["organ"], rows["ml"], strict=True)},
        "lowest": "" if np.isnan(lowest) else f"{100 * lowest:.0f}",
        "quality": 1.0 if np.isnan(lowest) else lowest,
        "pictures": [],
        "left_out": 0,
    }


def _urgency(scan: Mapping[str, Any]) -> tuple[int, float]:
    return -len(scan["reasons"]), scan["quality"]


def _pictures(
    scan: Mapping[str, Any], table: DataFrame, organs: Mapping[str, int], images: Mapping[str, str], folder: Path
) -> tuple[list[Picture], int]:
    """Draw the organs of a scan, those of the lowest quality if there are many; also count the ones left out."""
    image, label = _axial(images[scan["name"]]), _axial(folder / f"{scan['name']}.nii.gz")
    found = set(np.unique(label.numpy()).astype(int))
    rows = table[(table["scan"] == scan["name"]) & table["organ"].map(lambda name: organs.get(name) in found)]
    chosen = rows.nsmallest(MOST_ORGANS, "q", keep="first") if len(rows) > MOST_ORGANS else rows
    colors, places = _colors(organs), _places(folder, scan["name"])
    pictures = []
    for name, text in zip(chosen["organ"], (_caption(row) for _, row in chosen.iterrows()), strict=True):
        slices = _slices(image, label, organs[name], colors[name], places.get(name))
        pictures.append(Picture(name, _css(colors[name]), text, slices))
    return pictures, len(rows) - len(chosen)


def _places(folder: Path, scan: str) -> dict[str, list[float]]:
    """Return the places of the lowest confidence of a scan's organs, those that are known."""
    path = quality_path(folder, scan)
    kept = read_json(path, "Remove it and the scan's mask, and rerun the command.") if path.is_file() else {}
    return {organ: told[2] for organ, told in kept.items() if len(told) > 2}


def _caption(row: Any) -> str:
    quality = "" if np.isnan(row["q"]) else f", quality {100 * row['q']:.0f}"
    return f"{row['ml']:.1f} ml{quality}{'; ' if row['reason'] else ''}{row['reason']}"


@cache
def _loader() -> LoadImage:
    return LoadImage(reader=ScanReader(), image_only=True)  # looks for all readers there are, once


def _axial(path: str | Path) -> MetaTensor:
    """Load a volume ``(H, W, Z)`` with rows, columns and slices as radiologists look at them."""
    loaded = _loader()(path)
    turned = Orientation(axcodes=AXIAL, labels=None)(loaded[None])
    assert isinstance(turned, MetaTensor)
    return turned[0]  # type: ignore[return-value]


def _slices(
    image: MetaTensor, label: MetaTensor, organ: int, color: Color, place: Sequence[float] | None
) -> list[Slice]:
    """Draw an organ's contour on three of its slices, after a quarter, a half and three quarters of them.

    The slice of the lowest confidence comes besides, if its place and confidence are known.
    """
    inside = label.numpy() == organ
    shown = np.flatnonzero(inside.any(axis=(0, 1)))
    texts = {int(shown[int(part * (len(shown) - 1))]): "" for part in (0.25, 0.5, 0.75)}
    if place is not None:
        z = round(float(np.linalg.solve(np.asarray(label.affine), [*place[:3], 1.0])[2]))
        if 0 <= z < inside.shape[2]:
            texts[z] = f", least confident: {100 * place[3]:.0f}"
    height, width = image.shape[0] * float(image.pixdim[0]), image.shape[1] * float(image.pixdim[1])
    size = (WIDTH, max(16, round(WIDTH * height / width)))
    return [
        Slice(z, _drawn(image[..., z].numpy(), inside[..., z], size, color), text) for z, text in sorted(texts.items())
    ]


def _drawn(pixels: np.ndarray, inside: np.ndarray, size: tuple[int, int], color: Color) -> str:
    """Return a slice with a contour and marks of the patient's sides, as a data URI."""
    picture = np.asarray(Image.fromarray(to_gray(pixels)).resize(size, Image.Resampling.BILINEAR)).copy()
    mask = np.asarray(Image.fromarray(inside).resize(size, Image.Resampling.NEAREST))
    picture[find_boundaries(mask, mode="thick")] = color
    marked = Image.fromarray(picture)
    draw = ImageDraw.Draw(marked)
    font = ImageFont.load_default(size=18)
    for text, place in (("R", 5), ("L", size[0] - 18)):
        draw.text((place, 4), text, fill=(255, 255, 255), font=font, stroke_width=1, stroke_fill=(0, 0, 0))
    coded = BytesIO()
    marked.save(coded, "JPEG", quality=85, subsampling=0)  # a thin contour keeps its color
    return f"data:image/jpeg;base64,{base64.b64encode(coded.getvalue()).decode()}"


def _colors(organs: Mapping[str, int]) -> dict[str, Color]:
    """Return the colors of the overlays: viewers' usual ones are too much alike for thin contours."""
    return {name: COLORS[number % len(COLORS)] for number, name in enumerate(organs)}


def _css(color: Color) -> str:
    return f"rgb{color}"
