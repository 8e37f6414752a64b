"""``make zoo``: what goes into MONAI's model zoo, as that repository has it.

zoo/models/<name>/        configs, docs, models, LICENSE, the package, large_files.yml
zoo/ci/unit_tests/        test_<name>.py and test_<name>_dist.py

``docs/README.md`` follows the zoo's template: it is ``tools/zoo/README.md``, with the numbers of ``metadata.json`` and
pictures of the training that ``tools/zoo/recorded_run`` recorded. The project's own is ``docs/model_card.md`` there.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "tools" / "zoo"
NAME = "abdominal_mr_fewshot_segmentation"
PARTS = ("bundle", "configs", "docs", "models")
ORGANS = ("liver", "right_kidney", "left_kidney", "spleen")
# Steps of the recorded run between two evaluations.
EPOCH_LENGTH = 500
HOST = "https://github.com/Project-MONAI/model-zoo/releases/download/hosting_storage_v1"
LARGE_FILES = """# Not part of the pull request: the zoo's maintainers host the weights under this address.
large_files:
- path: "models/model.pt"
  url: "{host}/{name}_model.pt"
  hash_val: "{digest}"
  hash_type: "sha256"
"""
# The weights lie in the folder, where the zoo's checks find them, and are no part of the pull request.
IGNORED = """/models/*.pt
/models/*.ts
/eval/
"""


def make_zoo(target: Path) -> Path:
    """Write the two folders, anew.

    Args:
        target: Where; it is replaced if it is a folder that this made.

    Returns:
        The bundle's folder.

    Raises:
        ValueError: If the target holds something else.
    """
    if target.exists() and not (target / "models" / NAME).is_dir():
        raise ValueError(f"{target} holds something other than the zoo's folders. Remove it, or choose another one.")
    shutil.rmtree(target, ignore_errors=True)
    folder = target / "models" / NAME
    for part in PARTS:
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", "*.ts", "*.onnx"))
    shutil.copy(ROOT / "LICENSE", folder)
    (folder / ".gitignore").write_text(IGNORED, encoding="utf-8")
    digest = hashlib.sha256((ROOT / "models" / "model.pt").read_bytes()).hexdigest()
    text = LARGE_FILES.format(host=HOST, name=NAME, digest=digest)
    (folder / "large_files.yml").write_text(text, encoding="utf-8")
    _write_docs(folder)
    tests = target / "ci" / "unit_tests"
    tests.mkdir(parents=True)
    for test in SOURCE.glob("test_*.py"):
        shutil.copy(test, tests)
    return folder


def _write_docs(folder: Path) -> None:
    """Put the zoo's README in the place of the model card, with its pictures; no link leads out of the folder."""
    docs = folder / "docs"
    (docs / "README.md").rename(docs / "model_card.md")
    metadata = json.loads((folder / "configs" / "metadata.json").read_text(encoding="utf-8"))
    (docs / "README.md").write_text(_readme(metadata), encoding="utf-8")
    draw_loss().savefig(docs / "images" / "train_loss.png", dpi=80)
    draw_dice().savefig(docs / "images" / "val_dice.png", dpi=80)
    for page in folder.rglob("*.md"):
        page.write_text(_linked_within(page, folder), encoding="utf-8")


def _readme(metadata: dict[str, Any]) -> str:
    """Fill the template: every number that the metadata have comes from there."""
    dice = metadata["eval_metrics"]
    return (
        (SOURCE / "README.md")
        .read_text(encoding="utf-8")
        .format(
            authors=metadata["authors"],
            reference=metadata["references"][0],
            mean_dice=f"{dice['mean_dice']:.3f}",
            recorded_dice=f"{recorded_dice().mean(axis=1).iloc[-1]:.3f}",
            **{organ: f"{dice[f'{organ}_dice']:.3f}" for organ in ORGANS},
        )
    )


def recorded_dice() -> pd.DataFrame:
    """Return the mean over scans: a row for each evaluation, by its step, and a column for each organ."""
    table = pd.read_csv(SOURCE / "recorded_run" / "dice.csv")
    means = table.pivot_table(index="epoch", columns="organ", values="dice")[list(ORGANS)]
    return means.set_index(means.index * EPOCH_LENGTH)


def draw_loss() -> Figure:
    """Draw the training loss against steps: means of 20 steps, and of 200."""
    table = pd.read_csv(SOURCE / "recorded_run" / "training.csv", index_col="step")
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(table.index, table["loss"], color="lightgray", label="mean of 20 steps")
    axes.plot(table.index, table["loss"].rolling(10).mean(), label="mean of 200 steps")
    axes.set(xlabel="step", ylabel="loss", ylim=(0, None))
    axes.legend()
    return figure


def draw_dice() -> Figure:
    """Draw the Dice of each organ, and their mean, against steps."""
    means = recorded_dice()
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    for organ in means.columns:
        axes.plot(means.index, means[organ], marker=".", linewidth=1, label=organ.replace("_", " "))
    axes.plot(means.index, means.mean(axis=1), color="black", marker="o", label="mean")
    axes.set(xlabel="step", ylabel="Dice of four unseen scans", ylim=(0, 1))
    axes.legend(loc="lower right", ncols=2)
    return figure


def _linked_within(page: Path, folder: Path) -> str:
    """Return a page without the links to files that the folder does not have; their words stay."""

    def kept(link: re.Match[str]) -> str:
        words, path = link[1], link[2].partition("#")[0]
        outside = path and "://" not in path and not (page.parent / path).exists()
        return words if outside else link[0]

    return re.sub(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)", kept, page.read_text(encoding="utf-8"))


if __name__ == "__main__":
    print(make_zoo(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "zoo")))
