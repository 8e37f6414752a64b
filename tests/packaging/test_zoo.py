"""What goes into MONAI's model zoo, and the verbs of ``monai.bundle`` that its users type."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from monai.bundle import load
from tests.packaging.installed import ROOT

NAME = "abdominal_mr_fewshot_segmentation"
MAKE_ZOO: dict[str, Any] = runpy.run_path(str(ROOT / "tools" / "make_zoo.py"))


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the zoo."""
    folder = tmp_path_factory.mktemp("made") / "zoo"
    MAKE_ZOO["make_zoo"](folder)
    return folder


def test_the_zoo_gets_the_bundle_and_its_unit_tests(target: Path) -> None:
    folder = target / "models" / NAME
    assert sorted(path.name for path in folder.iterdir()) == [
        *(".gitignore", "LICENSE", "bundle", "configs", "docs", "large_files.yml", "models")
    ]
    assert sorted(path.name for path in (target / "ci" / "unit_tests").iterdir()) == [
        *(f"test_{NAME}.py", f"test_{NAME}_dist.py")
    ]
    assert not [path for path in folder.rglob("*") if path.suffix in (".npz", ".pyc")]
    assert [path.relative_to(folder).as_posix() for path in folder.rglob("metadata.json")] == ["configs/metadata.json"]


def test_the_large_file_of_the_zoo_is_the_weights(target: Path) -> None:
    folder = target / "models" / NAME
    [large] = yaml.safe_load((folder / "large_files.yml").read_text(encoding="utf-8"))["large_files"]
    assert (large["path"], large["hash_type"]) == ("models/model.pt", "sha256")
    assert large["hash_val"] == hashlib.sha256((folder / "models" / "model.pt").read_bytes()).hexdigest()
    small = [path for path in folder.rglob("*") if path.is_file() and path.name != "model.pt"]
    assert all(path.stat().st_size <= 1024 * 1024 for path in small)


def test_a_pull_request_has_all_but_the_weights_and_no_file_over_a_megabyte(target: Path, tmp_path: Path) -> None:
    zoo = tmp_path / "zoo"
    shutil.copytree(target, zoo)
    for words in (["init", "--quiet"], ["add", "--all"]):
        subprocess.run(["git", *words], cwd=zoo, check=True)
    done = subprocess.run(["git", "ls-files"], cwd=zoo, check=True, capture_output=True, text=True)
    added = {zoo / line for line in done.stdout.splitlines()}
    left_out = {path for path in zoo.rglob("*") if path.is_file() and ".git" not in path.parts} - added
    assert left_out == {zoo / "models" / NAME / "models" / "model.pt"}
    assert all(path.stat().st_size <= 1024 * 1024 for path in added)


def test_the_readme_of_the_zoo_has_the_headings_of_its_template(target: Path) -> None:
    text = (target / "models" / NAME / "docs" / "README.md").read_text(encoding="utf-8")
    headings = [heading.strip("# *") for heading in re.findall(r"^#+ .*$", text, re.MULTILINE)]
    expected = ("Authors", "Tags", "Model Description", "Data", "Performance", "Additional Usage Steps")
    expected += ("TensorRT", "System Configuration", "Limitations", "Citation Info", "References")
    assert [heading for heading in headings if heading in expected] == list(expected)


def test_the_readme_of_the_zoo_has_the_metrics_of_the_metadata(target: Path) -> None:
    folder = target / "models" / NAME
    metrics = json.loads((folder / "configs" / "metadata.json").read_text(encoding="utf-8"))["eval_metrics"]
    organs = ("liver", "right_kidney", "left_kidney", "spleen")
    row = " | ".join(f"{metrics[name]:.3f}" for name in [*(f"{organ}_dice" for organ in organs), "mean_dice"])
    assert f"| {row} |" in (folder / "docs" / "README.md").read_text(encoding="utf-8")
    assert f"| {row} |" in (folder / "docs" / "model_card.md").read_text(encoding="utf-8").replace("**", "")
    assert sum(metrics[f"{organ}_dice"] for organ in organs) / 4 == pytest.approx(metrics["mean_dice"], abs=0.001)


def test_a_link_or_a_picture_of_the_zoo_is_in_its_folder(target: Path) -> None:
    folder = target / "models" / NAME
    missing = []
    for page in folder.rglob("*.md"):
        paths = re.findall(r"\]\(([^)#:]+)[^):]*\)", page.read_text(encoding="utf-8"))
        missing += [f"{page.name}: {path}" for path in paths if not (page.parent / path).exists()]
    assert not missing


def test_the_curves_of_the_zoo_are_those_of_the_recorded_run(target: Path) -> None:
    for name in ("train_loss", "val_dice"):
        assert (target / "models" / NAME / "docs" / "images" / f"{name}.png").stat().st_size < 100_000
    recorded = ROOT / "tools" / "zoo" / "recorded_run"
    with (recorded / "dice.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["organ"] == "spleen" and row["epoch"] == "1"]
    spleen = next(line for line in MAKE_ZOO["draw_dice"]().axes[0].lines if line.get_label() == "spleen")
    after = dict(zip(spleen.get_xdata(), spleen.get_ydata(), strict=True))
    assert after[500] == pytest.approx(sum(float(row["dice"]) for row in rows) / 4)
    assert max(after) == 3000


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match="holds something other than the zoo's folders"):
        MAKE_ZOO["make_zoo"](tmp_path)
    assert (tmp_path / "mine.txt").exists()


def test_the_metric_of_the_metadata_is_that_of_the_documents() -> None:
    metadata = json.loads((ROOT / "metadata.json").read_text(encoding="utf-8"))
    text = re.sub(r"\s+", " ", (ROOT / "models" / "README.md").read_text(encoding="utf-8"))
    assert f"whole volumes: {metadata['eval_metrics']['mean_dice']} (`configs/inference.yaml`)" in text


@pytest.mark.parametrize("kind", ["train", "inference"])
def test_load_returns_a_network_with_the_shipped_weights(kind: str) -> None:
    network = load(name=ROOT.name, bundle_dir=str(ROOT.parent), workflow_type=kind, device="cpu")
    expected = torch.load(ROOT / "models" / "model.pt", weights_only=True)
    assert type(network).__name__ == "ALPNet"
    assert network.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())
