"""Scores: cases -> means of units -> tables of text, for the report page and for Markdown.

A unit is a fold with a seed. A series is a method in a setting under a protocol. Scans are averaged within a unit
first, so that a large fold weighs as much as a small one; mean ± standard deviation is over the units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil

import pandas as pd
from pandas import DataFrame

SERIES = ["method", "setting", "protocol"]
UNIT = ["fold", "seed"]

# The columns that identify a case.
NAMES = ("dataset", "method", "setting", "group", "protocol", "organ", "scan", "fold", "seed", "support")

# The columns of numbers that are averaged, with their names and factors in tables.
METRICS = {
    "dice": ("Dice x 100", 100),
    "nsd": ("NSD x 100", 100),
    "hd95_mm": ("HD95, mm", 1),
    "precision": ("precision x 100", 100),
    "recall": ("recall x 100", 100),
    "fp_outside_ml": ("false positive outside, ml", 1),
    "quality": ("quality x 100", 100),
    "seconds": ("seconds per scan", 1),
}

# The column of training steps, empty where they are not known.
STEPS = "steps"

MEAN = "mean"
NONE = "-"

Case = Mapping[str, str]
Series = tuple[str, str, str]


def numbers(cases: Sequence[Case]) -> DataFrame:
    """Return the rows of ``cases.csv`` as a table: metrics as numbers, NaN where a case has none."""
    table = DataFrame([dict(case) for case in cases])
    values = table.reindex(columns=list(METRICS)).apply(pd.to_numeric, errors="coerce")
    return table.reindex(columns=[*NAMES, STEPS, "status", "nsd_tolerance_mm"]).join(values)


def series_of(cases: DataFrame) -> list[Series]:
    """Return the series, ordered by setting, then method, then protocol, each in order of appearance."""
    found = set(cases[SERIES].itertuples(index=False, name=None))
    methods, settings, protocols = (cases[column].unique() for column in SERIES)
    return [one for s in settings for m in methods for p in protocols if (one := (m, s, p)) in found]


def of_series(cases: DataFrame, series: Series) -> DataFrame:
    """Return the cases of a series."""
    return cases[(cases[SERIES] == list(series)).all(axis=1)]


def unit_means(cases: DataFrame) -> DataFrame:
    """Average each organ's scans within each unit of a series; NaN is left out.

    Returns:
        A row for each organ, fold and seed, a column for each metric.
    """
    return cases.groupby(["organ", *UNIT], sort=False)[list(METRICS)].mean()


def scores(cases: DataFrame) -> DataFrame:
    """Return mean and sample standard deviation (NaN for a single unit) over the units of a series.

    Returns:
        A row for each organ, and their mean in a row named ``""``; columns ``(metric, "mean")`` and
        ``(metric, "std")``. The standard deviation of the mean is that of the units' means over organs; units that
        lack an organ are left out of it.
    """
    units = unit_means(cases)
    by_organ = units.groupby("organ", sort=False).agg(["mean", "std"])
    whole = {metric: _of_whole_units(units[metric]) for metric in METRICS}
    mean = {
        **{(metric, "mean"): by_organ[metric, "mean"].mean() for metric in METRICS},
        **{(metric, "std"): whole[metric].std() for metric in METRICS},
    }
    return pd.concat([by_organ, DataFrame([mean], index=[""])])


def _of_whole_units(means: pd.Series) -> pd.Series:
    organs = means.unstack("organ").dropna(axis=1, how="all")
    return organs.dropna().mean(axis=1)


def counts(cases: DataFrame) -> dict[str, str]:
    """Count units, cases with a Dice, those of them with nothing predicted, and cases without the organ."""
    status = cases["status"].value_counts()
    ok, missed, absent = (int(status.get(name, 0)) for name in ("ok", "missed", "absent"))
    units = len(cases[UNIT].drop_duplicates())
    return {"folds x seeds": str(units), "cases (missed, absent)": f"{ok + missed} ({missed}, {absent})"}


def dice_table(cases: DataFrame, published: Mapping[str, Mapping[str, float]] | None = None) -> DataFrame:
    """Tabulate Dice x 100: a row for each series, beside the published numbers.

    Args:
        cases: Cases of one dataset.
        published: Dice x 100 by setting and organ, under the protocol ``paper``.

    Returns:
        A row for each series. A setting with published numbers starts with these, and each of its ``paper`` rows is
        followed by the difference, whose mean is over the organs that both have. Every row states its training steps
        and scans, so that a short training is not mistaken for a full one.
    """
    cases = _distinct(cases)
    organs = list(cases["organ"].unique())
    rows: list[dict[str, str]] = []
    for method, setting, protocol in series_of(cases):
        mine = of_series(cases, (method, setting, protocol))
        given = pd.Series((published or {}).get(setting, {}), dtype=float).reindex(organs).dropna()
        paper = {"method": "published", "setting, protocol": f"{setting}, paper", **_with_mean(given)}
        if len(given) and paper not in rows:
            rows.append(paper)
        found = scores(mine)["dice"]
        cells = {organ or MEAN: cell(found["mean"][organ], found["std"][organ], 100) for organ in found.index}
        size = {"training steps": _steps(mine), "scans": str(mine["scan"].nunique())}
        rows.append({"method": method, "setting, protocol": f"{setting}, {protocol}", **cells, **size, **counts(mine)})
        gains = (100 * found["mean"].reindex(organs) - given.reindex(organs)).dropna()
        if protocol == "paper" and len(gains):
            rows.append({"method": f"{method}, difference to published", **_with_mean(gains, sign="+"), **size})
    columns = ["method", "setting, protocol", *organs, MEAN, "training steps", "scans", *counts(cases)]
    return DataFrame(rows, columns=columns).fillna(NONE)


def _distinct(cases: DataFrame) -> DataFrame:
    """Rename organs that have the name of another column."""
    taken = {"method", "setting, protocol", MEAN, "training steps", "scans", *counts(cases), "all organs", *SERIES}
    return cases.assign(organ=[f"organ {organ}" if organ in taken else organ for organ in cases["organ"]])


def _with_mean(values: pd.Series, sign: str = "") -> dict[str, str]:
    return {str(organ): cell(value, sign=sign) for organ, value in [*values.items(), (MEAN, values.mean())]}


def _steps(cases: DataFrame) -> str:
    known = [steps for steps in cases[STEPS].dropna().unique() if steps]
    return " / ".join(f"{int(steps):,}" for steps in known) or NONE


def metrics_table(cases: DataFrame) -> DataFrame:
    """Tabulate all metrics but Dice: the organs of each series, and their mean."""
    rows = []
    for series in series_of(cases):
        mine = of_series(cases, series)
        found = scores(mine)
        for organ in found.index:
            own = mine[mine["organ"] == organ] if organ else mine
            cells = {
                name: cell(found[metric, "mean"][organ], found[metric, "std"][organ], by)
                for metric, (name, by) in METRICS.items()
                if metric != "dice"
            }
            tolerance = {"NSD's tolerance, mm": " / ".join(own["nsd_tolerance_mm"].unique())}
            rows.append(
                {**dict(zip(SERIES, series, strict=True)), "organ": organ or MEAN, **cells, **tolerance, **counts(own)}
            )
    return DataFrame(rows)


def quality_table(cases: DataFrame) -> DataFrame:
    """Tabulate how well the network's own estimate of quality ranks the cases by Dice, over all units together.

    Returns:
        Two rows for each series that has cases with both: Spearman's rank correlation (and the number of cases), and
        the share of the worst quarter by Dice that is in the lowest quarter by quality (and the share expected by
        chance). A missed organ counts with Dice 0. A quarter of n cases is ceil(n / 4); ties keep their order.
    """
    cases = _distinct(cases)
    rated = cases.dropna(subset=["dice", "quality"])
    rows = []
    for series in series_of(rated) if len(rated) else []:
        mine = of_series(rated, series)
        parts = {organ: mine[mine["organ"] == organ] for organ in cases["organ"].unique()} | {"all organs": mine}
        head = dict(zip(SERIES, series, strict=True))
        rows.append(
            {**head, "quality against Dice": "Spearman (cases)", **{o: _correlation(p) for o, p in parts.items()}}
        )
        name = "worst quarter found x 100 (by chance)"
        rows.append({**head, "quality against Dice": name, **{o: _worst_found(p) for o, p in parts.items()}})
    return DataFrame(rows)


def _can_be_ranked(cases: DataFrame) -> bool:
    return len(cases) >= 3 and cases["dice"].nunique() > 1 and cases["quality"].nunique() > 1


def _correlation(cases: DataFrame) -> str:
    found = f"{cases['dice'].corr(cases['quality'], method='spearman'):.2f}" if _can_be_ranked(cases) else NONE
    return f"{found} ({len(cases)})"


def _worst_found(cases: DataFrame) -> str:
    if not _can_be_ranked(cases):
        return NONE
    quarter = ceil(len(cases) / 4)
    worst, lowest = (cases[name].nsmallest(quarter).index for name in ("dice", "quality"))
    return f"{100 * len(worst.intersection(lowest)) / quarter:.1f} ({100 * quarter / len(cases):.1f})"


def typical_cases(cases: DataFrame) -> list[tuple[str, DataFrame]]:
    """Return the best, the median (the worse of two in the middle) and the worst case by Dice, no case twice."""
    ranked = cases.dropna(subset=["dice"]).sort_values("dice", kind="stable")
    places = {"best": len(ranked) - 1, "median": (len(ranked) - 1) // 2, "worst": 0}
    if len(ranked) < 3:
        places = {"best": 1, "worst": 0} if len(ranked) == 2 else {"only case": 0} if len(ranked) else {}
    return [(rank, ranked.iloc[[place]]) for rank, place in places.items()]


def cell(mean: float, deviation: float = float("nan"), factor: float = 1, sign: str = "") -> str:
    """Format a mean, and its standard deviation if there is one, with one decimal."""
    if pd.isna(mean):
        return NONE
    return f"{factor * mean:{sign}.1f}" + ("" if pd.isna(deviation) else f" ± {factor * deviation:.1f}")


def markdown(table: DataFrame) -> str:
    """Return a table as Markdown; bars and line breaks within a cell are escaped."""
    rows = [list(table.columns), ["---"] * len(table.columns), *table.astype(str).to_numpy().tolist()]
    return "".join(
        f"| {' | '.join(str(text).replace('|', '&#124;').replace(chr(10), ' ') for text in row)} |\n" for row in rows
    )
