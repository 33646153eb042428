"""What every solver of client selection must do, on every tiny instance."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

import edgeopt
from edgeopt.errors import InvalidProblemError, UnsupportedProblemError
from edgeopt.problems import SelectionPlan
from edgeopt.result import Exact, Ratio, Result, Status
from edgeopt.solve import configure
from edgeopt.solvers import get_solver, solvers_of
from edgeopt.solvers.client_selection import RlCrp
from edgeopt.solvers.client_selection.policy import cyclic_plan
from edgeopt.stop import Limit, MaxIterations
from tests.solvers.client_selection.instances import TINY, Instance, brute_force, instance
from tests.solvers.doubles import Foreign, Stop

KIND = "client-selection"
# what must hold does not depend on how long a solver learns
SOLVERS = tuple(
    configure(solver, iterations=2, episodes=2) if isinstance(solver, RlCrp) else solver for solver in solvers_of(KIND)
)
FEW = ("shared client", "one client, fail", "fail, regimes", "share, regimes")


def pairs(instances: Iterable[Instance]) -> list[Any]:
    """Return every solver with every instance that it supports."""
    return [
        pytest.param(solver, tiny, id=f"{solver.name}-{tiny.name}")
        for solver in SOLVERS
        for tiny in instances
        if solver.supports(tiny.problem) is None
    ]


on_every_pair = pytest.mark.parametrize(("solver", "tiny"), pairs(TINY))
on_few_pairs = pytest.mark.parametrize(("solver", "tiny"), pairs(instance(name) for name in FEW))
every_solver = pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: solver.name)


def check(result: Result[Any], tiny: Instance) -> None:
    """Check what holds for every result whatever ended the run."""
    assert result.status in (Status.OPTIMAL, Status.FEASIBLE), result.message
    assert result.feasible
    assert tiny.problem.violations(result.solution) == ()
    assert result.objective == tiny.problem.objective(result.solution)
    assert result.objective <= tiny.optimum + 1e-9
    assert result.bound >= tiny.optimum - 1e-9 * max(1.0, tiny.optimum)
    if result.status is Status.OPTIMAL:
        assert result.objective == pytest.approx(tiny.optimum, rel=1e-7, abs=1e-9)


def test_instances_have_their_derived_optimum(tiny):
    """The optimum derived by hand is the one found by enumeration, and the problem agrees on the best plan."""
    if tiny.derived is not None:
        assert tiny.optimum == pytest.approx(tiny.derived, abs=1e-12)
    assert tiny.problem.objective(tiny.best) == pytest.approx(tiny.optimum, abs=1e-12)


@on_every_pair
def test_result_and_guarantee(solver, tiny):
    """Feasible, objective as the problem computes it, bound not below the optimum, the run finishes by itself.

    Exact solvers prove the enumerated optimum; a ratio alpha means at least alpha times the optimum.
    """
    result = edgeopt.solve(tiny.problem, solver)
    check(result, tiny)
    assert result.limit is None
    assert result.solver == solver.name
    guarantee = solver.guarantee_for(tiny.problem)
    assert result.guarantee == guarantee
    if isinstance(guarantee, Exact):
        assert result.status is Status.OPTIMAL
    elif isinstance(guarantee, Ratio):
        assert result.objective >= guarantee.alpha * tiny.optimum - 1e-9


@on_few_pairs
def test_same_seed_same_plan(solver, tiny):
    """Two deterministic runs with one seed give the same plan and the same bound."""
    first, second = (edgeopt.solve(tiny.problem, solver, seed=7, deterministic=True) for _ in range(2))
    assert first.solution == second.solution
    assert first.bound == second.bound
    assert first.seed == 7


@on_few_pairs
def test_no_time_still_gives_a_result(solver, tiny):
    """A time limit of zero is no error: the best solution so far comes back."""
    result = edgeopt.solve(tiny.problem, solver, time_limit=0)
    check(result, tiny)
    assert result.limit is Limit.TIME or result.status is Status.OPTIMAL  # nothing to do, and proved by the certificate


@on_every_pair
def test_warm_start_is_never_worse(solver, tiny):
    """Starting from the optimum returns the optimum, starting from the first plan that comes at least its value."""
    result = edgeopt.solve(tiny.problem, solver, initial_solution=tiny.best)
    check(result, tiny)
    assert result.objective == pytest.approx(tiny.optimum, abs=1e-9)
    start = SelectionPlan(cyclic_plan(tiny.problem))
    result = edgeopt.solve(tiny.problem, solver, initial_solution=start)
    check(result, tiny)
    assert result.objective >= tiny.problem.objective(start)


@on_few_pairs
@pytest.mark.parametrize("event", ["best", "iteration"])
def test_callback_stops_the_run(solver, tiny, event):
    """A callback that returns False ends the run with its incumbent and the limit `callback`, and hears the end once."""
    callback = Stop(event)
    result = edgeopt.solve(tiny.problem, solver, callback=callback)
    check(result, tiny)
    assert callback.ended == 1
    if event == "best":  # not every solver iterates
        assert result.limit is Limit.CALLBACK


@on_few_pairs
@pytest.mark.parametrize("event", ["best", "iteration"])
def test_interrupt_keeps_the_incumbent(solver, tiny, event):
    """Ctrl-C inside the run, here raised by a callback, returns the incumbent with the limit `interrupt`."""
    callback = Stop(event, interrupt=True)
    result = edgeopt.solve(tiny.problem, solver, callback=callback)
    check(result, tiny)
    assert callback.ended == 1
    if event == "best":
        assert result.limit is Limit.INTERRUPT


def test_interrupt_at_the_warm_start():
    """Ctrl-C while the initial solution is evaluated returns it with the limit `interrupt`."""
    tiny, callback = instance("shared client"), Stop("best", interrupt=True)
    try:
        result = edgeopt.solve(tiny.problem, "random", initial_solution=tiny.best, callback=callback)
    except KeyboardInterrupt:  # pytest would take it for its own
        pytest.fail("the interrupt went through")
    assert result.limit is Limit.INTERRUPT


@on_few_pairs
def test_iteration_limit(solver, tiny):
    """A limit of one iteration is no error."""
    result = edgeopt.solve(tiny.problem, solver, stop=MaxIterations(1))
    check(result, tiny)
    assert result.limit in (Limit.ITERATION, None)


@every_solver
def test_refuses_other_problems(solver):
    """A foreign problem is refused with a sentence that names both kinds."""
    reason = solver.supports(Foreign())
    assert reason is not None
    assert "client-selection" in reason
    assert "foreign" in reason
    with pytest.raises(UnsupportedProblemError, match=solver.name):
        edgeopt.solve(Foreign(), solver)


@every_solver
def test_refuses_bad_initial_solutions(solver):
    """Warm starts of the wrong shape, type or coverage are refused before any work."""
    problem = instance("shared client").problem
    with pytest.raises(InvalidProblemError, match=r"picks: expected shape \[2, 2, any\], got \[3, 2, 1\]"):
        edgeopt.solve(problem, solver, initial_solution=SelectionPlan(np.zeros((3, 2, 1), int)))
    with pytest.raises(InvalidProblemError, match="expected a SelectionPlan"):
        edgeopt.solve(problem, solver, initial_solution=[[[0], [1]], [[0], [1]]])
    with pytest.raises(InvalidProblemError, match="round 1: server 1 picks client 0, which it does not cover"):
        edgeopt.solve(problem, solver, initial_solution=SelectionPlan([[[0], [1]], [[0], [0]]]))


@every_solver
def test_result_as_plain_values(solver):
    """`to_json` has the documented keys and never an infinite number."""
    document = edgeopt.solve(instance("shared client").problem, solver).to_json()
    wanted = {"problem", "solver", "seed", "sense", "status", "limit", "objective", "bound", "gap", "guarantee"}
    assert wanted | {"feasible", "seconds", "message"} == set(document)
    assert all(math.isfinite(value) for value in document.values() if isinstance(value, float))


@every_solver
def test_found_by_name(solver):
    """The name on the command line finds a solver of the same class."""
    assert type(get_solver(KIND, solver.name)) is type(solver)


def test_brute_force_refuses_large_problems():
    """The enumeration says when it is asked for too much."""
    with pytest.raises(ValueError, match="too many to enumerate"):
        brute_force(instance("fail, regimes").problem.replace(rounds=9))


def test_names_are_unique():
    """No two solvers share a name."""
    assert len({solver.name for solver in SOLVERS}) == len(SOLVERS)
