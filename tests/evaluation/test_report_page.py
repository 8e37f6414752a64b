"""The report: means of units by hand, and a page that is complete, shows the numbers, and escapes all names."""

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
from bundle.evaluation.report_page import COLORS, box_plot, write_report
from bundle.evaluation.scores import Case, numbers
from PIL import Image
from tests.evaluation.test_scores import CASES, FIVE, RATED, case, rated, scans

SVG = "{http://www.w3.org/2000/svg}"
ROOT = Path(__file__).parents[2]
EVIL = "<script>alert(1)</script>\" onclick='x' {{ 7 * 7 }} $_$"
# The page has typographic signs, the tests what a keyboard has.
PLAIN = str.maketrans({"\u00d7": "x", "\u2019": "'"})


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


def pictures(parsed: Page) -> list[dict[str, str]]:
    """The images of the page that are no plots."""
    return [image for image in parsed.all("img") if image["src"].startswith("data:image/jpeg")]


def page(folder: Path, cases: Sequence[Case], **arguments: object) -> Page:
    """Write a report and parse it."""
    given = {"title": "A report", "settings": {"torch": "2.13"}, **arguments}
    write_report(folder / "report.html", cases, **given)  # type: ignore[arg-type]
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert text.endswith("</html>\n")
    return Page(text)


def save_picture(path: Path, gray: int) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.full((24, 70, 3), gray, dtype=np.uint8)).save(path)
    return path


def drawn(organ: str, cases: Sequence[Case]) -> ElementTree.Element:
    """The box plot of an organ."""
    kind, _, coded = box_plot(numbers(cases), organ).partition(",")
    assert kind == "data:image/svg+xml;base64"
    return ElementTree.fromstring(base64.b64decode(coded))


def marks(svg: ElementTree.Element, diamonds: bool = False) -> list[float]:
    """Where the dots of the cases, or the diamonds of the means, are along the axis of Dice."""
    uses = [use for use in svg.iter(f"{SVG}use") if any(color in use.get("style", "") for color in COLORS)]
    return [float(use.get("x", "nan")) for use in uses if ("stroke: #000000" in use.get("style", "")) == diamonds]


def test_every_case_is_a_point_at_its_dice() -> None:
    zero, one, quarter = marks(drawn("liver", [*scans("liver", "0", 0.0, 1.0, 0.25, None), case(0.5, organ="spleen")]))
    assert quarter == pytest.approx(zero + (one - zero) / 4, abs=1e-3)


def test_the_diamond_is_at_the_mean_of_the_units() -> None:
    svg = drawn("liver", [*scans("liver", "0", 0.0, 0.0, 0.0), *scans("liver", "1", 1.0)])
    zero, *_, one = marks(svg)
    assert marks(svg, diamonds=True) == pytest.approx([(zero + one) / 2], abs=1e-3)


def test_a_plot_names_its_series_and_has_a_color_for_each_method() -> None:
    cases = [case(0.5, method=method, protocol=protocol) for method in ("a", "b") for protocol in ("paper", "volume")]
    svg = drawn("liver", cases)
    labels = [text.text for text in svg.iter(f"{SVG}text")]
    assert labels[-4:] == [f"{method}, setting 1, {protocol}" for method in "ab" for protocol in ("paper", "volume")]
    styles = " ".join(element.get("style", "") for element in svg.iter())
    assert {color for color in COLORS if color in styles} == set(COLORS[:2])


def test_a_plot_says_where_a_series_lacks_the_organ() -> None:
    svg = drawn("liver", [case(0.5), case(0.5, organ="spleen"), case(None, method="plain")])
    labels = [text.text for text in svg.iter(f"{SVG}text")]
    assert labels[-1] == "plain, setting 1, paper: no case with this organ"


def test_more_methods_than_colors_start_from_the_first_again() -> None:
    assert len(marks(drawn("liver", [case(0.5, method=str(number)) for number in range(7)]))) == 7


def test_the_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    picture = save_picture(tmp_path / "a.png", 100)
    parsed = page(tmp_path, RATED, picture_of=lambda _: picture, published={"1": {"liver": 70.0}})
    html = re.sub(
        r"data:image/(jpeg|svg\+xml);base64,[\w+/=]+", "", (tmp_path / "report.html").read_text(encoding="utf-8")
    )
    assert not re.search(r"https?:|@import|//\w", html)
    assert [link for link in re.findall(r"url\((.*?)\)", html) if not link.startswith("#")] == []
    assert {tag for tag, _ in parsed.elements} & {"script", "link", "iframe", "object", "embed", "base"} == set()
    links = [found[name] for _, found in parsed.elements for name in ("href", "src", "srcset") if name in found]
    assert all(link.startswith(("#", "data:image/jpeg;base64,", "data:image/svg+xml;base64,")) for link in links)
    assert len(pictures(parsed)) == 6
    policies = [meta["content"] for meta in parsed.all("meta") if "http-equiv" in meta]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_links_within_the_page_have_targets_and_no_id_is_repeated(tmp_path: Path) -> None:
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
    assert len(parsed.all("img")) == 3
    assert "49" not in parsed.text.replace(EVIL, "")


def test_the_page_shows_the_numbers_of_the_tables(tmp_path: Path) -> None:
    cases = [*rated("liver", *FIVE), *rated("spleen", (0.6, "0.52"))]
    parsed = page(tmp_path, cases, published={"1": {"liver": 70.0}})
    dice, metrics, quality = (parsed.rows(number) for number in range(3))
    assert dice[0][:5] == ["method", "setting, protocol", "liver", "spleen", "mean"]
    assert dice[1][:5] == ["published", "1, paper", "70.0", "-", "70.0"]
    assert dice[2][:5] == ["alpnet", "1, paper", "30.0", "60.0", "45.0"]
    assert dice[3][:5] == ["alpnet, difference to published", "-", "-40.0", "-", "-40.0"]
    assert metrics[1][3:5] == ["liver", "7.5"]
    assert quality[1][3:6] == ["Spearman (cases)", "0.50 (5)", "- (1)"]
    assert "the network's own estimate of how good a mask is, made without the truth" in parsed.text
    assert "#quality" in [link["href"] for link in parsed.all("a")]


@pytest.mark.parametrize("cases", [CASES, rated("liver", (None, "0.8"), (0.5, ""))], ids=["none", "absent"])
def test_a_page_without_quality_has_no_place_for_it(tmp_path: Path, cases: list[Case]) -> None:
    parsed = page(tmp_path, cases)
    assert "Quality against Dice" not in parsed.text
    assert "#quality" not in [link["href"] for link in parsed.all("a")]


def test_a_table_without_the_column_of_quality_is_as_one_with_empty_cells(tmp_path: Path) -> None:
    page(tmp_path, CASES)
    expected = (tmp_path / "report.html").read_bytes()
    older = [{name: value for name, value in one.items() if name != "quality"} for one in CASES]
    page(tmp_path, older)
    assert (tmp_path / "report.html").read_bytes() == expected


def test_a_sentence_says_what_was_evaluated(tmp_path: Path) -> None:
    cases = [*scans("liver", "0", 0.5, 0.6), *scans("spleen", "1", 0.5, seed="8", protocol="volume")]
    assert (
        "alpnet segmented 2 organs in 3 scans of phantoms, over 2 folds and 2 seeds, under the protocols paper (the"
        " organ's extent in the query is known) and volume (nothing is known about the query)."
    ) in page(tmp_path, cases).text


def test_an_evaluation_without_folds_mentions_none(tmp_path: Path) -> None:
    parsed = page(tmp_path, [case(0.5, fold="")])
    assert "1 organ in 1 scan of phantoms, with 1 seed, under the protocol paper" in parsed.text
    assert "over 1 fold" not in parsed.text


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


def test_what_all_cases_share_is_stated_once_and_what_differs_has_a_column(tmp_path: Path) -> None:
    parsed = page(tmp_path, [case(0.5), case(0.4, seed="8", support="scan_9")])
    assert parsed.rows(2)[0][:5] == ["scan", "organ", "seed", "support", "status"]
    assert "The same in all cases: dataset phantoms, method alpnet, setting 1, protocol paper, fold 0" in parsed.text


def test_the_typical_cases_have_their_pictures_as_jpeg(tmp_path: Path) -> None:
    gray = {"scan_00": 100, "scan_01": 200, "scan_02": 50}

    def picture_of(one: Case) -> Path:
        return save_picture(tmp_path / "pictures" / f"{one['scan']}.png", gray[one["scan"]])

    images = pictures(page(tmp_path, scans("liver", "0", 0.5, 1.0, 0.25), picture_of=picture_of))
    decoded = [Image.open(BytesIO(base64.b64decode(image["src"].partition(",")[2]))) for image in images]
    assert [image.format for image in decoded] == ["JPEG"] * 3
    assert [image.size for image in decoded] == [(70, 24)] * 3
    assert [int(np.asarray(image).mean().round(-1)) for image in decoded] == [200, 100, 50]
    assert images[2]["alt"].startswith("liver, worst: scan scan_02, fold 0, seed 7; Dice 25.0, HD95 22.5 mm")


def test_pictures_are_of_the_first_method_under_each_protocol(tmp_path: Path) -> None:
    series = [("alpnet", "paper"), ("plain", "paper"), ("plain", "volume"), ("alpnet", "volume")]
    cases = [case(0.5, method=method, protocol=protocol, scan=f"{method}_{protocol}") for method, protocol in series]
    asked: list[str] = []
    page(tmp_path, cases, picture_of=lambda one: asked.append(one["scan"]))
    assert asked == ["alpnet_paper", "alpnet_volume"]


@pytest.mark.parametrize("picture", [None, Path("no such file.png")])
def test_a_missing_picture_is_mentioned(tmp_path: Path, picture: Path | None) -> None:
    parsed = page(tmp_path, scans("liver", "0", 0.5, 0.0), picture_of=lambda _: picture)
    assert pictures(parsed) == []
    assert parsed.text.count("There is no picture of this case.") == 2
    assert "worst scan scan_01, fold 0, seed 7; Dice 0.0, missed: nothing was predicted" in parsed.text


def test_an_organ_that_no_scan_has_makes_a_page_too(tmp_path: Path) -> None:
    parsed = page(tmp_path, [case(None)], published={"1": {"liver": 70.0}})
    assert parsed.rows(0)[2] == ["alpnet", "1, paper", "-", "-", "-", "1", "1", "0 (0, 1)"]
    assert "No scan shows any of the organs." in parsed.text


@pytest.mark.parametrize(("organs", "methods"), [(1, 1), (3, 2), (13, 1)])
def test_the_tables_are_rectangles_with_a_column_or_line_for_each_organ(
    tmp_path: Path, organs: int, methods: int
) -> None:
    cases = [case(0.5, organ=f"organ {o}", method=f"method {m}") for o in range(organs) for m in range(methods)]
    parsed = page(tmp_path, cases, published={"1": {"organ 0": 60.0}})
    assert [len({len(row) for row in table}) for table in parsed.tables] == [1] * 4
    assert len(parsed.tables[0][0]) == 2 + organs + 5
    assert len(parsed.tables[1]) == 1 + methods * (organs + 1)
    assert len(parsed.tables[2]) == 1 + len(cases)
    assert len(parsed.all("img")) == organs


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
    before, _, folded = (tmp_path / "report.html").read_text().partition("All keys of the config")
    assert "max_epochs" in before
    assert "loss::weight" in folded
    assert "loss::weight" not in before
