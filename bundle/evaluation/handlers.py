"""Handlers that write the results of an evaluation or an inference: masks, overlays, tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, cast

import nibabel
import numpy as np
from bundle import distributed
from bundle.data.nifti import name_of, save_nifti, source_of, voxel_milliliters
from bundle.evaluation.doubts import (
    closing_line,
    doubts_of,
    least_confident,
    least_confident_places,
    leftover_lines,
    quality_path,
)
from bundle.evaluation.viewer_files import write_names, writer_of
from bundle.evaluation.visuals import COLORS, caption, enlarged, legend, overlay_label, save_png, side_by_side, stacked
from bundle.files import append_csv, read_csv, read_json, safe_name, write_csv, write_json
from bundle.inference.resume import Resumption
from bundle.inference.volume_inferer import VolumeInferer
from bundle.keys import IMAGE, LABEL, NETWORK_LABEL, PRED, PRED_MASKS
from bundle.transforms.slices import organ_slices, support_slices
from ignite.engine import Engine, Events
from pandas import DataFrame, Index, Series
from torch.utils.tensorboard import SummaryWriter


class DiceTable:
    """Print each organ's Dice after an evaluation, and keep all evaluations in one CSV file.

    Args:
        organs: Names and ids of the organs, in the order of the metric's columns.
        path: The CSV file, with a row for each evaluation, scan and organ.
        metric: Name of the evaluator's metric.
        title: Heading of the printed table.
        log: Folder of TensorBoard's files, for curves of the means; ``None`` draws none.
        epoch_length: Steps per epoch, since the curves are drawn over steps.
    """

    def __init__(
        self,
        organs: Mapping[str, int],
        path: str | Path,
        metric: str,
        title: str = "Dice",
        log: str | Path | None = None,
        epoch_length: int = 1,
    ) -> None:
        self.organs = list(organs)
        self.path = Path(path)
        self.metric = metric
        self.title = title
        self.log, self.epoch_length = log, epoch_length
        self._scans: list[str] = []
        self._count = 0
        self._history: dict[int, Series] = {}

    def attach(self, engine: Engine) -> None:
        """Attach to the evaluator."""
        engine.add_event_handler(Events.STARTED, lambda _: self._scans.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.note_scan)
        engine.add_event_handler(Events.COMPLETED, self.report)

    def note_scan(self, engine: Engine) -> None:
        """Remember the scan of each row of the metric."""
        state: Any = engine.state
        self._scans.extend(name_of(item[IMAGE]) for item in state.batch)

    def report(self, engine: Engine) -> None:
        """Print and write the table; the first process does so for all."""
        state: Any = engine.state
        # The metric's rows are ordered by process; a process without a scan contributes a row of NaN.
        everyone = distributed.lists_of_all(self._scans or [""])
        if not any(chain(*everyone)):
            return
        rows = iter(state.metric_details[self.metric].cpu().double().numpy())
        cases = distributed.interleaved([[(scan, next(rows)) for scan in scans] for scans in everyone])
        dice = DataFrame.from_dict({scan: row for scan, row in cases if scan}, orient="index", columns=self.organs)
        epoch = max(int(state.epoch), 0)
        self._count = len(dice)
        self._history.pop(epoch, None)
        self._history[epoch] = dice.mean()
        if distributed.is_first():
            self._write(epoch, dice)
            self._draw_curves(epoch, dice.mean())
            print(self.table(), flush=True)

    def table(self) -> str:
        """Return the means of all evaluations so far as a text table."""
        table = DataFrame(self._history).T
        # Duplicates are allowed, since an organ may be named "mean".
        table.insert(len(self.organs), "mean", table.mean(axis=1), allow_duplicates=True)
        table.index = Index(["0 (untrained)" if epoch == 0 else str(epoch) for epoch in self._history])
        table.columns.name = "after epoch"
        text = table.to_string(float_format="%.3f", na_rep="nan", line_width=10_000)
        return f"{self.title}, mean over {self._count} scans\n{text}"

    def _write(self, epoch: int, dice: DataFrame) -> None:
        rows = [row for row in (read_csv(self.path)[1:] if self.path.is_file() else []) if int(row[0]) < epoch]
        # An organ that is absent from the scan has no Dice: it is listed, and not averaged.
        for scan, values in dice.iterrows():
            for organ, value in zip(self.organs, values, strict=True):
                rows.append([str(epoch), str(scan), organ, "absent" if np.isnan(value) else f"{value:.4f}"])
        write_csv(self.path, [["epoch", "scan", "organ", "dice"], *rows])

    def _draw_curves(self, epoch: int, means: Series) -> None:
        if self.log is None:
            return
        with SummaryWriter(str(self.log)) as writer:
            for organ, dice in [*means.items(), ("mean", means.mean())]:
                if not np.isnan(dice):
                    writer.add_scalar(f"validation/dice_{organ}", dice, epoch * self.epoch_length)


class SaveMasks:
    """Write each predicted label map as NIfTI, on exactly the grid of the scan's file, and a table of volumes.

    The table lists each organ's voxels, milliliters, quality and notices, the last two if ``AssessScoresd`` gives them.
    An inference also keeps quality and notices in ``quality/<scan>.json``, for the table of a resumed inference, and
    places of the lowest confidence, for its page. It
    ends with a line that says which masks to check first, and one with those that an earlier run left, if any.

    A single process appends to the table after every scan. With several processes, the first one writes it at the end.

    Args:
        folder: Where ``<scan>.nii.gz`` and ``volumes.csv`` go.
        inferer: Gives the organs.
        resumption: Knows what the masks are made with and which ones exist already; these are in the table, too. With
            it, the names of the ids are written beside the masks (``write_names``).
        output_format: Files besides ``<scan>.nii.gz``: none (``"nifti"``), ``"seg.nrrd"`` or ``"per_organ"``.

    Raises:
        ValueError: If the format is unknown.
    """

    def __init__(
        self,
        folder: str | Path,
        inferer: VolumeInferer,
        resumption: Resumption | None = None,
        output_format: str = "nifti",
    ) -> None:
        self.folder = Path(folder)
        self.save_more = writer_of(output_format)
        self.inferer = inferer
        self.resumption = resumption
        self._rows: dict[str, list[list[str]]] = {}
        self._has_table = False

    def attach(self, engine: Engine) -> None:
        """Write after every scan."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self.finish)

    def start(self, engine: Engine) -> None:
        """Record what the masks are made with, and measure those that exist already."""
        self._rows.clear()
        self._has_table = False
        if self.resumption is not None:
            self.resumption.record()
            if distributed.is_first():
                write_names(self.folder, self.inferer.organ_names())
            finished = self.resumption.finished
            for name in (finished[index] for index in distributed.own_share(finished)):
                mask = np.asarray(cast("nibabel.Nifti1Image", nibabel.load(self._path(name))).dataobj)
                self._rows[name] = self._volumes(name, mask, self._kept(name))

    def __call__(self, engine: Engine) -> None:
        """Write the scans of this iteration."""
        state: Any = engine.state
        for item in state.output:
            name, mask, source = name_of(item[IMAGE]), item[PRED], source_of(item[IMAGE])
            doubts = doubts_of(mask, self.inferer.organ_names())
            if self.resumption is not None:
                self._keep(name, doubts, least_confident_places(mask, self.inferer.organ_names()))
            description = self.resumption.description(source) if self.resumption is not None else ""
            self.save_more(mask, self.folder / name, self.inferer.organ_names(), source)
            save_nifti(mask, self._path(name), like=source, description=description)  # last: it says that all is done
            self._rows[name] = self._volumes(name, np.asarray(mask), doubts)
            if distributed.alone():
                self._extend(self._rows[name])

    def _extend(self, rows: list[list[str]]) -> None:
        """Append the rows of a scan: thousands of scans do not write the whole table each time."""
        if self._has_table:
            append_csv(self._table, rows)
        else:
            self._write([self._rows])
            self._has_table = True

    def finish(self, engine: Engine) -> None:
        """Write the table of all processes."""
        everyone = [dict(rows) for rows in distributed.lists_of_all(list(self._rows.items()))]
        if distributed.is_first() and any(everyone):
            table = self._write(everyone)
            if self.resumption is not None:
                lines = [closing_line(self.folder, table), *leftover_lines(self.folder, self.resumption.names)]
                print("\n".join(lines), flush=True)

    def _write(self, everyone: list[dict[str, list[list[str]]]]) -> list[list[str]]:
        rows = dict(distributed.interleaved([list(rows.items()) for rows in everyone]))
        order = rows if self.resumption is None else [name for name in self.resumption.names if name in rows]
        table = list(chain.from_iterable(rows[name] for name in order))
        write_csv(self._table, [["scan", "organ", "voxels", "milliliters", "quality", "notice"], *table])
        return table

    @property
    def _table(self) -> Path:
        return self.folder / "volumes.csv"

    def _doubts_path(self, name: str) -> Path:
        return quality_path(self.folder, name)

    def _keep(self, name: str, doubts: Mapping[str, list[str]], places: Mapping[str, list[float]]) -> None:
        """Write quality and notices to a file, for the table of a resumed inference, and places, for the page."""
        kept = {organ: [*told, places[organ]] if organ in places else told for organ, told in doubts.items()}
        write_json(self._doubts_path(name), kept)

    def _kept(self, name: str) -> dict[str, list[Any]]:
        path = self._doubts_path(name)
        again = "Remove it and the scan's mask; the next resume makes both again."
        return read_json(path, again) if path.is_file() else {}

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.nii.gz"

    def _volumes(self, name: str, mask: np.ndarray, doubts: Mapping[str, list[str]]) -> list[list[str]]:
        # The file's own voxel size, so that a mask has the same volume in a resumed inference.
        milliliters = voxel_milliliters(self._path(name))
        organs = self.inferer.organ_names()
        counts = np.bincount(mask.ravel(), minlength=max(organs.values()) + 1)
        return [
            [name, organ, str(n), f"{n * milliliters:.2f}", *doubts.get(organ, ["", ""])[:2]]
            for organ, n in zip(organs, counts[list(organs.values())], strict=True)
        ]


class SaveOverlays:
    """Draw each scan: for every organ the support with its label, and the query with truth (if known) and prediction.

    Each organ's row has its name in its color above, and a legend of all organs drawn comes last. Of more than 12
    organs those of the lowest quality are drawn.

    Args:
        folder: Where ``<scan>.png`` goes.
        inferer: Gives support and organs.
        by_organ: Draw ``<scan>_<organ>.png`` instead: one picture for every organ, with its mask alone.
    """

    def __init__(self, folder: str | Path, inferer: VolumeInferer, by_organ: bool = False) -> None:
        self.folder = Path(folder)
        self.inferer = inferer
        self.by_organ = by_organ
        self.drawn: list[Path] = []
        """The pictures of the last evaluation."""

    def attach(self, engine: Engine) -> None:
        """Draw after every scan."""
        engine.add_event_handler(Events.STARTED, lambda _: self.drawn.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Draw the scans of this iteration."""
        state: Any = engine.state
        organs = self.inferer.organ_names()
        for batch, item in zip(state.batch, state.output, strict=True):
            truth, scan = batch.get(LABEL), name_of(item[IMAGE])
            ids = list(organs.values())
            if self.by_organ:
                for mask, (name, organ) in zip(item[PRED_MASKS], organs.items(), strict=True):
                    row = self._row(name, organ, [organ], item, truth, mask[None] * organ)
                    self._save(row, f"{scan}_{safe_name(name)}.png")
            else:
                drawn = least_confident(item.get(PRED), organs)
                colors = {name: COLORS[ids.index(organ) % len(COLORS)] for name, organ in drawn.items()}
                rows = [self._row(*named, ids, item, truth, item[NETWORK_LABEL]) for named in drawn.items()]
                self._save(_titled(rows, colors), f"{scan}.png")

    def _save(self, picture: np.ndarray, name: str) -> None:
        save_png(picture, self.folder / name)
        self.drawn.append(self.folder / name)

    def _row(
        self, name: str, organ: int, ids: Sequence[int], item: Mapping[str, Any], truth: Any, label: Any
    ) -> np.ndarray:
        pictures = []
        for support in self.inferer.support_scans():
            if slices := organ_slices(support[LABEL], organ):
                z = support_slices(slices, 1)[0]
                pictures = [_captioned(support, support[LABEL], z, ids, f"support, {name}")]
                break  # a file of prototypes holds no image to draw
        # The slice with most of the organ: in the truth if there is one, else in the prediction.
        shown = label if truth is None else truth
        z = int((np.asarray(shown[0]) == organ).sum(axis=(0, 1)).argmax())
        if truth is not None:
            pictures.append(_captioned(item, truth, z, ids, f"query, truth (slice {z})"))
        pictures.append(_captioned(item, label, z, ids, f"query, prediction (slice {z})"))
        return side_by_side(pictures)


def _titled(rows: Sequence[np.ndarray], colors: Mapping[str, Sequence[int]]) -> np.ndarray:
    """Stack the organs' rows, each below its name in its color, and a legend of all."""
    width = max(row.shape[1] for row in rows)
    wide = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows]
    titled = [
        np.concatenate([legend(width, {name: color}), row])
        for (name, color), row in zip(colors.items(), wide, strict=True)
    ]
    return stacked([*titled, legend(width, colors)])


def _captioned(scan: Mapping[str, Any], label: Any, z: int, ids: Sequence[int], text: str) -> np.ndarray:
    image, label = np.asarray(scan[IMAGE])[0, ..., z], np.asarray(label)[0, ..., z]
    return caption(enlarged(overlay_label(image, label, ids)), text)
