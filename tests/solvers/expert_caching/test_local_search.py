"""Local search: never worse, a local optimum at the end, feasible, repeatable."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.problems import ExpertCaching, Placement
from edgeopt.solve import Run, SolveOptions
from edgeopt.solvers.expert_caching.common import fill_in_order
from edgeopt.solvers.expert_caching.groups import Groups
from edgeopt.solvers.expert_caching.local_search import descend, improve
from edgeopt.solvers.expert_caching.max_convolution import MaxConvolution
from edgeopt.stop import Limit, MaxIterations
from tests.solvers.expert_caching.instances import instance, random_problem
from tests.solvers.tiny import Tiny


def random_placement(problem: ExpertCaching, rng: np.random.Generator) -> np.ndarray:
    order = np.array([rng.permutation(problem.num_experts) for _ in range(problem.num_servers)])
    return fill_in_order(order, problem)


def run_on(problem: ExpertCaching, **options: object) -> Run[Placement]:
    return Run(MaxConvolution(), problem, SolveOptions(**options))  # type: ignore[arg-type]


@given(st.integers(0, 10_000), st.sampled_from(["sum", "max", "mix"]), st.sampled_from([(1.0,), (1.0, 3.0)]))
@settings(max_examples=40)
def test_never_worse(seed: int, latency: str, sizes: tuple) -> None:
    """From any feasible placement the result fits, is no worse, and is what the run was offered."""
    rng = np.random.default_rng(seed)
    problem = random_problem(rng, num_servers=3, experts=(6, 5), top_k=(2, 3), sizes=sizes, latency=latency, device=0.1)
    start = random_placement(problem, rng)
    with run_on(problem) as run:
        found = improve(run, Groups(problem), start, work=20_000, rounds=2)
    assert problem.is_feasible(Placement(found))
    value = problem.objective(Placement(found))
    assert value >= problem.objective(Placement(start)) - 1e-12
    assert run.objective == pytest.approx(value, abs=1e-12)
    run.result().raise_for_status()


@given(st.integers(0, 10_000), st.sampled_from(["max", "mix"]))
@settings(max_examples=25)
def test_descent_ends_where_no_addition_or_swap_gains(seed: int, latency: str) -> None:
    """Checked against the objective for every addition and every swap at one server."""
    rng = np.random.default_rng(seed)
    problem = random_problem(rng, num_servers=2, experts=(6,), top_k=2, latency=latency, device=0.1)
    with run_on(problem) as run:
        found = descend(run, Groups(problem), random_placement(problem, rng))
    value = problem.objective(Placement(found))
    for n in range(problem.num_servers):
        for enter in np.flatnonzero(~found[n]):
            for leave in (-1, *np.flatnonzero(found[n])):
                changed = found.copy()
                changed[n, enter] = True
                if leave >= 0:
                    changed[n, leave] = False
                if problem.is_feasible(Placement(changed)):
                    assert problem.objective(Placement(changed)) <= value + 1e-9


def test_finds_the_optimum_of_tiny_instances(tiny: Tiny) -> None:
    """From nothing, annealing alone ends within 1 % of the optimum."""
    problem = tiny.problem
    start = np.zeros((problem.num_servers, problem.num_experts), bool)
    with run_on(problem) as run:
        found = improve(run, Groups(problem), random_placement(problem, np.random.default_rng(0)), work=4e6)
    assert problem.objective(Placement(found)) >= 0.99 * tiny.optimum - 1e-12
    assert not start.any()


def test_same_seed_same_placement() -> None:
    """The seed of the run decides."""
    problem = instance("K = 3, max").problem
    found = []
    for seed in (1, 1):
        with run_on(problem, seed=seed) as run:
            found.append(improve(run, Groups(problem), random_placement(problem, np.random.default_rng(0)), work=5e4))
    np.testing.assert_array_equal(*found)


def test_limits_stop_it() -> None:
    """An iteration limit ends the search early, and the placement is kept."""
    problem = random_problem(
        np.random.default_rng(0), num_servers=3, num_users=6, experts=(12,), top_k=2, latency="max"
    )
    with run_on(problem, stop=MaxIterations(1)) as run:
        improve(run, Groups(problem), random_placement(problem, np.random.default_rng(1)), work=1e9)
    result = run.result()
    assert result.limit is Limit.ITERATION
    assert result.feasible
