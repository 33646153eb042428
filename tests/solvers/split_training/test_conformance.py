"""What every solver of split training must do, on every tiny instance."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

import edgeopt
from edgeopt.errors import InvalidProblemError, UnsupportedProblemError
from edgeopt.problems import SplitPlan
from edgeopt.result import Exact, Result, Status
from edgeopt.solvers import get_solver, solvers_of
from edgeopt.stop import Limit, MaxIterations
from tests.solvers.doubles import Foreign, Stop
from tests.solvers.split_training.instances import TINY, Instance, instance

KIND = "split-training"
SOLVERS = solvers_of(KIND)
FEW = ("interval against drift", "memory forbids the fast cut", "any 39", "varied 13")


def pairs(instances: Iterable[Instance]) -> list[Any]:
    """Return every solver with every instance."""
    return [pytest.param(solver, tiny, id=f"{solver.name}-{tiny.name}") for solver in SOLVERS for tiny in instances]


on_every_pair = pytest.mark.parametrize(("solver", "tiny"), pairs(TINY))
on_few_pairs = pytest.mark.parametrize(("solver", "tiny"), pairs(instance(name) for name in FEW))
every_solver = pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: solver.name)


def check(result: Result[Any], tiny: Instance) -> None:
    """Check what holds for every result whatever ended the run."""
    assert result.status in (Status.OPTIMAL, Status.FEASIBLE), result.message
    assert result.feasible
    assert tiny.problem.violations(result.solution) == ()
    assert result.objective == tiny.problem.objective(result.solution)
    assert result.objective >= tiny.optimum * (1 - 1e-9)
    assert result.bound <= tiny.optimum * (1 + 1e-9)
    if result.status is Status.OPTIMAL:
        assert result.objective == pytest.approx(tiny.optimum, rel=1e-7)


def test_instances_have_their_derived_optimum(tiny: Instance):
    """The optimum derived by hand is the one found by enumeration, and the problem agrees on the best plan."""
    if tiny.derived is not None:
        assert tiny.optimum == pytest.approx(tiny.derived, rel=1e-12)
    assert tiny.problem.objective(tiny.best) == pytest.approx(tiny.optimum, rel=1e-12)
    assert tiny.problem.is_feasible(tiny.best)


@on_every_pair
def test_result_and_guarantee(solver: Any, tiny: Instance):
    """Feasible, objective as the problem computes it, bound not above the optimum, the run finishes by itself.

    Exact solvers prove the enumerated optimum.
    """
    result = edgeopt.solve(tiny.problem, solver)
    check(result, tiny)
    assert result.limit is None
    assert result.solver == solver.name
    guarantee = solver.guarantee_for(tiny.problem)
    assert result.guarantee == guarantee
    if isinstance(guarantee, Exact):
        assert result.status is Status.OPTIMAL


@on_few_pairs
def test_same_seed_same_plan(solver: Any, tiny: Instance):
    """Two deterministic runs with one seed give the same plan and the same bound."""
    first, second = (edgeopt.solve(tiny.problem, solver, seed=7, deterministic=True) for _ in range(2))
    assert first.solution == second.solution
    assert first.bound == second.bound
    assert first.seed == 7


@on_few_pairs
def test_no_time_still_gives_a_result(solver: Any, tiny: Instance):
    """A time limit of zero is no error: the best plan so far comes back."""
    result = edgeopt.solve(tiny.problem, solver, time_limit=0)
    check(result, tiny)
    assert result.limit is Limit.TIME or result.status is Status.OPTIMAL


@on_every_pair
def test_warm_start_is_never_worse(solver: Any, tiny: Instance):
    """Starting from the optimum returns the optimum, starting from the largest batches at cut 1 at least their value."""
    result = edgeopt.solve(tiny.problem, solver, initial_solution=tiny.best)
    check(result, tiny)
    assert result.objective == pytest.approx(tiny.optimum, rel=1e-12)
    start = SplitPlan(
        batch_size=tiny.problem.batch_limit[:, 0],
        cut_layer=np.ones(tiny.problem.num_devices, int),
        aggregation_interval=tiny.problem.min_interval,
    )
    result = edgeopt.solve(tiny.problem, solver, initial_solution=start)
    check(result, tiny)
    assert result.objective <= tiny.problem.objective(start)


@on_few_pairs
@pytest.mark.parametrize("event", ["best", "iteration"])
def test_callback_stops_the_run(solver: Any, tiny: Instance, event: str):
    """A callback that returns False ends the run with its incumbent and the limit `callback`, and hears the end once."""
    callback = Stop(event)
    result = edgeopt.solve(tiny.problem, solver, callback=callback)
    check(result, tiny)
    assert callback.ended == 1
    if event == "best":  # an exact solver may finish without an iteration
        assert result.limit is Limit.CALLBACK


@on_few_pairs
@pytest.mark.parametrize("event", ["best", "iteration"])
def test_interrupt_keeps_the_incumbent(solver: Any, tiny: Instance, event: str):
    """Ctrl-C inside the run, here raised by a callback, returns the incumbent with the limit `interrupt`."""
    callback = Stop(event, interrupt=True)
    result = edgeopt.solve(tiny.problem, solver, callback=callback)
    check(result, tiny)
    assert callback.ended == 1
    if event == "best":
        assert result.limit is Limit.INTERRUPT


@on_few_pairs
def test_iteration_limit(solver: Any, tiny: Instance):
    """A limit of one iteration is no error."""
    result = edgeopt.solve(tiny.problem, solver, stop=MaxIterations(1))
    check(result, tiny)
    assert result.limit in (Limit.ITERATION, None)


@every_solver
def test_unreachable_target_is_infeasible(solver: Any):
    """Every solver says that a target is out of reach, which term is to blame and what would be feasible."""
    problem = instance("varied 13").problem
    result = edgeopt.solve(problem.replace(target=0.9 * problem.least_target), solver)
    assert result.status is Status.INFEASIBLE
    assert result.solution is None
    assert "is to blame" in result.message
    assert "expected a target of at least" in result.message


@every_solver
def test_target_just_in_reach(solver: Any):
    """A target just above the least one leaves only the largest batches at cut 1, which every solver returns."""
    problem = instance("varied 13").problem
    result = edgeopt.solve(problem.replace(target=problem.least_target * (1 + 1e-6)), solver)
    assert result.feasible, result.message
    assert np.array_equal(result.solution.batch_size, problem.batch_limit[:, 0])
    assert result.solution.deepest_cut == 1


@every_solver
def test_refuses_other_problems(solver: Any):
    """A foreign problem is refused with a sentence that names both kinds."""
    reason = solver.supports(Foreign())
    assert reason is not None
    assert "split-training" in reason
    assert "foreign" in reason
    with pytest.raises(UnsupportedProblemError, match=solver.name):
        edgeopt.solve(Foreign(), solver)


@every_solver
def test_refuses_bad_initial_solutions(solver: Any):
    """Warm starts of the wrong shape, type, cut or batch size are refused before any work."""
    problem = instance("any 39").problem
    with pytest.raises(InvalidProblemError, match=r"expected shape \[3\], got \[2\]"):
        edgeopt.solve(problem, solver, initial_solution=SplitPlan(batch_size=[1, 1], cut_layer=[1, 1]))
    with pytest.raises(InvalidProblemError, match="expected a SplitPlan"):
        edgeopt.solve(problem, solver, initial_solution=[1, 1, 1])
    with pytest.raises(InvalidProblemError, match=r"cut_layer\[2\] = 3: expected an integer from 1 to 2"):
        edgeopt.solve(problem, solver, initial_solution=SplitPlan(batch_size=[1] * 3, cut_layer=[1, 1, 3]))
    with pytest.raises(InvalidProblemError, match=r"batch_size\[0\] = 99"):
        edgeopt.solve(problem, solver, initial_solution=SplitPlan(batch_size=[99, 1, 1], cut_layer=[1] * 3))


@every_solver
def test_result_as_plain_values(solver: Any):
    """`to_json` has the documented keys and never an infinite number."""
    document = edgeopt.solve(instance("any 39").problem, solver).to_json()
    wanted = {"problem", "solver", "seed", "sense", "status", "limit", "objective", "bound", "gap", "guarantee"}
    assert wanted | {"feasible", "seconds", "message"} == set(document)
    assert all(math.isfinite(value) for value in document.values() if isinstance(value, float))


@every_solver
def test_found_by_name(solver: Any):
    """The name on the command line finds a solver of the same class."""
    assert type(get_solver(KIND, solver.name)) is type(solver)


def test_names():
    """The solvers and their order on the command line."""
    names = "hasfl exact batch-only cut-only adaptsfl fixed random-batch random-cut"
    assert [solver.name for solver in SOLVERS] == names.split()
