"""Solvers of expert caching, one algorithm per file."""
