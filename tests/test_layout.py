"""The arrows between rooms: who may import whom. And the two metadata files, the versions, the configs."""

from __future__ import annotations

import ast
import filecmp
import json
import re
from pathlib import Path

import bundle
import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "bundle"

# room -> the rooms it may import; a room missing here fails, so that a new one is a decision.
ALLOWED = {
    "keys": set(),
    "files": set(),
    "provenance": {"distributed"},
    "tensor_files": {"files"},
    "distributed": set(),
    "root": set(),
    "transforms": {"keys"},
    "networks": {"provenance", "tensor_files"},
    "data": {"keys", "files", "distributed", "provenance", "transforms"},
    "inference": {"command_line", "data", "distributed", "files", "keys", "networks", "provenance", "transforms"},
    "evaluation": {"command_line", "data", "distributed", "files", "inference", "keys", "provenance", "root"}
    | {"transforms"},
    "training": {"command_line", "distributed", "evaluation", "inference", "keys", "provenance", "tensor_files"},
    "prepare": {"command_line", "data", "files", "keys", "provenance", "transforms"},
    "command_line": {"files", "root"},
    "monai_label": {"data", "inference", "keys", "root", "transforms"},
    "benchmark": {"command_line", "data", "distributed", "evaluation", "files", "inference", "keys", "monai_label"}
    | {"networks", "provenance", "root", "transforms"},
    "__main__": {"command_line"},
}


def imported_rooms(path: Path) -> set[str]:
    """Return the rooms of ``bundle`` that a module imports."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return {name.split(".")[1] for name in names if name.startswith("bundle.")}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_imports_only_the_rooms_below_it(path: Path) -> None:
    if path == PACKAGE / "__init__.py":
        return
    room = path.relative_to(PACKAGE).with_suffix("").parts[0]
    assert imported_rooms(path) - {room} <= ALLOWED[room]


def opened_without_encoding(path: Path) -> list[int]:
    """Return the lines that read or write text in whatever encoding the system has."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            text = ast.unparse(node)
            opens = node.func.attr == "open" and not re.search(r"Image\.open|nibabel|'[rwa]b'|encoding=", text)
            if opens or (node.func.attr in ("read_text", "write_text") and "encoding=" not in text):
                found.append(node.lineno)
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_text_is_read_and_written_as_utf_8(path: Path) -> None:
    assert opened_without_encoding(path) == []


def test_the_two_metadata_files_are_equal() -> None:
    assert filecmp.cmp(ROOT / "metadata.json", ROOT / "configs" / "metadata.json", shallow=False)


def test_the_version_is_the_same_everywhere() -> None:
    metadata = json.loads((ROOT / "metadata.json").read_text())
    newest = re.search(r"^## \[([\d.]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert metadata["version"] == newest[1] == bundle.__version__
    assert metadata["version"] in metadata["changelog"]


def test_pinned_versions_are_those_of_the_metadata() -> None:
    metadata = json.loads((ROOT / "metadata.json").read_text())
    # Those for the oldest Python: the model zoo's CI installs the metadata's versions there.
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    requirements = [Requirement(line) for line in lines]
    chosen = [r for r in requirements if r.marker is None or r.marker.evaluate({"python_version": "3.10"})]
    pins = {requirement.name: str(requirement.specifier).removeprefix("==") for requirement in chosen}
    declared = metadata["required_packages_version"] | {
        "monai": metadata["monai_version"],
        "torch": metadata["pytorch_version"],
        "numpy": metadata["numpy_version"],
    }
    assert {name: pins.get(name) for name in declared} == declared


@pytest.mark.parametrize("name", ["train", "evaluate", "inference"])
def test_a_json_twin_says_what_its_yaml_says(name: str) -> None:
    """What MONAI reads by a fixed name; ``make json`` writes it."""
    twin = json.loads((ROOT / "configs" / f"{name}.json").read_text(encoding="utf-8"))
    assert twin.pop("_desc_") == f"made from {name}.yaml by make json; edit that file"
    assert twin == yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8"))


def test_every_package_is_installed_with_the_project() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text()
    for path in PACKAGE.rglob("__init__.py"):
        name = ".".join(path.parent.relative_to(ROOT).parts)
        assert f'"{name}"' in pyproject, name
