"""Settings that must not change during a cross-validation, and the table and the report of its cases."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bundle.evaluation.cases import picture_of, read_cases, write_cases
from bundle.evaluation.cross_validation.workflow import PROTOCOLS, Workflow
from bundle.evaluation.report_page import write_report
from bundle.evaluation.scores import NAMES, dice_table, markdown, metrics_table, numbers, quality_table
from bundle.files import read_json, written_whole
from bundle.provenance import changes, digest, file_records, versions


def described_by(workflow: Workflow, scans: Sequence[Mapping[str, Any]], method: str) -> dict[str, Any]:
    """Return the settings of a cross-validation: those that must not change, and all values for a reader."""
    data = file_records(scan[key] for scan in scans for key in sorted(scan))
    settings = {
        "method": method,
        "untrained": str(workflow.untrained),
        "data": f"{len(scans)} scans, names and contents {digest(data)}",
        **workflow.settings(),
    }
    return {
        "settings": settings,
        "values": workflow.values(),
        "versions": versions(),
        "published": workflow.get("published"),
    }


def read_settings(root: Path) -> dict[str, Any]:
    """Return what a cross-validation's folder tells of its settings.

    Raises:
        ValueError: If the file is damaged.
    """
    needed = ("settings", "versions", "published")
    return read_json(root / "settings.json", "Choose another output_dir.", needed)


def refuse_other_settings(path: Path, described: Mapping[str, Any]) -> None:
    """Write the settings of a new cross-validation, or compare them with those of the one to resume.

    Raises:
        ValueError: If a setting changed; nothing is written then.
    """
    if not path.is_file():
        with written_whole(path) as unfinished:
            unfinished.write_text(json.dumps(described, indent=1), encoding="utf-8")
        return
    if changed := changes(read_settings(path.parent)["settings"], described["settings"]):
        raise ValueError(
            f"{path.parent} holds a cross-validation with other settings, which must not be mixed: {changed}. "
            "Set them back, or choose another output_dir."
        )


def write_results(
    roots: Sequence[Path], folder: Path, title: str, settings: Mapping[str, str], with_pictures: bool = True
) -> None:
    """Gather the cases of all finished units of some cross-validations, and write and print their table.

    Args:
        roots: Output folders of the cross-validations.
        folder: Where ``cases.csv``, ``table.md`` and ``report.html`` go.
        title: Title of the report.
        settings: Settings that the report lists.
        with_pictures: Whether the report shows the best, median and worst case.
    """
    described = [read_settings(root) for root in roots]
    names = _distinct(roots, [(one["settings"]["method"], one["settings"].get("setting")) for one in described])
    cases: list[dict[str, str]] = []
    pictures: dict[tuple[str, ...], Path] = {}
    for root, method in zip(roots, names, strict=True):
        for path in _tables(root):
            found = [case | {"method": method} for case in read_cases(path)]
            cases += found
            pictures |= {_key(case): picture_of(path.parent, case) for case in found}
    if not cases:
        print("no unit is finished: there is no table yet", flush=True)
        return
    published = {setting: dice for one in described for setting, dice in (one["published"] or {}).items()}
    made_with = {name: value for one in described for name, value in one["versions"].items()}
    text = markdown_tables(cases, published)
    write_cases(folder / "cases.csv", cases)
    with written_whole(folder / "table.md") as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    write_report(
        folder / "report.html",
        cases,
        title=title,
        settings={**settings, **made_with},
        published=published,
        picture_of=(lambda case: pictures[_key(case)]) if with_pictures else None,
    )
    print(f"{text}\n{len(cases)} cases: cases.csv, table.md and report.html in {folder}", flush=True)


def markdown_tables(cases: Sequence[Mapping[str, str]], published: Mapping[str, Mapping[str, float]]) -> str:
    """Return Markdown tables: Dice x 100 beside the published numbers, all other metrics, quality against Dice."""
    table = numbers(cases)
    tables = [dice_table(table, published), metrics_table(table), quality_table(table)]
    return "\n".join(markdown(one) for one in tables if len(one))


def _distinct(roots: Sequence[Path], methods: Sequence[tuple[str, Any]]) -> list[str]:
    """Return the names of methods, with the folder's name if two in the same setting share a name."""
    return [
        f"{method[0]}, {root.resolve().name}" if methods.count(method) > 1 else method[0]
        for root, method in zip(roots, methods, strict=True)
    ]


def _tables(root: Path) -> list[Path]:
    found = (path for protocol in PROTOCOLS for path in root.glob(f"**/{protocol}/cases.csv"))
    return sorted(path for path in found if path.parents[2].name.startswith("fold_"))


def _key(case: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(case[name] for name in NAMES)
