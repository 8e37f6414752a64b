"""Scores: means of units by hand, tables of text, and how quality ranks the cases."""

from __future__ import annotations

import numpy as np
import pytest
from bundle.evaluation.scores import (
    Case,
    cell,
    counts,
    dice_table,
    markdown,
    metrics_table,
    numbers,
    quality_table,
    scores,
    series_of,
    typical_cases,
    unit_means,
)
from pandas import DataFrame


def case(dice: float | None, **columns: str) -> dict[str, str]:
    """A case with this Dice, and metrics that are told apart from it; ``None`` is an absent organ, 0 a missed one."""
    status = "absent" if dice is None else "ok" if dice else "missed"
    surfaces = {"hd95_mm": f"{30 * (1 - dice):.2f}", "precision": f"{dice / 2:.4f}"} if dice else {}
    truth = {} if dice is None else {"dice": f"{dice:.4f}", "nsd": f"{dice / 4:.4f}", "recall": f"{dice / 8:.4f}"}
    return {
        **{"dataset": "phantoms", "method": "alpnet", "setting": "1", "group": "", "fold": "0", "seed": "7"},
        **{"support": "scan_0", "scan": "scan_1", "organ": "liver", "protocol": "paper", "status": status},
        **{"dice": "", "nsd": "", "nsd_tolerance_mm": "2", "hd95_mm": "", "precision": "", "recall": ""},
        **{"fp_outside_ml": "1.50", "quality": "", "seconds": "0.25", **surfaces, **truth, **columns},
    }


def scans(organ: str, fold: str, *dice: float | None, **columns: str) -> list[dict[str, str]]:
    """A case of each scan of a fold."""
    return [case(d, organ=organ, fold=fold, scan=f"scan_{fold}{n}", **columns) for n, d in enumerate(dice)]


# Three units of liver: means 0.7, 0.1 and 0.4; two of spleen: 0.5 (one scan has none) and 0.3 (one is missed).
CASES = [
    *scans("liver", "0", 0.5, 0.7, 0.9),
    *scans("spleen", "0", 0.5, None),
    *scans("liver", "1", 0.1),
    *scans("spleen", "1", 0.6, 0.0),
    *scans("liver", "0", 0.3, 0.5, seed="8"),
]

# The same with the network's own estimate, none of them alike.
RATED = [{**one, "quality": f"{0.9 - 0.03 * number:.4f}"} for number, one in enumerate(CASES)]


def rated(organ: str, *pairs: tuple[float | None, str], **columns: str) -> list[dict[str, str]]:
    """A case for each Dice and quality."""
    return [
        case(dice, organ=organ, scan=f"scan_{number}", quality=quality, **columns)
        for number, (dice, quality) in enumerate(pairs)
    ]


# Their ranks by Dice are 5 1 4 2 3, by quality 5 2 3 4 1: 1 - 6 * (0 + 1 + 1 + 4 + 4) / (5 * 24).
FIVE = [(0.5, "0.9"), (0.1, "0.6"), (0.4, "0.7"), (0.2, "0.8"), (0.3, "0.55")]


def means(cases: list[Case], metric: str, organ: str) -> list[float]:
    """The means of an organ's units."""
    found = unit_means(numbers(cases))[metric]
    return found.loc[organ].dropna().tolist() if organ in found.index.get_level_values("organ") else []


def test_a_unit_is_a_fold_with_a_seed_and_its_mean_is_over_its_scans() -> None:
    assert means(CASES, "dice", "liver") == pytest.approx([0.7, 0.1, 0.4])


def test_an_absent_organ_takes_no_part_and_a_missed_one_counts_as_zero() -> None:
    assert means(CASES, "dice", "spleen") == pytest.approx([0.5, 0.3])


def test_a_missed_organ_has_no_surface_distance_to_average() -> None:
    assert means(CASES, "hd95_mm", "spleen") == pytest.approx([15.0, 12.0])


def test_what_is_predicted_outside_counts_in_scans_without_the_organ_too() -> None:
    cases = scans("spleen", "0", 0.5, None)
    cases[1]["fp_outside_ml"] = "4.50"
    assert means(cases, "fp_outside_ml", "spleen") == [3.0]


def test_a_unit_in_which_the_organ_is_absent_is_left_out_and_an_organ_that_is_absent_everywhere_has_no_mean() -> None:
    cases = [*scans("liver", "0", 0.25), *scans("liver", "1", None), *scans("spleen", "0", None, None)]
    assert means(cases, "dice", "liver") == [0.25]
    assert means(cases, "dice", "spleen") == []
    assert scores(numbers(cases))["dice", "mean"][""] == 0.25


@pytest.mark.parametrize("column", ["method", "setting", "protocol"])
def test_what_differs_in_method_setting_or_protocol_is_not_averaged_together(column: str) -> None:
    table = dice_table(numbers([case(0.25), case(0.75, **{column: "other"})]))
    assert table["liver"].tolist() == ["25.0", "75.0"]


def test_every_unit_weighs_the_same_whatever_the_number_of_its_scans() -> None:
    assert scores(numbers(CASES))["dice", "mean"]["liver"] == pytest.approx((0.7 + 0.1 + 0.4) / 3)


def test_the_deviation_is_that_of_a_sample_of_units() -> None:
    # 0.7, 0.1 and 0.4 lie 0.3, 0.3 and 0 from their mean: sqrt(0.18 / 2).
    assert scores(numbers(CASES))["dice", "std"]["liver"] == pytest.approx(0.3)


def test_one_unit_has_no_deviation() -> None:
    found = scores(numbers(scans("liver", "0", 0.2, 0.6)))["dice"]
    assert found["mean"]["liver"] == pytest.approx(0.4)
    assert np.isnan(found["std"]["liver"])


def test_the_mean_over_organs_weighs_organs_alike_and_its_deviation_is_of_whole_units() -> None:
    found = scores(numbers(CASES))["dice"]
    # Liver 0.4, spleen 0.4. Units with both: (0.7 + 0.5) / 2 = 0.6 and (0.1 + 0.3) / 2 = 0.2; sqrt(2 * 0.04 / 1).
    assert found["mean"][""] == pytest.approx(0.4)
    assert found["std"][""] == pytest.approx(0.08**0.5)


def test_the_mean_over_organs_does_not_weigh_an_organ_by_its_units() -> None:
    cases = [*scans("liver", "0", 0.9), *scans("liver", "1", 0.9), *scans("spleen", "0", 0.1)]
    found = scores(numbers(cases))["dice"]
    assert found["mean"][""] == pytest.approx(0.5)
    assert np.isnan(found["std"][""])


def test_units_used_missed_and_absent_cases_are_counted() -> None:
    assert counts(numbers(CASES)) == {"folds x seeds": "3", "cases (missed, absent)": "9 (1, 1)"}


def test_series_are_ordered_by_setting_then_method_then_protocol_as_they_come() -> None:
    names = [("b", "2", "volume"), ("a", "1", "paper"), ("b", "2", "paper"), ("a", "2", "volume")]
    cases = [case(0.5, method=m, setting=s, protocol=p) for m, s, p in names]
    assert series_of(numbers(cases)) == [
        ("b", "2", "volume"), ("b", "2", "paper"), ("a", "2", "volume"), ("a", "1", "paper"),
    ]  # fmt: skip


def test_organs_are_in_the_order_they_come_in() -> None:
    table = dice_table(numbers([case(0.5, organ=organ) for organ in ("spleen", "aorta", "spleen", "liver")]))
    assert list(table.columns[2:6]) == ["spleen", "aorta", "liver", "mean"]


def test_the_table_of_dice_has_a_row_for_each_series() -> None:
    table = dice_table(numbers([*CASES, case(0.4, protocol="volume")]))
    assert table.to_dict("records") == [
        {
            **{"method": "alpnet", "setting, protocol": "1, paper", "liver": "40.0 ± 30.0", "spleen": "40.0 ± 14.1"},
            **{"mean": "40.0 ± 28.3", "training steps": "-", "scans": "5", "folds x seeds": "3"},
            "cases (missed, absent)": "9 (1, 1)",
        },
        {
            **{"method": "alpnet", "setting, protocol": "1, volume", "liver": "40.0", "spleen": "-", "mean": "40.0"},
            **{"training steps": "-", "scans": "1", "folds x seeds": "1", "cases (missed, absent)": "1 (0, 0)"},
        },
    ]


def test_published_numbers_stand_first_and_the_paper_protocol_is_compared_with_them() -> None:
    cases = [
        *scans("liver", "0", 0.5),
        *scans("spleen", "0", 0.25),
        *scans("liver", "0", 0.1, protocol="volume"),
        *scans("liver", "0", 0.75, method="plain"),
        *scans("liver", "0", 0.9, setting="2"),
    ]
    table = dice_table(numbers(cases), {"1": {"liver": 62.5, "aorta": 99.0}})
    assert table[["method", "liver", "spleen", "mean"]].to_numpy().tolist() == [
        ["published", "62.5", "-", "62.5"],
        ["alpnet", "50.0", "25.0", "37.5"],
        # The mean of the difference is over the organs that both have: the liver alone.
        ["alpnet, difference to published", "-12.5", "-", "-12.5"],
        ["alpnet", "10.0", "-", "10.0"],
        ["plain", "75.0", "-", "75.0"],
        ["plain, difference to published", "+12.5", "-", "+12.5"],
        ["alpnet", "90.0", "-", "90.0"],
    ]


def test_rows_of_a_short_training_on_few_scans_state_steps_and_scans() -> None:
    cases = numbers([case | {"steps": "30"} for case in scans("liver", "0", 0.5, 0.6)])
    table = dice_table(cases, {"1": {"liver": 62.5}})
    assert table[["training steps", "scans"]].to_numpy().tolist() == [["-", "-"], ["30", "2"], ["30", "2"]]
    long = dice_table(numbers([case(0.5, steps="100000"), case(0.6, steps="500", fold="1")]))
    assert long["training steps"].tolist() == ["100,000 / 500"]


@pytest.mark.parametrize("organ", ["mean", "scans", "method", "all organs"])
def test_an_organ_with_the_name_of_a_column_has_its_own_column(organ: str) -> None:
    cases = numbers([case(0.5, organ=organ, quality="0.8"), case(0.3, quality="0.7")])
    table = dice_table(cases)
    assert table[f"organ {organ}"].tolist() == ["50.0"]
    assert table["mean"].tolist() == ["40.0"]
    assert table.columns.is_unique
    assert f"organ {organ}" in quality_table(cases).columns


def test_the_other_metrics_have_a_row_for_each_organ_and_one_for_the_mean() -> None:
    cases = [*scans("liver", "0", 0.5, None, quality="0.75"), *scans("spleen", "0", 0.1, nsd_tolerance_mm="3")]
    liver, spleen, mean = metrics_table(numbers(cases)).to_numpy().tolist()
    assert liver == [
        *("alpnet", "1", "paper", "liver", "12.5", "15.0", "25.0", "6.2", "1.5", "75.0", "0.2"),
        *("2", "1", "1 (0, 1)"),
    ]
    assert spleen[3:5] == ["spleen", "2.5"]
    assert mean[3:5] == ["mean", "7.5"]
    assert mean[-3:] == ["2 / 3", "1", "2 (0, 1)"]


@pytest.mark.parametrize(
    ("dice", "expected"),
    [
        ([None], []),
        ([0.5, None], [("only case", 0.5)]),
        ([0.5, 0.6], [("best", 0.6), ("worst", 0.5)]),
        ([0.5, 0.7, 0.6], [("best", 0.7), ("median", 0.6), ("worst", 0.5)]),
        ([0.9, 0.0, 0.7, 0.6], [("best", 0.9), ("median", 0.6), ("worst", 0.0)]),
    ],
)
def test_the_best_the_median_and_the_worst_case_are_told_and_none_twice(
    dice: list[float | None], expected: list[tuple[str, float]]
) -> None:
    told = typical_cases(numbers(scans("liver", "0", *dice)))
    assert [(rank, found["dice"].item()) for rank, found in told] == expected


def agreement(cases: list[dict[str, str]], row: int = 0) -> DataFrame:
    """The correlations, and what was found of the worst quarter, of one series."""
    return quality_table(numbers(cases)).iloc[2 * row : 2 * row + 2].drop(columns=["method", "setting", "protocol"])


def test_quality_is_compared_with_dice_by_ranks_and_by_the_worst_quarter() -> None:
    # A quarter of five is two: the worst have quality 0.6 and 0.8, the lowest qualities are 0.55 and 0.6.
    assert agreement(rated("liver", *FIVE))["liver"].tolist() == ["0.50 (5)", "50.0 (40.0)"]


def test_quality_is_compared_in_each_organ_and_in_all_organs_cases_together() -> None:
    liver = rated("liver", (0.1, "0.7"), (0.2, "0.6"), (0.3, "0.5"))
    spleen = rated("spleen", (0.7, "0.99"), (0.8, "0.98"), (0.9, "0.97"))
    found = agreement([*liver, *spleen])
    assert (found["liver"].iloc[0], found["spleen"].iloc[0]) == ("-1.00 (3)", "-1.00 (3)")
    # Ranks by quality 3 2 1 6 5 4: 1 - 6 * 16 / (6 * 35) = 0.543. Of two worst one is found.
    assert found["all organs"].tolist() == ["0.54 (6)", "50.0 (33.3)"]


def test_a_missed_organ_is_compared_and_an_absent_or_unrated_one_is_not() -> None:
    pairs = [(0.5, "0.6"), (None, "0.9"), (0.0, "0.0000"), (0.7, ""), (0.9, "0.8")]
    assert agreement(rated("liver", *pairs))["liver"].tolist() == ["1.00 (3)", "100.0 (33.3)"]


@pytest.mark.parametrize(
    "pairs",
    [
        [(0.2, "0.6"), (0.4, "0.7")],
        [(0.2, "0.8"), (0.4, "0.8"), (0.6, "0.8")],
        [(0.0, "0.6"), (0.0, "0.7"), (0.0, "0.8")],
    ],
    ids=["two cases", "one quality", "one Dice"],
)
@pytest.mark.filterwarnings("error")
def test_where_there_is_nothing_to_rank_there_is_no_agreement(pairs: list[tuple[float, str]]) -> None:
    assert agreement(rated("liver", *pairs))["all organs"].tolist() == [f"- ({len(pairs)})", "-"]


@pytest.mark.parametrize(
    "pairs",
    [
        [(0.2, "0.7"), (0.2, "0.6"), (0.5, "0.8"), (0.6, "0.9")],
        [(0.3, "0.6"), (0.2, "0.6"), (0.5, "0.8"), (0.6, "0.9")],
    ],
    ids=["Dice", "quality"],
)
def test_of_equal_cases_the_first_is_in_the_quarter(pairs: list[tuple[float, str]]) -> None:
    assert agreement(rated("liver", *pairs))["liver"].iloc[1] == "0.0 (25.0)"


def test_each_series_has_its_own_agreement_and_one_without_quality_has_none() -> None:
    cases = [
        *rated("spleen", (0.5, "0.6"), method="b"),
        *scans("liver", "0", 0.1, 0.2, 0.3, method="old"),
        *rated("liver", *FIVE, method="a"),
    ]
    assert quality_table(numbers(cases))["method"].tolist() == ["b", "b", "a", "a"]
    assert agreement(cases)[["spleen", "liver", "all organs"]].iloc[0].tolist() == ["- (1)", "- (0)", "- (1)"]
    assert agreement(cases, 1)[["spleen", "liver", "all organs"]].iloc[0].tolist() == ["- (0)", "0.50 (5)", "0.50 (5)"]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((0.5, 0.125, 100), "50.0 ± 12.5"),
        ((0.5, float("nan"), 100), "50.0"),
        ((float("nan"), 1.0), "-"),
        ((1.25, float("nan"), 1, "+"), "+1.2"),
    ],
)
def test_a_mean_has_its_deviation_in_one_style(values: tuple[float, ...], text: str) -> None:
    assert cell(*values) == text  # type: ignore[arg-type]


def test_markdown_has_a_rule_below_the_names_of_its_columns() -> None:
    assert markdown(DataFrame({"a": ["1", "2"], "b": ["x|y", "z"]})) == (
        "| a | b |\n| --- | --- |\n| 1 | x&#124;y |\n| 2 | z |\n"
    )
