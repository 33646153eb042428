"""What every solver of model download must do, on every tiny instance."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

import edgeopt
from edgeopt.errors import InvalidProblemError, UnsupportedProblemError
from edgeopt.problems import DownloadPlan, ExpertCaching
from edgeopt.result import Exact, Result, Status
from edgeopt.solvers import get_solver, solvers_of
from edgeopt.stop import Limit, MaxIterations
from tests.solvers.doubles import Stop
from tests.solvers.model_download.instances import TINY, Instance, brute_force, instance

KIND = "model-download"
SOLVERS = solvers_of(KIND)
FEW = ("one large", "energy", "concave, blocks, rewards", "levels and energy")


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
    assert tiny.problem.violations(tiny.best) == ()
    assert tiny.problem.objective(tiny.best) == pytest.approx(tiny.optimum, abs=1e-12)


@on_every_pair
def test_result_and_guarantee(solver, tiny):
    """Feasible, objective as the problem computes it, bound not below the optimum, the run finishes by itself.

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
    assert result.limit in (Limit.TIME, None)  # solvers that are done at once do not look at the clock


@on_few_pairs
def test_warm_start_is_never_worse(solver, tiny):
    """Starting from the optimum returns the optimum."""
    result = edgeopt.solve(tiny.problem, solver, initial_solution=tiny.best)
    check(result, tiny)
    assert result.objective == pytest.approx(tiny.optimum, abs=1e-9)


@on_few_pairs
@pytest.mark.parametrize("event", ["best", "iteration"])
@pytest.mark.parametrize("interrupt", [False, True], ids=["stop", "Ctrl-C"])
def test_stopping_keeps_the_incumbent(solver, tiny, event, interrupt):
    """A callback that returns False, or Ctrl-C raised by one, ends the run with its incumbent and the right limit."""
    callback = Stop(event, interrupt=interrupt)
    result = edgeopt.solve(tiny.problem, solver, callback=callback)
    check(result, tiny)
    assert callback.ended == 1
    if event == "best":  # not every solver iterates
        assert result.limit is (Limit.INTERRUPT if interrupt else Limit.CALLBACK)


@on_few_pairs
def test_iteration_limit(solver, tiny):
    """A limit of one iteration is no error."""
    result = edgeopt.solve(tiny.problem, solver, stop=MaxIterations(1))
    check(result, tiny)
    assert result.limit in (Limit.ITERATION, None)


@every_solver
def test_everybody_can_be_refused(solver):
    """If no user is allowed any model, all are refused: an objective of zero, and no error."""
    problem = instance("plain").problem
    problem = problem.replace(task=np.full(problem.num_users, 9))
    if (reason := solver.supports(problem)) is not None:
        pytest.skip(reason)
    result = edgeopt.solve(problem, solver)
    assert result.objective == 0.0
    assert result.solution.num_admitted == 0
    assert result.feasible


@on_few_pairs
def test_a_wider_band_is_no_worse(solver, tiny):
    """With a hundred times the band, results stay feasible and bounds valid, and exact solvers lose nothing."""
    problem = tiny.problem.replace(bandwidth_hz=100 * tiny.problem.bandwidth_hz)
    if (reason := solver.supports(problem)) is not None:
        pytest.skip(reason)
    result = edgeopt.solve(problem, solver)
    assert result.feasible
    assert result.bound >= tiny.optimum - 1e-9
    if isinstance(solver.guarantee_for(problem), Exact):
        assert result.objective >= tiny.optimum - 1e-9


@every_solver
def test_refuses_other_problems(solver):
    """A problem of another kind is refused with a sentence that names both kinds."""
    foreign = ExpertCaching.from_facility(gain=[[1.0]], weight=[[1.0]], size=[1], capacity=[1])
    reason = solver.supports(foreign)
    assert reason is not None
    assert "model-download" in reason
    assert "expert-caching" in reason
    with pytest.raises(UnsupportedProblemError, match=solver.name):
        edgeopt.solve(foreign, solver)


@every_solver
def test_refuses_bad_initial_solutions(solver):
    """Warm starts of the wrong shape or type, or that break a limit, are refused before any work."""
    problem = instance("exactly the band").problem
    with pytest.raises(InvalidProblemError, match=r"model: expected shape \[2\], got \[3\]"):
        edgeopt.solve(problem, solver, initial_solution=DownloadPlan.refuse_all(3))
    with pytest.raises(InvalidProblemError, match="expected a DownloadPlan"):
        edgeopt.solve(problem, solver, initial_solution=[0, 0])
    greedy = DownloadPlan(model=[0, 0], bandwidth_hz=[8.0, 8.0], frequency_hz=[1.0] * 4)
    with pytest.raises(InvalidProblemError, match="users get 16 Hz, the bandwidth is 8"):
        edgeopt.solve(problem, solver, initial_solution=greedy)


@every_solver
def test_result_as_plain_values(solver):
    """`to_json` has the documented keys and never an infinite number; the solution reads back."""
    problem = instance("exactly the band").problem
    result = edgeopt.solve(problem, solver)
    document = result.to_json()
    wanted = {"problem", "solver", "seed", "sense", "status", "limit", "objective", "bound", "gap", "guarantee"}
    assert wanted | {"feasible", "seconds", "message"} == set(document)
    assert all(math.isfinite(value) for value in document.values() if isinstance(value, float))
    assert problem.solution_from_json(result.solution.to_json()) == result.solution


@every_solver
def test_found_by_name(solver):
    """The name on the command line finds a solver of the same class."""
    assert type(get_solver(KIND, solver.name)) is type(solver)


def test_brute_force_refuses_large_problems():
    """The enumeration says when it is asked for too much."""
    with pytest.raises(ValueError, match="too many to enumerate"):
        brute_force(instance("exactly the band").problem.random(num_users=20))


def test_names_are_unique():
    """No two solvers share a name."""
    assert len({solver.name for solver in SOLVERS}) == len(SOLVERS)
