"""Settings that must not change under a cross-validation, and the table and the report of its cases."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bundle.evaluation.cases import COLUMNS, read_cases
from bundle.evaluation.cross_validation.workflow import PROTOCOLS, Workflow
from bundle.evaluation.report_page import (
    METRICS,
    NAMES,
    Agreement,
    Score,
    organs_of,
    other_metrics,
    quality_agreements,
    summary,
    write_report,
)
from bundle.files import write_csv, written_whole
from bundle.provenance import changes, digest, file_records, versions


def described_by(workflow: Workflow, scans: Sequence[Mapping[str, Any]], method: str) -> dict[str, Any]:
    """Return what a cross-validation was made with: settings that must not change, and what is good to know."""
    data = file_records(scan[key] for scan in scans for key in sorted(scan))
    settings = {
        "method": method,
        "untrained": str(workflow.untrained),
        "data": f"{len(scans)} scans, names and contents {digest(data)}",
        **workflow.settings(),
    }
    return {"settings": settings, "versions": versions(), "published": workflow.get("published")}


def refuse_other_settings(path: Path, described: Mapping[str, Any]) -> None:
    """Write the settings of a new cross-validation; compare those of one that goes on.

    Raises:
        ValueError: If a setting changed; nothing was done then.
    """
    if not path.is_file():
        with written_whole(path) as unfinished:
            unfinished.write_text(json.dumps(described, indent=1))
        return
    if changed := changes(json.loads(path.read_text())["settings"], described["settings"]):
        raise ValueError(
            f"{path.parent} holds a cross-validation with other settings, and results must not be mixed: {changed}. "
            "Set them back, or choose another output_dir."
        )


IN_UNITS = ("hd95_mm", "fp_outside_ml", "seconds")
"""Metrics that are printed in their own units; the others are shares, printed times 100."""


def write_results(
    roots: Sequence[Path], folder: Path, title: str, settings: Mapping[str, str], with_pictures: bool = True
) -> None:
    """Gather the cases of all finished units of some cross-validations, and write and print their table.

    Args:
        roots: The cross-validations' folders.
        folder: Where ``cases.csv``, ``table.md`` and ``report.html`` go.
        title: Of the report.
        settings: What the report says of configuration.
        with_pictures: Whether the report shows best, median and worst cases.
    """
    folders = {path.parent: read_cases(path) for root in roots for path in _tables(root)}
    cases = [case for found in folders.values() for case in found]
    if not cases:
        print("no unit is finished: there is no table yet", flush=True)
        return
    described = [json.loads((root / "settings.json").read_text()) for root in roots]
    published = {setting: dice for one in described for setting, dice in (one["published"] or {}).items()}
    made_with = {name: value for one in described for name, value in one["versions"].items()}
    pictures = {
        _key(case): source / "overlays" / f"{case['scan']}_{case['organ']}.png"
        for source, found in folders.items()
        for case in found
    }
    table = markdown_table(cases, published)
    write_csv(folder / "cases.csv", [COLUMNS, *([case[column] for column in COLUMNS] for case in cases)])
    with written_whole(folder / "table.md") as unfinished:
        unfinished.write_text(table)
    write_report(
        folder / "report.html",
        cases,
        title=title,
        settings={**settings, **made_with},
        published=published,
        picture_of=(lambda case: pictures[_key(case)]) if with_pictures else None,
    )
    print(f"{table}\n{len(cases)} cases: cases.csv, table.md and report.html in {folder}", flush=True)


def markdown_table(cases: Sequence[Mapping[str, str]], published: Mapping[str, Mapping[str, float]]) -> str:
    """Return tables as Markdown: Dice x 100 beside the published numbers, then all other metrics.

    Their numbers are means of the folds' means and, if there are several, their standard deviation. A third table, if
    any case has a quality, says how well that ranks the cases by Dice.
    """
    organs = organs_of(cases)
    dice = [["Dice x 100", "setting, protocol", *organs, "mean", "folds x seeds", "cases (missed, absent)"]]
    for line in summary(cases, published):
        sign = "+" if line.kind == "difference" else ""
        found = line.counts
        of = ["", ""] if found is None else [str(found.units), f"{found.used} ({found.missed}, {found.absent})"]
        dice.append([line.name, line.detail, *(_cell(score, 100, sign) for score in line.scores), *of])
    others = [["method", "setting", "protocol", "organ", *METRICS[1:]]]
    for series, lines in other_metrics(cases):
        for line in lines:
            cells = [_cell(s, 1 if n in IN_UNITS else 100) for n, s in zip(METRICS[1:], line.scores, strict=True)]
            others.append([*series, line.name, *cells])
    tables = [dice, others, *_quality_tables(cases)]
    return "\n".join("".join(f"| {' | '.join(row)} |\n" for row in _ruled(table)) for table in tables)


def _quality_tables(cases: Sequence[Mapping[str, str]]) -> list[list[list[str]]]:
    """Return one table of how quality agrees with Dice, or none."""
    rows = []
    for series, agreements in quality_agreements(cases):
        rows.append([*series, "Spearman (cases)", *map(_correlation, agreements)])
        rows.append([*series, "worst quarter found x 100 (by chance)", *map(_found, agreements)])
    header = ["method", "setting", "protocol", "quality against Dice", *organs_of(cases), "all organs"]
    return [[header, *rows]] if rows else []


def _correlation(agreement: Agreement) -> str:
    number = "-" if agreement.correlation is None else f"{agreement.correlation:.2f}"
    return f"{number} ({agreement.cases})"


def _found(agreement: Agreement) -> str:
    if agreement.found is None or agreement.chance is None:
        return "-"
    return f"{100 * agreement.found:.1f} ({100 * agreement.chance:.1f})"


def _cell(score: Score | None, factor: float, sign: str = "") -> str:
    if score is None:
        return "-"
    spread = "" if score.deviation is None else f" ± {factor * score.deviation:.1f}"
    return f"{factor * score.mean:{sign}.1f}{spread}"


def _ruled(table: list[list[str]]) -> list[list[str]]:
    return [table[0], ["---"] * len(table[0]), *table[1:]]


def _tables(root: Path) -> list[Path]:
    found = (path for protocol in PROTOCOLS for path in root.glob(f"**/{protocol}/cases.csv"))
    return sorted(path for path in found if path.parents[2].name.startswith("fold_"))


def _key(case: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(case[name] for name in NAMES)
