"""Checks of single values that a user gives."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from bundle.command_line.errors import is_command
from bundle.files import keep_alone


def check_positive_integers(**counts: Any) -> None:
    """Raise if a number of things to do is not a whole number of at least 1.

    Raises:
        ValueError: With the name and the value of the first that is not.
    """
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {count!r}.")


def refuse_missing_device(device: Any) -> None:
    """Raise if there is no such device.

    Raises:
        ValueError: If it is no name of a device, or a GPU that PyTorch does not see.
    """
    import torch  # here, so that a command's manual is shown without waiting for it

    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be a name such as cpu or cuda:0, got {device!r}. Use --device cpu.") from error
    if wanted.type == "cuda" and (wanted.index or 0) >= (seen := torch.cuda.device_count()):
        raise ValueError(f"device {device} is not there: GPUs that PyTorch sees: {seen}. Use --device cpu.")


def keep_folder(folder: str | Path) -> None:
    """Let no other command write to a command's folder as long as this one runs.

    Raises:
        WriteError: If another command works in it, or it cannot be written to.
    """
    if is_command() and os.environ.get("RANK", "0") == "0":  # of several processes, the first keeps it for all
        keep_alone(folder)


def switch(value: bool | str) -> bool:
    """Return a switch of a config, which may come from the command line as a word.

    Without it, ``--resume false`` would be the word "false", and a word counts as true.

    Raises:
        ValueError: If it is neither true nor false.
    """
    words = {"true": True, "false": False}
    if isinstance(value, bool):
        return value
    if str(value).lower() not in words:
        raise ValueError(f"a switch such as resume or amp must be true or false, got {value!r}. Write one of them.")
    return words[str(value).lower()]
