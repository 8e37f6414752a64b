"""The tables of a cross-validation as Markdown: quality beside Dice, of every method that has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bundle.evaluation.cross_validation.results import markdown_table
from tests.evaluation.test_report_page import CASES, FIVE, rated, scans


def tables(cases: Sequence[Any]) -> list[list[list[str]]]:
    """The cells of each table."""
    return [
        [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
        for table in markdown_table(cases, {}).split("\n\n")
    ]


def test_how_quality_agrees_with_dice_is_a_table_of_its_own() -> None:
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
    assert others[2][others[0].index("quality")] == "71.0"


def test_without_quality_there_is_no_table_of_it() -> None:
    older = [{name: value for name, value in case.items() if name != "quality"} for case in CASES]
    assert len(tables(CASES)) == 2
    assert tables(older) == tables(CASES)
