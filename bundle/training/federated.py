"""Federated learning with MONAI's ``MonaiAlgo``: how it differs from a training that a command starts."""

from __future__ import annotations

from bundle.command_line.errors import is_command


def weights_folder(folder: str, bundle_root: str, run_name: str | None) -> str:
    """Return where a training writes ``model.pt``.

    ``MonaiAlgo`` sends ``models/model.pt`` of the client's copy of the bundle to the server, so a client writes its
    weights there. A client is recognized by ``run_name``, which ``MonaiAlgo`` sets and no command of the bundle needs.

    Args:
        folder: The folder for any other training.
        bundle_root: The client's copy of the bundle.
        run_name: The name that ``MonaiAlgo`` gives to the client's run; ``None`` otherwise.
    """
    return folder if run_name is None or is_command() else f"{bundle_root}/models"
