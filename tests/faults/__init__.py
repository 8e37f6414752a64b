"""Trials of what goes wrong: damaged files, odd headers, bad inputs, kills. ``ALPNET_FAULTS=full`` runs all of them."""

import os

FULL = os.environ.get("ALPNET_FAULTS") == "full"


def trials(short: int, full: int) -> int:
    """Return how many trials to run: few with the other tests, all if the environment asks for it."""
    return full if FULL else short
