"""Solvers of expert caching, one algorithm per file."""

from edgeopt.solve import Solver
from edgeopt.solvers.expert_caching.random_fill import RandomFill as RandomFill

SOLVERS: tuple[Solver, ...] = (RandomFill(),)
