"""Refusals: what a request cannot have is said in one sentence."""

from __future__ import annotations

from typing import Any, NoReturn

# The server's part, where it runs: imported here and not in a call, because it takes the bundle off the path again.
try:
    from fastapi import HTTPException
except ImportError:
    HTTPException = None

# Most characters of a request that a message repeats.
LONGEST = 200


def refuse(sentence: str) -> NoReturn:
    """Answer a request with a sentence that a person understands, as HTTP 409.

    Raises:
        HTTPException: In the server.
        ValueError: Elsewhere.
    """
    sentence = printable(sentence)
    raise ValueError(sentence) if HTTPException is None else HTTPException(status_code=409, detail=sentence)


def printable(text: str) -> str:
    """Return a text that any client can show: what is no character of a line of UTF-8 is written as an escape."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def shortened(value: Any) -> str:
    """Return what a client sent as a message repeats it, cut off after 200 characters."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."
