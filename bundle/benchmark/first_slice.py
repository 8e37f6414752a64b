"""A process that segments one slice and prints how long each part took; ``startup`` runs it.

Imports stand where they are timed.
"""

from __future__ import annotations

import importlib
import itertools
import json
import sys
import time
from typing import Any


def main(settings: dict[str, Any]) -> None:
    """Print the seconds of each part, and of all since ``settings["started"]``, as JSON.

    Args:
        settings: ``keys`` of ``configs/inference.yaml``, the path of the ``query``, the ``module`` to import first, and
            the time at which the process was ``started``.
    """
    marks = [("start of Python", settings["started"]), ("import monai", time.time())]
    importlib.import_module(settings["module"])
    import torch

    marks.append(("import bundle", time.time()))
    from bundle.command_line.configs import parsed
    from bundle.evaluation import handlers as reports  # noqa: F401

    marks.append(("config", time.time()))
    parser = parsed(["inference.yaml"], settings["keys"])
    inferer, preprocessing = (parser.get_parsed_content(part) for part in ("inferer", "preprocessing"))
    marks.append(("network and weights", time.time()))
    network = parser.get_parsed_content("network").eval()
    marks.append(("reading scans", time.time()))
    inferer.support_scans()
    image = preprocessing({"image": settings["query"]})["image"]
    marks.append(("prototypes and first slice", time.time()))
    device = parser.get_parsed_content("device")
    middle = image.shape[-1] // 2
    scores = inferer(image[None, ..., middle : middle + 1].to(device), network)
    torch.isfinite(scores).all().item()
    marks.append(("end", time.time()))
    seconds = {name: later - begun for (name, begun), (_, later) in itertools.pairwise(marks)}
    print(json.dumps({**seconds, "all": marks[-1][1] - marks[0][1]}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
