"""Solvers of client selection, one algorithm per file."""

from edgeopt.solve import Solver

SOLVERS: tuple[Solver, ...] = ()
