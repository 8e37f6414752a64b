"""Measured cases and their numbers -> rows in long form, and tables to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bundle.evaluation import scores as evaluation
from pandas import DataFrame

# Columns that distinguish one case from another.
CASE_COLUMNS = ("encoder", "organs", "support_scans", "slices", "matching", "prototypes", "batch_size", "workflow")


@dataclass(frozen=True)
class Result:
    """The measurements of one case, made in one run.

    Attributes:
        benchmark: Such as ``"inference"``.
        case: Values of some of ``CASE_COLUMNS``.
        values: Numbers by name; the name states the unit, such as ``"ours, s a scan"``. Ratios have none.
        note: A remark, such as that a number was scaled.
    """

    benchmark: str
    case: Mapping[str, str | int]
    values: Mapping[str, float]
    note: str = ""


def long_form(results: Sequence[Result]) -> list[list[str]]:
    """Return a header and one row for each number."""
    rows = [["benchmark", *CASE_COLUMNS, "quantity", "value", "note"]]
    for result in results:
        case = [str(result.case.get(column, "")) for column in CASE_COLUMNS]
        rows += [[result.benchmark, *case, name, f"{v:.6g}", result.note] for name, v in result.values.items()]
    return rows


def markdown(results: Sequence[Result], about: Mapping[str, str]) -> str:
    """Return one Markdown table for each benchmark, below the facts in ``about``."""
    lines = ["# Benchmark", "", *(f"- {name}: {value}" for name, value in about.items())]
    for benchmark in dict.fromkeys(result.benchmark for result in results):
        table = _table([result for result in results if result.benchmark == benchmark])
        lines += ["", f"## {benchmark}", "", evaluation.markdown(table).rstrip("\n")]
    return "\n".join(lines) + "\n"


def _table(results: Sequence[Result]) -> DataFrame:
    rows = [{**r.case, **{n: _rounded(v) for n, v in r.values.items()}, "note": r.note} for r in results]
    names = dict.fromkeys(name for result in results for name in result.values)
    table = DataFrame(rows, columns=[*CASE_COLUMNS, *names, "note"])
    table = table.dropna(axis="columns", how="all").fillna("-").astype(str)
    if not table["note"].any():
        table = table.drop(columns="note")
    return table.rename(columns={column: column.replace("_", " ") for column in CASE_COLUMNS})


def _rounded(value: float) -> str:
    """Format a number with three significant digits, or as a whole number from 100 on."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
