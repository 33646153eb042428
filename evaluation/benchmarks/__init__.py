"""Benchmarks: each module is a script that measures both sides of a comparison in one run."""
