"""Refusals: what a request cannot have is said in one sentence."""

from __future__ import annotations

from typing import NoReturn

# The server's part, where it runs: imported here and not in a call, because it takes the bundle off the path again.
try:
    from fastapi import HTTPException
except ImportError:
    HTTPException = None


def refuse(sentence: str) -> NoReturn:
    """Answer a request with a sentence that a person understands, as HTTP 409.

    Raises:
        HTTPException: In the server.
        ValueError: Elsewhere.
    """
    raise ValueError(sentence) if HTTPException is None else HTTPException(status_code=409, detail=sentence)
