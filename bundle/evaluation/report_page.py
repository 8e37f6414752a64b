"""The evaluation report: one HTML page that needs nothing but itself.

    rows of cases.csv  ->  means of units  ->  tables, plots, pictures  ->  one file

A unit is a fold with a seed. A series is a method in a setting under a protocol. Scans are averaged within a unit
first, so that a large fold weighs as much as a small one.
"""

from __future__ import annotations

import base64
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import BytesIO, StringIO
from math import ceil
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple
from xml.etree import ElementTree

import matplotlib
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image
from scipy.stats import spearmanr

from bundle.files import written_whole

NAMES = ("dataset", "method", "setting", "group", "protocol", "organ", "scan", "fold", "seed", "support")
"""The columns that tell a case from all others."""

METRICS = ("dice", "nsd", "hd95_mm", "precision", "recall", "fp_outside_ml", "quality", "seconds")
"""The columns of numbers that are averaged. An empty cell, or no column, is a value that the case does not have."""

Case = Mapping[str, str]
Series = tuple[str, str, str]  # method, setting, protocol
Key = tuple[str, str, str, str]  # and organ
Unit = tuple[str, str]  # fold, seed


class Score(NamedTuple):
    """Mean of unit means, and their sample standard deviation (``None`` of one unit)."""

    mean: float
    deviation: float | None = None


class Counts(NamedTuple):
    """Units; cases that Dice is averaged over; of these, with nothing predicted; cases left out, without the organ."""

    units: int
    used: int
    missed: int
    absent: int


class Line(NamedTuple):
    """A line of a table: a score for each organ and their mean, or for each metric; ``None`` where there is none."""

    kind: str
    name: str
    detail: str
    scores: list[Score | None]
    counts: Counts | None = None


class Agreement(NamedTuple):
    """How well the network's own estimate of quality ranks cases by Dice: by how many, and what they tell.

    The correlation is Spearman's, of ranks. ``found`` is the share of the worst quarter by Dice that is in the lowest
    quarter by quality; ``chance`` is what it would be on average if quality told nothing. All three are ``None`` where
    there is nothing to rank: fewer than three cases, or all alike in Dice or in quality.
    """

    cases: int
    correlation: float | None = None
    found: float | None = None
    chance: float | None = None


def series_of(cases: Iterable[Case]) -> list[Series]:
    """Return the series: settings, within them methods, within them protocols, each in the order they come in."""
    found = dict.fromkeys(_key(case)[:3] for case in cases)
    methods, settings, protocols = (list(dict.fromkeys(names)) for names in zip(*found, strict=True))
    return [one for s in settings for m in methods for p in protocols if (one := (m, s, p)) in found]


def organs_of(cases: Iterable[Case]) -> list[str]:
    """Return the organs in the order they come in."""
    return list(dict.fromkeys(case["organ"] for case in cases))


def counts(cases: Sequence[Case]) -> Counts:
    """Count units, and cases by their status."""
    units = {(case["fold"], case["seed"]) for case in cases}
    of = Counter(case["status"] for case in cases)
    return Counts(len(units), of["ok"] + of["missed"], of["missed"], of["absent"])


def unit_means(cases: Iterable[Case], metric: str) -> dict[Key, list[float]]:
    """Average an organ's scans within each unit.

    Args:
        cases: Rows of ``cases.csv``.
        metric: A column of numbers.

    Returns:
        For method, setting, protocol and organ: a mean for each unit, in the order the units come in. A case with an
        empty cell takes no part; a unit of such cases only is left out, and so is a key without a unit.
    """
    return {key: list(means.values()) for key, means in _means_by_unit(cases, metric).items()}


def organ_scores(cases: Iterable[Case], metric: str) -> dict[Key, Score]:
    """Return mean and deviation over the units, for every organ that has a value of this metric."""
    means_of = unit_means(cases, metric).items()
    return {key: Score(fmean(means), stdev(means) if len(means) > 1 else None) for key, means in means_of}


def mean_scores(cases: Iterable[Case], metric: str) -> dict[Series, Score]:
    """Return each series' mean over its organs' means.

    The deviation is that of the units' means over organs; a unit that lacks one of the organs is no part of it.
    """
    columns: dict[Series, list[dict[Unit, float]]] = defaultdict(list)
    for key, means in _means_by_unit(cases, metric).items():
        columns[key[:3]].append(means)
    scores = {}
    for series, organs in columns.items():
        complete = [unit for unit in organs[0] if all(unit in means for means in organs)]
        whole = [fmean(means[unit] for means in organs) for unit in complete]
        mean = fmean(fmean(means.values()) for means in organs)
        scores[series] = Score(mean, stdev(whole) if len(whole) > 1 else None)
    return scores


def summary(cases: Sequence[Case], published: Mapping[str, Mapping[str, float]] | None = None) -> list[Line]:
    """Tabulate Dice: a line for each series, and the published numbers beside.

    Args:
        cases: Rows of ``cases.csv``.
        published: Dice x 100 by setting and organ, under the protocol ``paper``.

    Returns:
        The lines; their scores in [0, 1] are those of the organs of :func:`organs_of` and the mean. A setting with
        published numbers starts with these (kind ``published``), and its ``paper`` lines are followed by what they are
        better by (kind ``difference``; its mean is over the organs that both have). All others are of kind ``series``.
    """
    organs = organs_of(cases)
    lines: list[Line] = []
    for method, setting, protocol in series_of(cases):
        mine = _of(cases, (method, setting, protocol))
        paper = f"setting {setting}, paper"
        given = {o: dice / 100 for o, dice in (published or {}).get(setting, {}).items() if o in organs}
        if given and not any(line[:3] == ("published", "published", paper) for line in lines):
            lines.append(Line("published", "published", paper, _with_mean(given, organs)))
        scores = _scores(mine, "dice", organs)
        lines.append(Line("series", method, f"setting {setting}, {protocol}", scores, counts(mine)))
        gains = {o: score.mean - given[o] for o, score in zip(organs, scores, strict=False) if score and o in given}
        if gains and protocol == "paper":
            lines.append(Line("difference", "difference", "to published", _with_mean(gains, organs)))
    return lines


def other_metrics(cases: Sequence[Case]) -> list[tuple[Series, list[Line]]]:
    """Tabulate all metrics but Dice: for each series its organs (``detail``: NSD's tolerances) and their mean."""
    tables = []
    for series in series_of(cases):
        mine = _of(cases, series)
        organs = organs_of(mine)
        columns = [_scores(mine, metric, organs) for metric in METRICS[1:]]
        lines = []
        for organ, *scores in zip([*organs, None], *columns, strict=True):
            found = [case for case in mine if organ in (case["organ"], None)]
            tolerances = dict.fromkeys(case["nsd_tolerance_mm"] for case in found if case["nsd_tolerance_mm"])
            lines.append(Line("organ", organ or "mean", " / ".join(tolerances), scores, counts(found)))
        tables.append((series, lines))
    return tables


def quality_agreements(cases: Sequence[Case]) -> list[tuple[Series, list[Agreement]]]:
    """Compare the network's own estimate of quality with Dice, without regard to units.

    Args:
        cases: Rows of ``cases.csv``.

    Returns:
        For each series that has a case with Dice and quality: the agreement of each organ of :func:`organs_of`, and
        that of all organs' cases together. A missed organ takes part with Dice 0, an absent one does not. A quarter of
        n cases is ceil(n / 4); of equal cases the first come first.
    """
    rated = [case for case in cases if case["dice"] and case.get("quality")]
    tables = []
    for series in series_of(cases):
        if mine := _of(rated, series):
            columns = [[case for case in mine if organ in (case["organ"], None)] for organ in [*organs_of(cases), None]]
            tables.append((series, [_agreement(column) for column in columns]))
    return tables


def telling_cases(cases: Iterable[Case]) -> list[tuple[str, Case]]:
    """Name the best, the median (of two in the middle the worse) and the worst case by Dice, no case twice."""
    ranked = sorted((case for case in cases if case["dice"]), key=_by_dice)
    if len(ranked) < 3:
        return list(zip(["best", "worst"] if len(ranked) == 2 else ["only case"], ranked[::-1], strict=False))
    return [("best", ranked[-1]), ("median", ranked[(len(ranked) - 1) // 2]), ("worst", ranked[0])]


def write_report(
    path: Path,
    cases: Sequence[Case],
    title: str,
    settings: Mapping[str, str],
    published: Mapping[str, Mapping[str, float]] | None = None,
    picture_of: Callable[[Case], Path | None] | None = lambda _: None,
    notes: Sequence[str] = (),
) -> None:
    """Write the report of an evaluation as one HTML page with everything within. Same input, same bytes.

    Args:
        path: Where the page goes.
        cases: Rows of ``cases.csv``, of one dataset.
        title: Heading of the page.
        settings: What the page says of configuration and versions; names with ``::`` are folded away.
        published: Dice x 100 by setting and organ, to be shown beside.
        picture_of: Where a case's picture lies: support, query with truth, query with prediction. ``None``, or a path
            without a file, is said on the page. Without this function the page has no pictures.
        notes: Sentences below the title.

    Raises:
        ValueError: If there is no case, a case twice, or more than one dataset; if a status is unknown, or does not fit
            to whether there is a Dice.
    """
    _check(cases)
    loader = FileSystemLoader(Path(__file__).parent)
    page = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    html = page.get_template("report_page.html.j2").render(
        title=title,
        notes=notes,
        distinct={name: list(dict.fromkeys(case[name] for case in cases)) for name in NAMES},
        summary=summary(cases, published),
        others=other_metrics(cases),
        plots=[(organ, box_plot(cases, organ)) for organ in organs_of(cases)],
        qualities=[(*table, quality_plot(cases, table[0])) for table in quality_agreements(cases)],
        legend=[(organ, f"--method-{color + 1}", _MARKERS[marker]) for organ, color, marker in _marks(cases)],
        gallery=[entry for organ in organs_of(cases) for entry in _gallery(cases, organ)],
        pictures=picture_of is not None,
        jpeg_of=lambda case: _jpeg(picture_of(case) if picture_of else None),
        cases=sorted(cases, key=_by_dice),
        settings=settings,
    )
    with written_whole(path) as unfinished:
        unfinished.write_text(html, encoding="utf-8", newline="\n")


def _check(cases: Sequence[Case]) -> None:
    if not cases:
        raise ValueError("the report needs at least one case, got none. Run the evaluation first.")
    if len(datasets := sorted({case["dataset"] for case in cases})) > 1:
        raise ValueError(f"a report is about one dataset, got {', '.join(datasets)}. Write one for each.")
    names, times = Counter(tuple(case[name] for name in NAMES) for case in cases).most_common(1)[0]
    if times > 1:
        raise ValueError(f"a case must come once, got [{', '.join(names)}] {times} times. Remove the repeated rows.")
    for case in cases:
        if case["status"] not in ("ok", "absent", "missed") or (case["status"] == "absent") != (case["dice"] == ""):
            got = f"got {case['status']!r} with Dice {case['dice']!r} in [{', '.join(case[name] for name in NAMES)}]"
            raise ValueError(f"status must be ok, missed or absent, with a Dice unless it is absent, {got}.")


def _key(case: Case) -> Key:
    return case["method"], case["setting"], case["protocol"], case["organ"]


def _of(cases: Iterable[Case], series: Series) -> list[Case]:
    return [case for case in cases if _key(case)[:3] == series]


def _by_dice(case: Case) -> tuple[bool, float]:
    return case["dice"] == "", float(case["dice"] or 0)


def _means_by_unit(cases: Iterable[Case], metric: str) -> dict[Key, dict[Unit, float]]:
    values: dict[Key, dict[Unit, list[float]]] = defaultdict(lambda: defaultdict(list))
    for case in cases:
        if case.get(metric):
            values[_key(case)][case["fold"], case["seed"]].append(float(case[metric]))
    return {key: {unit: fmean(scans) for unit, scans in units.items()} for key, units in values.items()}


def _scores(cases: Sequence[Case], metric: str, organs: Sequence[str]) -> list[Score | None]:
    """Return the scores of one series' organs, and the mean."""
    scores = {key[3]: score for key, score in organ_scores(cases, metric).items()}
    return [*map(scores.get, organs), next(iter(mean_scores(cases, metric).values()), None)]


def _with_mean(values: Mapping[str, float], organs: Sequence[str]) -> list[Score | None]:
    return [*(Score(values[o]) if o in values else None for o in organs), Score(fmean(values.values()))]


def _agreement(cases: Sequence[Case]) -> Agreement:
    dice, quality = ([float(case[name]) for case in cases] for name in ("dice", "quality"))
    if len(cases) < 3 or len(set(dice)) == 1 or len(set(quality)) == 1:
        return Agreement(len(cases))
    quarter = ceil(len(cases) / 4)
    found = _lowest(dice, quarter) & _lowest(quality, quarter)
    correlation = float(spearmanr(dice, quality).statistic)
    return Agreement(len(cases), correlation, len(found) / quarter, quarter / len(cases))


def _lowest(values: Sequence[float], amount: int) -> set[int]:
    """Return the places of the lowest values, of equal ones the first."""
    return set(sorted(range(len(values)), key=values.__getitem__)[:amount])


def _gallery(cases: Sequence[Case], organ: str) -> list[tuple[str, Series, list[tuple[str, Case]]]]:
    """Choose an organ's telling cases under each protocol, of the first series that has any."""
    chosen: dict[str, tuple[str, Series, list[tuple[str, Case]]]] = {}
    for series in series_of(cases):
        if telling := telling_cases(case for case in cases if _key(case) == (*series, organ)):
            chosen.setdefault(series[2], (organ, series, telling))
    return list(chosen.values())


def _jpeg(path: Path | None) -> tuple[str, int, int] | None:
    """Return a picture as a data URI with its size; ``None`` if there is no such file."""
    if path is None or not path.is_file():
        return None
    coded = BytesIO()
    with Image.open(path) as picture:
        picture.convert("RGB").save(coded, "JPEG", quality=85)
        return f"data:image/jpeg;base64,{base64.b64encode(coded.getvalue()).decode()}", *picture.size


def box_plot(cases: Sequence[Case], organ: str) -> Markup:
    """Draw an organ's Dice as ``<svg>``: each series' box, cases and mean, in CSS colors ``--method-1`` and so on."""
    everything = series_of(cases)
    methods = list(dict.fromkeys(method for method, _, _ in everything))
    figure = Figure(figsize=(4.8, 0.38 + 0.56 * len(everything)))
    margin = 0.3 / figure.get_figheight()
    axes = figure.add_axes((0.02, margin, 0.96, 1 - margin))
    axes.set(xlim=(-2, 102), ylim=(len(everything) - 0.45, -0.6), yticks=[], frame_on=False)
    words: dict[str, Any] = {"color": _INK, "fontsize": 11, "va": "center", "parse_math": False}
    tooltips = []
    for row, series in enumerate(everything):
        found = [case for case in cases if _key(case) == (*series, organ) and case["dice"]]
        axes.text(0, row - 0.32, "{}, setting {}, {}".format(*series), **words)
        if found:
            color = _COLORS[methods.index(series[0]) % len(_COLORS)]
            mean = 100 * organ_scores(found, "dice")[(*series, organ)].mean
            _draw_box(axes, row + 0.1, [100 * float(case["dice"]) for case in found], mean, color)
        else:
            axes.text(0, row + 0.1, "no case with this organ", alpha=0.7, **words)
        for case in found:
            tooltips.append(_tooltip(case))
    _rule(axes, "x")
    return _inline(figure, f"Box plot: Dice of {organ} in every case. The table of Dice has the means.", tooltips)


def quality_plot(cases: Sequence[Case], series: Series) -> Markup:
    """Draw a series' Dice over quality as ``<svg>``: a point for each case, a color and marker for each organ."""
    figure = Figure(figsize=(4.8, 3.6))
    axes = figure.add_axes((0.13, 0.19, 0.85, 0.79))
    axes.set(xlim=(_NOT_FOUND - 0.03, 1.02), ylim=(-4, 104), frame_on=False)
    scale = [number / 10 for number in range(5, 11)]
    axes.set_xticks([_NOT_FOUND, *scale], ["not\nfound", *map(str, scale)])
    axes.set_xlabel("quality", color=_INK, fontsize=11)
    axes.set_ylabel("Dice \N{MULTIPLICATION SIGN} 100", color=_INK, fontsize=11)
    tooltips = []
    for organ, color, marker in _marks(cases):
        mine = [case for case in _of(cases, series) if case["organ"] == organ and case["dice"] and case.get("quality")]
        places = [float(case["quality"]) or _NOT_FOUND for case in mine]
        dice = [100 * float(case["dice"]) for case in mine]
        axes.scatter(places, dice, s=20, marker=marker, color=_COLORS[color], alpha=0.7, linewidths=0, gid="cases")
        tooltips += [f"{organ}, {_tooltip(case)}, quality {float(case['quality']):.3f}" for case in mine]
    _rule(axes, "both")
    label = "Scatter plot: Dice over quality of every case, {}, setting {}, {}. The table has the correlations."
    return _inline(figure, label.format(*series), tooltips)


_MARKERS = {"o": "●", "s": "■", "^": "▲"}
# Where quality 0 is drawn: beside the scale, which starts at 0.5.
_NOT_FOUND = 0.42


def _marks(cases: Sequence[Case]) -> list[tuple[str, int, str]]:
    """Return each organ with its color's number and its marker: another marker where the colors start again."""
    kinds = [(color, marker) for marker in _MARKERS for color in range(len(_COLORS))]
    return [(organ, *kinds[number % len(kinds)]) for number, organ in enumerate(organs_of(cases))]


def _tooltip(case: Case) -> str:
    names = [f"{name} {case[name]}" for name in ("scan", "fold", "seed") if case[name]]
    return ", ".join([*names, f"Dice {100 * float(case['dice']):.1f}"])


def _rule(axes: Any, along: str) -> None:
    axes.grid(axis=along, color=_INK, alpha=0.15, linewidth=0.6)
    axes.tick_params(colors=_INK, labelsize=11, length=0)


# Of Okabe and Ito, told apart by color-blind people.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
_INK = "#123456"
_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))
_SVG = "{http://www.w3.org/2000/svg}"


def _draw_box(axes: Any, height: float, values: Sequence[float], mean: float, color: str) -> None:
    thin = {"color": color, "linewidth": 1.2}
    box = {"facecolor": (color, 0.25), "edgecolor": color, "linewidth": 1.2}
    look = {"boxprops": box, "whiskerprops": thin, "capprops": thin, "medianprops": {"color": color, "linewidth": 2.4}}
    place = {"positions": [height], "orientation": "horizontal", "widths": 0.36, "manage_ticks": False}
    axes.boxplot([values], patch_artist=True, showfliers=False, **look, **place)
    # Multiples of the golden ratio spread the points evenly, and always alike.
    heights = [height + 0.3 * (0.618034 * number % 1 - 0.5) for number in range(len(values))]
    axes.scatter(values, heights, s=12, color=color, alpha=0.7, linewidths=0, zorder=3, gid="cases")
    axes.scatter([mean], [height], s=46, marker="D", facecolor=color, edgecolor=_INK, linewidth=1.2, zorder=4)


def _inline(figure: Figure, label: str, tooltips: Sequence[str]) -> Markup:
    """Return a figure as an element for HTML: without namespaces, its colors the page's, a title on every case."""
    drawn = StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):
        figure.savefig(drawn, format="svg", transparent=True, metadata=_NO_METADATA)
    text = drawn.getvalue().replace(_INK, "currentColor")
    for number, color in enumerate(_COLORS, start=1):
        text = text.replace(color, f"var(--method-{number})")
    root = ElementTree.fromstring(text)
    points = [point for group in root.iterfind(".//*[@id='cases']") for point in group.iter(f"{_SVG}use")]
    for point, tooltip in zip(points, tooltips, strict=True):
        ElementTree.SubElement(point, "title").text = tooltip
    for styles in root.findall(f"{_SVG}defs[{_SVG}style]"):
        root.remove(styles)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        # Names of groups are the same in every plot; only those referred to are needed, and their salt differs.
        kept = {name: value for name, value in element.items() if name != "id" or f"#{value}" in text}
        element.attrib = {name.rpartition("}")[2]: value for name, value in kept.items()}
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": label}
    return Markup(ElementTree.tostring(root, encoding="unicode"))
