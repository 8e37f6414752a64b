"""The report: means of units by hand, and a page that is whole, tells the numbers, and trusts no name."""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from bundle.evaluation.report_page import (
    Agreement,
    Case,
    Counts,
    Line,
    Score,
    box_plot,
    counts,
    mean_scores,
    organ_scores,
    organs_of,
    other_metrics,
    quality_agreements,
    quality_plot,
    series_of,
    summary,
    telling_cases,
    unit_means,
    write_report,
)

ROOT = Path(__file__).parents[2]
SERIES = ("alpnet", "1", "paper")
EVIL = "<script>alert(1)</script>\" onclick='x' {{ 7 * 7 }} $_$"
# The page has typographic signs, the tests what a keyboard has.
PLAIN = str.maketrans({"\u00d7": "x", "\u2013": "-", "\u2212": "-", "\u2019": "'"})


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


class Page(HTMLParser):
    """What a browser would make of the page: its elements and its words, and whether everything is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.tables: list[list[list[str]]] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in ("meta", "img", "wbr"):
            self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1] += [""] * int(dict(attrs).get("colspan") or 1)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        data = data.translate(PLAIN)
        if "style" not in self._open:
            self.words.append(data)
        if {"td", "th"} & set(self._open):
            self.tables[-1][-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def rows(self, table: int) -> list[list[str]]:
        return [[" ".join(cell.split()) for cell in row] for row in self.tables[table]]

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page(folder: Path, cases: Sequence[Case], **arguments: object) -> Page:
    """Write a report and parse it."""
    given = {"title": "A report", "settings": {"torch": "2.13"}, **arguments}
    write_report(folder / "report.html", cases, **given)  # type: ignore[arg-type]
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def save_picture(path: Path, gray: int) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.full((24, 70, 3), gray, dtype=np.uint8)).save(path)
    return path


def test_a_unit_is_a_fold_with_a_seed_and_its_mean_is_over_its_scans() -> None:
    assert unit_means(CASES, "dice")[(*SERIES, "liver")] == pytest.approx([0.7, 0.1, 0.4])


def test_an_absent_organ_takes_no_part_and_a_missed_one_counts_as_zero() -> None:
    assert unit_means(CASES, "dice")[(*SERIES, "spleen")] == pytest.approx([0.5, 0.3])


def test_a_missed_organ_has_no_surface_distance_to_average() -> None:
    assert unit_means(CASES, "hd95_mm")[(*SERIES, "spleen")] == pytest.approx([15.0, 12.0])


def test_what_is_predicted_outside_counts_in_scans_without_the_organ_too() -> None:
    cases = scans("spleen", "0", 0.5, None)
    cases[1]["fp_outside_ml"] = "4.50"
    assert unit_means(cases, "fp_outside_ml") == {(*SERIES, "spleen"): [3.0]}


def test_a_unit_in_which_the_organ_is_absent_is_left_out_and_so_is_an_organ_that_is_absent_everywhere() -> None:
    cases = [*scans("liver", "0", 0.25), *scans("liver", "1", None), *scans("spleen", "0", None, None)]
    assert unit_means(cases, "dice") == {(*SERIES, "liver"): [0.25]}


@pytest.mark.parametrize("column", ["method", "setting", "protocol"])
def test_what_differs_in_method_setting_or_protocol_is_not_averaged_together(column: str) -> None:
    cases = [case(0.25), case(0.75, **{column: "other"})]
    assert list(unit_means(cases, "dice").values()) == [[0.25], [0.75]]


def test_every_unit_weighs_the_same_whatever_the_number_of_its_scans() -> None:
    assert organ_scores(CASES, "dice")[(*SERIES, "liver")].mean == pytest.approx((0.7 + 0.1 + 0.4) / 3)


def test_the_deviation_is_that_of_a_sample_of_units() -> None:
    # 0.7, 0.1 and 0.4 lie 0.3, 0.3 and 0 from their mean: sqrt(0.18 / 2).
    assert organ_scores(CASES, "dice")[(*SERIES, "liver")].deviation == pytest.approx(0.3)


def test_one_unit_has_no_deviation() -> None:
    assert organ_scores(scans("liver", "0", 0.2, 0.6), "dice") == {(*SERIES, "liver"): Score(0.4, None)}


def test_the_mean_over_organs_weighs_organs_alike_and_its_deviation_is_of_whole_units() -> None:
    score = mean_scores(CASES, "dice")[SERIES]
    # Liver 0.4, spleen 0.4. Units with both: (0.7 + 0.5) / 2 = 0.6 and (0.1 + 0.3) / 2 = 0.2; sqrt(2 * 0.04 / 1).
    assert score.mean == pytest.approx(0.4)
    assert score.deviation == pytest.approx(0.08**0.5)


def test_the_mean_over_organs_does_not_weigh_an_organ_by_its_units() -> None:
    cases = [*scans("liver", "0", 0.9), *scans("liver", "1", 0.9), *scans("spleen", "0", 0.1)]
    assert mean_scores(cases, "dice")[SERIES] == Score(pytest.approx(0.5), None)


def test_units_used_missed_and_absent_cases_are_counted() -> None:
    assert counts(CASES) == Counts(units=3, used=9, missed=1, absent=1)


def test_series_are_ordered_by_setting_then_method_then_protocol_as_they_come() -> None:
    names = [("b", "2", "volume"), ("a", "1", "paper"), ("b", "2", "paper"), ("a", "2", "volume")]
    cases = [case(0.5, method=m, setting=s, protocol=p) for m, s, p in names]
    assert series_of(cases) == [
        ("b", "2", "volume"), ("b", "2", "paper"), ("a", "2", "volume"), ("a", "1", "paper"),
    ]  # fmt: skip


def test_organs_are_in_the_order_they_come_in() -> None:
    assert organs_of([case(0.5, organ=organ) for organ in ("spleen", "aorta", "spleen", "liver")]) == [
        "spleen", "aorta", "liver",
    ]  # fmt: skip


def test_without_published_numbers_there_is_a_line_for_each_series_and_nothing_else() -> None:
    assert [(line.kind, line.name, line.detail) for line in summary([case(0.5), case(0.4, protocol="volume")])] == [
        ("series", "alpnet", "setting 1, paper"),
        ("series", "alpnet", "setting 1, volume"),
    ]


def test_published_numbers_stand_first_and_the_paper_protocol_is_compared_with_them() -> None:
    cases = [
        *scans("liver", "0", 0.5),
        *scans("spleen", "0", 0.25),
        *scans("liver", "0", 0.1, protocol="volume"),
        *scans("liver", "0", 0.75, method="plain"),
        *scans("liver", "0", 0.9, setting="2"),
    ]
    lines = summary(cases, {"1": {"liver": 62.5, "aorta": 99.0}})
    assert [line.kind for line in lines] == [
        "published", "series", "difference", "series", "series", "difference", "series",
    ]  # fmt: skip
    assert lines[0] == Line("published", "published", "setting 1, paper", [Score(0.625), None, Score(0.625)])
    assert lines[1].scores == [Score(0.5), Score(0.25), Score(0.375)]
    # The mean of the difference is over the organs that both have: the liver alone.
    assert lines[2].scores == [Score(-0.125), None, Score(-0.125)]
    assert lines[5].scores == [Score(0.125), None, Score(0.125)]


def test_a_line_says_how_many_cases_it_used() -> None:
    assert summary(CASES)[0].counts == Counts(units=3, used=9, missed=1, absent=1)


def test_the_other_metrics_have_a_line_for_each_organ_and_one_for_the_mean() -> None:
    cases = [*scans("liver", "0", 0.5, None, quality="0.75"), *scans("spleen", "0", 0.1, nsd_tolerance_mm="3")]
    [(series, [liver, spleen, mean])] = other_metrics(cases)
    assert series == SERIES
    assert [score and round(score.mean, 6) for score in liver.scores] == [0.125, 15.0, 0.25, 0.0625, 1.5, 0.75, 0.25]
    assert [score and round(score.mean, 6) for score in mean.scores] == [0.075, 21.0, 0.15, 0.0375, 1.5, 0.75, 0.25]
    assert (liver.name, liver.detail, liver.counts) == ("liver", "2", Counts(1, 1, 0, 1))
    assert (spleen.name, spleen.detail, spleen.counts) == ("spleen", "3", Counts(1, 1, 0, 0))
    assert (mean.name, mean.detail, mean.counts) == ("mean", "2 / 3", Counts(1, 2, 0, 1))


@pytest.mark.parametrize(
    ("dice", "expected"),
    [
        ([None], []),
        ([0.5, None], [("only case", "0.5000")]),
        ([0.5, 0.6], [("best", "0.6000"), ("worst", "0.5000")]),
        ([0.5, 0.7, 0.6], [("best", "0.7000"), ("median", "0.6000"), ("worst", "0.5000")]),
        ([0.9, 0.0, 0.7, 0.6], [("best", "0.9000"), ("median", "0.6000"), ("worst", "0.0000")]),
    ],
)
def test_the_best_the_median_and_the_worst_case_are_told_and_none_twice(
    dice: list[float | None], expected: list[tuple[str, str]]
) -> None:
    assert [(rank, told["dice"]) for rank, told in telling_cases(scans("liver", "0", *dice))] == expected


def test_quality_is_compared_with_dice_by_ranks_and_by_the_worst_quarter() -> None:
    [(series, [liver, _])] = quality_agreements(rated("liver", *FIVE))
    assert series == SERIES
    # A quarter of five is two: the worst have quality 0.6 and 0.8, the lowest qualities are 0.55 and 0.6.
    assert liver == Agreement(cases=5, correlation=pytest.approx(0.5), found=0.5, chance=0.4)


def test_quality_is_compared_in_each_organ_and_in_all_organs_cases_together() -> None:
    liver = rated("liver", (0.1, "0.7"), (0.2, "0.6"), (0.3, "0.5"))
    spleen = rated("spleen", (0.7, "0.99"), (0.8, "0.98"), (0.9, "0.97"))
    [(_, agreements)] = quality_agreements([*liver, *spleen])
    assert [one.correlation for one in agreements[:2]] == pytest.approx([-1, -1])
    # Ranks by quality 3 2 1 6 5 4: 1 - 6 * 16 / (6 * 35). Of two worst one is found.
    assert agreements[2] == Agreement(6, pytest.approx(1 - 96 / 210), 0.5, pytest.approx(1 / 3))


def test_a_missed_organ_is_compared_and_an_absent_or_unrated_one_is_not() -> None:
    pairs = [(0.5, "0.6"), (None, "0.9"), (0.0, "0.0000"), (0.7, ""), (0.9, "0.8")]
    [(_, [liver, _])] = quality_agreements(rated("liver", *pairs))
    assert liver == Agreement(3, pytest.approx(1.0), 1.0, pytest.approx(1 / 3))


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
    [(_, agreements)] = quality_agreements(rated("liver", *pairs))
    assert agreements == [Agreement(len(pairs), None, None, None)] * 2


@pytest.mark.parametrize(
    "pairs",
    [
        [(0.2, "0.7"), (0.2, "0.6"), (0.5, "0.8"), (0.6, "0.9")],
        [(0.3, "0.6"), (0.2, "0.6"), (0.5, "0.8"), (0.6, "0.9")],
    ],
    ids=["Dice", "quality"],
)
def test_of_equal_cases_the_first_is_in_the_quarter(pairs: list[tuple[float, str]]) -> None:
    [(_, [liver, _])] = quality_agreements(rated("liver", *pairs))
    assert (liver.found, liver.chance) == (0, 0.25)


def test_each_series_has_its_own_agreement_and_one_without_quality_has_none() -> None:
    cases = [
        *rated("spleen", (0.5, "0.6"), method="b"),
        *scans("liver", "0", 0.1, 0.2, 0.3, method="old"),
        *rated("liver", *FIVE, method="a"),
    ]
    agreements = dict(quality_agreements(cases))
    assert list(agreements) == [("b", "1", "paper"), ("a", "1", "paper")]
    assert [one.cases for one in agreements["b", "1", "paper"]] == [1, 0, 1]
    assert [one.cases for one in agreements["a", "1", "paper"]] == [0, 5, 5]


def points(svg: str, of_cases: bool) -> list[tuple[float, str | None]]:
    """Where the dots of the cases or the diamonds of the means are, as they were drawn, and their titles."""
    found = []
    for use in ElementTree.fromstring(svg).iter("use"):
        if "var(--method" in use.get("style", "") and ("stroke" not in use.get("style", "")) == of_cases:
            found.append((float(use.get("x", "nan")), use.findtext("title")))
    return found


def test_every_case_is_a_point_at_its_dice_with_its_name() -> None:
    svg = box_plot([*scans("liver", "0", 0.0, 1.0, 0.25, None), *scans("spleen", "0", 0.5)], "liver")
    (zero, _), (one, _), (quarter, title) = points(svg, of_cases=True)
    assert quarter == pytest.approx(zero + (one - zero) / 4, abs=1e-3)
    assert title == "scan scan_02, fold 0, seed 7, Dice 25.0"


def test_the_diamond_is_at_the_mean_of_the_units() -> None:
    svg = box_plot([*scans("liver", "0", 0.0, 0.0, 0.0), *scans("liver", "1", 1.0)], "liver")
    (zero, _), *_, (one, _) = points(svg, of_cases=True)
    assert [x for x, _ in points(svg, of_cases=False)] == pytest.approx([(zero + one) / 2], abs=1e-3)


def test_a_plot_is_text_that_a_browser_draws_in_colors_of_the_page_one_for_a_method() -> None:
    cases = [case(0.5, method=method, protocol=protocol) for method in ("a", "b") for protocol in ("paper", "volume")]
    svg = ElementTree.fromstring(box_plot(cases, "liver"))
    labels = [text.text for text in svg.iter("text")]
    assert labels[-4:] == [f"{method}, setting 1, {protocol}" for method in "ab" for protocol in ("paper", "volume")]
    styles = [element.get("style", "") for element in svg.iter()]
    assert {name for style in styles for name in re.findall(r"var\((.*?)\)", style)} == {"--method-1", "--method-2"}
    assert not any(color in style for style in styles for color in ("#123456", "#0072b2", "#d55e00"))
    assert "liver" in svg.attrib["aria-label"]


def test_a_plot_brings_no_styles_or_names_for_the_whole_page() -> None:
    svg = ElementTree.fromstring(box_plot([case(0.5)], "liver"))
    assert list(svg.iter("style")) == []
    assert {name for element in svg.iter() for name in element.attrib if "xmlns" in name or "{" in name} == set()


def test_a_plot_says_where_a_series_lacks_the_organ() -> None:
    svg = box_plot([case(0.5), case(0.5, organ="spleen"), case(None, method="plain")], "liver")
    assert svg.count("no case with this organ") == 1


def test_more_methods_than_colors_start_from_the_first_again() -> None:
    svg = box_plot([case(0.5, method=str(number)) for number in range(7)], "liver")
    assert svg.count("var(--method-1)") == 2 * svg.count("var(--method-2)")


def dots(svg: str) -> dict[str, ElementTree.Element]:
    """The points of a plot by their titles."""
    return {title: use for use in ElementTree.fromstring(svg).iter("use") if (title := use.findtext("title"))}


def test_every_case_is_a_point_at_its_quality_and_dice_with_its_name() -> None:
    cases = rated("liver", (0.0, "0.5"), (1.0, "1.0"), (0.25, "0.75"), (0.0, "0.0000"), (0.5, ""), (None, "0.9"))
    drawn = dots(quality_plot(cases, SERIES))
    assert list(drawn)[2] == "liver, scan scan_2, fold 0, seed 7, Dice 25.0, quality 0.750"
    half, one, between, not_found = ((float(use.attrib["x"]), float(use.attrib["y"])) for use in drawn.values())
    assert between[0] == pytest.approx((half[0] + one[0]) / 2, abs=1e-3)
    assert between[1] == pytest.approx(half[1] + (one[1] - half[1]) / 4, abs=1e-3)
    assert not_found[0] < half[0] < one[0]
    assert not_found[1] == half[1]
    # Dice 0 to 1 takes most of a plot that is 259 points high.
    assert half[1] - one[1] > 150


def test_an_organ_has_the_same_color_in_every_plot_and_in_the_legend(tmp_path: Path) -> None:
    liver, spleen = rated("liver", *FIVE), rated("spleen", *FIVE)
    cases = [*liver, *spleen, *rated("spleen", *FIVE, method="other")]
    for series in series_of(cases):
        styles = {title.split(",")[0]: use.get("style") for title, use in dots(quality_plot(cases, series)).items()}
        assert "var(--method-2)" in str(styles["spleen"])
    signs = [found["style"] for found in page(tmp_path, cases).all("b") if "style" in found]
    assert signs == ["color: var(--method-1)", "color: var(--method-2)"]


def test_more_organs_than_colors_have_another_marker(tmp_path: Path) -> None:
    cases = [case(0.5, organ=f"organ {number}", quality="0.8") for number in range(7)]
    svg = quality_plot(cases, SERIES)
    outlines = {f"#{path.get('id')}": path.get("d") for path in ElementTree.fromstring(svg).iter("path")}
    first, second, *_, last = dots(svg).values()
    assert outlines[first.attrib["href"]] == outlines[second.attrib["href"]] != outlines[last.attrib["href"]]
    assert first.attrib["style"] == last.attrib["style"] != second.attrib["style"]
    assert "● organ 0 ● organ 1" in page(tmp_path, cases).text
    assert "● organ 5 ■ organ 6" in page(tmp_path, cases).text


def test_a_plot_of_quality_shows_its_series_alone_and_names_it() -> None:
    cases = [*rated("liver", (0.5, "0.7")), *rated("liver", (0.4, "0.8"), protocol="volume")]
    svg = quality_plot(cases, (*SERIES[:2], "volume"))
    assert [title.rpartition(" ")[2] for title in dots(svg)] == ["0.800"]
    label = "Scatter plot: Dice over quality of every case, alpnet, setting 1, volume. The table has the correlations."
    assert ElementTree.fromstring(svg).attrib["aria-label"] == label


def test_the_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    picture = save_picture(tmp_path / "a.png", 100)
    parsed = page(tmp_path, RATED, picture_of=lambda _: picture, published={"1": {"liver": 70.0}})
    html = re.sub(r"data:image/jpeg;base64,[\w+/=]+", "", (tmp_path / "report.html").read_text(encoding="utf-8"))
    assert not re.search(r"https?:|@import|//\w", html)
    assert [link for link in re.findall(r"url\((.*?)\)", html) if not link.startswith("#")] == []
    assert {tag for tag, _ in parsed.elements} & {"script", "link", "iframe", "object", "embed", "base"} == set()
    links = [found[name] for _, found in parsed.elements for name in ("href", "src", "srcset") if name in found]
    assert all(link.startswith(("#", "data:image/jpeg;base64,")) for link in links)
    assert len(parsed.all("img")) == 6
    policies = [meta["content"] for meta in parsed.all("meta") if "http-equiv" in meta]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_links_within_the_page_lead_somewhere_and_no_name_is_there_twice(tmp_path: Path) -> None:
    parsed = page(tmp_path, [*RATED, *({**one, "method": "plain"} for one in RATED)])
    names = [found["id"] for _, found in parsed.elements if "id" in found]
    links = [found[name][1:] for _, found in parsed.elements for name in ("href", "xlink:href") if name in found]
    assert len(names) == len(set(names))
    assert set(links) <= set(names)


def test_names_are_text_wherever_they_stand(tmp_path: Path) -> None:
    names = ("method", "setting", "group", "fold", "seed", "support", "scan", "organ", "protocol", "dataset")
    evil = {name: f"{name} {EVIL}" for name in names}
    picture = save_picture(tmp_path / "a.png", 100)
    parsed = page(
        tmp_path,
        [case(0.5, quality="0.8", **evil), case(0.4, **{**evil, "scan": "a"}), case(None, **{**evil, "support": EVIL})],
        title=f"title {EVIL}",
        settings={f"name {EVIL}": f"value {EVIL}"},
        notes=[f"note {EVIL}"],
        published={f"setting {EVIL}": {f"organ {EVIL}": 50.0}},
        picture_of=lambda _: picture,
    )
    assert "script" not in {tag for tag, _ in parsed.elements}
    assert not any(name.startswith("on") for _, found in parsed.elements for name in found)
    for place in [*names, "title", "name", "value", "note"]:
        assert f"{place} {EVIL}" in parsed.text, place
    assert all(f"organ {EVIL}" in image["alt"] for image in parsed.all("img"))
    assert "49" not in parsed.text.replace(EVIL, "")


def test_the_page_tells_the_numbers_of_the_summary(tmp_path: Path) -> None:
    rows = page(tmp_path, CASES, published={"1": {"liver": 70.0}}).rows(0)
    assert rows[0][:4] == ["method", "mean", "liver", "spleen"]
    assert rows[1] == ["published setting 1, paper", "70.0 1 of 2 organs", "70.0", "-", "", "", "", ""]
    assert rows[2] == ["alpnet setting 1, paper", "40.0 ± 28.3", "40.0 ± 30.0", "40.0 ± 14.1", "3", "9", "1", "1"]
    assert rows[3] == ["difference to published", "-30.0 1 of 2 organs", "-30.0", "-", "", "", "", ""]


def test_a_gain_has_a_plus(tmp_path: Path) -> None:
    assert page(tmp_path, [case(0.5)], published={"1": {"liver": 40.0}}).rows(0)[-1][1:3] == ["+10.0", "+10.0"]


def test_the_page_tells_the_other_metrics(tmp_path: Path) -> None:
    rows = page(tmp_path, scans("liver", "0", 0.5, None, quality="0.8125")).rows(1)
    assert rows[0][1:9] == [
        "NSD x 100", "tolerance of NSD, mm", "HD95 mm", "precision x 100", "recall x 100", "false positive outside, ml",
        "quality own estimate", "time s per scan",
    ]  # fmt: skip
    assert rows[2] == ["liver", "12.5", "2", "15.0", "25.0", "6.2", "1.5", "0.812", "0.25", "1", "0", "1"]


def test_the_page_tells_how_quality_agrees_with_dice(tmp_path: Path) -> None:
    cases = [*rated("liver", *FIVE), *rated("spleen", (0.6, "0.52")), *scans("spleen", "0", 0.5, method="old")]
    parsed = page(tmp_path, cases)
    # Ranks of the six by Dice 5 1 4 2 3 6, by quality 6 3 4 5 2 1: 1 - 6 * (1 + 4 + 0 + 9 + 1 + 25) / (6 * 35).
    assert parsed.rows(2) == [
        ["method", "all organs", "liver", "spleen"],
        ["", "", "", "alpnet setting 1, paper"],
        ["rank correlation Spearman", "-0.14 6 cases", "0.50 5 cases", "- 1 case"],
        ["worst quarter found x 100", "0.0 by chance 33.3", "50.0 by chance 40.0", "-"],
    ]
    assert "the network's own estimate of how good a mask is, made without the truth" in parsed.text
    assert "#quality" in [link["href"] for link in parsed.all("a")]
    assert len([svg for svg in parsed.all("svg") if svg["aria-label"].startswith("Scatter plot")]) == 1


@pytest.mark.parametrize("cases", [CASES, rated("liver", (None, "0.8"), (0.5, ""))], ids=["none", "absent"])
def test_a_page_without_quality_has_no_place_for_it(tmp_path: Path, cases: list[Case]) -> None:
    parsed = page(tmp_path, cases)
    assert "Quality against Dice" not in parsed.text
    assert "#quality" not in [link["href"] for link in parsed.all("a")]


def test_a_table_without_the_column_of_quality_is_as_one_with_empty_cells(tmp_path: Path) -> None:
    page(tmp_path, CASES)
    expected = (tmp_path / "report.html").read_bytes()
    older = [{name: value for name, value in one.items() if name != "quality"} for one in CASES]
    assert quality_agreements(older) == []
    page(tmp_path, older)
    assert (tmp_path / "report.html").read_bytes() == expected


def test_a_sentence_says_what_was_evaluated(tmp_path: Path) -> None:
    cases = [*scans("liver", "0", 0.5, 0.6), *scans("spleen", "1", 0.5, seed="8", protocol="volume")]
    assert (
        "alpnet segmented 2 organs in 3 scans of phantoms, over 2 folds and 2 seeds, under the protocols paper (the"
        " organ's extent in the query is known) and volume (nothing is known of the query)."
    ) in page(tmp_path, cases).text


def test_an_evaluation_without_folds_speaks_of_none(tmp_path: Path) -> None:
    parsed = page(tmp_path, [case(0.5, fold="")])
    assert "1 organ in 1 scan of phantoms, with 1 seed, under the protocol paper" in parsed.text
    assert "fold" not in parsed.text.replace("A unit is a fold with a seed", "")


def test_notes_and_settings_are_on_the_page(tmp_path: Path) -> None:
    parsed = page(tmp_path, [case(0.5)], notes=["Fold 3 is not trained yet."], settings={"max_steps": "3000"})
    assert "Fold 3 is not trained yet." in parsed.text
    assert parsed.rows(-1) == [["max_steps", "3000"]]


def test_all_cases_are_listed_the_worst_first_and_the_absent_last(tmp_path: Path) -> None:
    rows = page(tmp_path, scans("liver", "0", 0.5, None, 0.25, 0.0)).rows(2)
    assert rows[0][:4] == ["scan", "organ", "status", "Dice x 100"]
    assert [(row[0], row[2], row[3]) for row in rows[1:]] == [
        ("scan_03", "missed", "0.0"), ("scan_02", "ok", "25.0"), ("scan_00", "ok", "50.0"), ("scan_01", "absent", "-"),
    ]  # fmt: skip


def test_what_all_cases_share_is_said_once_and_what_differs_has_a_column(tmp_path: Path) -> None:
    parsed = page(tmp_path, [case(0.5), case(0.4, seed="8", support="scan_9")])
    assert parsed.rows(2)[0][:5] == ["scan", "organ", "seed", "support", "status"]
    assert "The same in all: dataset phantoms, method alpnet, setting 1, protocol paper, fold 0." in parsed.text


def test_the_telling_cases_have_their_pictures_as_jpeg(tmp_path: Path) -> None:
    def picture_of(one: Case) -> Path:
        return save_picture(tmp_path / "pictures" / f"{one['scan']}.png", round(200 * float(one["dice"])))

    images = page(tmp_path, scans("liver", "0", 0.5, 1.0, 0.25), picture_of=picture_of).all("img")
    decoded = [Image.open(BytesIO(base64.b64decode(image["src"].partition(",")[2]))) for image in images]
    assert [image.format for image in decoded] == ["JPEG"] * 3
    assert [image.size for image in decoded] == [(70, 24)] * 3
    assert [(image["width"], image["height"]) for image in images] == [("70", "24")] * 3
    assert [int(np.asarray(image).mean().round(-1)) for image in decoded] == [200, 100, 50]
    assert images[2]["alt"].startswith("liver, worst: scan scan_02, fold 0; Dice 25.0, HD95 22.5 mm")


def test_pictures_are_of_the_first_method_under_each_protocol(tmp_path: Path) -> None:
    series = [("alpnet", "paper"), ("plain", "paper"), ("plain", "volume"), ("alpnet", "volume")]
    cases = [case(0.5, method=method, protocol=protocol, scan=f"{method}_{protocol}") for method, protocol in series]
    asked: list[str] = []
    page(tmp_path, cases, picture_of=lambda one: asked.append(one["scan"]))
    assert asked == ["alpnet_paper", "alpnet_volume"]


@pytest.mark.parametrize("picture", [None, Path("no such file.png")])
def test_a_missing_picture_is_said(tmp_path: Path, picture: Path | None) -> None:
    parsed = page(tmp_path, scans("liver", "0", 0.5, 0.0), picture_of=lambda _: picture)
    assert parsed.all("img") == []
    assert parsed.text.count("There is no picture of this case.") == 2
    assert "worst Dice 0.0, missed: nothing was predicted" in parsed.text


def test_an_organ_that_no_scan_has_makes_a_page_too(tmp_path: Path) -> None:
    parsed = page(tmp_path, [case(None)], published={"1": {"liver": 70.0}})
    assert parsed.rows(0)[2] == ["alpnet setting 1, paper", "-", "-", "1", "0", "0", "1"]
    assert "No case has any of the organs." in parsed.text


@pytest.mark.parametrize(("organs", "methods"), [(1, 1), (3, 2), (13, 1)])
def test_the_tables_are_rectangles_with_a_column_or_line_for_each_organ(
    tmp_path: Path, organs: int, methods: int
) -> None:
    cases = [case(0.5, organ=f"organ {o}", method=f"method {m}") for o in range(organs) for m in range(methods)]
    parsed = page(tmp_path, cases, published={"1": {"organ 0": 60.0}})
    assert [len({len(row) for row in table}) for table in parsed.tables] == [1] * 4
    assert len(parsed.tables[0][0]) == 2 + organs + 4
    assert len(parsed.tables[1]) == 1 + methods * (1 + organs + 1)
    assert len(parsed.tables[2]) == 1 + len(cases)
    assert len(parsed.all("svg")) == organs


def test_the_same_input_gives_the_same_bytes_in_any_process(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tests.evaluation.test_report_page import RATED, write_report;"
        "write_report(Path(sys.argv[1]), RATED, 'A report', {'torch': '2.13'}, {'1': {'liver': 70.0}})"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "other.html")]
    # What hangs on the order of a set differs there.
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": "1"}, check=True)
    page(tmp_path, RATED, published={"1": {"liver": 70.0}})
    assert (tmp_path / "other.html").read_bytes() == (tmp_path / "report.html").read_bytes()


def test_a_report_that_fails_midway_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, *_: object, **__: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    (tmp_path / "report.html").write_bytes(b"the old report")
    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(ValueError, match="No space left"):
        page(tmp_path, [case(0.5)])
    assert (tmp_path / "report.html").read_bytes() == b"the old report"


@pytest.mark.parametrize(
    ("cases", "message"),
    [
        ([], "needs at least one case, got none"),
        ([case(0.5), case(0.5, dataset="others")], "about one dataset, got others, phantoms"),
        ([case(0.5), case(0.4, fold="1"), case(0.6)], "must come once, got .*liver, scan_1, 0, 7, scan_0. 2 times"),
        ([case(0.5, status="good")], "status must be ok, missed or absent.*got 'good' with Dice '0.5000' in .*scan_1"),
        ([case(0.5, status="absent")], "with a Dice unless it is absent, got 'absent' with Dice '0.5000'"),
        ([case(None, status="ok")], "with a Dice unless it is absent, got 'ok' with Dice ''"),
    ],
)
def test_cases_that_would_give_wrong_means_are_refused(tmp_path: Path, cases: list[Case], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        page(tmp_path, cases)
    assert not (tmp_path / "report.html").exists()


def test_a_page_without_pictures_has_no_place_for_them(tmp_path: Path) -> None:
    page(tmp_path, scans("liver", "0", 0.5, 1.0), picture_of=None)
    text = (tmp_path / "report.html").read_text()
    assert "Best, median" not in text
    assert "#pictures" not in text


def test_inner_keys_are_folded_away(tmp_path: Path) -> None:
    page(tmp_path, [case(0.5)], settings={"max_epochs": "3", "loss::weight": "0.05"})
    before, _, folded = (tmp_path / "report.html").read_text().partition("All keys of the config, 1")
    assert "max_epochs" in before
    assert "loss::weight" in folded
    assert "loss::weight" not in before
