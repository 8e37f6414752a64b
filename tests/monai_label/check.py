"""Go the annotator's road against a real MONAI Label server on 127.0.0.1, and say what holds.

    python check.py [--data <folder with images/ and labels/>] [--quick] [--annotators]

Run it with the interpreter of ``environment.sh``. Without ``--data`` the scans are phantoms. Exit code 1 if a claim
does not hold.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel
import nibabel.eulerangles
import nrrd
import numpy as np
import requests

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.monai_label.annotators import check_annotators  # noqa: E402
from tests.monai_label.server import (  # noqa: E402
    BRIGHT,
    MODEL,
    SECOND,
    Server,
    claim,
    dice,
    failures,
    lay_out,
    read,
    server_labels,
    voxels_of,
)


def check_support(server: Server, truths: dict[str, Path], organs: list[str]) -> dict[str, float]:
    first, *others = truths
    ids = list(range(1, len(organs) + 1))
    answer = server.infer(others[0])
    claim("no support yet is a sentence, HTTP 409", answer.status_code == 409 and "annotated" in answer.text)

    claim("one label is submitted", server.submit(first, truths[first], organs).ok)
    begin = time.monotonic()
    answer = server.infer(others[0])
    cold = time.monotonic() - begin
    begin = time.monotonic()
    server.infer(others[0])
    claim("another scan is segmented at once", answer.ok, f"first {cold:.1f} s, then {time.monotonic() - begin:.1f} s")
    body = answer.json()
    claim("the answer names the scans that were used", body.get("support_used") == [first])
    claim("and voxels and a quality for each organ", set(body["voxels"]) == set(body["quality"]) != set())

    scores = {}
    names = {**{name: i for i, name in enumerate(server_labels(server), 1)}}
    for name in others:
        mask = read(server.infer(name, "image"), server.work)
        image, scan = nibabel.load(mask), nibabel.load(server.studies / f"{name}.nii.gz")
        same = image.shape == scan.shape and np.allclose(image.affine, scan.affine, atol=1e-3)
        claim(f"the mask of {name} lies on its scan", same, image.get_data_dtype())
        found, truth = voxels_of(mask), voxels_of(truths[name])
        renamed = {v: k for k, v in body["renamed"].items()}
        by_truth = np.zeros_like(truth)
        for organ, name_of_organ in zip(ids, organs, strict=True):
            by_truth[found == names[renamed.get(name_of_organ, name_of_organ)]] = organ
        scores[name] = dice(by_truth, truth, ids)
    claim("Dice is far above chance", np.mean(list(scores.values())) > 0.2, {k: round(v, 3) for k, v in scores.items()})

    slicer = server.infer(others[0], "image", result_extension=".nrrd", result_dtype="uint8")
    values, _ = nrrd.read(str(read(slicer, server.work, ".nrrd")))
    claim("Slicer's .nrrd in uint8 holds the same", values.dtype == np.uint8 and np.array_equal(
        values, voxels_of(read(server.infer(others[0], "image"), server.work))
    ))  # fmt: skip
    claim("the only finished scan is not its own support", server.infer(first).status_code == 409)
    return scores


def check_corrections(server: Server, truths: dict[str, Path], organs: list[str]) -> None:
    first, second, third, *_ = truths
    claim("a corrected scan joins the support", server.submit(second, truths[second], organs).ok and set(
        server.infer(third).json()["support_used"]
    ) == {first, second})  # fmt: skip
    claim("a deleted label leaves it", server.delete_label(second).ok and server.infer(third).json()[
        "support_used"
    ] == [first])  # fmt: skip

    drawing = nibabel.load(truths[third])
    values = np.asarray(drawing.dataobj).copy()
    middle = int(np.argmax((values == 1).sum(axis=(0, 1))))
    values[..., np.arange(values.shape[-1]) != middle] = 0
    path = server.work / "drawing.nii.gz"
    nibabel.save(nibabel.Nifti1Image(values, drawing.affine), path)
    answer = server.infer(third, label=path)
    claim("a drawing on one slice, sent along, is support", answer.ok and answer.json()["support_used"][0] == third)
    server.submit(third, path, organs)
    answer = server.infer(third)
    claim("a drawing on one slice, submitted, is support", answer.ok and answer.json()["support_used"][0] == third)
    server.delete_label(third)


def check_refusals(server: Server, truths: dict[str, Path]) -> None:
    second = list(truths)[1]
    entry = {"image": "/etc/hostname", "label": "/etc/hostname"}
    for text, support in (("a path outside the studies", [entry]), ("a wrong parameter", "first")):
        answer = server.infer(second, support=support)
        claim(f"{text} is a sentence, HTTP 409", answer.status_code == 409 and "params.support" in answer.text)
    broken = server.work / "broken.nii.gz"
    broken.write_bytes(next(iter(truths.values())).read_bytes()[:500])
    server.submit(second, broken)
    answer = server.infer(list(truths)[2])
    skipped = answer.ok and second in answer.json().get("not_used", {})
    claim("an unreadable label is skipped and named", skipped, answer.text[:400] if not skipped else "")
    server.delete_label(second)
    claim("and gone with the label", "not_used" not in server.infer(list(truths)[2]).json())
    answer = server.infer_with_path(second, "/etc/hostname")
    claim("params.label outside the studies is a sentence, HTTP 409", answer.status_code == 409, answer.text[:160])
    config = requests.get(f"{server.url}/info/", timeout=30).json()["models"][MODEL]["config"]
    claim("nothing of the client's is evaluated as config", set(config) <= {"device", "model_filename"}, list(config))


def check_same_as_command(server: Server, truths: dict[str, Path]) -> None:
    first, second, *_ = truths
    words = {
        "dataset_dir": server.work / "one",
        "support_image": server.studies / f"{first}.nii.gz",
        "support_label": truths[first],
        "output_dir": server.work / "command",
    }
    (server.work / "one").mkdir()
    shutil.copy(server.studies / f"{second}.nii.gz", server.work / "one")
    subprocess.run(
        [sys.executable, "-m", "bundle", "inference", *(f"--{key}={value}" for key, value in words.items())],
        cwd=ROOT, env=server.env, check=True, capture_output=True,
    )  # fmt: skip
    command = voxels_of(server.work / "command" / "masks" / f"{second}.nii.gz")
    support = [
        {
            "image": str(server.studies / f"{first}.nii.gz"),
            "label": str(server.studies / "labels/final" / f"{first}.nii.gz"),
        }
    ]
    served = voxels_of(read(server.infer(second, "image", support=support), server.work))
    same = float((command == served).mean())
    claim("the server's mask equals that of configs/inference.yaml", same == 1.0, f"{same:.6f} of the voxels")


def check_geometry(server: Server, truths: dict[str, Path]) -> None:
    """A scan that is rotated in space, or stored along other axes, gets the same mask, voxel by voxel."""
    name = list(truths)[1]
    scan = nibabel.load(server.studies / f"{name}.nii.gz")
    expected = voxels_of(read(server.infer(name, "image"), server.work))
    values = np.asarray(scan.dataobj)
    rotation = np.eye(4)
    rotation[:3, :3] = nibabel.eulerangles.euler2mat(z=0.25, y=0.15, x=-0.2)
    flipped = np.array([[2, 1], [0, -1], [1, 1]])  # where each axis goes, and which way
    affine = scan.affine @ nibabel.orientations.inv_ornt_aff(flipped, values.shape)
    turn = nibabel.orientations.apply_orientation
    others = {
        "oblique scan": (values, rotation @ scan.affine, expected),
        "scan of other axes": (turn(values, flipped), affine, turn(expected, flipped)),
    }
    for other, (array, placed, mask) in others.items():
        path = server.studies / f"{other}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(array, placed), path)
        begin = time.monotonic()
        while not (answer := server.infer(other, "image")).ok and time.monotonic() - begin < 30:
            time.sleep(1)  # the server has to see the new file
        claim(f"the {other} is segmented", answer.ok, answer.text[:160] if not answer.ok else "")
        if answer.ok:
            made = nibabel.load(read(answer, server.work))
            same = made.shape == array.shape and np.allclose(made.affine, placed, atol=1e-3)
            claim(f"the mask of the {other} lies on it", same)
            share = float((np.asarray(made.dataobj) == mask).mean()) if made.shape == mask.shape else 0.0
            claim(f"and is that of {name}, voxel by voxel", share > 0.9999, f"{share:.6f} of the voxels")
        path.unlink()


def check_second_bundle(server: Server, truths: dict[str, Path]) -> None:
    name = list(truths)[1]
    before = voxels_of(read(server.infer(name, "image"), server.work))
    answer = server.infer(name, "image", model=SECOND)
    bright = np.asarray(nibabel.load(server.studies / f"{name}.nii.gz").dataobj) > BRIGHT
    right = answer.ok and np.array_equal(voxels_of(read(answer, server.work)) > 0, bright)
    claim("a second bundle beside answers as it should", right, "" if answer.ok else answer.text[:160])
    after = voxels_of(read(server.infer(name, "image"), server.work))
    claim("and changes nothing of ours", np.array_equal(before, after))


def ranked(server: Server, name: str) -> tuple[list[str], str, float]:
    """Return the scans in the order to annotate them, what they are ranked by, and seconds."""
    begin = time.monotonic()
    answer = server.infer(name, next_scan=True).json()
    return [entry["scan"] for entry in answer["next_scan"]], answer["ranked_by"], time.monotonic() - begin


def check_first_scan(server: Server, truths: dict[str, Path]) -> None:
    names, by, cold = ranked(server, next(iter(truths)))
    _, _, seconds = ranked(server, next(iter(truths)))
    holds = sorted(names) == sorted(truths) and by == "similarity"
    claim("the scan to annotate first is named", holds, f"{len(names)} scans: first {cold:.1f} s, then {seconds:.1f} s")


def check_next_scan(server: Server, truths: dict[str, Path], scores: dict[str, float]) -> None:
    others = list(truths)[1:]
    names, by, seconds = ranked(server, others[0])
    detail = f"{seconds:.1f} s; Dice in this order: {', '.join(f'{scores[name]:.2f}' for name in names)}"
    claim("the scans to annotate next are ranked", sorted(names) == sorted(others) and by == "quality", detail)


def check_batch_and_training(server: Server, truths: dict[str, Path]) -> None:
    begin = time.monotonic()
    answer = requests.post(
        f"{server.url}/batch/infer/{MODEL}", params={"images": "unlabeled", "run_sync": True},
        json={"multi_gpu": False}, timeout=900,
    )  # fmt: skip
    made = sorted(p.name for p in (server.studies / "labels" / "original").glob("*"))
    claim("batch inference segments all the rest", answer.ok and len(made) == len(truths) - 1,
          f"{len(made)} scans, {time.monotonic() - begin:.0f} s")  # fmt: skip

    weights = server.work / "apps" / "monaibundle" / "model" / MODEL / "models" / "model.pt"
    before, begin = weights.read_bytes(), time.monotonic()
    requests.post(
        f"{server.url}/train/{MODEL}", json={"max_epochs": 1, "multi_gpu": False, "run_id": ""}, timeout=60
    ).raise_for_status()
    task: dict[str, Any] = {}
    seen: set[str] = set()
    while task.get("status") not in ("DONE", "ERROR") and time.monotonic() - begin < 600:
        time.sleep(2)
        task = requests.get(f"{server.url}/train/", timeout=60).json()
        seen |= {line for line in task.get("details", []) if "training:" in line}
    done = task["status"] == "DONE" and weights.read_bytes() != before
    claim("training from the app ends with new weights", done,
          f"100 steps on {len(truths)} unlabeled scans, {time.monotonic() - begin:.0f} s")  # fmt: skip
    claim("its log shows progress", any("loss=" in line for line in seen), f"{len(seen)} lines")
    answer = server.infer(list(truths)[1])
    reloaded = "Reload model" in (server.work / "server.log").read_text()
    claim("the new weights are used", answer.ok and reloaded)


def check_all(server: Server, truths: dict[str, Path], organs: list[str], quick: bool) -> None:
    claim("the model and its labels are listed", server_labels(server)[:1] == ["liver"])
    check_first_scan(server, truths)
    scores = check_support(server, truths, organs)
    check_same_as_command(server, truths)
    check_geometry(server, truths)
    check_second_bundle(server, truths)
    check_corrections(server, truths, organs)
    check_annotators(server, truths, organs)
    check_refusals(server, truths)
    check_next_scan(server, truths, scores)
    if not quick:
        check_batch_and_training(server, truths)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder with images/ and labels/; default: phantoms")
    parser.add_argument("--quick", action="store_true", help="leave batch inference and training out")
    parser.add_argument("--annotators", action="store_true", help="only what annotators do that nobody planned")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        truths, organs = lay_out(arguments.data, work)
        server = Server(work)
        server.set_up()
        claim("the server starts", (seconds := server.start()) < 110, f"{seconds:.0f} s")
        try:
            if arguments.annotators:
                server.submit(next(iter(truths)), next(iter(truths.values())), organs)
                check_annotators(server, truths, organs)
            else:
                check_all(server, truths, organs, arguments.quick)
            claim("the server stops cleanly", server.stop() == 0)
        finally:
            server.process.kill()
            if failures or sys.exc_info()[0]:
                print((work / "server.log").read_text()[-6000:])
    print(f"{len(failures)} claims failed" if failures else "all claims hold")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
