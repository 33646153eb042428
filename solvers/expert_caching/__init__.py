"""Solvers of expert caching, one algorithm per file."""

from edgeopt.solve import Solver
from edgeopt.solvers.expert_caching.continuous_greedy import ContinuousGreedy as ContinuousGreedy
from edgeopt.solvers.expert_caching.cp_sat import CpSat as CpSat
from edgeopt.solvers.expert_caching.generic import Generic as Generic
from edgeopt.solvers.expert_caching.greedy import DensityGreedy as DensityGreedy
from edgeopt.solvers.expert_caching.greedy import Greedy as Greedy
from edgeopt.solvers.expert_caching.lagrangian import Lagrangian as Lagrangian
from edgeopt.solvers.expert_caching.max_convolution import MaxConvolution as MaxConvolution
from edgeopt.solvers.expert_caching.milp import Milp as Milp
from edgeopt.solvers.expert_caching.popularity import Popularity as Popularity
from edgeopt.solvers.expert_caching.random_fill import RandomFill as RandomFill
from edgeopt.solvers.expert_caching.successive import Successive as Successive

SOLVERS: tuple[Solver, ...] = (
    Greedy(),
    DensityGreedy(),
    Successive(),
    MaxConvolution(),
    ContinuousGreedy(),
    Lagrangian(),
    Milp(),
    CpSat(),
    Generic(),
    Popularity(),
    RandomFill(),
)
