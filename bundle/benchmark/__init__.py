"""Benchmark: time and memory on synthetic scans, beside a reference (``__main__``)."""
