"""Successive knapsacks: best responses, sweeps, the ratio 1/2."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgeopt
from edgeopt.errors import EdgeOptError
from edgeopt.problems import ExpertCaching, Placement
from edgeopt.result import Heuristic, Ratio
from edgeopt.solve import Run, SolveOptions
from edgeopt.solvers.expert_caching.facility import Facility
from edgeopt.solvers.expert_caching.successive import Successive, respond, sweep
from tests.solvers.expert_caching.instances import brute_force, instance, random_problem, savings

few = settings(max_examples=15)
seeds = st.integers(0, 2**32 - 1)
sizes = st.sampled_from([(1.0,), (1.0, 2.0), (0.7, math.pi)])


def problem_of(seed: int, size: tuple[float, ...]) -> ExpertCaching:
    """Return a random problem small enough to enumerate."""
    return random_problem(
        np.random.default_rng(seed), num_servers=2, num_users=5, experts=(4, 4), sizes=size, device=0.1, storage=0.4
    )


def new_run(problem: ExpertCaching) -> Run[Placement]:
    """Return a run to report to."""
    return Run(Successive(), problem, SolveOptions())


def best_response(problem: ExpertCaching, cached: np.ndarray, n: int) -> float:
    """Return the best objective over everything that server n can hold, the others as they are, by enumeration."""
    every = np.array(list(itertools.product([False, True], repeat=problem.num_experts)))
    every = every[every @ problem.expert_bytes <= problem.storage_bytes[n] * (1 + 1e-9)]
    placements = np.repeat(cached[None], len(every), axis=0)
    placements[:, n] = every
    return float(savings(problem, placements).max())


@few
@given(seeds, st.sampled_from([(1.0,), (1.0, 2.0)]))
def test_each_response_is_exact(seed: int, size: tuple[float, ...]) -> None:
    """A server's answer to any others is worth as much as the best of all sets that fit."""
    problem = problem_of(seed, size)
    facility = Facility.of(problem)
    cached = np.random.default_rng(seed).random((problem.num_servers, problem.num_experts)) < 0.3
    with new_run(problem) as run:
        for n in range(problem.num_servers):
            respond(run, facility, cached, [n])
            assert problem.objective(Placement(cached)) == pytest.approx(best_response(problem, cached, n), abs=1e-12)


@few
@given(seeds, sizes)
def test_sweeps_never_lose_and_end_stable(seed: int, size: tuple[float, ...]) -> None:
    """From a placement that fits, more sweeps are worth more; at their end no server answers differently.

    With exact units no server can then gain alone.
    """
    problem = problem_of(seed, size)
    facility = Facility.of(problem)
    cached = np.zeros((problem.num_servers, problem.num_experts), bool)
    worth = [0.0]
    with new_run(problem) as run:
        for _ in range(50):
            changed = respond(run, facility, cached, range(problem.num_servers))
            worth.append(problem.objective(Placement(cached)))
            assert problem.is_feasible(Placement(cached))
            if not changed:
                break
        sweep(run, facility, cached, 5)
        assert run.objective is None, "nothing is left to improve, so nothing is offered"
    assert not changed
    assert all(after >= before - 1e-12 for before, after in itertools.pairwise(worth))
    if facility.exact_units:
        for n in range(problem.num_servers):
            assert worth[-1] == pytest.approx(best_response(problem, cached, n), abs=1e-12)


@few
@given(seeds, sizes, st.integers(0, 2))
def test_half_of_the_optimum(seed: int, size: tuple[float, ...], max_sweeps: int) -> None:
    """At least half of the enumerated optimum where the ratio is claimed, without any sweep as well."""
    problem = problem_of(seed, size)
    optimum, _ = brute_force(problem)
    result = edgeopt.solve(problem, Successive(max_sweeps=max_sweeps))
    assert isinstance(result.guarantee, Ratio if size[0] == 1.0 else Heuristic)
    if isinstance(result.guarantee, Ratio):
        assert result.objective >= 0.5 * optimum - 1e-12
    assert result.bound >= optimum - 1e-12
    assert result.feasible


def test_no_constant_for_max() -> None:
    """Where every single expert gains nothing for ``max``, no ratio is claimed."""
    assert isinstance(Successive().guarantee_for(instance("max trap").problem), Heuristic)


@few
@given(seeds)
def test_warm_start_is_swept_too(seed: int) -> None:
    """The result is no worse than the given placement after best responses, nor than the run without it."""
    problem = problem_of(seed, (1.0, 2.0))
    cached = np.zeros((problem.num_servers, problem.num_experts), bool)
    cached[:, seed % problem.num_experts] = problem.storage_bytes >= problem.expert_bytes[seed % problem.num_experts]
    start = Placement(cached)
    swept = cached.copy()
    with new_run(problem) as run:
        sweep(run, Facility.of(problem), swept, 20)
    warm = edgeopt.solve(problem, Successive(), initial_solution=start)
    assert warm.objective >= problem.objective(Placement(swept)) - 1e-12
    assert warm.objective >= edgeopt.solve(problem, Successive()).objective - 1e-12
    assert np.array_equal(start.cached, cached), "the given placement is not changed"


def test_repairs_what_does_not_fit() -> None:
    """Servers that hold too much are brought under their storage, also when the run has been stopped already."""
    problem = problem_of(5, (1.0, 2.0))
    cached = np.ones((problem.num_servers, problem.num_experts), bool)
    with Run[Placement](Successive(), problem, SolveOptions(time_limit=0.0)) as run:
        assert run.stopped()
        assert respond(run, Facility.of(problem), cached, range(problem.num_servers))
    assert problem.is_feasible(Placement(cached))


def test_refuses_negative_sweeps() -> None:
    """A negative number of sweeps is an error that names it."""
    with pytest.raises(EdgeOptError, match="max_sweeps = -1"):
        Successive(max_sweeps=-1)
