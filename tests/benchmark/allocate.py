"""A process that holds a known amount of memory: ``{"before": MB, "held": MB}``, the first only for a moment."""

from __future__ import annotations

import json
import sys

import numpy as np
from bundle.benchmark.children import forget_peak, peak_megabytes

settings = json.loads(sys.argv[1])
if settings.get("fail"):
    sys.exit("line 1\nit failed on purpose")
at_start = peak_megabytes()
moment = np.ones(round(settings["before"] * 1e6 / 8))
del moment
at_most = peak_megabytes()
forget_peak()
empty = peak_megabytes()
held = np.ones(round(settings["held"] * 1e6 / 8))
del held
print("words before the numbers")
print(json.dumps({"start": at_start, "moment": at_most - at_start, "held": peak_megabytes() - empty}))
