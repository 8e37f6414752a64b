"""Read damaged files as the commands do, and print a line of JSON for each. Run by the tests in a process of its own.

python -m tests.faults.read_mutated <folder> <first> <end>
"""

from __future__ import annotations

import json
import logging
import resource
import signal
import sys
import traceback
import warnings
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from bundle.data.loading import ScanError, read_scan
from monai.bundle import ConfigParser
from tests.faults.mutations import FORMATS, damaged, sound

ROOT = Path(__file__).parents[2]
# Seconds.
HANGS_AFTER = 20


def chain() -> Any:
    """Return how inference reads an annotated scan."""
    parser = ConfigParser()
    parser.read_config(ROOT / "configs" / "inference.yaml")
    parser.update({"bundle_root": str(ROOT), "slice_size": [32, 32], "device": "cpu"})
    return parser.get_parsed_content("support_preprocessing")


def main(folder: Path, first: int, end: int) -> None:
    """Make, damage and read files ``first`` to ``end``."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    transform = chain()
    for number in range(first, end):
        print(json.dumps({"started": number}), flush=True)
        signal.alarm(HANGS_AFTER)
        print(json.dumps({"number": number} | trial(folder, number, transform)), flush=True)
        signal.alarm(0)


def trial(folder: Path, number: int, transform: Any) -> dict[str, Any]:
    """Damage the image or the label map of one scan, and read it."""
    random = np.random.default_rng([7, number])
    spoiled = "label" if random.random() < 0.3 else "image"
    scan, how, contents = {}, "", {}
    for key in ("image", "label"):
        suffix = str(random.choice(FORMATS))
        contents[key] = sound(random, suffix, key == "label")
        scan[key] = str(folder / f"{key}_{number}{suffix}")
        content = contents[key]
        if key == spoiled:
            how, content = damaged(random, content, suffix)
        Path(scan[key]).write_bytes(content)
    begin = perf_counter()
    outcome = read(scan, transform, spoiled)
    seconds = perf_counter() - begin
    outcome |= {"how": how, "suffix": Path(scan[spoiled]).name.split(".", 1)[1], "seconds": seconds}
    if outcome["outcome"] == "taken" and how in ("flipped bits", "zeroed") and outcome["suffix"] == "nii.gz":
        outcome["outcome"] = "taken" if same_voxels(scan, contents, spoiled, transform) else "wrong voxels"
    for path in scan.values():
        Path(path).unlink()
    return outcome | {"megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def read(scan: dict[str, str], transform: Any, spoiled: str) -> dict[str, Any]:
    """Say what came of reading: taken, refused in one sentence, or else."""
    try:
        read_scan(scan, transform)
    except ScanError as error:
        words = str(error)
        named = words.startswith(scan["image"]) or words.startswith(scan[spoiled])
        is_clean = named and "\n" not in words and len(words) < 600 and words.endswith((".", "?"))
        return {"outcome": "refused" if is_clean else "unclean", "words": words}
    except Exception as error:  # what a user would see as a traceback
        return {"outcome": "unclean", "words": "".join(traceback.format_exception(error))}
    return {"outcome": "taken", "words": ""}


def same_voxels(scan: dict[str, str], contents: dict[str, bytes], spoiled: str, transform: Any) -> bool:
    """Tell whether a damaged compressed file that was taken holds what the sound one does."""
    taken = read_scan(scan, transform)
    Path(scan[spoiled]).write_bytes(contents[spoiled])
    return torch.equal(taken[spoiled].as_tensor(), read_scan(scan, transform)[spoiled].as_tensor())


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
