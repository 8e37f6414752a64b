"""Hostile inputs: nothing in a file runs, no name leaves its page or folder, no link leads out."""

from __future__ import annotations

import csv
import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from bundle.data.phantoms import write_phantoms
from bundle.files import UNFINISHED, remove_abandoned
from bundle.monai_label.support import FindSupportd
from tests.faults.warm import Warm

pytestmark = [pytest.mark.faults, pytest.mark.slow]

SMALL = ["--slice_size", "[64,64]", "--device", "cpu"]
TAG = "<img src=x onerror=alert(1)>"
FORMULA = "=cmd|' /C calc'!A0"
SCRIPT = "<script>alert(1)</script>"


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    write_phantoms(folder / "phantom", unlabeled=1, labeled=3, size=(64, 64, 6), noise=20.0)
    return folder


def pickled(path: Path, evil: Evil) -> Path:
    """Write what runs when it is unpickled, in the ways that a file's name suggests."""
    if path.name.startswith("archive"):
        torch.save({"weight": evil}, path)
    elif path.name.startswith("older"):
        torch.save({"weight": evil}, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps({"weight": evil}))
    return path


FILES = {
    "archive.pt": ["inference", "--checkpoint"],
    "older.pt": ["inference", "--checkpoint"],
    "plain.pt": ["inference", "--checkpoint"],
    "plain.safetensors": ["inference", "--prototypes"],
    "plain.nii.gz": ["inference", "--support_label=plain.nii.gz", "--support_image"],
    "plain.yaml": ["training", "--configs"],
    "archive weights.pt": ["training", "--weights"],
}


@pytest.mark.parametrize("name", FILES)
def test_no_pickle_runs(name: str, study: Path, warm: Warm, tmp_path: Path) -> None:
    evil = Evil(tmp_path / "it ran")
    path = pickled(tmp_path / name, evil)
    words = [word.replace("=plain", f"={path.parent}/plain") for word in FILES[name]]
    code, log = warm.said(*words, path, "--dataset_dir", study / "phantom", "--output_dir", tmp_path / "out", *SMALL)
    assert code == 1
    assert "error: " in log
    assert "Traceback" not in log
    assert not evil.folder.exists()
    pickle.loads(pickle.dumps(evil))
    assert evil.folder.exists()  # it would have


def test_a_pickle_in_place_of_a_checkpoint_does_not_run(study: Path, warm: Warm, tmp_path: Path) -> None:
    evil = Evil(tmp_path / "it ran")
    (tmp_path / "out" / "checkpoints").mkdir(parents=True)
    pickled(tmp_path / "archive.pt", evil).rename(tmp_path / "out" / "checkpoints" / "last.pt")
    words = ["--configs", "smoke", "--dataset_dir", study / "phantom", "--output_dir", tmp_path / "out"]
    code, log = warm.said("training", *words, "--resume", "true")
    assert code == 1
    assert "last.pt cannot be read as a PyTorch file" in log
    assert not evil.folder.exists()


def cells(folder: Path) -> list[str]:
    """Return every cell of every table in a folder, as a spreadsheet reads it."""
    found = []
    for path in folder.rglob("*.csv"):
        with path.open(encoding="utf-8", newline="") as file:
            found += [cell for row in csv.reader(file) for cell in row]
    return found


def test_names_stay_words_in_pages_and_tables(study: Path, warm: Warm, tmp_path: Path) -> None:
    names = {"phantom_00": "a", "phantom_01": "b", "phantom_02": TAG, "phantom_03": FORMULA.replace("/", "_")}
    for part, shown in (("images", names), ("labels", dict(list(names.items())[1:]))):
        (tmp_path / "data" / part).mkdir(parents=True)
        for old, new in shown.items():
            os.link(study / "phantom" / part / f"{old}.nii.gz", tmp_path / "data" / part / f"{new}.nii.gz")
    organs = {SCRIPT: 1, "=1+1": 2, "../../../up": 3}
    given = ["--dataset_dir", tmp_path / "data", "--output_dir", tmp_path / "out", "--organs", organs]
    before = sorted(tmp_path.iterdir())
    code, log = warm.said("evaluating", "--configs", "smoke", *given, "--checkpoint", "$None")
    assert code == 0, log[-3000:]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "alert(1)" in page
    assert not re.search(r"<script>alert|<img src=x", page)
    told = cells(tmp_path / "out")
    assert any("cmd|" in cell for cell in told)
    assert [cell for cell in told if re.match(r"[=+@\t\r]|-(?![\d.])", cell)] == []
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "out"])
    assert not (tmp_path.parent / "up").exists()


def test_a_link_out_of_the_studies_is_refused_in_a_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "studies").mkdir()
    for name in ("secret.nii.gz", "studies/own.nii.gz"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "studies" / "link.nii.gz").symlink_to(tmp_path / "secret.nii.gz")
    (tmp_path / "studies" / "folder").symlink_to(tmp_path)
    monkeypatch.setenv("MONAI_LABEL_STUDIES", str(tmp_path / "studies"))
    own = str(tmp_path / "studies" / "own.nii.gz")
    find = FindSupportd("image")
    for path in ("studies/link.nii.gz", "studies/folder/secret.nii.gz", "studies/../secret.nii.gz"):
        support = [{"image": str(tmp_path / path), "label": own}]
        with pytest.raises(Exception, match="does not lie in the studies folder") as caught:
            find({"image": own, "image_path": own, "support": support})
        assert type(caught.value).__name__ in ("ValueError", "HTTPException")
    assert len(find({"image": own, "image_path": own, "support": [{"image": own, "label": own}]})["support_scans"]) == 1


def test_a_link_in_place_of_a_mask_is_replaced_and_what_it_leads_to_stays(
    study: Path, warm: Warm, tmp_path: Path
) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "out" / "masks").mkdir(parents=True)
    for name in ("phantom_02.nii.gz", "volumes.csv", "made_with.json"):
        (tmp_path / "out" / "masks" / name).symlink_to(tmp_path / "precious")
    scan = "phantom_01.nii.gz"
    support = ["--support_image", study / "phantom/images" / scan, "--support_label", study / "phantom/labels" / scan]
    warm.run("inference", "--dataset_dir", study / "phantom", "--output_dir", tmp_path / "out", *support, *SMALL)
    assert (tmp_path / "precious").read_text() == "precious"
    assert not any(path.is_symlink() for path in (tmp_path / "out" / "masks").iterdir())


def test_what_is_cleaned_up_is_never_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").touch()
    (tmp_path / f"{UNFINISHED}link").symlink_to(tmp_path / "elsewhere")
    remove_abandoned(tmp_path, alone=True)
    assert (tmp_path / "elsewhere" / "precious").exists()
