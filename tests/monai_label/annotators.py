"""What annotators do that nobody planned: a few drawn slices, names of their own, broken scans, a restart."""

from __future__ import annotations

import json
import time
from pathlib import Path

import nibabel
import numpy as np
import requests
from tests.monai_label.server import Server, claim, dice_with, drawn_label


def check_drawings(server: Server, truths: dict[str, Path], organs: list[str]) -> None:
    """A label with a few drawn slices serves other scans nearly as well as the whole one."""
    first, second, *_ = truths
    whole = dice_with(server, second, truths[second], organs)
    taken = {}
    parts = {"every 4th": slice(1, None, 4), "every 2nd": slice(0, None, 2), "5 contiguous": slice(4, 9)}
    for name, part in parts.items():
        server.submit(first, drawn_label(server, truths[first], part), organs)
        taken[name] = server.infer(second).json()["annotated"][first]
        drawn = dice_with(server, second, truths[second], organs)
        as_all = dice_with(server, second, truths[second], organs, annotated="all")
        measured = (
            f"{taken[name]}; Dice {drawn:.3f}, undrawn slices as background {as_all:.3f}, whole label {whole:.3f}"
        )
        claim(f"a label with {name} of its slices drawn serves other scans", drawn > max(as_all, 0.5 * whole), measured)
    claim("and is taken as a drawing", all(text.startswith("drawn") for text in taken.values()))
    server.submit(first, drawn_label(server, truths[first], slice(1, None, 4), ".nrrd"), organs)
    answer = server.infer(second)
    same = answer.ok and answer.json()["annotated"].get(first) == taken["every 4th"]
    claim("a drawing in .nrrd is the same", same, "" if same else answer.text[:300])
    answer = server.infer(first)
    claim("and segments the rest of its own scan", answer.ok and answer.json()["support_used"] == [first])
    server.delete_label(first)
    server.submit(first, truths[first], organs)


def check_organ_names(server: Server, truths: dict[str, Path], organs: list[str]) -> None:
    """An organ of one's own keeps its entry, whatever comes later, and after a restart."""
    first, second, third, *_ = truths
    server.submit(first, truths[first], ["Liver ", "pancreas", *organs[2:]])
    before = server.infer(third).json()
    server.submit(second, truths[second], ["liver", "aorta", *organs[2:]])
    after = server.infer(third).json()
    entry = {name: entry for entry, name in before["renamed"].items()}["pancreas"]
    claim(
        "an organ keeps its entry when another one comes", after["renamed"].get(entry) == "pancreas", after["renamed"]
    )
    claim("names are compared forgivingly", "liver" in before["quality"], list(before["quality"]))
    claim("the server stops for a restart", server.stop() == 0)
    kept = {path: path.stat().st_mtime_ns for path in (server.studies / ".encoded").glob("*.safetensors")}
    server.start()
    begin = time.monotonic()
    again = server.infer(third).json()
    seconds = time.monotonic() - begin
    claim("and after a restart", again["renamed"] == after["renamed"])
    now = {path: path.stat().st_mtime_ns for path in (server.studies / ".encoded").glob("*.safetensors")}
    claim("a restarted server encodes no annotated scan again", bool(kept) and now == kept,
          f"{len(kept)} scans on disk, first request {seconds:.1f} s")  # fmt: skip
    many = {"label_info": [{"name": f"organ {n}", "idx": n} for n in range(1, 20)]}
    requests.put(
        f"{server.url}/datastore/label", params={"image": second, "tag": "final"}, data={"params": json.dumps(many)},
        files={"label": truths[second].open("rb")}, timeout=60,
    )  # fmt: skip
    left_out = server.infer(third).json().get("left_out", {})
    claim("organs for which there is no entry are listed", "organ 19" in left_out.get(second, []), left_out)
    server.delete_label(second)
    server.submit(first, truths[first], organs)


def check_bad_queries(server: Server, truths: dict[str, Path]) -> None:
    name = list(truths)[1]
    scan = nibabel.load(server.studies / f"{name}.nii.gz")
    values = np.asarray(scan.dataobj).astype(np.float32)
    holed = values.copy()
    holed[0, 0, 0] = np.nan
    bad = {
        "plane": values[..., 0],
        "one slice": values[..., :1],
        "with NaN": holed,
        "constant": np.full_like(values, 7),
    }
    for kind, array in bad.items():
        nibabel.save(nibabel.Nifti1Image(array, scan.affine), server.studies / f"bad {kind}.nii.gz")
    whole = (server.studies / f"{name}.nii.gz").read_bytes()
    (server.studies / "bad truncated.nii.gz").write_bytes(whole[: len(whole) // 2])
    time.sleep(5)  # the server has to see the new files
    for kind in (*bad, "truncated"):
        answer = server.infer(f"bad {kind}")
        sentence = answer.status_code == 409 and "cannot be segmented" in answer.text
        claim(
            f"a scan that is {kind} is refused in a sentence, HTTP 409",
            sentence,
            f"{answer.status_code} {answer.text[:200]}",
        )
        (server.studies / f"bad {kind}.nii.gz").unlink()
    time.sleep(3)


def check_quiet(server: Server, truths: dict[str, Path]) -> None:
    lines, size = server.log_size()
    server.infer(list(truths)[1])
    more, larger = server.log_size()
    claim("a request leaves few lines in the log", more - lines < 100, f"{more - lines} lines, {larger - size} bytes")


def check_annotators(server: Server, truths: dict[str, Path], organs: list[str]) -> None:
    """Check all of this; the first scan's label is submitted."""
    check_drawings(server, truths, organs)
    check_organ_names(server, truths, organs)
    check_bad_queries(server, truths)
    check_quiet(server, truths)
