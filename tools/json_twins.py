"""Write the JSON twins of the configs that MONAI reads by a fixed name: ``monai.bundle.load`` and ``MonaiAlgo``.

The YAML files are the ones to edit. ``make json`` runs this; a test compares.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
TWINS = ("train", "evaluate", "inference")


def twin_of(name: str) -> dict[str, Any]:
    """Return a config with a word about where it comes from."""
    content: dict[str, Any] = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    return {"_desc_": f"made from {name}.yaml by make json; edit that file", **content}


if __name__ == "__main__":
    for twin in TWINS:
        text = json.dumps(twin_of(twin), indent=4)
        (CONFIGS / f"{twin}.json").write_text(text + "\n", encoding="utf-8")
