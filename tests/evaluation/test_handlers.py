"""The results of an evaluation: masks on the files' grids, volumes, tables, pictures."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from bundle.data import ScanReader
from bundle.data.nifti import save_nifti
from bundle.evaluation import handlers as reports
from bundle.evaluation.doubts import least_confident
from bundle.evaluation.handlers import DiceTable, SaveMasks, SaveOverlays
from bundle.evaluation.visuals import COLORS
from bundle.files import read_json, write_csv
from bundle.inference.resume import Resumption
from bundle.transforms import FitSlicesd, SliceLayoutd
from bundle.transforms.volumes import restore_grid
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tests.processes import become

LIVER, SPLEEN = 1, 2
INFERER: Any = SimpleNamespace(organ_names=lambda: {"liver": LIVER, "spleen": SPLEEN})
# The file's axes run to the head, the left and the back; voxels of 2.5 x 4 x 5 mm are 0.05 ml.
AFFINE = np.array([[0, -4.0, 0, 11.0], [0, 0, -5.0, 23.0], [2.5, 0, 0, -7.0], [0, 0, 0, 1.0]])


def organs_of_a_file() -> np.ndarray:
    """30 voxels of liver and 7 of spleen, at places that no flip or swap of axes keeps."""
    volume = np.zeros((9, 20, 24), dtype=np.uint8)
    volume[1:4, 2:7, 3:5] = LIVER
    volume[5, 11, 8:15] = SPLEEN
    return volume


def load(path: Path) -> MetaTensor:
    """Load a file onto a network's grid of 28 x 32 pixels."""
    chain = Compose(
        [
            LoadImaged(keys="image", reader=ScanReader),
            EnsureChannelFirstd(keys="image"),
            SliceLayoutd(keys="image"),
            FitSlicesd(keys="image", size=(28, 32)),
        ]
    )
    return chain({"image": str(path)})["image"]


def segmented(path: Path) -> dict[str, MetaTensor]:
    """A scan whose intensities are its organs, so that it is its own prediction."""
    nibabel.save(nibabel.Nifti1Image(organs_of_a_file(), AFFINE), path)
    image = load(path)
    return {"image": image, "network_label": torch.as_tensor(np.asarray(image)), "pred": restore_grid(image)}


def run(handler: Any, *outputs: list[dict[str, Any]], batches: list[Any] | None = None) -> None:
    engine = Engine(lambda engine, _: outputs[engine.state.iteration - 1])
    handler.attach(engine)
    engine.run(batches or [0] * len(outputs), max_epochs=1)


def table(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_a_mask_lies_on_exactly_the_grid_of_its_file(tmp_path: Path) -> None:
    scan = segmented(tmp_path / "scan_1.nii.gz")
    assert scan["network_label"].shape == (1, 28, 32, 9)
    run(SaveMasks(tmp_path / "masks", INFERER), [scan])
    written = nibabel.load(tmp_path / "masks" / "scan_1.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), organs_of_a_file())
    np.testing.assert_array_equal(written.affine, AFFINE)
    assert written.get_data_dtype() == np.uint8


def test_volumes_are_in_milliliters(tmp_path: Path) -> None:
    run(SaveMasks(tmp_path / "masks", INFERER), [segmented(tmp_path / "scan_1.nii.gz")])
    assert table(tmp_path / "masks" / "volumes.csv") == [
        ["scan", "organ", "voxels", "milliliters", "quality", "notice"],
        ["scan_1", "liver", "30", "1.50", "", ""],
        ["scan_1", "spleen", "7", "0.35", "", ""],
    ]


@pytest.mark.parametrize(("unit", "scale"), [("micron", 1000), ("meter", 0.001)])
def test_milliliters_are_true_whatever_the_unit_of_the_header(tmp_path: Path, unit: str, scale: float) -> None:
    path = tmp_path / "scan_1.nii.gz"
    image = nibabel.Nifti1Image(organs_of_a_file(), np.diag([scale, scale, scale, 1]) @ AFFINE)
    image.header.set_xyzt_units(unit)
    nibabel.save(image, path)
    loaded = load(path)
    run(SaveMasks(tmp_path / "masks", INFERER), [{"image": loaded, "pred": restore_grid(loaded)}])
    assert [row[3] for row in table(tmp_path / "masks" / "volumes.csv")] == ["milliliters", "1.50", "0.35"]
    written = nibabel.load(tmp_path / "masks" / "scan_1.nii.gz")
    np.testing.assert_allclose(written.affine, nibabel.load(path).affine)
    assert written.header.get_xyzt_units()[0] == unit


def test_the_table_grows_by_the_rows_of_each_scan_and_is_written_whole_at_start_and_end_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    write = reports.write_csv
    monkeypatch.setattr(reports, "write_csv", lambda path, rows: (written.append(len(rows)), write(path, rows)))
    write_csv(tmp_path / "masks/volumes.csv", [["the table of an earlier run"]])
    scans = [segmented(tmp_path / f"scan_{number}.nii.gz") for number in range(5)]
    handler, lines = SaveMasks(tmp_path / "masks", INFERER), []
    engine = Engine(lambda engine, _: [scans[engine.state.iteration - 1]])
    handler.attach(engine)
    engine.add_event_handler(
        "ITERATION_COMPLETED", lambda _: lines.append([row[0] for row in table(tmp_path / "masks/volumes.csv")[1::2]])
    )
    engine.run([0] * 5)
    names = [f"scan_{number}" for number in range(5)]
    assert lines == [names[:number] for number in range(1, 6)]
    assert written == [1 + 2, 1 + 2 * 5]
    assert table(tmp_path / "masks/volumes.csv")[-1] == ["scan_4", "spleen", "7", "0.35", "", ""]


def test_the_table_has_quality_and_notices_and_keeps_them_in_a_resumed_inference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assessed = {"organ_ids": torch.tensor([SPLEEN, LIVER]), "quality": torch.tensor([0.9, 0.75])}
    said = {"notices": {LIVER: ["small", "in pieces"], 0: ["another modality?"]}}
    scans = {name: segmented(tmp_path / f"{name}.nii.gz") for name in ("a", "b")}
    scans["a"]["pred"].meta.update(assessed | {"least_confident": torch.tensor([[math.nan] * 4, [1.0, 2.0, 3.0, 0.5]])})
    scans["b"]["pred"].meta.update(assessed | said)
    files = [{"image": str(tmp_path / f"{name}.nii.gz")} for name in scans]
    folder = tmp_path / "masks"
    run(SaveMasks(folder, INFERER, Resumption(files, folder)), [scans["b"]])
    run(SaveMasks(folder, INFERER, Resumption(files, folder, resume=True)), [scans["a"]])
    assert [row[1:2] + row[4:] for row in table(folder / "volumes.csv")[1:]] == [
        ["liver", "0.7500", ""],
        ["spleen", "0.9000", ""],
        ["liver", "0.7500", "another modality?; small; in pieces"],
        ["spleen", "0.9000", "another modality?"],
    ]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"1 mask in {folder}, 1 with a notice (volumes.csv). Look first at b."
    assert read_json(folder / "quality/b.json", "")["liver"] == ["0.7500", "another modality?; small; in pieces"]
    assert read_json(folder / "quality/a.json", "")["liver"] == ["0.7500", "", [1.0, 2.0, 3.0, 0.5]]
    assert lines[-1] == f"2 masks in {folder}, 1 with a notice (volumes.csv). Look first at b, a."


def test_the_table_of_volumes_has_all_scans_of_the_last_run(tmp_path: Path) -> None:
    handler = SaveMasks(tmp_path / "masks", INFERER)
    run(handler, [segmented(tmp_path / "old.nii.gz")])
    run(handler, [segmented(tmp_path / "a.nii.gz")], [segmented(tmp_path / "b.nii.gz")])
    assert [row[0] for row in table(tmp_path / "masks" / "volumes.csv")[1:]] == ["a", "a", "b", "b"]


def test_an_empty_prediction_has_a_volume_of_zero(tmp_path: Path) -> None:
    scan = segmented(tmp_path / "scan_1.nii.gz")
    run(SaveMasks(tmp_path / "masks", INFERER), [scan | {"pred": torch.zeros_like(scan["pred"])}])
    assert table(tmp_path / "masks" / "volumes.csv")[1] == ["scan_1", "liver", "0", "0.00", "", ""]


def item(name: str) -> dict[str, Any]:
    return {"image": MetaTensor(torch.zeros(1, 2, 3, 4), meta={"filename_or_obj": f"/data/images/{name}.nii.gz"})}


def evaluate(dice: DiceTable, epoch: int, values: list[list[float]]) -> None:
    """Evaluate one scan a step; the metric's rows are the scans."""

    def step(engine: Engine, batch: Any) -> None:
        engine.state.metric_details = {"val_mean_dice": torch.tensor(values)}

    engine = Engine(step)
    engine.add_event_handler("COMPLETED", lambda engine: setattr(engine.state, "epoch", epoch))
    dice.attach(engine)
    engine.run([[item(f"scan_{number}")] for number in range(len(values))], max_epochs=1)


def dice_table(folder: Path) -> DiceTable:
    return DiceTable({"liver": LIVER, "spleen": SPLEEN}, folder / "dice.csv", "val_mean_dice", title="Dice, test")


def test_the_printed_table_has_each_organ_and_their_mean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(dice_table(tmp_path), 4, [[0.5, 0.8], [0.7, 0.9]])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Dice, test, mean over 2 scans"
    assert lines[1].split() == ["after", "epoch", "liver", "spleen", "mean"]
    assert lines[2].split() == ["4", "0.600", "0.850", "0.725"]


def test_the_means_become_curves_over_steps(tmp_path: Path) -> None:
    organs = {"liver": LIVER, "spleen": SPLEEN}
    dice = DiceTable(organs, tmp_path / "dice.csv", "val_mean_dice", log=tmp_path / "log", epoch_length=50)
    evaluate(dice, 2, [[0.5, float("nan")], [0.75, float("nan")]])
    events = EventAccumulator(str(tmp_path / "log")).Reload()
    assert sorted(events.Tags()["scalars"]) == ["validation/dice_liver", "validation/dice_mean"]
    assert [(event.step, event.value) for event in events.Scalars("validation/dice_liver")] == [(100, 0.625)]


def test_an_absent_organ_is_listed_and_not_averaged(tmp_path: Path) -> None:
    dice = dice_table(tmp_path)
    evaluate(dice, 0, [[0.5, float("nan")], [0.7, 0.9]])
    assert ["0", "scan_0", "spleen", "absent"] in table(tmp_path / "dice.csv")
    assert dice.table().splitlines()[2].split() == ["0", "(untrained)", "0.600", "0.900", "0.750"]


@pytest.mark.filterwarnings("error")
def test_an_organ_that_no_scan_has_is_left_out_of_the_mean_without_a_warning(tmp_path: Path) -> None:
    dice = dice_table(tmp_path)
    evaluate(dice, 1, [[0.5, float("nan")], [0.7, float("nan")]])
    words = dice.table().splitlines()[2].split()
    assert (words[1], words[-1]) == ("0.600", "0.600")


def test_the_tables_keep_every_evaluation(tmp_path: Path) -> None:
    dice = dice_table(tmp_path)
    for epoch, value in ((0, 0.1), (4, 0.5), (8, 0.25)):
        evaluate(dice, epoch, [[value, 0.5]])
    assert [line.split()[0] for line in dice.table().splitlines()[2:]] == ["0", "4", "8"]
    assert table(tmp_path / "dice.csv") == [
        ["epoch", "scan", "organ", "dice"],
        ["0", "scan_0", "liver", "0.1000"],
        ["0", "scan_0", "spleen", "0.5000"],
        ["4", "scan_0", "liver", "0.5000"],
        ["4", "scan_0", "spleen", "0.5000"],
        ["8", "scan_0", "liver", "0.2500"],
        ["8", "scan_0", "spleen", "0.5000"],
    ]


def test_a_resumed_run_replaces_the_evaluations_that_it_repeats(tmp_path: Path) -> None:
    for epoch in (0, 4, 8):
        evaluate(dice_table(tmp_path), epoch, [[0.5, 0.5]])
    evaluate(dice_table(tmp_path), 4, [[0.75, 0.5]])
    assert [row[0::3] for row in table(tmp_path / "dice.csv")[1::2]] == [["0", "0.5000"], ["4", "0.7500"]]


def test_a_run_from_the_start_begins_a_new_table(tmp_path: Path) -> None:
    for epoch in (4, 0):
        evaluate(dice_table(tmp_path), epoch, [[0.5, 0.5]])
    assert {row[0] for row in table(tmp_path / "dice.csv")[1:]} == {"0"}


def report(dice: DiceTable, own: list[str], rows: list[list[float]]) -> None:
    """End an evaluation of a process's own scans; the metric's rows are those of all processes."""
    engine = Engine(lambda engine, _: setattr(engine.state, "metric_details", {"val_mean_dice": torch.tensor(rows)}))
    dice.attach(engine)
    engine.run([[item(name)] for name in own])


def test_a_process_without_a_scan_adds_nothing_to_the_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    become(monkeypatch, 0, 2, {1: [""]})
    dice = dice_table(tmp_path)
    report(dice, ["scan_0"], [[0.25, 0.5], [float("nan"), float("nan")]])
    assert table(tmp_path / "dice.csv")[1:] == [["1", "scan_0", "liver", "0.2500"], ["1", "scan_0", "spleen", "0.5000"]]
    assert dice.table().splitlines()[0] == "Dice, test, mean over 1 scans"


def test_the_first_process_writes_the_table_of_all_in_the_data_sets_order(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Three processes and four scans: this one has scans 0 and 3. The metric has the rows of one after the other.
    become(monkeypatch, 0, 3, {1: ["scan_1"], 2: ["scan_2"]})
    report(dice_table(tmp_path), ["scan_0", "scan_3"], [[0.0, 0.5], [0.3, 0.5], [0.1, 0.5], [0.2, 0.5]])
    assert [row[1:] for row in table(tmp_path / "dice.csv")[1::2]] == [
        [f"scan_{number}", "liver", f"0.{number}000"] for number in (0, 1, 2, 3)
    ]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Dice, test, mean over 4 scans"
    assert lines[2].split()[1:] == ["0.150", "0.500", "0.325"]


def test_another_process_writes_and_prints_no_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    become(monkeypatch, 1, 2, {0: ["scan_0"]})
    report(dice_table(tmp_path), ["scan_1"], [[0.5, 0.5], [0.5, 0.5]])
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out == ""


def test_an_evaluation_without_a_scan_leaves_no_table(tmp_path: Path) -> None:
    dice_table(tmp_path).report(Engine(lambda *_: None))
    assert not list(tmp_path.iterdir())


def test_the_table_of_volumes_is_of_all_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    scans = [segmented(tmp_path / f"{name}.nii.gz") for name in ("a", "c")]
    become(monkeypatch, 0, 2, {1: [("b", [["b", "liver", "1", "0.05", "", ""], ["b", "spleen", "2", "0.10", "", ""]])]})
    handler = SaveMasks(tmp_path / "masks", INFERER)
    engine = Engine(lambda engine, _: [scans[engine.state.iteration - 1]])
    handler.attach(engine)
    engine.add_event_handler("ITERATION_COMPLETED", lambda _: tables.append((tmp_path / "masks/volumes.csv").exists()))
    tables: list[bool] = []
    engine.run([0, 0])
    assert tables == [False, False]  # two processes would write over each other
    assert [row[0] for row in table(tmp_path / "masks" / "volumes.csv")[1:]] == ["a", "a", "b", "b", "c", "c"]


def test_another_process_writes_its_masks_and_no_table_of_volumes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    become(monkeypatch, 1, 2, {0: []})
    run(SaveMasks(tmp_path / "masks", INFERER), [segmented(tmp_path / "b.nii.gz")])
    assert [path.name for path in (tmp_path / "masks").iterdir()] == ["b.nii.gz"]


@pytest.mark.parametrize("with_truth", [False, True])
def test_an_overlay_has_a_row_for_each_organ_and_a_picture_for_each_label(tmp_path: Path, with_truth: bool) -> None:
    scan = segmented(tmp_path / "scan_1.nii.gz")
    truth = {"label": scan["network_label"]} if with_truth else {}
    support = {"image": scan["image"], "label": scan["network_label"]}
    inferer: Any = SimpleNamespace(organ_names=INFERER.organ_names, support_scans=lambda: [support])
    run(SaveOverlays(tmp_path / "overlays", inferer), [scan], batches=[[truth]])
    # 28 x 32 pixels are enlarged 8 times, below a title of 20 pixels and a caption of 16; gaps are 4, the legend is 20.
    pictures = 3 if with_truth else 2
    size = (pictures * 256 + (pictures - 1) * 4, 2 * (20 + 16 + 224) + 20 + 2 * 4)
    picture = Image.open(tmp_path / "overlays" / "scan_1.png")
    assert picture.size == size
    # A square in each organ's color: before its title, and both in the legend at the end.
    liver, spleen = COLORS[:2]
    assert [picture.getpixel((8, y)) for y in (9, 264 + 9, 528 + 9)] == [liver, spleen, liver]
    assert spleen in {picture.getpixel((x, 528 + 9)) for x in range(20, size[0])}


def test_a_mask_whose_scan_is_annotated_now_is_told_and_is_in_no_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans = {name: segmented(tmp_path / f"{name}.nii.gz") for name in "abcdef"}
    files = [{"image": str(tmp_path / f"{name}.nii.gz")} for name in scans]
    folder = tmp_path / "masks"
    run(SaveMasks(folder, INFERER, Resumption(files, folder)), list(scans.values()))
    assert "earlier run" not in capsys.readouterr().out
    run(SaveMasks(folder, INFERER, Resumption(files[1:], folder)), list(scans.values())[1:])
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == f"{folder} also holds 1 other mask of an earlier run, of scans that are annotated now or gone: a."
    assert {row[0] for row in table(folder / "volumes.csv")[1:]} == set("bcdef")
    run(SaveMasks(folder, INFERER, Resumption(files[5:], folder)), [scans["f"]])
    assert (
        capsys.readouterr()
        .out.splitlines()[-1]
        .endswith("5 other masks of an earlier run, of scans that are annotated now or gone: a, b, c and 2 more.")
    )


def test_a_mask_that_fails_midway_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(image: Any, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    (tmp_path / "mask.nii.gz").write_bytes(b"the old mask")
    monkeypatch.setattr(reports.nibabel, "save", fail)
    with pytest.raises(ValueError, match="No space left"):
        save_nifti(MetaTensor(torch.ones(1, 2, 3, 4)), tmp_path / "mask.nii.gz")
    assert (tmp_path / "mask.nii.gz").read_bytes() == b"the old mask"


def test_a_mask_is_written_into_a_new_folder_and_nothing_else_is(tmp_path: Path) -> None:
    save_nifti(MetaTensor(torch.ones(1, 2, 3, 4)), tmp_path / "new" / "mask.nii.gz")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["mask.nii.gz"]


def test_a_table_that_fails_midway_leaves_the_old_file(tmp_path: Path) -> None:
    def rows() -> Iterator[list[str]]:
        yield ["scan", "dice"]
        raise OSError(28, "No space left on device")

    write_csv(tmp_path / "dice.csv", [["the old table"]])
    with pytest.raises(ValueError, match="No space left"):
        write_csv(tmp_path / "dice.csv", rows())  # type: ignore[arg-type]
    assert table(tmp_path / "dice.csv") == [["the old table"]]


def test_of_very_many_organs_those_of_the_lowest_quality_are_drawn() -> None:
    organs = {f"organ {number}": number for number in range(1, 21)}
    quality = torch.linspace(1.0, 0.6, 20)  # of the ids 1 to 20
    mask = MetaTensor(torch.zeros(1, 2, 2, 2), meta={"quality": quality, "organ_ids": torch.arange(1, 21)})
    assert list(least_confident(mask, organs).values()) == list(range(9, 21))
    assert least_confident(None, {"liver": 1}) == {"liver": 1}
