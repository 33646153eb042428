"""Every solver of expert caching where there is no storage, storage for all, or storage within rounding of a size."""

import numpy as np
import pytest

import edgeopt
from edgeopt.problems import Placement
from edgeopt.result import Exact
from edgeopt.solvers.expert_caching import SOLVERS
from tests.solvers.expert_caching.instances import TINY, instance
from tests.solvers.tiny import Tiny

FEW = ("greedy gadget", "two sizes", "unreachable", "K = 1, devices, two models", "K = 2, mix", "K = 3, max")
every_solver = pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: solver.name)


@every_solver
def test_bound_allows_for_the_tolerance_of_storage(solver):
    """A storage just below a whole number of units, within the tolerance of `violations`, holds those units."""
    tiny = instance("two sizes")
    problem = tiny.problem.replace(storage_bytes=[3.0 * (1 - 1e-13), 1.0])
    assert problem.is_feasible(tiny.best)
    assert edgeopt.solve(problem, solver).bound >= tiny.optimum - 1e-9


@every_solver
@pytest.mark.parametrize("name", FEW)
def test_no_storage_no_saving(solver, name: str):
    """Servers without storage save nothing: F(empty) = 0."""
    problem = instance(name).problem
    problem = problem.replace(storage_bytes=np.zeros(problem.num_servers))
    if solver.supports(problem) is None:
        result = edgeopt.solve(problem, solver)
        assert result.objective == 0.0
        assert result.solution.num_copies == 0
        assert result.feasible


@pytest.mark.sampled(6)
@every_solver
@pytest.mark.parametrize("tiny", TINY, ids=lambda tiny: tiny.name)
def test_all_storage_saves_all(solver, tiny: Tiny):
    """When everything fits everywhere, the full placement is optimal: no bound is below it, exact solvers find it."""
    problem = tiny.problem.replace(storage_bytes=np.full(tiny.problem.num_servers, 1e3))
    if solver.supports(problem) is None:
        everything = problem.objective(Placement(np.ones(tiny.best.cached.shape, bool)))
        result = edgeopt.solve(problem, solver)
        assert result.bound >= everything - 1e-9 * max(1.0, everything)
        assert result.objective <= everything + 1e-9
        if isinstance(solver.guarantee_for(problem), Exact):
            assert result.objective == pytest.approx(everything, abs=1e-9)
