"""Solvers of split training, one algorithm per file."""

from edgeopt.solve import Solver
from edgeopt.solvers.split_training.adaptsfl import AdaptSfl as AdaptSfl
from edgeopt.solvers.split_training.batch_only import BatchOnly as BatchOnly
from edgeopt.solvers.split_training.cut_only import CutOnly as CutOnly
from edgeopt.solvers.split_training.exact import BranchAndBound as BranchAndBound
from edgeopt.solvers.split_training.fixed import Fixed as Fixed
from edgeopt.solvers.split_training.generic import Generic as Generic
from edgeopt.solvers.split_training.hasfl import Hasfl as Hasfl
from edgeopt.solvers.split_training.random_batch import RandomBatch as RandomBatch
from edgeopt.solvers.split_training.random_cut import RandomCut as RandomCut

SOLVERS: tuple[Solver, ...] = (
    Hasfl(),
    BranchAndBound(),
    Generic(),
    BatchOnly(),
    CutOnly(),
    AdaptSfl(),
    Fixed(),
    RandomBatch(),
    RandomCut(),
)
