"""How errors are shown: an error in the user's input is one plain sentence, and so is a stop by Ctrl-C."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from bundle.files import FULL, advice

# Errors that the bundle raises for a user's input.
EXPLAINED_ERRORS = (ValueError, FileNotFoundError, FloatingPointError)

STOPPED = "stopped by Ctrl-C. Finished work is kept; rerun the command to do the rest."
# Exit code of a command that was stopped by Ctrl-C, as in shells.
INTERRUPTED = 130


def explain_errors() -> None:
    """From now on, show an error in the input of a bundle command as one sentence instead of a traceback.

    Programming errors keep their traceback, and with ``MONAI_DEBUG`` in the environment all errors do. The exit code
    stays 1. With several processes, the message names the process.
    """
    if is_command():
        sys.excepthook = _explain
        _quiet_decoders()


@contextmanager
def in_one_sentence() -> Iterator[None]:
    """Show an error in a command's input as one sentence, with exit code 1; after Ctrl-C the exit code is 130.

    With ``MONAI_DEBUG`` in the environment the traceback is shown.
    """
    _quiet_decoders()
    try:
        yield
    except KeyboardInterrupt:
        print(STOPPED, file=sys.stderr)
        sys.exit(INTERRUPTED)
    except (*EXPLAINED_ERRORS, OSError, ImportError, RuntimeError) as error:
        sentence = sentence_of(error) or (str(error) if isinstance(error, OSError) else None)
        if sentence is None or os.environ.get("MONAI_DEBUG"):
            raise
        sys.exit(_shown(sentence))


def _quiet_decoders() -> None:
    """Suppress MONAI's warning, for every file, that a GPU decoder for DICOM is missing."""
    logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")


def sentence_of(error: BaseException) -> str | None:
    """Return the sentence of an error for the user; ``None`` for a programming error.

    MONAI wraps errors several times; the sentence is that of the bundle's own error, or names the wrong part of a
    config.
    """
    first: BaseException | None = error
    while first is not None and not isinstance(first, EXPLAINED_ERRORS):
        if isinstance(first, OSError) and first.errno in FULL:
            return f"a file cannot be written ({first}). {advice(first)}"
        if mistake := _config_mistake(first):
            return mistake
        first = first.__cause__
    return None if first is None else str(first)


def _config_mistake(error: BaseException) -> str | None:
    """Return what is wrong with a part of a config: its ``_target_``, an argument, or an expression."""
    text, cause = str(error), error.__cause__
    if isinstance(error, ModuleNotFoundError) and text.startswith("Cannot locate class"):
        return f"{text} Correct the _target_ in the config."
    if cause is None or isinstance(cause, EXPLAINED_ERRORS):
        return None
    if found := re.match(r"Failed to instantiate component '([\w.]+)'", text):
        # Deeper in the stack the component was running already, and the mistake is not the config's.
        ours = isinstance(cause, TypeError) and _depth(cause) == 1
        return f"the config's {found.group(1)} cannot be made: {cause}. Correct its keys." if ours else None
    if found := re.match(r"Failed to evaluate \w+:\s*(.+)", text, re.DOTALL):
        # The expression itself runs at most one call below eval.
        ours = _depth(cause) <= 2
        reason = f"{type(cause).__name__}: {cause}"
        return f"the config's expression {found.group(1)} fails ({reason}). Correct the keys it uses." if ours else None
    return None


def _depth(error: BaseException) -> int:
    """Return how many calls deep an error was raised."""
    trace, depth = error.__traceback__, 0
    while trace is not None:
        trace, depth = trace.tb_next, depth + 1
    return depth


def is_command() -> bool:
    """Return whether this process is a command of MONAI or of the bundle, not a program that hosts the bundle."""
    started = Path(sys.argv[0])
    return started.parts[-2:] == ("bundle", "__main__.py") or started.stem == "alpnet"


def _shown(sentence: str) -> str:
    place = f" in process {os.environ['RANK']}" if os.environ.get("WORLD_SIZE", "1") != "1" else ""
    return f"error{place}: {sentence}\n(MONAI_DEBUG=1 shows the traceback)"


def _explain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sentence = sentence_of(error)
    if issubclass(kind, KeyboardInterrupt):
        print(f"\n{STOPPED}", file=sys.stderr)
    elif sentence is None or os.environ.get("MONAI_DEBUG"):
        sys.__excepthook__(kind, error, trace)
    else:
        print(f"\n{_shown(sentence)}", file=sys.stderr)  # a progress bar may be open
