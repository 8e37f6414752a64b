"""The evaluation report: one self-contained HTML page.

rows of cases.csv  ->  tables of scores, box plots, pictures  ->  one file
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import pandas as pd
from bundle.evaluation.scores import (
    METRICS,
    NAMES,
    Case,
    cell,
    dice_table,
    metrics_table,
    numbers,
    of_series,
    quality_table,
    scores,
    series_of,
    typical_cases,
)
from bundle.files import written_whole
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from pandas import DataFrame
from PIL import Image

# From the palette of Okabe and Ito, which color-blind readers can distinguish.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")


class Shown(NamedTuple):
    """A case with its picture as a data URI, ``""`` if there is none."""

    rank: str
    text: str
    picture: str


def write_report(
    path: Path,
    cases: Sequence[Case],
    title: str,
    settings: Mapping[str, str],
    published: Mapping[str, Mapping[str, float]] | None = None,
    picture_of: Callable[[Case], Path | None] | None = lambda _: None,
    notes: Sequence[str] = (),
) -> None:
    """Write the report of an evaluation as one self-contained HTML page. The same input gives the same bytes.

    Args:
        path: Where the page goes.
        cases: Rows of ``cases.csv``, of one dataset.
        title: Heading of the page.
        settings: Settings and versions that the page lists; names with ``::`` are in a collapsed section.
        published: Published Dice x 100 by setting and organ, to compare with.
        picture_of: Returns the path of a case's picture: support, query with truth, query with prediction. The page
            states which pictures are missing. Without this function the page has no pictures.
        notes: Sentences below the title.

    Raises:
        ValueError: If there is no case, a repeated case, or more than one dataset; if a status is unknown or
            contradicts the Dice.
    """
    _check(cases)
    table = numbers(cases)
    organs = list(table["organ"].unique())
    page = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)
    plain, inner = ({name: v for name, v in settings.items() if ("::" in name) == nested} for nested in (False, True))
    html = page.get_template("report_page.html.j2").render(
        title=title,
        notes=notes,
        distinct={name: list(table[name].unique()) for name in NAMES},
        dice=_html(dice_table(table, published)),
        metrics=_html(metrics_table(table)),
        quality=_html(quality_table(table)),
        plots=[(organ, box_plot(table, organ)) for organ in organs],
        gallery=None if picture_of is None else [one for organ in organs for one in _gallery(table, organ, picture_of)],
        cases=_html(_case_table(table)),
        number=len(table),
        settings=_html(DataFrame(plain.items())),
        inner=_html(DataFrame(inner.items())),
    )
    with written_whole(path) as unfinished:
        unfinished.write_text(html + "\n", encoding="utf-8", newline="\n")


def _check(cases: Sequence[Case]) -> None:
    if not cases:
        raise ValueError("the report needs at least one case, got none. Run the evaluation first.")
    table = DataFrame([dict(case) for case in cases])
    if len(datasets := sorted(table["dataset"].unique())) > 1:
        raise ValueError(f"a report must be about one dataset, got {', '.join(datasets)}. Write one for each.")
    names = table[list(NAMES)]
    if (again := names.duplicated(keep=False)).any():
        first = names[again].iloc[0]
        times = int((names == first).all(axis=1).sum())
        raise ValueError(f"a case must come once, got [{', '.join(first)}] {times} times. Remove the repeated rows.")
    wrong = ~table["status"].isin(["ok", "missed", "absent"]) | ((table["status"] == "absent") != (table["dice"] == ""))
    if wrong.any():
        case = table[wrong].iloc[0]
        got = f"got {case['status']!r} with Dice {case['dice']!r} in [{', '.join(case[list(NAMES)])}]"
        raise ValueError(
            f"status must be ok, missed or absent, with a Dice unless it is absent, {got}. Correct the row."
        )


def _html(table: DataFrame) -> Markup:
    """Return a table as HTML, with its texts escaped; an empty table gives nothing."""
    if table.empty:
        return Markup()
    header = not isinstance(table.columns, pd.RangeIndex)
    with pd.option_context("display.max_colwidth", None):
        return Markup(table.to_html(index=False, border=0, escape=True, header=header))


def _case_table(cases: DataFrame) -> DataFrame:
    """Return every case, the worst Dice first, with those names that are not the same in all cases."""
    ranked = cases.sort_values("dice", kind="stable", na_position="last")
    differ = [name for name in NAMES if name not in ("scan", "organ") and cases[name].nunique() > 1]
    values = {name: ranked[metric].map(lambda v, by=by: cell(v, factor=by)) for metric, (name, by) in METRICS.items()}
    return ranked[["scan", "organ", *differ, "status"]].assign(**values)


def _gallery(
    cases: DataFrame, organ: str, picture_of: Callable[[Case], Path | None]
) -> list[tuple[str, str, list[Shown]]]:
    """Return an organ's best, median and worst case under each protocol, of the first series that has any."""
    chosen: dict[str, tuple[str, str, list[Shown]]] = {}
    for series in series_of(cases):
        own = of_series(cases, series)
        typical = typical_cases(own[own["organ"] == organ])
        if typical and series[2] not in chosen:
            shown = [_shown(rank, case, picture_of) for rank, case in typical]
            chosen[series[2]] = (organ, "{}, setting {}, {}".format(*series), shown)
    return list(chosen.values())


def _shown(rank: str, case: DataFrame, picture_of: Callable[[Case], Path | None]) -> Shown:
    row: dict[Any, Any] = case.iloc[0].to_dict()
    found = "missed: nothing was predicted" if row["status"] == "missed" else f"HD95 {cell(row['hd95_mm'])} mm"
    names = ", ".join(f"{name} {row[name]}" for name in ("scan", "fold", "seed") if row[name])
    text = f"{names}; Dice {cell(row['dice'], factor=100)}, {found}"
    return Shown(rank, text, _jpeg(picture_of({name: row[name] for name in NAMES})))


def _jpeg(path: Path | None) -> str:
    if path is None or not path.is_file():
        return ""
    coded = BytesIO()
    with Image.open(path) as picture:
        picture.convert("RGB").save(coded, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(coded.getvalue()).decode()}"


def box_plot(cases: DataFrame, organ: str) -> str:
    """Draw an organ's Dice as an SVG data URI: box, cases and mean of each series."""
    everything = series_of(cases)
    methods = list(cases["method"].unique())
    figure = Figure(figsize=(4.8, 0.45 + 0.56 * len(everything)), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlim=(-2, 102), ylim=(len(everything) - 0.45, -0.6), yticks=[], frame_on=False)
    axes.grid(axis="x", alpha=0.2)
    for row, series in enumerate(everything):
        own = of_series(cases, series)
        own = own[own["organ"] == organ].dropna(subset=["dice"])
        name = "{}, setting {}, {}".format(*series) + ("" if len(own) else ": no case with this organ")
        axes.text(0, row - 0.32, name, fontsize=10, va="center", parse_math=False)
        if len(own):
            mean = scores(own)["dice", "mean"][organ]
            _draw_box(axes, row + 0.1, 100 * own["dice"], 100 * mean, COLORS[methods.index(series[0]) % len(COLORS)])
    drawn = BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "report"}):
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(drawn.getvalue()).decode()}"


def _draw_box(axes: Any, height: float, values: pd.Series, mean: float, color: str) -> None:
    look = {
        "boxprops": {"facecolor": (color, 0.25), "edgecolor": color},
        "medianprops": {"color": color, "linewidth": 2.4},
        "whiskerprops": {"color": color},
        "capprops": {"color": color},
    }
    place = {"positions": [height], "orientation": "horizontal", "widths": 0.36, "manage_ticks": False}
    axes.boxplot([values], patch_artist=True, showfliers=False, **look, **place)
    # Multiples of the golden ratio spread the points evenly, without random numbers.
    heights = [height + 0.3 * (0.618034 * number % 1 - 0.5) for number in range(len(values))]
    axes.scatter(values, heights, s=12, color=color, alpha=0.7, linewidths=0, zorder=3)
    axes.scatter([mean], [height], s=46, marker="D", facecolor=color, edgecolor="black", zorder=4)
