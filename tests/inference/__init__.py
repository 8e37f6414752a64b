"""Tests; the folders mirror those of ``bundle``."""
