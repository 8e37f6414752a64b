"""``python -m bundle annotation_order``: an annotator is simulated, and both orders are compared."""

from __future__ import annotations

import csv
import itertools
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from bundle.command_line.configs import parsed
from bundle.data import list_scans
from bundle.data.phantoms import write_phantoms
from bundle.evaluation.annotation_order import Annotator, annotation_order, simulate, suggested_order
from bundle.evaluation.annotation_report import SUGGESTED, Step, needed, table
from bundle.evaluation.annotation_work import Annotation, Work, changes, drawing, work_rows, work_table
from bundle.inference.next_scan import rank_by_similarity

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"slice_size": [64, 64], "checkpoint": "$None", "device": "$torch.device('cpu')"}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    return write_phantoms(folder / "phantom", unlabeled=1, labeled=4, size=(64, 64, 6))


@pytest.fixture(scope="module")
def annotator(study: Path) -> Annotator:
    torch.manual_seed(0)
    return Annotator(parsed(["inference"], SMALL), [scan for scan in list_scans(study) if "label" in scan])


class Fixed:
    """An annotator of five scans, whose Dice is known."""

    def __init__(self) -> None:
        self.scans = dict.fromkeys("abcde")
        self.asked: list[Sequence[str]] = []

    def suggested(self, annotated: Sequence[str]) -> str:
        return "edcba"[len(annotated)]

    def dice(self, annotated: Sequence[str]) -> dict[str, float]:
        self.asked.append(annotated)
        return {name: 0.1 * (1 + "abcde".index(name)) for name in self.scans if name not in annotated}


def test_a_step_knows_the_means_with_and_without_the_annotated_scans() -> None:
    step = Step(SUGGESTED, ("a", "b"), {"c": 0.2, "d": 0.6})
    assert (step.rest, step.folder, step.worst) == (pytest.approx(0.4), pytest.approx(0.7), 0.2)


def test_needed_counts_the_scans_until_a_dice_is_reached() -> None:
    curve = [0.5, 0.7, 0.6]
    assert [needed(curve, dice) for dice in (0.4, 0.5, 0.65, 0.71)] == [1, 1, 2, None]


def test_every_order_is_followed_scan_by_scan() -> None:
    fixed: Any = Fixed()
    steps = simulate(fixed, 3, 2, seed=5)
    assert [(step.order, len(step.annotated)) for step in steps] == [
        (order, number) for order in (SUGGESTED, "random 1", "random 2") for number in (1, 2, 3)
    ]
    assert [step.annotated for step in steps[:3]] == [("e",), ("e", "d"), ("e", "d", "c")]
    for first, second in itertools.pairwise(steps):
        assert len(second.annotated) == 1 or second.annotated[:-1] == first.annotated
    assert steps[0].dice == {"a": pytest.approx(0.1), "b": 0.2, "c": pytest.approx(0.3), "d": 0.4}
    assert steps == simulate(fixed, 3, 2, seed=5)
    assert steps != simulate(fixed, 3, 2, seed=6)


def test_the_table_counts_the_scans_that_random_orders_need_for_the_same_dice() -> None:
    curves = {SUGGESTED: [0.6, 0.8], "random 1": [0.5, 0.7], "random 2": [0.3, 0.5], "random 3": [0.4, 0.6]}
    names = "abcd"
    steps = [
        Step(order, tuple(names[: n + 1]), {"x": dice, "y": dice})
        for order, curve in curves.items()
        for n, dice in enumerate(curve)
    ]
    text = table(steps, {"command": "this"})
    assert "- suggested order: a, b" in text
    rest = text.split("## ")[1].splitlines()
    assert rest[0] == "Mean Dice of the scans that are not annotated"
    assert rest[4:6] == [
        "| 1 | 0.600 | 0.400 | 0.300 | 0.500 | 2 |",
        "| 2 | 0.800 | 0.600 | 0.500 | 0.700 | more than 2 |",
    ]


def test_work_counts_voxels_that_change_and_slices_that_hold_one() -> None:
    truth = torch.zeros(1, 2, 3, 4, dtype=torch.uint8)
    truth[0, 0, :, 1], truth[0, 1, 1, 2] = 1, 2
    assert drawing(truth) == Work(voxels=4, slices=2)
    mask = truth.clone()
    mask[0, 0, 0, 1], mask[0, 0, 1, 1], mask[0, 0, 0, 3] = 0, 2, 1  # missing, of another organ, too much
    assert changes(mask, truth) == Work(voxels=3, slices=2)
    assert changes(truth, truth) == Work(0, 0)


def test_the_table_of_work_sums_up_and_takes_the_mean_of_random_orders() -> None:
    counts = {SUGGESTED: ((90, 9), (20, 5)), "random 1": ((50, 8), (30, 7)), "random 2": ((70, 6), (50, 5))}
    work = []
    for order, ((first, slices), (second, more)) in counts.items():
        work.append(Annotation(order, "a", Work(first, slices), Work(first, slices)))
        work.append(Annotation(order, "b", Work(second, more), Work(100, 10)))
    rows = work_table(work, SUGGESTED).splitlines()
    assert rows[-2:] == [
        "| 1 | 90 | 60 | 90 | 60 | 9 | 7 | 9 | 7 |",
        "| 2 | 110 | 100 | 190 | 160 | 14 | 13 | 19 | 17 |",
    ]
    assert work_rows(work)[2] == [SUGGESTED, "b", "20", "5", "100", "10"]


def test_the_first_scan_is_drawn_and_the_next_is_its_mask_corrected(
    annotator: Annotator, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, *_ = sorted(annotator.scans)
    label = annotator.scans[second].label
    organ_voxels, organ_slices = int((label > 0).sum()), int((label > 0).any(dim=1).any(dim=1).sum())
    one = annotator.annotation("mine", [], second)
    assert one.corrected == one.drawn == Work(organ_voxels, organ_slices)
    wrong = label.clone()
    wrong[0, 0, 0, 0] = 1 + (label[0, 0, 0, 0] == 1)
    monkeypatch.setattr(annotator, "_mask", lambda scan, support: wrong)
    annotator._known.clear()
    annotation = annotator.annotation("mine", [first], second)
    assert annotation == Annotation("mine", second, Work(1, 1), one.drawn)
    annotator._known.clear()
    annotator._work.clear()


def test_the_suggested_order_names_each_scan_once(annotator: Annotator) -> None:
    order = suggested_order(annotator, 4)
    assert sorted(order) == sorted(annotator.scans)
    assert len(annotator.scans) == 4  # the one without a label map plays no part


def test_all_scans_that_are_not_annotated_are_segmented_and_compared(annotator: Annotator) -> None:
    names = sorted(annotator.scans)
    dice = annotator.dice(names[:2])
    assert sorted(dice) == names[2:]
    assert all(0 < value < 1 for value in dice.values())
    assert annotator.dice(names[1::-1]) is dice  # remembered, in whatever order


def test_dice_is_that_of_the_masks_which_inference_writes(annotator: Annotator, study: Path, tmp_path: Path) -> None:
    names = sorted(annotator.scans)
    files = {name: scan.files for name, scan in annotator.scans.items()}
    words = {"dataset_dir": str(study), "output_dir": str(tmp_path), "support_image": files[names[0]]["image"]}
    parser = parsed(
        ["inference"], SMALL | words | {"support_label": files[names[0]]["label"]}, network=annotator.network
    )
    parser["network"] = "$network"
    parser.parse()
    parser.get_parsed_content("evaluator").run()
    expected = annotator.dice(names[:1])
    for name in names[1:]:
        mask, truth = (
            np.asarray(nibabel.load(path).dataobj)
            for path in (tmp_path / "masks" / f"{name}.nii.gz", files[name]["label"])
        )
        each = [
            2 * ((mask == organ) & (truth == organ)).sum() / ((mask == organ).sum() + (truth == organ).sum())
            for organ in np.unique(truth[truth > 0])
        ]
        assert expected[name] == pytest.approx(float(np.mean(each)), abs=1e-6)


def test_the_command_writes_cases_work_tables_and_a_picture(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["order", "annotation_order", "--dataset_dir", "scans"])
    folder = tmp_path / "order"
    keys: dict[str, Any] = {"slice_size": [32, 32], "checkpoint": "$None", "inferer#slice_batch": 2}
    annotation_order(str(study), str(folder), annotated=2, orders=2, seed=3, configs="preset_annotate_one", **keys)
    rows = list(csv.DictReader((folder / "cases.csv").open()))
    assert len(rows) == 3 * (3 + 2)
    assert {row["order"] for row in rows} == {SUGGESTED, "random 1", "random 2"}
    assert all(row["scan"] not in row["annotated"].split("+") for row in rows)
    text = (folder / "table.md").read_text()
    assert text in capsys.readouterr().out
    assert "- command: python -m bundle annotation_order --dataset_dir scans" in text
    one = [float(row["dice"]) for row in rows if row["order"] == SUGGESTED and row["annotated_scans"] == "1"]
    others = [
        [float(r["dice"]) for r in rows if r["order"] == f"random {n}" and r["annotated_scans"] == "1"] for n in (1, 2)
    ]
    means = [np.mean(dice) for dice in others]
    assert f"| 1 | {np.mean(one):.3f} | {np.mean(means):.3f} | {min(means):.3f} | {max(means):.3f} |" in text
    work = list(csv.DictReader((folder / "work.csv").open()))
    assert [row["order"] for row in work] == [order for order in (SUGGESTED, "random 1", "random 2") for _ in range(2)]
    assert all((row["corrected_voxels"] == row["drawn_voxels"]) == (n % 2 == 0) for n, row in enumerate(work))
    assert "## Voxels and slices changed so far" in text
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"annotated": 4}, "annotated must be below the number of scans with a label map, 4 in"),
        ({"annotated": 0}, "annotated must be a whole number of at least 1, got 0"),
        ({"orders": 1.5}, "orders must be a whole number of at least 1, got 1.5"),
        ({"seed": -1}, "seed must be a whole number from 0, got -1"),
        ({"configs": "data_moon"}, "there is no config data_moon. Give a path, or one of data_acdc, data_chaos_t2, "),
        ({"slice_sise": 3}, "unknown key 'slice_sise' in the command.*Did you mean 'slice_size'"),
    ],
)
def test_a_wrong_option_is_reported_before_any_work(
    words: dict[str, Any], message: str, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bundle.evaluation.annotation_order.Annotator", None)
    with pytest.raises(ValueError, match=message):
        annotation_order(str(study), str(tmp_path / "order"), **{"annotated": 2, **words})
    assert not (tmp_path / "order").exists()


def test_a_missing_device_is_reported(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for device, message in (("cuda:0", "device cuda:0 does not exist"), ("cpux", "device must be a name")):
        with pytest.raises(ValueError, match=message):
            annotation_order(str(study), str(tmp_path / "order"), annotated=2, device=device)


def test_only_the_organs_that_are_asked_for_are_compared(annotator: Annotator, monkeypatch: pytest.MonkeyPatch) -> None:
    label = next(iter(annotator.scans.values())).label
    assert annotator._organs(label) == [1, 2, 3]
    monkeypatch.setattr(annotator.inferer, "organs", {"spleen": 3})
    assert annotator._organs(label) == [3]
    compared: list[tuple[int, ...]] = []
    monkeypatch.setattr(
        "bundle.evaluation.annotation_order.compute_dice",
        lambda found, truth: compared.append(tuple(truth.shape)) or torch.ones(1, truth.shape[1]),
    )
    names = sorted(annotator.scans)
    assert set(annotator.dice(names[3:]).values()) == {1.0}
    assert {shape[1] for shape in compared} == {1}
    annotator._known.clear()


def test_a_label_map_without_the_organs_that_are_asked_for_is_named(study: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(study, tmp_path / "study")
    path = sorted((folder / "labels").iterdir())[1]
    label = nibabel.load(path)
    values = np.asarray(label.dataobj).copy()
    values[values == 1] = 0
    nibabel.save(nibabel.Nifti1Image(values, label.affine), path)
    with pytest.raises(ValueError, match=rf"{path.name} shows none of the organs on the network's grid"):
        annotation_order(str(folder), str(tmp_path / "order"), 2, **SMALL, organs={"liver": 1})  # type: ignore[arg-type]


def test_a_file_in_place_of_the_output_folder_is_refused(study: Path, tmp_path: Path) -> None:
    (tmp_path / "order").write_text("mine")
    with pytest.raises(ValueError, match=r"is a file\. Give a folder"):
        annotation_order(str(study), str(tmp_path / "order"), annotated=2)
    assert (tmp_path / "order").read_text() == "mine"


def test_the_most_similar_scan_is_suggested_first_and_then_the_one_that_is_least_sure(
    annotator: Annotator, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = list(annotator.scans)
    glances = {name: scan.glance for name, scan in annotator.scans.items()}
    assert annotator.suggested([]) == max(rank_by_similarity(glances), key=lambda item: item[1])[0]
    sure = {id(glances[name]): value for name, value in zip(names, (0.1, 0.4, 0.2, 0.3), strict=True)}
    monkeypatch.setattr(
        "bundle.evaluation.annotation_order.expected_quality", lambda glance, support, num_components: sure[id(glance)]
    )
    assert annotator.suggested(names[:1]) == names[2]  # the annotated one, of 0.1, plays no part
    assert annotator.suggested([names[0], names[2]]) == names[3]
