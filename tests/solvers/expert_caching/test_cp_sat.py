"""CP-SAT against enumeration and HiGHS; its integer objective."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgeopt
from edgeopt.errors import EdgeOptError, UnsupportedProblemError
from edgeopt.problems import ExpertCaching
from edgeopt.result import Exact, Heuristic, Status
from edgeopt.solvers.expert_caching.cp_sat import RELATIVE_ERROR, CpSat, build_cp_model, integer_objective
from edgeopt.solvers.expert_caching.exact import whole_sizes
from edgeopt.solvers.expert_caching.milp import Milp
from tests.solvers.expert_caching.instances import brute_force, instance
from tests.solvers.expert_caching.test_milp import any_problem, few, seeds


@given(seeds)
@few
def test_agrees_with_enumeration_and_highs(seed):
    """Both exact solvers prove the enumerated optimum, up to CP-SAT's rounding."""
    problem = any_problem(seed)
    problem = problem.replace(storage_bytes=np.floor(problem.storage_bytes))
    optimum, _ = brute_force(problem)
    for solver in (CpSat(workers=1), CpSat(greedy_start=False)):
        result = edgeopt.solve(problem, solver)
        assert result.status is Status.OPTIMAL, result.message
        assert result.objective == pytest.approx(optimum, rel=1e-7, abs=1e-12)
    assert edgeopt.solve(problem, Milp()).objective == pytest.approx(optimum, rel=1e-7, abs=1e-12)


@given(st.lists(st.floats(1e-12, 1e6), min_size=1, max_size=200), seeds)
@settings(max_examples=100)
def test_rounding_error_is_a_bound(values, seed):
    """Integer objective / scale + error is never below the real one, and the error keeps its promise."""
    value = np.array(values)
    integers = integer_objective(value)
    rng = np.random.default_rng(seed)
    for y in (rng.random(value.size) < 0.5, np.ones(value.size, bool), integers.coefficient / integers.scale < value):
        assert integers.coefficient @ y / integers.scale + integers.error >= value @ y * (1 - 1e-12)
    assert integers.error <= RELATIVE_ERROR * value.max() * (1 + 1e-6)
    assert 0 <= integers.coefficient.sum() < 2**53


def test_many_small_terms_keep_to_the_range():
    """Where the promise would need integers that are too large, the error grows and is still reported."""
    value = np.append(np.full(2**20, 1.0), 1.0)
    integers = integer_objective(value / 3)
    assert integers.coefficient.sum() <= 2**52 * (1 + 1e-9)
    assert integers.coefficient.sum() / integers.scale + integers.error >= value.sum() / 3 * (1 - 1e-12)


def test_bound_holds_while_it_runs():
    """Every bound in the history is above the optimum."""
    problem = any_problem(3, pairs=14)
    problem = problem.replace(storage_bytes=np.floor(problem.storage_bytes))
    optimum, _ = brute_force(problem)
    result = edgeopt.solve(problem, CpSat(greedy_start=False))
    assert all(record.bound is None or record.bound >= optimum * (1 - 1e-12) for record in result.history)


def test_whole_sizes_stay_exact():
    """Sizes in bytes are divided by their common divisor only, however many units remain."""
    problem = ExpertCaching.from_facility([[1.0]], [[1.0, 1.0]], [3.0e9, 4.5e9 + 3], [7.5e9])
    units, capacity, exact = whole_sizes(problem)
    assert exact
    assert (units.tolist(), capacity.tolist()) == ([10**9, 1_500_000_001], [2_500_000_000])
    assert isinstance(CpSat().guarantee_for(problem), Exact)


def test_real_sizes_claim_nothing():
    """Sizes rounded to a grid give a feasible solution without a claim of optimality or a bound of CP-SAT."""
    problem = instance("K = 1, real sizes").problem
    result = edgeopt.solve(problem, CpSat(greedy_start=False))
    assert isinstance(result.guarantee, Heuristic)
    assert result.status is Status.FEASIBLE
    assert result.feasible
    assert result.bound == np.inf


def test_model_has_hints_from_the_start():
    """The model carries one hint per variable of the starting placement, worth its objective."""
    tiny = instance("K = 3, mix")
    model = build_cp_model(tiny.problem, tiny.best)
    proto = model.model.proto
    assert len(proto.solution_hint.vars) == len(model.variables)
    worth = dict(zip(proto.objective.vars, proto.objective.coeffs, strict=True))  # CP-SAT minimises
    value = -sum(
        worth.get(variable, 0) * hint
        for variable, hint in zip(proto.solution_hint.vars, proto.solution_hint.values, strict=True)
    )
    assert value / model.objective_scale == pytest.approx(tiny.optimum, abs=model.rounding_error + 1e-9)


def test_refuses_large_models():
    """A model beyond the limit is refused with both numbers."""
    problem = instance("K = 2, mix").problem
    with pytest.raises(UnsupportedProblemError, match=r"may have \d+ nonzeros, expected at most max_nonzeros = 10$"):
        edgeopt.solve(problem, CpSat(max_nonzeros=10))


@pytest.mark.parametrize("field", ["workers", "max_nonzeros"])
def test_fields_are_checked(field):
    """Hyper-parameters below one are refused by name."""
    with pytest.raises(EdgeOptError, match=f"{field} = 0: expected an integer >= 1"):
        CpSat(**{field: 0})
