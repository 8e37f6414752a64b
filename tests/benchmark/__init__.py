"""Tests of ``bundle.benchmark``."""
