"""Every solver of split training at targets that are out of reach, or only just in reach."""

import numpy as np
import pytest

import edgeopt
from edgeopt.result import Status
from edgeopt.solvers.split_training import SOLVERS
from tests.solvers.split_training.instances import instance

every_solver = pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: solver.name)


@every_solver
def test_unreachable_target_is_infeasible(solver):
    """Every solver says that a target is out of reach, which term is to blame and what would be feasible."""
    problem = instance("varied 13").problem
    result = edgeopt.solve(problem.replace(target=0.9 * problem.least_target), solver)
    assert result.status is Status.INFEASIBLE
    assert result.solution is None
    assert "is to blame" in result.message
    assert "expected a target of at least" in result.message


@every_solver
def test_target_just_in_reach(solver):
    """A target just above the least one leaves only the largest batches at cut 1, which every solver returns."""
    problem = instance("varied 13").problem
    result = edgeopt.solve(problem.replace(target=problem.least_target * (1 + 1e-6)), solver)
    assert result.feasible, result.message
    assert np.array_equal(result.solution.batch_size, problem.batch_limit[:, 0])
    assert result.solution.deepest_cut == 1


def test_names():
    """The solvers and their order on the command line."""
    names = "hasfl exact generic batch-only cut-only adaptsfl fixed random-batch random-cut"
    assert [solver.name for solver in SOLVERS] == names.split()
