"""What an evaluation or an inference leaves behind: masks, overlays, tables. Handlers of MONAI's evaluator."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import nibabel
import numpy as np
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.utils import ImageMetaKey

from bundle.data.study import scan_name
from bundle.files import written_whole
from bundle.inferers import VolumeInferer
from bundle.keys import IMAGE, LABEL, NETWORK_LABEL, PRED, PRED_MASKS
from bundle.transforms.slices import organ_slices, support_slices
from bundle.visuals import caption, enlarged, overlay_label, save_png, side_by_side, stacked


class DiceTable:
    """Print each organ's Dice after an evaluation, and keep all evaluations in one CSV file.

    Args:
        organs: Names and ids of the organs, in the order of the metric's columns.
        path: The CSV file: a row for each evaluation, scan and organ.
        metric: Name of the evaluator's metric.
        title: What is evaluated, for the printed table.
    """

    def __init__(
        self,
        organs: Mapping[str, int],
        path: str | Path,
        metric: str,
        title: str = "Dice",
    ) -> None:
        self.organs = list(organs)
        self.path = Path(path)
        self.metric = metric
        self.title = title
        self._scans: list[str] = []
        self._history: list[tuple[int, np.ndarray]] = []

    def attach(self, engine: Engine) -> None:
        """Follow the evaluator."""
        engine.add_event_handler(Events.STARTED, lambda _: self._scans.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.note_scan)
        engine.add_event_handler(Events.COMPLETED, self.report)

    def note_scan(self, engine: Engine) -> None:
        """Remember which scan a row of the metric belongs to."""
        state: Any = engine.state
        self._scans.extend(name_of(item[IMAGE]) for item in state.batch)

    def report(self, engine: Engine) -> None:
        """Print and write."""
        state: Any = engine.state
        dice = state.metric_details[self.metric].cpu().double().numpy()
        epoch = max(int(state.epoch), 0)
        self._history = [(other, means) for other, means in self._history if other != epoch]
        self._history.append((epoch, np.array([mean_of_present(column) for column in dice.T])))
        self._write(epoch, dice)
        print(self.table(), flush=True)

    def table(self) -> str:
        """Return the means of all evaluations so far as a text table."""
        width = max(12, *(len(organ) + 2 for organ in self.organs))
        lines = [f"{self.title}, mean over {len(self._scans)} scans"]
        lines.append("after epoch".ljust(16) + "".join(name.rjust(width) for name in [*self.organs, "mean"]))
        for epoch, means in self._history:
            name = "0 (untrained)" if epoch == 0 else str(epoch)
            lines.append(name.ljust(16) + "".join(f"{v:.3f}".rjust(width) for v in [*means, mean_of_present(means)]))
        return "\n".join(lines)

    def _write(self, epoch: int, dice: np.ndarray) -> None:
        rows = list(csv.reader(self.path.open(newline="")))[1:] if self.path.is_file() else []
        rows = [row for row in rows if int(row[0]) < epoch]
        for scan, values in zip(self._scans, dice, strict=True):
            for organ, value in zip(self.organs, values, strict=True):
                # An organ that the scan does not have has no Dice: said, not averaged.
                rows.append([str(epoch), scan, organ, "absent" if np.isnan(value) else f"{value:.4f}"])
        write_csv(self.path, [["epoch", "scan", "organ", "dice"], *rows])


class SaveMasks:
    """Write each predicted label map as NIfTI, on exactly the grid of the scan's file, and a table of volumes.

    Args:
        folder: Where ``<scan>.nii.gz`` and ``volumes.csv`` go.
        inferer: Knows the organs.
    """

    def __init__(self, folder: str | Path, inferer: VolumeInferer) -> None:
        self.folder = Path(folder)
        self.inferer = inferer
        self._rows: list[list[str]] = []

    def attach(self, engine: Engine) -> None:
        """Write after every scan."""
        engine.add_event_handler(Events.STARTED, lambda _: self._rows.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the scans of this iteration."""
        state: Any = engine.state
        for item in state.output:
            name = name_of(item[IMAGE])
            mask = item[PRED]
            save_nifti(mask, self.folder / f"{name}.nii.gz", like=source_of(item[IMAGE]))
            self._add_volumes(name, mask)

    def _add_volumes(self, name: str, mask: MetaTensor) -> None:
        milliliters = abs(float(np.linalg.det(np.asarray(mask.affine)[:3, :3]))) / 1000
        for organ, value in self.inferer.organ_names().items():
            voxels = int((mask == value).sum())
            self._rows.append([name, organ, str(voxels), f"{voxels * milliliters:.2f}"])
        write_csv(self.folder / "volumes.csv", [["scan", "organ", "voxels", "milliliters"], *self._rows])


class SaveOverlays:
    """Draw each scan: for every organ the support with its label, the query with truth (if known) and prediction.

    Args:
        folder: Where ``<scan>.png`` goes.
        inferer: Knows support and organs.
        by_organ: Instead draw ``<scan>_<organ>.png``, a picture for every organ with its mask alone.
    """

    def __init__(self, folder: str | Path, inferer: VolumeInferer, by_organ: bool = False) -> None:
        self.folder = Path(folder)
        self.inferer = inferer
        self.by_organ = by_organ

    def attach(self, engine: Engine) -> None:
        """Draw after every scan."""
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
                    save_png(row, self.folder / f"{scan}_{name}.png")
            else:
                rows = [self._row(*named, ids, item, truth, item[NETWORK_LABEL]) for named in organs.items()]
                save_png(stacked(rows), self.folder / f"{scan}.png")

    def _row(
        self, name: str, organ: int, ids: Sequence[int], item: Mapping[str, Any], truth: Any, label: Any
    ) -> np.ndarray:
        support = next(scan for scan in self.inferer.support_scans() if organ_slices(scan[LABEL], organ))
        z = support_slices(organ_slices(support[LABEL], organ), 1)[0]
        pictures = [_captioned(support, support[LABEL], z, ids, f"support, {name}")]
        # Where the organ is thickest: in truth if there is one, else as predicted.
        shown = label if truth is None else truth
        z = int((np.asarray(shown[0]) == organ).sum(axis=(0, 1)).argmax())
        if truth is not None:
            pictures.append(_captioned(item, truth, z, ids, f"query, truth (slice {z})"))
        pictures.append(_captioned(item, label, z, ids, f"query, prediction (slice {z})"))
        return side_by_side(pictures)


def _captioned(scan: Mapping[str, Any], label: Any, z: int, ids: Sequence[int], text: str) -> np.ndarray:
    image, label = np.asarray(scan[IMAGE])[0, ..., z], np.asarray(label)[0, ..., z]
    return caption(enlarged(overlay_label(image, label, ids)), text)


def mean_of_present(values: np.ndarray) -> float:
    """Return the mean of what is a number; NaN if nothing is."""
    present = values[~np.isnan(values)]
    return float(present.mean()) if len(present) else float("nan")


def source_of(image: MetaTensor) -> str:
    """Return the file that a volume was read from."""
    return str(image.meta[ImageMetaKey.FILENAME_OR_OBJ])


def name_of(image: MetaTensor) -> str:
    """Return the name of a volume's scan."""
    return scan_name(source_of(image))


def save_nifti(label: MetaTensor, path: Path, like: str | None = None) -> None:
    """Write a label map ``(1, H, W, Z)``; beside its place first, then renamed.

    Args:
        label: The label map on its scan's grid.
        path: Where it goes.
        like: The scan's file: if it is NIfTI, the mask gets exactly its affine, with its codes and units.
    """
    values, affine, header = np.asarray(label)[0], np.asarray(label.affine), None
    if like is not None and like.lower().endswith((".nii", ".nii.gz")) and Path(like).is_file():
        scan = cast("nibabel.Nifti1Image", nibabel.load(like))
        affine, header = np.asarray(scan.affine), nibabel.Nifti1Header()
        header.set_xyzt_units(*scan.header.get_xyzt_units())
        header.set_data_dtype(values.dtype)
    image = nibabel.Nifti1Image(values, affine, header)
    if header is not None:
        image.set_sform(affine, int(scan.header["sform_code"]) or 2)
        qform, code = scan.header.get_qform(coded=True)
        image.set_qform(qform, int(code))
    with written_whole(path) as unfinished:
        nibabel.save(image, unfinished)


def write_csv(path: Path, rows: Sequence[Sequence[str]]) -> None:
    """Write a table beside its place, then rename it."""
    with written_whole(path) as unfinished, unfinished.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
