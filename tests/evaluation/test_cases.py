"""The table of cases: compared on the grid of the scan's own files, with absent organs listed, and a report."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from bundle.data import ScanReader
from bundle.evaluation.cases import COLUMNS, CaseTable, read_cases
from bundle.evaluation.handlers import SaveOverlays
from bundle.files import write_csv
from bundle.transforms import FitSlicesd, SliceLayoutd
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.engines import IterationEvents
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged
from PIL import Image
from tests.processes import become

ORGANS = {"liver": 1, "spleen": 2, "kidneys": 3}
# The file's axes run to the head, the left and the back: its first axis counts slices. Voxels are 2.5 x 4 x 5 mm.
AFFINE = np.array([[0, -4.0, 0, 11.0], [0, 0, -5.0, 23.0], [2.5, 0, 0, -7.0], [0, 0, 0, 1.0]])
CASE = {
    "dataset": "phantoms", "method": "alpnet", "setting": 1, "group": "", "fold": None, "seed": 7, "protocol": "volume",
}  # fmt: skip


def organs_of_a_file() -> np.ndarray:
    volume = np.zeros((9, 20, 24), dtype=np.uint8)
    volume[1:4, 2:7, 3:5] = 1
    volume[5, 11, 8:15] = 2
    return volume


def load(image: Path, label: Path) -> dict[str, MetaTensor]:
    keys = ["image", "label"]
    chain = Compose(
        [
            LoadImaged(keys=keys, reader=ScanReader),
            EnsureChannelFirstd(keys=keys),
            SliceLayoutd(keys=keys),
            FitSlicesd(keys=keys, size=(40, 48)),
        ]
    )
    return chain({"image": str(image), "label": str(label)})


@pytest.fixture
def scan(tmp_path: Path) -> dict[str, Any]:
    """A scan without kidneys, and what was predicted of it: its truth, but for what a test changes."""
    label = organs_of_a_file()
    noise = np.random.default_rng(0).normal(100, 10, label.shape).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(noise + 50 * label, AFFINE), tmp_path / "scan_1.nii.gz")
    nibabel.save(nibabel.Nifti1Image(label, AFFINE), tmp_path / "scan_1_label.nii.gz")
    volumes = load(tmp_path / "scan_1.nii.gz", tmp_path / "scan_1_label.nii.gz")
    masks = torch.cat([torch.as_tensor(np.asarray(volumes["label"])) == organ for organ in ORGANS.values()]).float()
    return {**volumes, "network_label": volumes["label"].clone(), "pred_masks": masks}


def evaluate(
    scan: dict[str, Any], folder: Path, organs: dict[str, int] = ORGANS, **settings: Any
) -> dict[str, dict[str, str]]:
    """Run an evaluator of one scan with its pictures and its table; return the cases by organ."""
    support = scan | {"label": scan["label"].clone()}
    support["label"][0, :2, :2, 0] = ORGANS["kidneys"]  # a support must show what is to be drawn
    inferer: Any = SimpleNamespace(organ_names=lambda: organs, support_scans=lambda: [support])

    def segment(engine: Engine, _: Any) -> list[dict[str, Any]]:
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        return [scan]

    engine = Engine(segment)
    engine.register_events(*IterationEvents)
    SaveOverlays(folder / "overlays", inferer, by_organ=True).attach(engine)
    CaseTable(folder / "cases.csv", inferer, CASE, **settings).attach(engine)
    engine.run([[scan]], max_epochs=1)
    return {case["organ"]: case for case in read_cases(folder / "cases.csv")}


def test_the_truth_as_prediction_is_perfect(scan: dict[str, Any], tmp_path: Path) -> None:
    cases = evaluate(scan, tmp_path)
    assert [(case["status"], case["dice"], case["hd95_mm"], case["nsd"]) for case in cases.values()] == [
        ("ok", "1.0000", "0.0000", "1.0000"),
        ("ok", "1.0000", "0.0000", "1.0000"),
        ("absent", "", "", ""),
    ]
    liver = cases["liver"]
    assert (liver["scan"], liver["support"]) == ("scan_1", "scan_1")
    assert [liver[name] for name in ("dataset", "setting", "fold", "seed")] == ["phantoms", "1", "", "7"]
    assert float(liver["seconds"]) >= 0


def test_slices_and_millimeters_are_those_of_the_file(scan: dict[str, Any], tmp_path: Path) -> None:
    truth = scan["pred_masks"][0].clone()
    scan["pred_masks"][0] = 0
    # Two slices further up: of the organ's three, one is left, and two lie where it is not.
    scan["pred_masks"][0, ..., 2:] = truth[..., :-2]
    liver = evaluate(scan, tmp_path)["liver"]
    assert liver["dice"] == "0.3333"
    assert float(liver["hd95_mm"]) == pytest.approx(5.0)  # slices of 2.5 mm
    assert float(liver["fp_outside_ml"]) == pytest.approx(20 * 2.5 * 4 * 5 / 1000)


def test_a_truth_of_rounded_ids_and_a_fourth_dimension_is_compared(scan: dict[str, Any], tmp_path: Path) -> None:
    label = organs_of_a_file()[..., None] * np.float32(0.99999994)
    nibabel.save(nibabel.Nifti1Image(label, AFFINE), tmp_path / "scan_1_label.nii.gz")
    assert [case["dice"] for case in evaluate(scan, tmp_path).values()] == ["1.0000", "1.0000", ""]


def test_what_is_predicted_where_the_organ_is_not_is_counted(scan: dict[str, Any], tmp_path: Path) -> None:
    scan["pred_masks"][2] = scan["pred_masks"][0]
    kidneys = evaluate(scan, tmp_path)["kidneys"]
    assert (kidneys["status"], kidneys["dice"]) == ("absent", "")
    assert float(kidneys["fp_outside_ml"]) == pytest.approx(1.5)


def test_the_tolerance_is_a_setting_and_is_written_to_the_table(scan: dict[str, Any], tmp_path: Path) -> None:
    scan["pred_masks"][0] = torch.roll(scan["pred_masks"][0], 1, dims=0)
    narrow, wide = (evaluate(scan, tmp_path / str(mm), nsd_tolerance=mm)["liver"] for mm in (3.0, 5.5))
    assert (narrow["nsd_tolerance_mm"], wide["nsd_tolerance_mm"]) == ("3", "5.5")
    assert float(narrow["nsd"]) < float(wide["nsd"]) == 1.0


def test_the_means_are_printed_without_absent_organs(
    scan: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(scan, tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "volume protocol, 3 cases, means over the scans that have the organ"
    assert lines[1].split() == ["dice", "nsd", "hd95_mm", "precision", "recall", "fp_outside_ml", "absent"]
    assert lines[2].split()[:3] == ["liver", "1.000", "1.000"]
    assert lines[4].split()[:2] == ["kidneys", "nan"]
    assert lines[4].endswith("1 of 1")


def test_there_is_a_report_with_pictures_and_settings(scan: dict[str, Any], tmp_path: Path) -> None:
    evaluate(scan, tmp_path, settings={"shots": 5}, published={"1": {"liver": 76.1}})
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 2  # liver and spleen; kidneys have no case to show
    for text in ("shots", "76.1", "version: monai", "scan_1"):
        assert text in page


def test_an_organs_name_leads_to_no_other_folder_and_the_report_finds_its_picture(
    scan: dict[str, Any], tmp_path: Path
) -> None:
    cases = evaluate(scan, tmp_path / "out" / "eval", {"x/../../y": 1, "spleen": 2, "kidneys": 3})
    assert cases["x/../../y"]["dice"] == "1.0000"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["eval"]
    assert not list(tmp_path.glob("**/y*"))
    assert (tmp_path / "out" / "eval" / "report.html").read_text().count("data:image/jpeg;base64,") == 2


def test_a_picture_of_an_organ_shows_its_mask_alone(scan: dict[str, Any], tmp_path: Path) -> None:
    evaluate(scan, tmp_path)
    pictures = {organ: np.asarray(Image.open(tmp_path / "overlays" / f"scan_1_{organ}.png")) for organ in ORGANS}
    reds = {organ: (picture[..., 0].astype(int) - picture[..., 2] > 100).sum() for organ, picture in pictures.items()}
    assert reds["liver"] > 0
    assert reds["spleen"] > 0
    # The organ's rim in support, truth and prediction has one color; no other organ's color is there.
    assert all((picture == (77, 187, 213)).all(axis=-1).sum() == 0 for picture in pictures.values())
    assert not (tmp_path / "overlays" / "scan_1.png").exists()


def test_the_first_process_writes_the_cases_of_all_in_the_data_sets_order(
    scan: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(scan, tmp_path / "alone")
    own = read_cases(tmp_path / "alone" / "cases.csv")
    other = [case | {"scan": "scan_2"} for case in own]
    become(monkeypatch, 0, 2, {1: [other]})
    evaluate(scan, tmp_path / "first")
    cases = read_cases(tmp_path / "first" / "cases.csv")
    assert [case | {"seconds": ""} for case in cases] == [case | {"seconds": ""} for case in [*own, *other]]
    assert "scan_2" in (tmp_path / "first" / "report.html").read_text()


def test_another_process_writes_and_prints_no_case(
    scan: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    become(monkeypatch, 1, 2, {0: []})
    with pytest.raises(FileNotFoundError, match=r"cases\.csv"):
        evaluate(scan, tmp_path / "second")
    assert not (tmp_path / "second" / "report.html").exists()
    assert capsys.readouterr().out == ""


def test_an_evaluation_without_a_scan_says_so(tmp_path: Path) -> None:
    inferer: Any = SimpleNamespace(organ_names=lambda: ORGANS, support_scans=list)
    with pytest.raises(ValueError, match="needs an annotated scan besides the support"):
        CaseTable(tmp_path / "cases.csv", inferer, CASE).report(Engine(lambda *_: None))
    assert not (tmp_path / "cases.csv").exists()


def test_a_table_of_something_else_is_refused(tmp_path: Path) -> None:
    write_csv(tmp_path / "other.csv", [["scan", "dice"], ["a", "1"]])
    with pytest.raises(ValueError, match=r"must be a table of cases with the columns .*got scan, dice"):
        read_cases(tmp_path / "other.csv")
    write_csv(tmp_path / "older.csv", [[name for name in COLUMNS if name not in ("quality", "steps")]])
    assert read_cases(tmp_path / "older.csv") == []
    write_csv(tmp_path / "empty.csv", [COLUMNS])
    assert read_cases(tmp_path / "empty.csv") == []
