"""The time to the first slice is given in parts that add up."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from bundle.benchmark import first_slice, startup
from bundle.benchmark.results import CASE_COLUMNS
from bundle.inference.volume_inferer import VolumeInferer

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = "bundle.command_line.quick_monai"
PARTS = [
    "start of Python",
    "import monai",
    "import bundle",
    "config",
    "network and weights",
    "reading scans",
    "prototypes and first slice",
]


def test_parts_are_medians_of_new_processes_without_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, list[dict[str, Any]]] = {"monai.bundle": [], QUICK: []}

    def fake(module: str, settings: dict[str, Any], threads: int) -> dict[str, float]:
        assert (module, threads) == ("bundle.benchmark.first_slice", 2)
        keys, mine = settings["keys"], asked[settings["module"]]
        support = keys.get("support_label", keys.get("prototypes"))
        assert support.endswith(".safetensors" if settings["module"] == QUICK else ".nii.gz")
        assert all(Path(path).is_file() for path in (settings["query"], support, keys["checkpoint"]))
        assert 0 <= time.time() - settings["started"] < 5
        mine.append(settings)
        return {"config": [90.0, 3.0, 1.0, 2.0][len(mine) - 1], "all": 10.0 * sum(map(len, asked.values()))}

    monkeypatch.setattr(startup, "run_child", fake)
    one, other = startup.measure(repeats=3, size=64, slices=4, threads=2)
    assert [len(settings) for settings in asked.values()] == [4, 4]
    assert (one.values, other.values) == ({"config, s": 2, "all, s": 50}, {"config, s": 2, "all, s": 60})
    workflow = "python -m monai.bundle, annotated scan"
    assert dict(one.case) == {"workflow": workflow, "encoder": "resnet18", "slices": 4}
    assert other.case["workflow"] == "python -m bundle, its prototypes"
    assert set(one.case) <= set(CASE_COLUMNS)  # tables leave out what they do not know


def test_one_slice_is_segmented_from_files_and_the_parts_add_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    volumes = []
    segment = VolumeInferer.__call__

    def see(self: VolumeInferer, inputs: Any, *arguments: Any, **keys: Any) -> Any:
        volumes.append(tuple(inputs.shape))
        return segment(self, inputs, *arguments, **keys)

    def run_here(module: str, settings: dict[str, Any], threads: int) -> dict[str, float]:
        first_slice.main(settings)
        return dict(json.loads(capsys.readouterr().out.splitlines()[-1]))

    monkeypatch.setattr(VolumeInferer, "__call__", see)
    monkeypatch.setattr(startup, "run_child", run_here)
    results = startup.measure(repeats=1, size=64, slices=5)
    assert volumes == [(1, 1, 64, 64, 1)] * 4
    for values in (result.values for result in results):
        assert list(values) == [f"{part}, s" for part in [*PARTS, "all"]]
        assert min(values.values()) >= 0
        assert values["all, s"] == pytest.approx(sum(values[f"{part}, s"] for part in PARTS))


def test_a_number_below_1_is_refused() -> None:
    with pytest.raises(ValueError, match="repeats must be a whole number"):
        startup.measure(repeats=0)
