"""What every solver of expert caching must do, on every tiny instance."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

import edgeopt
from edgeopt.errors import InvalidProblemError, UnsupportedProblemError
from edgeopt.problems import Placement
from edgeopt.result import Exact, Ratio, Result, Status
from edgeopt.solvers import get_solver, solvers_of
from edgeopt.stop import Limit, MaxIterations
from tests.solvers.doubles import Foreign, Stop
from tests.solvers.expert_caching.instances import TINY, Instance, brute_force, instance

KIND = "expert-caching"
SOLVERS = solvers_of(KIND)
FEW = ("greedy gadget", "two sizes", "unreachable", "K = 1, devices, two models", "K = 2, mix", "K = 3, max")


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
    """The optimum derived by hand is the one found by enumeration, and the problem agrees on the best placement."""
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
def test_same_seed_same_placement(solver, tiny):
    """Two deterministic runs with one seed give the same placement and the same bound."""
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
    """Starting from the optimum returns the optimum, starting from one cached expert at least its value."""
    result = edgeopt.solve(tiny.problem, solver, initial_solution=tiny.best)
    check(result, tiny)
    assert result.objective == pytest.approx(tiny.optimum, abs=1e-9)
    start = one_expert(tiny)
    result = edgeopt.solve(tiny.problem, solver, initial_solution=start)
    check(result, tiny)
    assert result.objective >= tiny.problem.objective(start)


def one_expert(tiny: Instance) -> Placement:
    """Return a placement of one expert on the server with the most storage, if it fits."""
    cached = np.zeros(tiny.best.cached.shape, bool)
    server = int(tiny.problem.storage_bytes.argmax())
    cached[server, 0] = tiny.problem.expert_bytes[0] <= tiny.problem.storage_bytes[server]
    return Placement(cached)


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
    tiny, callback = instance("greedy gadget"), Stop("best", interrupt=True)
    try:
        result = edgeopt.solve(tiny.problem, "greedy", initial_solution=tiny.best, callback=callback)
    except KeyboardInterrupt:  # pytest would take it for its own
        pytest.fail("the interrupt went through")
    assert result.limit is Limit.INTERRUPT


@every_solver
def test_bound_allows_for_the_tolerance_of_storage(solver):
    """A storage just below a whole number of units, within the tolerance of `violations`, holds those units."""
    tiny = instance("two sizes")
    problem = tiny.problem.replace(storage_bytes=[3.0 * (1 - 1e-13), 1.0])
    assert problem.is_feasible(tiny.best)
    assert edgeopt.solve(problem, solver).bound >= tiny.optimum - 1e-9


@on_few_pairs
def test_iteration_limit(solver, tiny):
    """A limit of one iteration is no error."""
    result = edgeopt.solve(tiny.problem, solver, stop=MaxIterations(1))
    check(result, tiny)
    assert result.limit in (Limit.ITERATION, None)


@on_few_pairs
def test_no_storage_no_saving(solver, tiny):
    """Servers without storage save nothing: F(empty) = 0."""
    problem = tiny.problem.replace(storage_bytes=np.zeros(tiny.problem.num_servers))
    result = edgeopt.solve(problem, solver)
    assert result.objective == 0.0
    assert result.solution.num_copies == 0
    assert result.feasible


@on_every_pair
def test_all_storage_saves_all(solver, tiny):
    """When everything fits everywhere, the full placement is optimal: no bound is below it, exact solvers find it."""
    problem = tiny.problem.replace(storage_bytes=np.full(tiny.problem.num_servers, 1e3))
    everything = problem.objective(Placement(np.ones(tiny.best.cached.shape, bool)))
    result = edgeopt.solve(problem, solver)
    assert result.bound >= everything - 1e-9 * max(1.0, everything)
    assert result.objective <= everything + 1e-9
    if isinstance(solver.guarantee_for(problem), Exact):
        assert result.objective == pytest.approx(everything, abs=1e-9)


@every_solver
def test_refuses_other_problems(solver):
    """A foreign problem is refused with a sentence that names both kinds."""
    reason = solver.supports(Foreign())
    assert reason is not None
    assert "expert-caching" in reason
    assert "foreign" in reason
    with pytest.raises(UnsupportedProblemError, match=solver.name):
        edgeopt.solve(Foreign(), solver)


@every_solver
def test_refuses_bad_initial_solutions(solver):
    """Warm starts of the wrong shape, type or size are refused before any work."""
    problem = instance("greedy gadget").problem
    with pytest.raises(InvalidProblemError, match=r"expected shape \[2, 2\], got \[3, 2\]"):
        edgeopt.solve(problem, solver, initial_solution=Placement(np.zeros((3, 2), bool)))
    with pytest.raises(InvalidProblemError, match="expected a Placement"):
        edgeopt.solve(problem, solver, initial_solution=[[True, False], [False, False]])
    with pytest.raises(InvalidProblemError, match="server 0 holds 2 bytes of experts, its storage is 1"):
        edgeopt.solve(problem, solver, initial_solution=Placement([[True, True], [False, False]]))


@every_solver
def test_result_as_plain_values(solver):
    """`to_json` has the documented keys and never an infinite number."""
    document = edgeopt.solve(instance("greedy gadget").problem, solver).to_json()
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
        brute_force(instance("greedy gadget").problem.from_facility(np.ones((1, 5)), np.ones((1, 5)), 1, np.ones(5)))


def test_names_are_unique():
    """No two solvers share a name."""
    assert len({solver.name for solver in SOLVERS}) == len(SOLVERS)
