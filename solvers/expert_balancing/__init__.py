"""Solvers of expert balancing, one algorithm per file."""

from edgeopt.solve import Solver
from edgeopt.solvers.expert_balancing.eplb import Eplb as Eplb
from edgeopt.solvers.expert_balancing.local_search import LocalSearch as LocalSearch
from edgeopt.solvers.expert_balancing.milp import Milp as Milp

SOLVERS: tuple[Solver, ...] = (LocalSearch(), Milp(), Eplb())  # the baseline last
