"""``python -m bundle drawn_slices``: a few slices of a scan are drawn on, and the other scans are segmented."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from bundle.command_line.configs import parsed
from bundle.data import list_scans
from bundle.data.phantoms import write_phantoms
from bundle.evaluation.drawn_slices import Case, Draftsman, Drawing, drawings, drawn_slices, table

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"slice_size": [64, 64], "checkpoint": "$None", "device": "$torch.device('cpu')"}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantoms(tmp_path_factory.mktemp("study") / "phantom", unlabeled=0, labeled=5, size=(64, 64, 8))


@pytest.fixture(scope="module")
def draftsman(study: Path) -> Draftsman:
    torch.manual_seed(0)
    return Draftsman(parsed(["inference"], SMALL), list_scans(study)[:2])


def test_drawings_are_spread_over_the_organs_or_follow_the_suggested_order() -> None:
    shown = [4, 5, 6, 7, 8, 9, 10, 11, 12, 13]
    made = {d.name: d for d in drawings(shown, order=[20, 11, 3, 5, 9, 6, *range(15)], numbers=[1, 3])}
    assert made["1, evenly spread"].slices == (9,)
    assert made["3, evenly spread"].slices == (5, 9, 12)
    assert made["1, suggested"].slices == (11,)
    assert made["3, suggested"].slices == (5, 9, 11)
    assert made["every 8th"].slices == (8,)
    assert made["every 4th"].slices == (6, 10)
    assert made["every 2nd"].slices == (5, 7, 9, 11, 13)
    assert made["all that show an organ"].slices == made["all slices: finished"].slices == tuple(shown)
    assert [name for name, d in made.items() if d.finished] == [
        "every 4th, all others as background",
        "all slices: finished",
    ]


def test_a_drawing_is_encoded_as_a_label_map_with_these_slices_is(draftsman: Draftsman, tmp_path: Path) -> None:
    name, other = draftsman.scans
    files = draftsman.scans[name].files
    label = nibabel.load(files["label"])
    values = np.asarray(label.dataobj).copy()
    slices = tuple(int(z) for z in np.flatnonzero(values.any(axis=(0, 1)))[[0, -1]])
    assert slices[1] - slices[0] > 1
    values[..., np.setdiff1d(np.arange(values.shape[-1]), slices)] = 0
    nibabel.save(nibabel.Nifti1Image(values, label.affine), tmp_path / "drawing.nii.gz")
    entry = {"image": files["image"], "label": str(tmp_path / "drawing.nii.gz")}
    expected = draftsman.inferer.pool(draftsman.network, torch.device("cpu"), [entry])
    drawn = draftsman.drawn_support(name, Drawing("two", slices))
    for organ, [shape] in expected.shapes.items():  # refinement depends on them
        assert (drawn.shapes[organ][0].components, drawn.shapes[organ][0].thickness) == (
            shape.components,
            shape.thickness,
        )
    features = draftsman.scans[other].features
    for (one, _), (same, _) in zip(drawn.score(features, None), expected.score(features, None), strict=True):
        torch.testing.assert_close(one, same)


def test_the_table_has_the_mean_of_each_fold_and_of_all_folds() -> None:
    one, two = Drawing("one", (3,)), Drawing("two", (3, 5))
    cases = [Case(0, one, "a", 0.2), Case(0, one, "b", 0.4), Case(3, one, "c", 0.6)]
    cases += [Case(fold, two, "d", 0.7) for fold in (0, 3)]
    rows = table(cases, {"command": "this"}).splitlines()
    assert rows[-2:] == ["| one | 1.0 | 0.450 | 0.300 | 0.600 |", "| two | 2.0 | 0.700 | 0.700 | 0.700 |"]


def test_the_command_writes_every_case(study: Path, tmp_path: Path) -> None:
    drawn_slices(str(study), str(tmp_path), numbers=[1], folds=[0], **SMALL)
    with (tmp_path / "cases.csv").open(newline="") as file:
        cases = list(csv.DictReader(file))
    assert {case["fold"] for case in cases} == {"0"}
    assert len({case["scan"] for case in cases}) == 1
    assert len(cases) == 2 + 6
    assert "all slices: finished" in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize("wrong", [{"numbers": [0]}, {"scans": 0}])
def test_a_wrong_number_is_refused(study: Path, tmp_path: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be a whole number of at least 1, got 0"):
        drawn_slices(str(study), str(tmp_path), **wrong)  # type: ignore[arg-type]


def test_a_matching_without_descriptions_of_slices_is_refused(study: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="matching must be SliceMatching, which suggests slices, got ChunkMatching"):
        drawn_slices(str(study), str(tmp_path), folds=[0], configs=["preset_paper"], **SMALL)
