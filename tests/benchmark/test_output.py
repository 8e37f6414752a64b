"""Every measured number is in the long table, in the Markdown table, and in the plot."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest
from bundle.benchmark.output import about, processor, write_results
from bundle.benchmark.plot import figure_of
from bundle.benchmark.results import Result, long_form, markdown
from matplotlib.figure import Figure


def timed(ours: float, matching: str = "paper", note: str = "", **case: str | int) -> Result:
    values = {"ours, s a scan": ours, "naive, s a scan": 10 * ours, "encoder alone, s a scan": ours / 2}
    full = {"encoder": "resnet18", "organs": 4, "support_scans": 1, "slices": 30} | case
    return Result("inference", {**full, "matching": matching}, values, note)


def stored(slices: int, peak: float) -> Result:
    values = {"MB at the peak": peak, "MB after the imports": 400.0}
    return Result("memory", {"organs": 4, "slices": slices}, values)


def test_the_long_table_has_a_row_for_each_number() -> None:
    rows = long_form([timed(2.0, note="scaled", slices=7), stored(30, 123456.5)])
    head = ["benchmark", "encoder", "organs", "support_scans", "slices", "matching", "prototypes", "batch_size"]
    assert rows == [
        [*head, "workflow", "quantity", "value", "note"],
        ["inference", "resnet18", "4", "1", "7", "paper", "", "", "", "ours, s a scan", "2", "scaled"],
        ["inference", "resnet18", "4", "1", "7", "paper", "", "", "", "naive, s a scan", "20", "scaled"],
        ["inference", "resnet18", "4", "1", "7", "paper", "", "", "", "encoder alone, s a scan", "1", "scaled"],
        ["memory", "", "4", "", "30", "", "", "", "", "MB at the peak", "123456", ""],
        ["memory", "", "4", "", "30", "", "", "", "", "MB after the imports", "400", ""],
    ]


def test_the_table_to_read_has_a_row_for_each_case_and_only_columns_that_are_used() -> None:
    results = [
        Result("training", {"batch_size": 1}, {"s a step": 1234.5, "ratio": 1.23456}),
        Result("training", {"batch_size": 4, "encoder": "resnet18"}, {"s a step": 0.00123456}, "a note"),
        Result("startup", {}, {"all, s": 99.94}),
    ]
    assert markdown(results, {"seed": "3"}) == (
        "# Benchmark\n\n- seed: 3\n\n## training\n\n"
        "| encoder | batch size | s a step | ratio | note |\n| --- | --- | --- | --- | --- |\n"
        "| - | 1 | 1234 | 1.23 |  |\n| resnet18 | 4 | 0.00123 | - | a note |\n\n"
        "## startup\n\n| all, s |\n| --- |\n| 99.9 |\n"
    )


def lines_of(figure: Figure) -> list[dict[str, tuple[list[float], list[float]]]]:
    """Return places and heights of the lines of each panel, by their names."""
    return [
        {str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata())) for line in panel.get_lines()}
        for panel in figure.axes
    ]


def test_a_panel_holds_the_cases_that_differ_in_one_column_alone() -> None:
    results = [timed(seconds, matching, organs=organs) for organs, seconds in ((13, 6.0), (1, 2.0), (4, 3.0))
               for matching in ("paper", "annotate_one")]  # fmt: skip
    results += [timed(5.0, support_scans=8), timed(40.0, slices=300, organs=2), timed(9.0, encoder="resnet50")]
    organs, scans, encoders = lines_of(figure_of(results))
    assert organs == {
        "original evaluation (naive)": ([1, 4, 13], [20, 30, 60]),
        "this bundle, paper": ([1, 4, 13], [2, 3, 6]),
        "this bundle, annotate_one": ([1, 4, 13], [2, 3, 6]),
        "encoder alone": ([1, 4, 13], [1, 1.5, 3]),
    }
    assert scans["this bundle, paper"] == ([1, 8], [3, 5])
    assert scans["this bundle, annotate_one"] == ([1], [3])
    assert encoders["this bundle, paper"] == ([0, 1], [3, 9])
    figure = figure_of(results)
    assert [panel.get_yscale() for panel in figure.axes] == ["log"] * 3
    assert [panel.get_xlabel() for panel in figure.axes] == ["organs", "annotated scans", "encoder"]
    assert figure.axes[0].get_title() == "resnet18, annotated scans: 1, slices of the scan: 30"
    assert [text.get_text() for text in figure.axes[2].get_xticklabels()] == ["resnet18", "resnet50"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(organs)


def test_memory_has_its_own_panel_after_the_times() -> None:
    results = [timed(1.0, organs=1), timed(2.0, organs=2), timed(3.0, organs=2, slices=60)]
    results += [timed(4.0, organs=2, support_scans=2), stored(300, 900.0), stored(30, 500.0)]
    figure = figure_of(results)
    *_, memory = [lines for lines in lines_of(figure) if lines]
    assert memory == {"at the peak": ([30, 300], [500, 900]), "after the imports": ([30, 300], [400, 400])}
    shown = [panel for panel in figure.axes if panel.axison]
    assert [panel.get_xlabel() for panel in shown] == ["organs", "annotated scans", *["slices of the scan"] * 2]
    assert shown[-1].get_ylim()[0] == 0


def test_without_such_results_the_picture_says_so() -> None:
    (panel,) = figure_of([Result("startup", {}, {"all, s": 1.0})]).axes
    assert [text.get_text() for text in panel.texts] == ["neither inference nor memory was measured"]


def test_all_files_are_written(tmp_path: Path) -> None:
    results = [timed(1.0, organs=1), timed(2.0, organs=2), stored(30, 500.0)]
    text = write_results(results, {"seed": "3"}, tmp_path / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    assert sorted(path.name for path in folder.iterdir()) == ["plot.png", "results.csv", "table.md"]
    assert (folder / "table.md").read_text() == text == markdown(results, {"seed": "3"})
    with (folder / "results.csv").open(newline="") as file:
        assert list(csv.reader(file)) == long_form(results)
    assert (folder / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_states_command_seed_machine_and_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["path/__main__.py", "benchmark", "all", "--output_dir", "a folder"])
    told = about(seed=7, device="cpu")
    assert told["command"] == "python -m bundle benchmark all --output_dir 'a folder'"
    assert (told["seed"], told["device"]) == ("7", "cpu")
    assert "cores" in told["processor"]
    assert {"version: torch", "version: monai", "version: bundle", "machine"} <= set(told)


def test_the_processor_is_told_by_its_name_where_the_system_knows_it(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Fast: 3000\nprocessor\t: 1\nmodel name\t: Fast\n")
    assert processor(tmp_path / "cpuinfo") == "Fast: 3000"
    assert processor(tmp_path / "none")
