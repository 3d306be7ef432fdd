"""Measures the service against plain ways of doing the same, in one run on one machine: ``python -m benchmarks``."""
