"""What goes into MONAI's model zoo, and the verbs of ``monai.bundle`` that its users type."""

from __future__ import annotations

import hashlib
import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from monai.bundle import load
from tests.packaging.installed import ROOT

NAME = "abdominal_mr_fewshot_segmentation"
MAKE_ZOO: dict[str, Any] = runpy.run_path(str(ROOT / "tools" / "make_zoo.py"))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A folder of the zoo."""
    MAKE_ZOO["make_zoo"](tmp_path / "zoo")
    return tmp_path / "zoo"


def test_the_zoo_gets_the_bundle_and_its_unit_tests(target: Path) -> None:
    folder = target / "models" / NAME
    assert sorted(path.name for path in folder.iterdir()) == [
        *("LICENSE", "bundle", "configs", "docs", "large_files.yml", "models")
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
