"""Benchmark: how fast and how large everything is, beside what it is compared with, on made-up scans (``__main__``)."""
