"""Cases: one organ of one scan, segmented and compared. Tables and reports are made from their CSV file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
from bundle import distributed
from bundle.data.nifti import name_of, source_of
from bundle.data.reader import load_label
from bundle.evaluation.metrics import case_metrics
from bundle.evaluation.report_page import write_report
from bundle.evaluation.scores import METRICS, STEPS, numbers
from bundle.files import read_csv, safe_name, write_csv
from bundle.inference.volume_inferer import VolumeInferer
from bundle.keys import IMAGE, LABEL, NETWORK_LABEL, PRED_MASKS, QUALITY
from bundle.provenance import versions
from bundle.transforms.checks import whole_ids
from bundle.transforms.volumes import restore_grid
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.engines import IterationEvents

COLUMNS = (
    *("dataset", "method", "setting", "group", "fold", "seed", "support", "scan", "organ", "protocol"),
    *("status", *METRICS, "nsd_tolerance_mm", STEPS),
)

# Columns that older tables lack.
LATER_COLUMNS = {"quality", STEPS}

# The metrics of ``CaseMetrics``; quality comes with the scores, and seconds are measured here.
COMPARED = tuple(METRICS)[:-2]


class CaseTable:
    """Compare each organ of each scan with the truth, on the grid of the scan's own files: a CSV row for each.

    Args:
        path: The CSV file, written when all scans are done, with ``report.html`` in the same folder. The report takes
            its pictures from ``overlays`` in that folder.
        inferer: Gives organs and support.
        case: What all rows have in common, by column: dataset, method, setting, group, fold, seed, protocol, and the
            training steps if they are known.
        nsd_tolerance: Tolerance of the normalized surface Dice, mm.
        settings: Settings that the report lists.
        published: Published Dice x 100 by setting and organ, to compare with.
    """

    def __init__(
        self,
        path: str | Path,
        inferer: VolumeInferer,
        case: Mapping[str, Any],
        nsd_tolerance: float = 3.0,
        settings: Mapping[str, Any] | None = None,
        published: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        self.path = Path(path)
        self.inferer = inferer
        self.case = {STEPS: ""} | {name: "" if value is None else str(value) for name, value in case.items()}
        self.nsd_tolerance = nsd_tolerance
        self.settings = {name: str(value) for name, value in (settings or {}).items()}
        self.published = published
        self._rows: list[list[dict[str, str]]] = []  # one list for each scan
        self._started = self._seconds = 0.0

    def attach(self, engine: Engine) -> None:
        """Attach to the evaluator."""
        engine.add_event_handler(Events.STARTED, lambda _: self._rows.clear())
        engine.add_event_handler(Events.ITERATION_STARTED, self.start_clock)
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self.stop_clock)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.note_scans)
        engine.add_event_handler(Events.COMPLETED, self.report)

    def start_clock(self, engine: Engine) -> None:
        """Record when a scan starts: after it is loaded, before it is moved to the device."""
        self._started = perf_counter()

    def stop_clock(self, engine: Engine) -> None:
        """Record how long its scores took, all organs together."""
        self._seconds = perf_counter() - self._started

    def note_scans(self, engine: Engine) -> None:
        """Compare the scans of this iteration."""
        state: Any = engine.state
        for item in state.output:
            self._rows.append(list(self._compare(item, self._seconds / len(state.output))))

    def _compare(self, item: Mapping[str, Any], seconds: float) -> Iterator[dict[str, str]]:
        on_network: MetaTensor = item[NETWORK_LABEL]
        masks = restore_grid(MetaTensor(item[PRED_MASKS], meta=on_network.meta))
        truth = whole_ids(load_label(source_of(item[LABEL]), masks))
        affine = np.asarray(masks.affine, dtype=float)
        steps = np.linalg.inv(affine) @ np.asarray(on_network.affine, dtype=float)
        slice_axis = int(np.abs(steps[:3, 2]).argmax())  # in the file's axes
        spacing = np.linalg.norm(affine[:3, :3], axis=0).tolist()
        support = "+".join(name_of(scan[IMAGE]) for scan in self.inferer.support_scans())
        organs = self.inferer.organ_names().items()
        qualities = on_network.meta.get(QUALITY, [math.nan] * len(organs))
        for mask, (organ, value), quality in zip(masks, organs, qualities, strict=True):
            metrics = case_metrics(mask > 0, truth == value, spacing, slice_axis, self.nsd_tolerance)
            yield {
                **self.case,
                "support": support,
                "scan": name_of(item[IMAGE]),
                "organ": organ,
                "status": metrics.status,
                "nsd_tolerance_mm": f"{self.nsd_tolerance:g}",
                "quality": _number(float(quality)),
                "seconds": f"{seconds:.2f}",
                **{name: _number(getattr(metrics, name)) for name in COMPARED},
            }

    def report(self, engine: Engine) -> None:
        """Write the rows and the report, and print the means; the first process does so for all.

        Raises:
            ValueError: If there is no case.
        """
        rows = list(chain.from_iterable(distributed.gathered(self._rows)))
        if not rows:
            raise ValueError(
                "an evaluation needs an annotated scan besides the support, got none. Annotate another scan."
            )
        if distributed.is_first():
            self._write(rows)

    def _write(self, rows: Sequence[dict[str, str]]) -> None:
        write_cases(self.path, rows)
        write_report(
            self.path.with_name("report.html"),
            rows,
            title=f"{self.case['dataset']}: {self.case['method']}",
            settings={**self.settings, **versions()},
            published=self.published,
            picture_of=lambda case: picture_of(self.path.parent, case),
        )
        print(f"{self.case['protocol']} protocol, {len(rows)} cases, means over the scans that have the organ")
        print(_means(rows), f"cases.csv and report.html: {self.path.parent}", sep="\n", flush=True)


def _means(rows: Sequence[Mapping[str, str]]) -> str:
    """Return a text table of each organ's means."""
    organs = numbers(rows).groupby("organ", sort=False)
    absent = organs["status"].agg(lambda status: f"{(status == 'absent').sum()} of {len(status)}")
    table = organs[list(COMPARED)].mean().assign(absent=absent).rename_axis(None)
    with pd.option_context("display.width", None, "display.max_columns", None):
        return table.to_string(float_format="%.3f", na_rep="nan")


def picture_of(folder: Path, case: Mapping[str, str]) -> Path:
    """Return where ``SaveOverlays`` draws a case, by organ."""
    return folder / "overlays" / f"{case['scan']}_{safe_name(case['organ'])}.png"


def write_cases(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Write a table of cases."""
    write_csv(path, [COLUMNS, *([row[column] for column in COLUMNS] for row in rows)])


def read_cases(path: Path) -> list[dict[str, str]]:
    """Read the rows of a table of cases.

    Raises:
        ValueError: If the file is not one.
    """
    given, *rows = read_csv(path) or [[]]
    if set(COLUMNS) - LATER_COLUMNS - set(given) or set(given) - set(COLUMNS):
        raise ValueError(
            f"{path} must be a table of cases with the columns {', '.join(COLUMNS)}, got {', '.join(given)}. "
            "Give the cases.csv of an evaluation."
        )
    return [dict.fromkeys(COLUMNS, "") | dict(zip(given, row, strict=True)) for row in rows]


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4f}"
