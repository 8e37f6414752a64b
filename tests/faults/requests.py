"""Bad requests to MONAI Label's server: params, files and what is submitted with a label."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

SHAPE = (32, 28, 8)


def scan(seed: int) -> np.ndarray:
    volume = np.random.default_rng(seed).normal(900, 90, SHAPE)
    volume[6:18, 8:20, 2:6] += 1500
    return volume.astype(np.int16)


def label(value: float = 1) -> np.ndarray:
    volume = np.zeros(SHAPE, np.float32)
    volume[6:18, 8:20, 2:6] = value
    return volume


def write(path: Path, volume: np.ndarray) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([2.0, 2.0, 5.0, 1.0])), path)
    return str(path)


Ask = Callable[[Path], dict[str, Any]]

PAIR = {"image": "{studies}/a.nii.gz", "label": "{studies}/labels/final/a.nii.gz"}

# Params that are wrong whatever the folder holds. "{studies}" is the folder.
PARAMS: dict[str, dict[str, Any]] = {
    "support is a number": {"support": 5},
    "support is true": {"support": True},
    "support is a list of texts": {"support": ["{studies}/a.nii.gz"]},
    "support is a list of lists": {"support": [["a", "b"]]},
    "support is empty": {"support": [{}]},
    "support lacks the label": {"support": {"image": "{studies}/a.nii.gz"}},
    "support's image is a number": {"support": PAIR | {"image": 5}},
    "support's image is none": {"support": PAIR | {"image": None}},
    "support's image is a list": {"support": PAIR | {"image": ["{studies}/a.nii.gz"]}},
    "support's image is empty": {"support": PAIR | {"image": ""}},
    "support's image has a NUL byte": {"support": PAIR | {"image": "{studies}/a\0.nii.gz"}},
    "support's label has a NUL byte": {"support": PAIR | {"label": "{studies}/a.nii.gz\0"}},
    "support's name is longer than any file's": {"support": PAIR | {"image": "{studies}/" + "a" * 5000}},
    "support's name is no UTF-8": {"support": PAIR | {"image": "{studies}/\udcff.nii.gz"}},
    "support's image is a folder": {"support": PAIR | {"image": "{studies}"}},
    "support's image is missing": {"support": PAIR | {"image": "{studies}/none.nii.gz"}},
    "support lies elsewhere": {"support": PAIR | {"image": "/etc/hostname"}},
    "support goes up": {"support": PAIR | {"label": "{studies}/../x.nii.gz"}},
    "support's label is its image": {"support": PAIR | {"label": "{studies}/b.nii.gz"}},
    "label is a number": {"label": 5},
    "label is a list": {"label": ["{studies}/labels/final/a.nii.gz"]},
    "label is a table": {"label": {"a": 1}},
    "label has a NUL byte": {"label": "{studies}/a\0.nii.gz"},
    "label is missing": {"label": "{studies}/none.nii.gz"},
    "label lies elsewhere": {"label": "/etc/passwd"},
    "label is a folder": {"label": "{studies}/labels"},
    "annotated is a word": {"annotated": "some"},
    "annotated is a number": {"annotated": 7},
    "annotated is true": {"annotated": True},
    "annotated is a list": {"annotated": ["all"]},
    "annotated is a list for a scan": {"annotated": {"a": ["all"]}},
    "annotated is a table for a scan": {"annotated": {"a": {"a": "all"}}},
    "next_scan is a word": {"next_scan": "maybe"},
    "next_scan is a list": {"next_scan": [1]},
    "next_scan is a number": {"next_scan": 3},
    "next_scan is a table": {"next_scan": {"a": True}},
    "result is a number": {"result": 5},
}

# What a client may submit with a label.
INFOS: dict[str, dict[str, Any]] = {
    "names are a number": {"label_info": 5},
    "names are a text": {"label_info": "liver"},
    "names are a table": {"label_info": {"liver": 1}},
    "names are numbers": {"label_info": [1, 2]},
    "an id is a word": {"label_info": [{"name": "liver", "idx": "x"}]},
    "an id is none": {"label_info": [{"name": "liver", "idx": None}]},
    "an id is a fraction": {"label_info": [{"name": "liver", "idx": 1.5}]},
    "an id is NaN": {"label_info": [{"name": "liver", "idx": float("nan")}]},
    "an id is a list": {"label_info": [{"name": "liver", "idx": [1]}]},
    "an id is infinite": {"label_info": [{"name": "liver", "idx": float("inf")}]},
    "an id is not in the label map": {"label_info": [{"name": "liver", "idx": 9}]},
    "the name is background": {"label_info": [{"name": "background", "idx": 1}]},
    "annotated is a word": {"annotated": "some"},
    "annotated is a list": {"annotated": ["all"]},
    "annotated is a number": {"annotated": 3},
}


def filled(value: Any, studies: Path) -> Any:
    """Return params with the folder in its place."""
    if isinstance(value, dict):
        return {key: filled(inner, studies) for key, inner in value.items()}
    if isinstance(value, list):
        return [filled(inner, studies) for inner in value]
    return value.replace("{studies}", str(studies)) if isinstance(value, str) else value


def named(volume: np.ndarray) -> Ask:
    """Ask with this label map of a, named by the request."""

    def ask(studies: Path) -> dict[str, Any]:
        path = write(studies / "x" / "wrong.nii.gz", volume)
        return {"support": [{"image": str(studies / "a.nii.gz"), "label": path}]}

    return ask


def sent(volume: np.ndarray) -> Ask:
    """Ask with this label map of the query."""

    def ask(studies: Path) -> dict[str, Any]:
        return {"label": write(studies / "x" / "wrong.nii.gz", volume)}

    return ask


def submitted(volume: np.ndarray) -> Ask:
    """Ask when this is the only label map of the server."""

    def ask(studies: Path) -> dict[str, Any]:
        write(studies / "labels" / "final" / "a.nii.gz", volume)
        return {}

    return ask


def linked(studies: Path, target: Path, what: str) -> dict[str, Any]:
    (studies / "link.nii.gz").symlink_to(target)
    return {"support": filled(PAIR, studies) | {what: str(studies / "link.nii.gz")}}


def out_of_the_studies(studies: Path) -> dict[str, Any]:
    return linked(studies, Path(write(studies.parent / "secret.nii.gz", label())), "label")


def to_itself(studies: Path) -> dict[str, Any]:
    return linked(studies, studies / "link.nii.gz", "image")


def to_nothing(studies: Path) -> dict[str, Any]:
    return linked(studies, studies / "gone.nii.gz", "label")


def a_folder_out_of_the_studies(studies: Path) -> dict[str, Any]:
    write(studies.parent / "elsewhere" / "l.nii.gz", label())
    (studies / "folder").symlink_to(studies.parent / "elsewhere")
    return {"support": filled(PAIR, studies) | {"label": str(studies / "folder" / "l.nii.gz")}}


def claiming(studies: Path) -> dict[str, Any]:
    """Ask with a file of 17 kB whose header declares 1000 x 1000 x 1000 voxels."""
    content = bytearray(nibabel.Nifti1Image(np.zeros((13, 13, 100), np.uint8), np.eye(4)).to_bytes())
    content[42:48] = np.array([1000, 1000, 1000], "<i2").tobytes()
    (studies / "x.nii").write_bytes(content)
    return {"support": filled(PAIR, studies) | {"label": str(studies / "x.nii")}}


def nothing_annotated(studies: Path) -> dict[str, Any]:
    (studies / "labels" / "final" / "a.nii.gz").unlink()
    return {}


def half_a_query(studies: Path) -> dict[str, Any]:
    path = studies / "c.nii.gz"
    path.write_bytes(path.read_bytes()[:900])
    return {}


def query(volume: np.ndarray) -> Ask:
    """Ask for a scan of these voxels."""

    def ask(studies: Path) -> dict[str, Any]:
        write(studies / "c.nii.gz", volume)
        return {}

    return ask


def no_query(studies: Path) -> dict[str, Any]:
    (studies / "c.nii.gz").unlink()
    return {}


MANY = np.arange(int(np.prod(SHAPE)), dtype=np.float32).reshape(SHAPE)

# Label maps that cannot be used, by what is wrong with them.
LABELS: dict[str, np.ndarray] = {
    "2-D": label()[..., 3],
    "of one slice": label()[..., 3:4],
    "4-D": np.stack([label()] * 3, axis=-1),
    "of another shape": label()[..., :5],
    "huge": np.zeros((600, 600, 40), np.uint8),
    "empty": np.zeros(SHAPE, np.uint8),
    "of thousands of organs": MANY,
    "of fractions": label(0.5),
    "negative": label(-3),
    "NaN": label(np.nan),
    "of an id beyond int16": label(40000),
}

FILES: dict[str, Ask] = {
    **{f"the named label is {what}": named(volume) for what, volume in LABELS.items()},
    **{f"the sent label is {what}": sent(volume) for what, volume in LABELS.items()},
    **{f"the submitted label is {what}": submitted(volume) for what, volume in LABELS.items()},
    "a link leads out of the studies": out_of_the_studies,
    "a linked folder leads out of the studies": a_folder_out_of_the_studies,
    "a link leads to itself": to_itself,
    "a link leads nowhere": to_nothing,
    "nothing is annotated": nothing_annotated,
    "the named label declares more than it holds": claiming,
    "the query is truncated": half_a_query,
    "the query is missing": no_query,
    "the query is 2-D": query(scan(2)[..., 3]),
    "the query is constant": query(np.ones(SHAPE, np.int16)),
    "the query is NaN": query(label(np.nan)),
    "the query is 4-D": query(np.stack([scan(2)] * 3, axis=-1)),
}
