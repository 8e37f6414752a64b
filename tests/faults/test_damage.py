"""Damaged weights, checkpoints and files of prototypes, and numbers that are not finite: one sentence each, no mask."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from bundle.data.phantoms import write_phantoms
from bundle.evaluation.cross_validation.results import refuse_other_settings
from bundle.inference.prototype_files import PrototypeRecord, read_prototypes, write_prototypes
from bundle.inference.resume import Resumption
from bundle.networks import ALPNet, ResNetEncoder, load_network
from bundle.tensor_files import read_tensors
from tests.faults import trials
from tests.faults.warm import Warm

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

SMALL = ["--slice_size", "[64,64]", "--device", "cpu", "--network_def#encoder#out_channels", "4"]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


def network() -> ALPNet:
    torch.manual_seed(0)
    return ALPNet(ResNetEncoder(18, "layer3", out_channels=4))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three phantom scans and weights."""
    folder = tmp_path_factory.mktemp("damage")
    write_phantoms(folder / "phantom", unlabeled=0, labeled=3, size=(64, 64, 6), noise=20.0)
    torch.save(network().state_dict(), folder / "model.pt")
    return folder


def words(study: Path, output: Path, **keys: Any) -> list[Any]:
    scan = "phantom_00.nii.gz"
    given = {"dataset_dir": study / "phantom", "output_dir": output, "checkpoint": study / "model.pt"}
    given |= {"support_image": study / "phantom/images" / scan, "support_label": study / "phantom/labels" / scan}
    return ["inference", *(f"--{key}={value}" for key, value in (given | keys).items()), *SMALL]


def sentences(log: str) -> list[str]:
    """Return the errors that a command ended with."""
    assert "Traceback" not in log, log[-3000:]
    return [line for line in log.splitlines() if line.startswith("error: ")]


def masks(output: Path) -> list[str]:
    return sorted(path.name for path in output.rglob("*.nii.gz"))


WEIGHTS, FEATURES = "weights must be finite numbers", "features must be finite"


@pytest.mark.parametrize(("value", "rule"), [(float("nan"), WEIGHTS), (float("inf"), WEIGHTS), (3e38, FEATURES)])
def test_one_bad_number_in_the_weights_is_a_sentence_and_no_mask(
    value: float, rule: str, study: Path, warm: Warm, tmp_path: Path
) -> None:
    state = network().state_dict()
    state["encoder.backbone.conv1.weight"][0, 0, 3, 3] = value
    torch.save(state, tmp_path / "bad.pt")
    code, log = warm.said(*words(study, tmp_path / "out", checkpoint=tmp_path / "bad.pt"))
    assert code == 1
    assert len(sentences(log)) == 1
    assert rule in sentences(log)[0]
    assert masks(tmp_path / "out") == []


@pytest.mark.parametrize("value", [np.nan, -np.inf, 3e38])
@pytest.mark.parametrize("spoiled", ["phantom_00", "phantom_01"], ids=["support", "query"])
def test_one_bad_number_in_a_scan_is_a_sentence_and_no_empty_mask(
    value: float, spoiled: str, study: Path, warm: Warm, tmp_path: Path
) -> None:
    shutil.copytree(study / "phantom", tmp_path / "phantom")
    path = tmp_path / "phantom" / "images" / f"{spoiled}.nii.gz"
    scan = nibabel.load(path)
    voxels = scan.get_fdata(dtype=np.float32)
    voxels[30, 30, 3] = value
    nibabel.save(nibabel.Nifti1Image(voxels, scan.affine, dtype=np.float32), path)
    own = {"dataset_dir": tmp_path / "phantom", "support_image": tmp_path / "phantom/images/phantom_00.nii.gz"}
    code, log = warm.said(*words(study, tmp_path / "out", **own))
    others = [] if spoiled == "phantom_00" else ["phantom_02.nii.gz"]
    if value == 3e38:  # a finite number, and clipped like any bright voxel
        assert (code, masks(tmp_path / "out")) == (0, ["phantom_01.nii.gz", "phantom_02.nii.gz"])
        assert all(nibabel.load(mask).get_fdata().any() for mask in (tmp_path / "out" / "masks").glob("*.nii.gz"))
        return
    assert code == 1
    assert "every voxel must be a finite number, got 1 NaN or inf. Repair the file." in log
    assert f"{spoiled}.nii.gz" in "".join(sentences(log)) + log[log.index("error: ") :]
    assert masks(tmp_path / "out") == others


def damages(random: np.random.Generator, content: bytes, count: int) -> list[tuple[str, bytes]]:
    """Return damaged contents: cut, flipped in one bit, a pointer, nothing at all."""
    found = [("pointer", POINTER), ("empty", b"")]
    for number in range(count):
        place = int(random.integers(len(content)))
        if number % 2:
            found.append(("truncated", content[:place]))
        else:
            found.append(
                ("flipped", content[:place] + bytes([content[place] ^ 1 << number % 8]) + content[place + 1 :])
            )
    return found


def tensors_of_prototypes(path: Path) -> list[dict[str, torch.Tensor]]:
    return read_prototypes(path)[0]


def tensors_of_weights(path: Path) -> list[dict[str, torch.Tensor]]:
    return [load_network(network(), path).state_dict()]


def tensors_of_checkpoint(path: Path) -> list[dict[str, torch.Tensor]]:
    return [read_tensors(path, "Copy it again.")["network"]]


KINDS: dict[str, Callable[[Path], list[dict[str, torch.Tensor]]]] = {
    "weights.pt": tensors_of_weights,
    "last.pt": tensors_of_checkpoint,
    "prototypes.safetensors": tensors_of_prototypes,
}


def write(path: Path) -> None:
    state = network().encoder.localconv.state_dict()
    if path.name == "weights.pt":
        torch.save(network().state_dict(), path)
    elif path.name == "last.pt":
        torch.save({"network": state, "step": 3}, path)
    else:
        shown = {"name": "a", "organs": ["liver"], "shapes": {"liver": [1, 2.5]}, "profile": [0.5]}
        write_prototypes(path, [state], PrototypeRecord({"liver": 1}, [shown], {"encoder": "f00d"}))


@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_file_is_refused_in_a_sentence_or_gives_the_very_same_tensors(name: str, tmp_path: Path) -> None:
    path, read = tmp_path / name, KINDS[name]
    write(path)
    expected, content, refused, same = read(path), path.read_bytes(), 0, 0
    cases = damages(np.random.default_rng([19, len(name)]), content, trials(30, 400))
    for how, damaged in cases:
        path.write_bytes(damaged)
        try:
            found = read(path)
        except ValueError as error:
            text = str(error)
            assert name in text, text
            assert "\n" not in text, text
            assert len(text) < 600
            assert text.endswith(".")
            refused += 1
        else:
            assert how == "flipped"
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
            same += 1
    assert refused > len(cases) / 2
    print(
        f"{name}: {len(cases)} damaged files, {refused} refused in one sentence, {same} with the same tensors, 0 others"
    )


def with_record(record: Any) -> bytes:
    """Return the header of one tensor and a record."""
    return json.dumps(
        {"__metadata__": {"record": record}, "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    ).encode()


def resume_inference(path: Path) -> None:
    Resumption([], path.parent, resume=True)


RECORDS: dict[str, Callable[[Path], object]] = {
    "made_with.json": resume_inference,
    "settings.json": lambda path: refuse_other_settings(path, {"settings": {}}),
    "dataset.json": lambda path: write_phantoms(path.parent),
}


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("content", [b"", b'{"a": ', b"[1]", b"\xff\xfe", b"[" * 200_000, b"9" * 5000])
def test_a_damaged_record_beside_results_is_named_and_stays(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"^\S+{name} (cannot be read as JSON \(|must hold a mapping).*(Choose|choose)"
    ):
        RECORDS[name](tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == content


HEADERS: dict[str, tuple[int | None, bytes]] = {
    "a header longer than any file": (1 << 62, b"{}"),
    "a header of 100 MB that is not there": (100_000_000, b"{}"),
    "no header": (0, b""),
    "a tensor of a million million numbers": (
        None,
        b'{"a":{"dtype":"F32","shape":[1000000,1000000],"data_offsets":[0,4]}}',
    ),
    "a shape that overflows": (None, b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}'),
    "a place before the file": (None, b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}}'),
    "a place beyond the file": (None, b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4000,4004]}}'),
    "a record without end": (None, with_record("[" * 200_000)),
    "a number of 5,000 digits": (None, with_record("9" * 5000)),
    "a format of 5,000 digits": (None, with_record('{"format": ' + "9" * 5000 + "}")),
    "a record that is no text": (None, with_record(5)),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_header_that_promises_too_much_is_refused(kind: str, tmp_path: Path) -> None:
    length, header = HEADERS[kind]
    path = tmp_path / "p.safetensors"
    path.write_bytes((len(header) if length is None else length).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(ValueError, match=r"^\S*p\.safetensors cannot be read as a file of prototypes \(") as caught:
        read_prototypes(path)
    assert len(str(caught.value)) < 600
