"""Solvers of split training, one algorithm per file."""

from edgeopt.solve import Solver

SOLVERS: tuple[Solver, ...] = ()
