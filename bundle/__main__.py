"""``python -m bundle training``: run a workflow of this bundle from any folder, without naming its config."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import fire

# MONAI imports transformers, where it is installed, for a network that is not used here: that takes a second. The
# encoder that needs it imports it by itself.
sys.modules.setdefault("transformers", None)  # type: ignore[arg-type]
import monai.bundle  # noqa: E402

if sys.modules["transformers"] is None:
    del sys.modules["transformers"]

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = {
    "training": "train.yaml",
    "inference": "inference.yaml",
    "encoding": "inference.yaml",
    "ranking": "inference.yaml",
}


class Workflows:
    """Few-shot segmentation: learn from unlabeled scans, then segment from one annotated one.

    Every key of the config can be set: ``python -m bundle training --dataset_dir scans --max_epochs 50``.
    Further config files go after the first: ``--data data_chaos_t2`` adds ``configs/data_chaos_t2.yaml``.
    """

    def training(self, data: str | None = None, **keys: Any) -> None:
        """Learn from superpixels; see configs/train.yaml for the keys."""
        _run("training", data, keys)

    def inference(self, data: str | None = None, **keys: Any) -> None:
        """Segment scans from annotated ones; see configs/inference.yaml for the keys."""
        _run("inference", data, keys)

    def encoding(self, data: str | None = None, **keys: Any) -> None:
        """Write what annotated scans tell to a file of prototypes; see configs/inference.yaml for the keys."""
        _run("encoding", data, keys)

    def ranking(self, data: str | None = None, **keys: Any) -> None:
        """Say which scan to annotate first, or next; see configs/inference.yaml for the keys."""
        _run("ranking", data, keys)


def _run(workflow: str, data: str | None, keys: dict[str, Any]) -> None:
    if "help" in keys or "h" in keys:
        text = (ROOT / "configs" / CONFIGS[workflow]).read_text()
        print(text.split("# --- paths")[0])  # the keys that are meant to be set, each with its comment
        return
    names = [CONFIGS[workflow], *([f"{data.removesuffix('.yaml')}.yaml"] if data else [])]
    files = [ROOT / "configs" / name for name in names]
    for path in files:
        if not path.is_file():
            known = sorted(other.stem for other in (ROOT / "configs").glob("data_*.yaml"))
            raise SystemExit(f"there is no config {path.name}; --data takes one of {', '.join(known)}.")
    # What the check for misspelt keys reads, as if monai.bundle had been called with it.
    sys.argv = [word for word in sys.argv if not word.startswith("--data=")]
    if data and "--data" in sys.argv:
        place = sys.argv.index("--data")
        del sys.argv[place : place + 2]
    sys.argv += ["--config_file", str([str(path) for path in files])]
    keys.setdefault("bundle_root", str(ROOT))
    run_id = "run" if workflow == "inference" else workflow
    monai.bundle.run(run_id=run_id, config_file=[str(path) for path in files], **keys)


if __name__ == "__main__":
    fire.Fire(Workflows, name="bundle")
