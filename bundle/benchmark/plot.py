"""A plot of a benchmark: seconds per scan against what they depend on, and memory against slices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bundle.benchmark.results import Result
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

# Columns of cases that may be the x-axis of a panel, and their axis labels.
AXES = {"organs": "organs", "support_scans": "annotated scans", "slices": "slices of the scan", "encoder": "encoder"}

PANELS_A_ROW = 3

PEAK, BEFORE = "MB at the peak", "MB after the imports"

# From the palette of Okabe and Ito, which color-blind readers can distinguish; the markers differ, too.
_OURS = {"paper": {"color": "#0072b2", "marker": "o"}, "annotate_one": {"color": "#009e73", "marker": "s"}}
_NAIVE = {"color": "#d55e00", "marker": "^", "label": "original evaluation (naive)"}
_ALONE = {"color": "#666666", "marker": "x", "linestyle": "--", "label": "encoder alone"}


def figure_of(results: Sequence[Result]) -> Figure:
    """Draw the results of ``inference`` and ``memory``; other benchmarks have no panel.

    A panel varies one column over cases that agree in all others. If there are several such families, the largest is
    drawn.
    """
    timed = [result for result in results if result.benchmark == "inference"]
    families = {column: _family(timed, column) for column in AXES}
    shown = {column: family for column, family in families.items() if _places(family, column)}
    stored = [result for result in results if result.benchmark == "memory"]
    count = len(shown) + bool(stored)
    rows, columns = max(1, math.ceil(count / PANELS_A_ROW)), max(1, min(count, PANELS_A_ROW))
    figure = Figure(figsize=(4.6 * columns, 3.9 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel, (column, family) in zip(panels, shown.items(), strict=False):
        _draw_times(panel, family, column)
    if shown:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    if stored:
        _draw_memory(panels[len(shown)], stored)
    for panel in panels[count:]:
        panel.set_axis_off()
    if count == 0:
        panels[0].text(0.5, 0.5, "neither inference nor memory was measured", ha="center")
    return figure


def _family(results: Sequence[Result], column: str) -> list[Result]:
    """Return the largest group of cases that differ only in one column and in the matching."""
    families: dict[tuple[Any, ...], list[Result]] = {}
    for result in results:
        shared = tuple((c, v) for c, v in result.case.items() if c not in (column, "matching"))
        families.setdefault(shared, []).append(result)
    return max(families.values(), key=lambda family: len(_places(family, column)), default=[])


def _places(family: Sequence[Result], column: str) -> list[str | int]:
    """Return the values of a column in increasing order; none if there is only one."""
    values = list(dict.fromkeys(result.case[column] for result in family))
    return [] if len(values) < 2 else values if column == "encoder" else sorted(values)


def _draw_times(panel: Any, family: Sequence[Result], column: str) -> None:
    places = _places(family, column)
    by_matching: dict[str, list[Result]] = {}
    for result in sorted(family, key=lambda result: places.index(result.case[column])):
        by_matching.setdefault(str(result.case["matching"]), []).append(result)
    one = next(iter(by_matching.values()))
    _line(panel, one, places, column, "naive, s a scan", _NAIVE)
    for matching, results in by_matching.items():
        look = {**_OURS.get(matching, {}), "label": f"this bundle, {matching}"}
        _line(panel, results, places, column, "ours, s a scan", look)
    _line(panel, one, places, column, "encoder alone, s a scan", _ALONE)
    held = [
        f"{AXES[c]}: {v}" if c != "encoder" else str(v) for c, v in one[0].case.items() if c in AXES and c != column
    ]
    _label(panel, places, AXES[column], "seconds per scan", ", ".join(held))
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())


def _draw_memory(panel: Any, results: Sequence[Result]) -> None:
    ordered = sorted(results, key=lambda result: int(result.case["slices"]))
    places = [result.case["slices"] for result in ordered]
    _line(panel, ordered, places, "slices", PEAK, {**_OURS["annotate_one"], "label": "at the peak"})
    _line(panel, ordered, places, "slices", BEFORE, {**_ALONE, "label": "after the imports"})
    _label(panel, places, "slices of the scan", "resident memory, MB", f"organs: {ordered[0].case['organs']}")
    panel.set_ylim(0, 1.1 * max(result.values[PEAK] for result in ordered))
    panel.legend(frameon=False, loc="lower right")


def _line(
    panel: Any, results: Sequence[Result], places: Sequence[Any], column: str, name: str, look: Mapping[str, Any]
) -> None:
    along = [places.index(result.case[column]) if column == "encoder" else result.case[column] for result in results]
    panel.plot(along, [result.values[name] for result in results], linewidth=1.6, markersize=6, **look)


def _label(panel: Any, places: Sequence[Any], along: str, up: str, title: str) -> None:
    named = isinstance(places[0], str)
    panel.set_xticks(range(len(places)) if named else places, [str(place) for place in places])
    panel.set_xlabel(along)
    panel.set_ylabel(up)
    panel.set_title(title, fontsize=10)
    panel.grid(axis="y", alpha=0.2)
    panel.spines[["top", "right"]].set_visible(False)
