"""Checks of single values that a user sets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from bundle.command_line.errors import is_command
from bundle.files import keep_alone


def check_positive_integers(**counts: Any) -> None:
    """Raise if a count is not a whole number of at least 1.

    Raises:
        ValueError: With the name and the value of the first wrong one.
    """
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {count!r}. Write, for example, 1.")


def check_seed(seed: Any) -> None:
    """Raise if a random seed is not a whole number of at least 0.

    Raises:
        ValueError: With the value.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be a whole number from 0, got {seed!r}. Write, for example, --seed 0.")


def refuse_file(folder: Path) -> None:
    """Raise if the output folder of a command is a file.

    Raises:
        ValueError: With the path.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output_dir {folder} is a file. Give a folder.")


def refuse_missing_device(device: Any) -> None:
    """Raise if a device does not exist.

    Raises:
        ValueError: If it is not the name of a device, or one that PyTorch does not see.
    """
    import torch  # here, so that --help does not wait for it

    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError) as error:
        case = ", in lower case" if isinstance(device, str) and device != device.lower() else ""
        raise ValueError(
            f"device must be a name such as cpu or cuda:0{case}, got {device!r}. Use --device cpu."
        ) from error
    if wanted.type == "cpu":
        return
    # Kinds without a module, such as meta, cannot compute.
    count = getattr(getattr(torch, wanted.type, None), "device_count", None)
    seen = 0 if count is None else count()
    if (wanted.index or 0) >= seen:
        kind = "GPUs" if wanted.type == "cuda" else f"devices of the kind {wanted.type}"
        raise ValueError(f"device {device} does not exist: PyTorch sees {seen} {kind}. Use --device cpu.")


def keep_folder(folder: str | Path) -> None:
    """Lock a command's output folder for as long as the command runs.

    Raises:
        WriteError: If another command uses the folder, or it cannot be written to.
    """
    if is_command() and os.environ.get("RANK", "0") == "0":  # with several processes, the first locks it for all
        keep_alone(folder)


def switch(value: bool | str) -> bool:
    """Return the value of a switch, which the command line may give as a text.

    Otherwise ``--resume false`` would be the text "false", which counts as true.

    Raises:
        ValueError: If it is neither true nor false.
    """
    words = {"true": True, "false": False}
    if isinstance(value, bool):
        return value
    if str(value).lower() not in words:
        raise ValueError(f"a switch such as resume or amp must be true or false, got {value!r}. Write one of them.")
    return words[str(value).lower()]
