"""Bad requests to the server, in its process: each is answered by HTTP 409 with a sentence, and nothing is written.

The transforms and the inferer are those of configs/inference.yaml, called as MONAI Label calls them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bundle.command_line.configs import ROOT
from bundle.monai_label import datastore, refusal
from monai.bundle import ConfigParser
from tests.faults.requests import FILES, INFOS, PARAMS, filled, label, scan, write
from tests.test_monai_label import Store

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("one_thread")]


class ServerError(Exception):
    """What FastAPI's HTTPException is to the server."""

    def __init__(self, status_code: int, detail: str) -> None:
        super().__init__(detail)
        self.status_code = status_code


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    """The parts of the config that answer a request."""
    parser = ConfigParser()
    parser.read_config(ROOT / "configs" / "inference.yaml")
    changed = {"bundle_root": str(ROOT), "slice_size": [32, 32], "device": "cpu", "dataset_dir": str(ROOT)}
    parser.update({**changed, "support_scans": {"_target_": "bundle.data.ScanDataset", "data": [], "transform": None}})
    names = ("network", "preprocessing", "inferer", "postprocessing")
    parser["support_scans"] = parser["support_scans"] | {"transform": "@support_preprocessing"}
    return {name: parser.get_parsed_content(name) for name in names}


@pytest.fixture
def studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A datastore of the scans a, b and c, where a is annotated."""
    folder = tmp_path / "studies"
    for seed, name in enumerate("abc"):
        write(folder / f"{name}.nii.gz", scan(seed))
    write(folder / "labels" / "final" / "a.nii.gz", label())
    store = Store(folder, {"a": {}})
    app = type("App", (), {"datastore": lambda self: store, "store": store})()
    monkeypatch.setenv("MONAI_LABEL_STUDIES", str(folder))
    monkeypatch.setattr(datastore, "app_instance", lambda: app)
    monkeypatch.setattr(refusal, "HTTPException", ServerError)
    return folder


def answered(parts: dict[str, Any], image: Any, **params: Any) -> dict[str, Any]:
    """Answer a request as the server does: the params beside the image, one transform after the other."""
    data = {"image": image, "image_path": image, **params}
    for transform in parts["preprocessing"].transforms:
        data = transform(data)
    parts["network"].eval()
    with torch.no_grad():
        data["pred"] = parts["inferer"](data["image"][None], parts["network"])[0]
    return parts["postprocessing"](data)["result"]


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def refusal_of(parts: dict[str, Any], studies: Path, params: dict[str, Any]) -> str:
    """Ask for the scan c; return the sentence of the refusal, after which nothing more lies in the folder."""
    before = files_of(studies.parent)
    with pytest.raises(ServerError) as refused:
        answered(parts, str(studies / "c.nii.gz"), **params)
    assert refused.value.status_code == 409
    assert {name for name in files_of(studies.parent) - before if ".encoded" not in name} == set()
    return str(refused.value)


def check_sentence(said: str) -> None:
    assert said[0].isupper() or said.startswith("params")
    assert said.endswith((".", "?"))
    assert len(said) < 700
    assert "\n" not in said
    assert "\0" not in said
    assert "Traceback" not in said


@pytest.mark.parametrize("case", PARAMS)
def test_wrong_params_are_refused_in_a_sentence(case: str, parts: dict[str, Any], studies: Path) -> None:
    said = refusal_of(parts, studies, filled(PARAMS[case], studies))
    check_sentence(said)
    assert "params" in said or "support" in case


@pytest.mark.parametrize("case", FILES)
def test_files_that_cannot_be_used_are_refused_in_a_sentence(case: str, parts: dict[str, Any], studies: Path) -> None:
    check_sentence(refusal_of(parts, studies, FILES[case](studies)))


@pytest.mark.parametrize("case", INFOS)
def test_what_was_submitted_wrong_leaves_its_label_out_by_name(case: str, parts: dict[str, Any], studies: Path) -> None:
    store = datastore.app_instance().store
    store.infos = {"a": INFOS[case]}
    check_sentence(said := refusal_of(parts, studies, {}))
    assert said.startswith("No annotated scan can be used: a: ")
    write(studies / "labels" / "final" / "b.nii.gz", label())
    store.infos["b"] = {}
    answer = answered(parts, str(studies / "c.nii.gz"))
    assert (answer["support_used"], list(answer["not_used"])) == (["b"], ["a"])


@pytest.mark.parametrize("entries", [5, "liver", [1], {"pancreas": "x"}, {"pancreas": 1.5}, {"pancreas": None}])
def test_entries_that_are_none_are_given_anew(entries: Any, parts: dict[str, Any], studies: Path) -> None:
    store = datastore.app_instance().store
    store.images["a"] = {"organ_entries": entries}
    store.infos = {"a": {"label_info": [{"name": "pancreas", "idx": 1}]}}
    assert answered(parts, str(studies / "c.nii.gz"))["renamed"] == {"structure_1": "pancreas"}
    assert store.images["a"] == {"organ_entries": {"pancreas": 5}}


def test_a_name_that_is_no_text_is_answered_as_escapes(parts: dict[str, Any], studies: Path) -> None:
    said = refusal_of(parts, studies, {"label": f"{studies}/a\udcff\0\n.nii.gz"})
    assert r"/a\udcff\x00\n.nii.gz, which " in said
    said.encode()


def test_the_next_scan_of_an_empty_server_is_none(parts: dict[str, Any], studies: Path) -> None:
    store = datastore.app_instance().store
    store.infos, store.images = {}, {}
    answer = answered(parts, str(studies / "c.nii.gz"), next_scan=True)
    assert (answer["next_scan"], answer["ranked_by"]) == ([], "similarity")


def test_the_next_scan_where_none_can_be_read_is_none_and_says_why(parts: dict[str, Any], studies: Path) -> None:
    for name in "ab":
        (studies / f"{name}.nii.gz").write_bytes(b"damaged")
    datastore.app_instance().store.infos = {}
    datastore.app_instance().store.images = {"a": {}, "b": {}}
    answer = answered(parts, str(studies / "c.nii.gz"), next_scan="true")
    assert answer["next_scan"] == []
    assert [problem.split(": ")[0] for problem in answer["not_ranked"]] == [
        str(studies / f"{name}.nii.gz") for name in "ab"
    ]


def test_the_same_request_without_a_mistake_is_answered(parts: dict[str, Any], studies: Path) -> None:
    answer = answered(parts, str(studies / "c.nii.gz"), annotated="all")
    assert answer["support_used"] == ["a"]
    assert answer["voxels"]["liver"] > 200  # of 576
