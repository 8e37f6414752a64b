"""MONAI without its import of transformers, which takes a second where that package is installed.

MONAI needs it for a network that is not used here. The encoder that needs it imports it later.
"""

from __future__ import annotations

import sys
from typing import Any

_modules: dict[str, Any] = sys.modules
_hide = "transformers" not in _modules
if _hide:
    _modules["transformers"] = None
try:
    from monai.bundle import ConfigWorkflow
finally:
    if _hide:
        del _modules["transformers"]

__all__ = ["ConfigWorkflow"]
