"""Solvers of model download, one algorithm per file."""

from edgeopt.solve import Solver

SOLVERS: tuple[Solver, ...] = ()
