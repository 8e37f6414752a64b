"""An inference goes on where it stopped, with what it was begun with, and makes no mask twice."""

from __future__ import annotations

import importlib.metadata
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from bundle import distributed
from bundle.data.nifti import save_nifti
from bundle.evaluation.handlers import SaveMasks
from bundle.inference.resume import Resumption
from bundle.networks import ALPNet
from bundle.transforms import ClipTopd
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from tests.evaluation.test_handlers import table

SCANS = [{"image": f"/data/{name}.nii.gz"} for name in ("scan_2", "scan_10", "scan_3")]  # not by name
INFERER: Any = SimpleNamespace(organ_names=lambda: {"liver": 1, "spleen": 2})
SETTINGS = {"spacing": "fit", "slice_size": [64, 64]}


def item(name: str, voxels: int) -> dict[str, Any]:
    """A scan with so many voxels of liver, of 3 x 4 x 5 mm."""
    mask = torch.zeros(1, 4, 5, 6, dtype=torch.uint8)
    mask.view(-1)[:voxels] = 1
    affine = torch.diag(torch.tensor([3.0, 4.0, 5.0, 1.0], dtype=torch.float64))
    image = MetaTensor(torch.zeros(1, 4, 5, 6), meta={"filename_or_obj": f"/data/{name}.nii.gz"})
    return {"image": image, "pred": MetaTensor(mask, affine=affine)}


def segment(folder: Path, voxels: dict[str, int], resumption: Resumption | None = None) -> None:
    """Run an inference whose masks have so many voxels."""
    names = list(voxels)
    engine = Engine(lambda _, name: [item(name, voxels[name])])
    SaveMasks(folder, INFERER, resumption).attach(engine)
    if names:
        engine.run(names)
    else:
        for event in (Events.STARTED, Events.COMPLETED):  # as ScanEvaluator does
            engine.fire_event(event)


def begun(folder: Path, **more: Any) -> Resumption:
    return Resumption(SCANS, folder, **({"settings": SETTINGS} | more))


def liver(folder: Path) -> list[list[str]]:
    return [row[:4] for row in table(folder / "volumes.csv")[1:] if row[1] == "liver"]


def test_without_resume_every_scan_is_to_do(tmp_path: Path) -> None:
    segment(tmp_path, {"scan_2": 20}, begun(tmp_path))
    again = begun(tmp_path)
    assert (again.pending, again.finished) == (SCANS, [])


def test_what_is_finished_is_not_made_again_and_stays_in_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    segment(tmp_path, {"scan_10": 30}, begun(tmp_path))
    (tmp_path / "volumes.csv").unlink()  # killed before it was written
    resumed = begun(tmp_path, resume=True)
    assert capsys.readouterr().out.splitlines()[-1] == "resumed: 1 of 3 masks are already finished"
    assert resumed.pending == [SCANS[0], SCANS[2]]
    segment(tmp_path, {"scan_2": 20, "scan_3": 50}, resumed)
    assert liver(tmp_path) == [
        ["scan_2", "liver", "20", "1.20"],
        ["scan_10", "liver", "30", "1.80"],
        ["scan_3", "liver", "50", "3.00"],
    ]


def test_where_all_is_finished_the_table_is_still_made(tmp_path: Path) -> None:
    segment(tmp_path, {"scan_2": 20, "scan_10": 30, "scan_3": 50}, begun(tmp_path))
    expected = (tmp_path / "volumes.csv").read_text()
    (tmp_path / "volumes.csv").unlink()
    resumed = begun(tmp_path, resume=True)
    assert resumed.pending == []
    segment(tmp_path, {}, resumed)
    assert (tmp_path / "volumes.csv").read_text() == expected


def test_a_mask_of_an_earlier_run_with_other_settings_is_made_anew(tmp_path: Path) -> None:
    segment(tmp_path, {"scan_2": 1, "scan_3": 2}, begun(tmp_path, settings={"spacing": None}))
    segment(tmp_path, {"scan_2": 20}, begun(tmp_path))  # starts anew, and is stopped after one scan
    assert [scan["image"] for scan in begun(tmp_path, resume=True).pending] == [
        "/data/scan_10.nii.gz",
        "/data/scan_3.nii.gz",
    ]


@pytest.mark.parametrize("content", [b"", b"no mask at all", None])
def test_a_file_that_is_no_mask_is_made_anew(tmp_path: Path, content: bytes | None) -> None:
    segment(tmp_path, {"scan_2": 20}, begun(tmp_path))
    if content is None:
        save_nifti(item("scan_2", 3)["pred"], tmp_path / "scan_2.nii.gz")
    else:
        (tmp_path / "scan_2.nii.gz").write_bytes(content)
    assert begun(tmp_path, resume=True).pending == SCANS


def stored(folder: Path, content: bytes) -> dict[str, str]:
    """A scan's file, of one name in every folder, as old as the hills: ``cp -p`` and unzip keep such times."""
    folder.mkdir()
    (folder / "scan.nii.gz").write_bytes(content)
    os.utime(folder / "scan.nii.gz", (1e9, 1e9))
    return {"image": str(folder / "scan.nii.gz")}


def test_another_patients_scan_of_the_same_name_is_segmented(tmp_path: Path) -> None:
    one, other, copy = (stored(tmp_path / name, name[:1].encode()) for name in ("anna", "berta", "again"))
    made = Resumption([one], tmp_path / "masks", settings=SETTINGS)
    save_nifti(item("scan", 20)["pred"], tmp_path / "masks" / "scan.nii.gz", description=made.description(one["image"]))
    pending = [Resumption([scan], tmp_path / "masks", True, SETTINGS).pending for scan in (one, other, copy)]
    assert pending == [[], [other], []]  # "again" is the same scan elsewhere


def test_a_scan_whose_file_was_replaced_is_segmented_again_whatever_its_time(tmp_path: Path) -> None:
    scan = stored(tmp_path / "a", b"one")
    before = Resumption([scan], tmp_path / "masks").description(scan["image"])
    Path(scan["image"]).write_bytes(b"two")
    assert Resumption([scan], tmp_path / "masks").description(scan["image"]) != before


def test_what_is_half_written_is_not_finished(tmp_path: Path) -> None:
    segment(tmp_path, {"scan_2": 20}, begun(tmp_path))
    os.rename(tmp_path / "scan_2.nii.gz", tmp_path / ".tmp-scan_2.nii.gz")
    assert begun(tmp_path, resume=True).pending == SCANS


def test_resuming_what_was_never_begun_starts_at_the_beginning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    resumed = begun(tmp_path / "new", resume=True)
    assert resumed.pending == SCANS
    assert "made_with.json to resume from; starting with the first scan" in caplog.text


def test_it_is_recorded_what_masks_are_made_with(tmp_path: Path) -> None:
    checkpoint = tmp_path / "model.pt"
    checkpoint.write_bytes(b"weights")
    files = {"checkpoint": checkpoint, "statistics_file": None, "support": [str(checkpoint), "gone.nii.gz"]}
    segment(tmp_path / "masks", {"scan_2": 20}, begun(tmp_path / "masks", files=files))
    made_with = json.loads((tmp_path / "masks" / "made_with.json").read_text())
    digest = "9a129038d9a00aed"  # sha256sum
    versions = made_with.pop("versions")
    assert versions["torch"] == importlib.metadata.version("torch")
    assert made_with == {
        "spacing": "fit",
        "slice_size": [64, 64],
        "checkpoint": [f"model.pt {digest}"],
        "statistics_file": [],
        "support": [f"model.pt {digest}", "gone.nii.gz missing"],
    }


def test_the_first_process_alone_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "is_first", lambda: False)
    begun(tmp_path).record()
    assert not list(tmp_path.iterdir())


def test_resuming_with_something_else_is_refused_with_its_name(tmp_path: Path) -> None:
    checkpoint = tmp_path / "model.pt"
    checkpoint.write_bytes(b"weights")
    begun(tmp_path, files={"checkpoint": checkpoint}).record()
    checkpoint.write_bytes(b"others")
    settings = {"slice_size": [64, 64], "organs": {"liver": 1}}
    with pytest.raises(ValueError, match="made with other settings") as caught:
        begun(tmp_path, resume=True, settings=settings, files={"checkpoint": checkpoint})
    words = str(caught.value)
    assert "spacing was 'fit', is not set" in words
    assert "organs::liver was not set, is 1" in words
    assert "checkpoint was ['model.pt 9a129038d9a00aed'], is ['model.pt " in words
    assert "slice_size" not in words
    assert "set resume to false" in words


def test_another_support_makes_all_masks_anew_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = tmp_path / "one.nii.gz", tmp_path / "two.nii.gz"
    one.write_bytes(b"label")
    two.write_bytes(b"corrected")
    scan = tmp_path / "scan_2.nii.gz"
    scan.write_bytes(b"scan")
    runs = {"scans": [{"image": str(scan)}], "folder": tmp_path / "masks", "settings": SETTINGS}
    resumption = Resumption(**runs, files={"support": [one]})
    image = item("scan_2", 20)
    save_nifti(image["pred"], tmp_path / "masks/scan_2.nii.gz", description=resumption.description(scan))
    resumption.record()

    assert Resumption(**runs, files={"support": [one]}, resume=True).pending == []
    assert Resumption(**runs, files={"support": [one, two]}, resume=True).pending == runs["scans"]
    assert capsys.readouterr().out.splitlines() == [
        "resumed: 1 of 1 masks are already finished",
        "resumed: the annotated scans or their organs' ids changed, so all 1 masks are made again",
    ]


def test_an_organ_that_changes_the_ids_of_others_makes_all_masks_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan, mine, other = (tmp_path / name for name in ("scan_2.nii.gz", "labels/mine", "labels/other"))
    scan.write_bytes(b"scan")
    for file in (mine / "liver.nii.gz", mine / "spleen.nii.gz", other / "liver.nii.gz"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"mask")
    runs: Any = {"scans": [{"image": str(scan)}], "folder": tmp_path / "masks", "settings": SETTINGS}
    runs["files"] = {"support": [str(mine)]}
    resumption = Resumption(**runs)
    ids = resumption.made_with["support"][1:]
    assert ids == ["organ 1: liver", "organ 2: spleen"]
    save_nifti(item("scan_2", 20)["pred"], tmp_path / "masks/scan_2.nii.gz", description=resumption.description(scan))
    resumption.record()
    assert Resumption(**runs, resume=True).pending == []

    (other / "aorta.nii.gz").write_bytes(b"mask")  # sorted, it comes first: liver is 2 now, and spleen 3
    assert Resumption(**runs, resume=True).pending == runs["scans"]
    assert capsys.readouterr().out.splitlines()[-1] == (
        "resumed: the annotated scans or their organs' ids changed, so all 1 masks are made again"
    )


def test_names_in_the_record_beside_label_maps_count_too(tmp_path: Path) -> None:
    label = tmp_path / "labelsTr/a.nii.gz"
    label.parent.mkdir()
    label.write_bytes(b"label")
    made = []
    for name in ("liver", "spleen"):
        (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": name}}))
        made.append(begun(tmp_path / "masks", files={"support": str(label)}).made_with["support"][1:])
    assert made == [["organ 1: liver"], ["organ 1: spleen"]]


def test_a_transform_is_the_same_if_its_parameters_are(tmp_path: Path) -> None:
    begun(tmp_path, settings={"intensity": ClipTopd("image", 99.5)}).record()
    begun(tmp_path, resume=True, settings={"intensity": ClipTopd("image", 99.5)})
    with pytest.raises(ValueError, match=r"intensity::percentile was 99\.5, is 99\.0"):
        begun(tmp_path, resume=True, settings={"intensity": ClipTopd("image", 99.0)})


class Tiny(torch.nn.Module):
    """A network with a weight, a list and a number."""

    def __init__(self, weight: float = 1.0, layers: tuple[int, ...] = (1, 2)) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([weight]))
        self.layers = list(layers)


def test_a_network_is_its_weights_and_its_settings(tmp_path: Path) -> None:
    begun(tmp_path, settings={"network": ALPNet(Tiny())}).record()
    begun(tmp_path, resume=True, settings={"network": ALPNet(Tiny()).eval()})
    for other, name in ((Tiny(weight=1.5), "weight"), (Tiny(layers=(1, 3)), "layers")):
        with pytest.raises(ValueError, match=rf"other settings: network::encoder::{name} was"):
            begun(tmp_path, resume=True, settings={"network": ALPNet(other)})


def test_the_header_of_a_mask_tells_what_it_was_made_with(tmp_path: Path) -> None:
    resumption = begun(tmp_path)
    segment(tmp_path, {"scan_2": 20}, resumption)
    header = nibabel.load(tmp_path / "scan_2.nii.gz").header
    description = resumption.description("/data/scan_2.nii.gz")
    assert header["descrip"].item().decode() == description
    assert len(description) <= 79
    assert np.asarray(nibabel.load(tmp_path / "scan_2.nii.gz").dataobj).sum() == 20
