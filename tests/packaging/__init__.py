"""Tests of how the bundle is brought to its users."""
