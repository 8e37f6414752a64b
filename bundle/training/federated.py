"""Federated learning with MONAI's ``MonaiAlgo``: how it differs from a training that a command starts."""

from __future__ import annotations

import inspect
from types import CodeType

from monai.fl.client import MonaiAlgo


def weights_folder(folder: str, bundle_root: str) -> str:
    """Return where a training writes ``model.pt``.

    ``MonaiAlgo`` sends ``models/model.pt`` of the client's copy of the bundle to the server, so a client writes its
    weights there. Any other training, also one with a ``run_name`` that a program of the user starts, leaves the
    shipped weights alone.

    Args:
        folder: The folder for any other training.
        bundle_root: The client's copy of the bundle.
    """
    return f"{bundle_root}/models" if _called_from(MonaiAlgo.initialize.__code__) else folder


def _called_from(code: CodeType) -> bool:
    """Tell whether a function is on the stack: a client's names and keys are those of any other workflow."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame is not None
