"""Tests of ``bundle.prepare``."""
