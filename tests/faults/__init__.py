"""Damaged files, bad inputs and kills: a short part by default, all of it with ALPNET_FAULTS=full."""
