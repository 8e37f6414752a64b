"""Federated learning with MONAI's ``MonaiAlgo``: what is otherwise there than in a training that a command starts."""

from __future__ import annotations

from bundle.command_line.errors import is_command


def weights_folder(folder: str, bundle_root: str, run_name: str | None) -> str:
    """Return where a training writes ``model.pt``.

    ``MonaiAlgo`` hands the weights of ``models/model.pt`` in the client's copy of the bundle to the server, so a client
    writes them there. It is known by ``run_name``, which ``MonaiAlgo`` sets and no command of the bundle needs.

    Args:
        folder: Of any other training.
        bundle_root: The client's copy of the bundle.
        run_name: What ``MonaiAlgo`` calls this client's work; ``None`` elsewhere.
    """
    return folder if run_name is None or is_command() else f"{bundle_root}/models"
