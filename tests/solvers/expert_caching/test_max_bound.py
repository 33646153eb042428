"""Bounds for ``max`` and ``mix``: above the optimum for any shares, and better than equal shares."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.problems import Placement
from edgeopt.solve import Run, SolveOptions
from edgeopt.solvers.expert_caching.facility import Facility, certificate
from edgeopt.solvers.expert_caching.groups import Groups
from edgeopt.solvers.expert_caching.max_bound import PriceBound, Shares, bound_max
from edgeopt.solvers.expert_caching.max_convolution import MaxConvolution
from edgeopt.solvers.kernels.facility import best_of
from edgeopt.solvers.kernels.subsets import subset_values
from tests.solvers.expert_caching.instances import brute_force, random_problem
from tests.solvers.tiny import Tiny


def facility_value(facility: Facility, cached: np.ndarray) -> float:
    return float((facility.weight * best_of(cached, facility.gain, facility.model)).sum())


@given(st.integers(0, 10_000), st.sampled_from(["sum", "max", "mix"]))
@settings(max_examples=50)
def test_any_shares_lie_above_the_objective(seed: int, latency: str) -> None:
    """For random scores and random placements the plain sum is never below the objective; equal for plain sums."""
    rng = np.random.default_rng(seed)
    problem = random_problem(
        rng, num_servers=3, experts=(6, 5), top_k=(2, 3), latency=latency, theta=rng.random(), device=0.3
    )
    shares = Shares(Groups(problem))
    facility = shares.facility(rng.normal(0, 3, shares.scores.shape))
    for _ in range(5):
        cached = rng.random((3, 11)) < rng.random()
        value = problem.objective(Placement(cached))
        above = facility_value(facility, cached)
        assert above >= value - 1e-12
        if latency == "sum":
            assert above == pytest.approx(value, abs=1e-12)


@given(st.integers(0, 10_000), st.sampled_from(["max", "mix"]))
@settings(max_examples=20)
def test_bounds_of_any_shares_hold(seed: int, latency: str) -> None:
    """Neither the Lagrangian bound nor the marginal certificate of any shares falls below the optimum."""
    rng = np.random.default_rng(seed)
    problem = random_problem(rng, experts=(6,), top_k=2, latency=latency, device=0.2)
    optimum, best = brute_force(problem)
    shares = Shares(Groups(problem))
    facility = shares.facility(rng.normal(0, 2, shares.scores.shape))
    assert PriceBound(target=optimum)(facility)[0] >= optimum - 1e-9
    assert certificate(problem, facility, best) >= optimum - 1e-9


def test_equal_shares_are_no_worse_than_the_facility_bound(tiny: Tiny) -> None:
    """Counting level by level, equal shares lie below the bounding facility form for every placement tried."""
    rng = np.random.default_rng(0)
    facility, above = Shares(Groups(tiny.problem)).facility(), Facility.of(tiny.problem, bound=True)
    for _ in range(10):
        cached = rng.random((tiny.problem.num_servers, tiny.problem.num_experts)) < 0.5
        assert facility_value(facility, cached) <= facility_value(above, cached) + 1e-12


def test_best_shares_bound_the_optimum(tiny: Tiny) -> None:
    """The bound after many updates holds, and is never worse than the first one."""
    with Run(MaxConvolution(), tiny.problem, SolveOptions()) as run:
        run.offer(tiny.best)
        groups = Groups(tiny.problem)
        first = bound_max(run, groups, iterations=1)
        last = bound_max(run, groups, iterations=40)
    assert tiny.optimum - 1e-9 <= last <= first + 1e-12


def test_shares_help() -> None:
    """On instances where equal shares are loose, updates close part of the gap to the integer optimum."""
    closed = []
    for seed in range(6):
        problem = random_problem(
            np.random.default_rng(seed), num_servers=2, num_users=4, experts=(8,), top_k=3, latency="max"
        )
        optimum, best = brute_force(problem)
        with Run(MaxConvolution(), problem, SolveOptions()) as run:
            run.offer(best)
            groups = Groups(problem)
            first, last = bound_max(run, groups, iterations=1), bound_max(run, groups, iterations=100)
        if first > optimum * 1.01:
            closed.append((first - last) / (first - optimum))
    assert closed
    assert np.mean(closed) > 0.15


def test_subset_values_are_the_facility_values() -> None:
    """Every entry of the table is the value of caching one expert at that set of servers."""
    rng = np.random.default_rng(0)
    weight, gain = rng.random((3, 4)), np.maximum(0, rng.normal(size=(2, 4, 3)))
    model = np.array([0, 1, 1])
    table = subset_values(weight, gain, model)
    for mask in range(8):
        held = [n for n in range(3) if mask >> n & 1]
        best = gain[model][:, :, held].max(axis=2, initial=0.0)
        np.testing.assert_allclose(table[:, mask], (weight * best).sum(axis=1), atol=1e-12)
