"""Ratio tables, side by side in one run: ``python -m benchmarks.NAME`` prints each."""
