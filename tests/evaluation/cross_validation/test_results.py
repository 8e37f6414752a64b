"""The tables of a cross-validation as Markdown, and the names of methods in them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from bundle.evaluation.cases import read_cases, write_cases
from bundle.evaluation.cross_validation.commands import CrossValidation
from bundle.evaluation.cross_validation.results import (
    described_by,
    markdown_tables,
    refuse_other_settings,
    write_results,
)
from tests.evaluation.cross_validation.test_workflow import made
from tests.evaluation.test_scores import CASES, FIVE, rated, scans


def tables(cases: Sequence[Any]) -> list[list[list[str]]]:
    """The cells of each table."""
    return [
        [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
        for table in markdown_tables(cases, {}).split("\n\n")
    ]


def test_how_quality_agrees_with_dice_has_its_own_table() -> None:
    cases = [*rated("liver", *FIVE), *rated("spleen", (0.6, "0.52"))]
    assert tables(cases)[2] == [
        ["method", "setting", "protocol", "quality against Dice", "liver", "spleen", "all organs"],
        ["---"] * 7,
        ["alpnet", "1", "paper", "Spearman (cases)", "0.50 (5)", "- (1)", "-0.14 (6)"],
        ["alpnet", "1", "paper", "worst quarter found x 100 (by chance)", "50.0 (40.0)", "-", "0.0 (33.3)"],
    ]


def test_every_method_with_quality_is_compared_beside_those_without() -> None:
    plain, old = rated("liver", *FIVE, method="plain"), scans("liver", "0", 0.5, method="old")
    dice, others, quality = tables([*rated("liver", *FIVE), *plain, *old])
    assert [row[0] for row in dice[2:]] == ["alpnet", "plain", "old"]
    assert [row[0] for row in others[2::2]] == ["alpnet", "plain", "old"]
    assert [row[0] for row in quality[2:]] == ["alpnet", "alpnet", "plain", "plain"]


def test_the_quality_itself_is_one_of_the_metrics() -> None:
    _, others, _ = tables(rated("liver", *FIVE))
    assert others[2][others[0].index("quality x 100")] == "71.0"


def test_without_quality_there_is_no_table_of_it() -> None:
    older = [{name: value for name, value in case.items() if name != "quality"} for case in CASES]
    assert len(tables(CASES)) == 2
    assert tables(older) == tables(CASES)


def test_a_name_with_a_bar_stays_in_its_cell() -> None:
    dice, *_ = tables(scans("liver", "0", 0.5, method="a|b\nc"))
    assert dice[2][0] == "a&#124;b c"


def finished(root: Path, method: str, setting: int = 1) -> Path:
    """Write what a cross-validation of one unit leaves."""
    described = {"settings": {"method": method, "setting": setting}, "versions": {}, "published": None}
    folder = root / "fold_0" / "seed_7" / "paper"
    write_cases(folder / "cases.csv", [case | {"support": "", "steps": ""} for case in scans("liver", "0", 0.5)])
    (root / "settings.json").write_text(json.dumps(described))
    return root


def test_a_comparison_shows_values_and_of_expressions_only_those_that_differ(tmp_path: Path) -> None:
    for name, head in (("first", "@one_head"), ("second", "@other_head")):
        root = finished(tmp_path / name, name)
        described = json.loads((root / "settings.json").read_text())
        described["settings"] |= {"max_steps": "$@max_epochs * 10", "dataset::data": "@scans", "head": head}
        described["values"] = {"max_steps": "70"}
        (root / "settings.json").write_text(json.dumps(described))
    CrossValidation().compare([str(tmp_path / "first"), str(tmp_path / "second")], str(tmp_path / "both"))
    page = (tmp_path / "both/report.html").read_text()
    assert re.search(r"<td>max_steps</td>\s*<td>70</td>", page)
    assert "first, setting 1: head" in page
    assert "@one_head" in page
    assert "@scans" not in page
    assert "$@" not in page


@pytest.mark.parametrize(
    ("methods", "called"),
    [(["ALPNet", "plain"], ["ALPNet", "plain"]), (["ALPNet", "ALPNet"], ["ALPNet, first", "ALPNet, second"])],
)
def test_methods_of_one_name_are_told_apart_by_their_folders(
    methods: list[str], called: list[str], tmp_path: Path
) -> None:
    roots = [finished(tmp_path / name, method) for name, method in zip(("first", "second"), methods, strict=True)]
    write_results(roots, tmp_path / "both", "Both", {})
    assert [case["method"] for case in read_cases(tmp_path / "both" / "cases.csv")] == called


def test_a_corrected_label_of_the_same_size_and_time_is_other_data(tmp_path: Path) -> None:
    scan = {key: str(tmp_path / f"{key}.nii") for key in ("image", "label")}
    for path in scan.values():
        Path(path).write_bytes(b"uncompressed: every voxel has its bytes")
    refuse_other_settings(tmp_path / "settings.json", described_by(made(), [scan], "ours"))
    refuse_other_settings(tmp_path / "settings.json", described_by(made(), [scan], "ours"))
    before = os.stat(scan["label"])
    Path(scan["label"]).write_bytes(b"uncompressed: some voxel has its bytes!")
    os.utime(scan["label"], ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert os.stat(scan["label"]).st_size == before.st_size
    message = "must not be mixed: data was '1 scans, names and contents .*', is '1 scans, names and contents "
    with pytest.raises(ValueError, match=message):
        refuse_other_settings(tmp_path / "settings.json", described_by(made(), [scan], "ours"))
