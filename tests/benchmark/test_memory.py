"""A new process's memory is that of its own work, whatever memory its parent uses."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from bundle.benchmark import children, memory
from bundle.benchmark.children import peak_megabytes, run_child
from bundle.inference.volume_inferer import VolumeInferer
from bundle.transforms import GuidedScoresd
from monai.data import MetaTensor

pytestmark = pytest.mark.usefixtures("one_thread")

needs_proc = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system has no /proc/self")


@needs_proc
def test_the_peak_of_a_child_is_what_it_allocates_and_not_what_its_parent_holds() -> None:
    parents = np.ones(int(800e6 / 8))
    found = run_child("tests.benchmark.allocate", {"before": 200, "held": 60}, threads=1)
    assert found["start"] < parents.nbytes / 1e6
    np.testing.assert_allclose([found["moment"], found["held"]], [200, 60], atol=4)


def test_a_process_that_fails_is_reported_with_its_last_lines() -> None:
    with pytest.raises(
        ValueError, match=r"(?s)tests\.benchmark\.allocate must end with exit code 0, got 1.*failed on purpose"
    ):
        run_child("tests.benchmark.allocate", {"fail": True}, threads=1)


@pytest.mark.parametrize(("platform", "megabytes"), [("linux", 2048.0), ("darwin", 2.0)])
def test_other_systems_tell_the_peak_in_their_own_units(
    monkeypatch: pytest.MonkeyPatch, platform: str, megabytes: float
) -> None:
    monkeypatch.setattr(Path, "is_file", lambda _: False)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(resource, "getrusage", lambda _: SimpleNamespace(ru_maxrss=2_000_000))
    assert peak_megabytes() == megabytes


def test_the_peak_is_known_where_there_is_no_resource_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_file", lambda _: False)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "resource", None)
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=3_000_000))
    monkeypatch.setattr(psutil, "Process", lambda: process)
    assert peak_megabytes() == 3.0


def test_a_system_that_cannot_reset_the_peak_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError

    monkeypatch.setattr(Path, "write_text", refuse)
    children.forget_peak()


def test_every_number_of_slices_has_its_own_process(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fake(module: str, settings: dict[str, Any], threads: int) -> dict[str, float]:
        asked.append((module, settings, threads))
        return {"MB at the peak": 10.0 * settings["slices"]}

    monkeypatch.setattr(memory, "run_child", fake)
    results = memory.measure([3, 5], organs=2, size=64, threads=2, seed=4)
    shared = {"organs": 2, "size": 64, "device": "cpu", "seed": 4}
    assert asked == [("bundle.benchmark.memory", {"slices": slices, **shared}, 2) for slices in (3, 5)]
    assert [result.values for result in results] == [{"MB at the peak": 30}, {"MB at the peak": 50}]
    assert [dict(result.case) for result in results] == [
        {"encoder": "resnet18", "organs": 2, "slices": slices} for slices in (3, 5)
    ]


def test_a_number_of_slices_below_1_is_refused() -> None:
    with pytest.raises(ValueError, match="slices 0 must be a whole number of at least 1, got 0"):
        memory.measure([0])


def test_a_scan_is_segmented_and_refined_as_inference_yaml_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    volumes, supports, refined, forgotten = [], [], [], []
    segment, refine = VolumeInferer.__call__, GuidedScoresd.__call__

    def see_volume(self: VolumeInferer, inputs: torch.Tensor, *arguments: Any, **keys: Any) -> MetaTensor:
        volumes.append(inputs.shape)
        supports.extend(scan["image"].shape for scan in self.support_scans())
        return segment(self, inputs, *arguments, **keys)

    def see_scores(self: GuidedScoresd, data: Any) -> Any:
        refined.append(data["pred"].shape)
        return refine(self, data)

    monkeypatch.setattr(VolumeInferer, "__call__", see_volume)
    monkeypatch.setattr(GuidedScoresd, "__call__", see_scores)
    monkeypatch.setattr(memory, "peak_megabytes", iter([10, 20, 30]).__next__)
    monkeypatch.setattr(memory, "forget_peak", lambda: forgotten.append(list(volumes)))
    memory.main({"slices": 5, "organs": 3, "size": 64, "device": "cpu", "seed": 0})
    values = json.loads(capsys.readouterr().out)
    assert volumes == [(1, 1, 64, 64, 5)]
    assert supports == [(1, 64, 64, 5)]
    assert refined == [(3, 64, 64, 5)]
    assert forgotten == [[]]  # once, before the scan
    assert values["MB of the image"] == pytest.approx(5 * 64 * 64 * 4 / 1e6)
    assert [values[f"MB {when}"] for when in ("after the imports", "before the scan", "at the peak")] == [10, 20, 30]
    assert values["s, first scan, refined"] > 0
