"""Every solver of model download where nobody can be served, or where there is bandwidth for all."""

import numpy as np
import pytest

import edgeopt
from edgeopt.result import Exact
from edgeopt.solvers.model_download import SOLVERS
from tests.solvers.model_download.instances import instance

every_solver = pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: solver.name)


@every_solver
def test_everybody_can_be_refused(solver):
    """If no user is allowed any model, all are refused: an objective of zero, and no error."""
    problem = instance("plain").problem
    problem = problem.replace(task=np.full(problem.num_users, 9))
    if solver.supports(problem) is None:
        result = edgeopt.solve(problem, solver)
        assert result.objective == 0.0
        assert result.solution.num_admitted == 0
        assert result.feasible


@every_solver
@pytest.mark.parametrize("name", ["one large", "energy", "concave, blocks, rewards", "levels and energy"])
def test_a_wider_band_is_no_worse(solver, name: str):
    """With a hundred times the band, results stay feasible and bounds valid, and exact solvers lose nothing."""
    tiny = instance(name)
    problem = tiny.problem.replace(bandwidth_hz=100 * tiny.problem.bandwidth_hz)
    if solver.supports(problem) is None:
        result = edgeopt.solve(problem, solver)
        assert result.feasible
        assert result.bound >= tiny.optimum - 1e-9
        if isinstance(solver.guarantee_for(problem), Exact):
            assert result.objective >= tiny.optimum - 1e-9
