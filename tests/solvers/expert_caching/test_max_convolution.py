"""`max-convolution`: one server exactly, the trap of pure ``max``, and its guarantee."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgeopt
from edgeopt.errors import EdgeOptError
from edgeopt.problems import Placement
from edgeopt.result import Heuristic, Ratio
from edgeopt.solvers.expert_caching.groups import Groups
from edgeopt.solvers.expert_caching.max_convolution import MaxConvolution, best_response
from tests.solvers.expert_caching.instances import TINY, brute_force, instance, random_problem
from tests.solvers.tiny import Tiny

PLAIN = MaxConvolution(surrogates=(), search_work=0, bound_steps=0)
SHAPES = [((8,), 2, 1), ((8,), 2, 2), ((4, 5), (2, 3), 1), ((4, 5), (1, 2), 1), ((9,), 4, 1)]


@given(
    st.integers(0, 10_000), st.sampled_from(["sum", "max", "mix"]), st.sampled_from(SHAPES),
    st.sampled_from([(1.0,), (2.0, 3.0)]),
)  # fmt: skip
@settings(max_examples=60)
def test_one_server_is_solved_exactly(seed: int, latency: str, shape: tuple, sizes: tuple) -> None:
    """The convolution equals brute force; envelopes give at least half of it; both state the value they place."""
    problem = random_problem(
        np.random.default_rng(seed), num_servers=1, experts=shape[0], top_k=shape[1], num_layers=shape[2],
        sizes=sizes, latency=latency, device=0.2,
    )  # fmt: skip
    optimum, _ = brute_force(problem)
    cached = np.zeros((1, problem.num_experts), bool)
    groups = Groups(problem)
    for profiles, share in (("exact", 1.0), ("envelope", 0.5)):
        value, chosen, now = best_response(groups, cached, 0, profiles)  # type: ignore[arg-type]
        assert now == 0
        placement = Placement(chosen[None])
        assert problem.is_feasible(placement)
        assert problem.objective(placement) == pytest.approx(value, abs=1e-12)
        assert value >= share * optimum - 1e-12


def test_response_states_the_value_of_what_is_there_now() -> None:
    """The value now is the difference that the server's experts make."""
    for seed in range(8):
        rng = np.random.default_rng(seed)
        problem = random_problem(rng, num_servers=3, experts=(6, 4), top_k=(2, 1), latency="mix", storage=2.0)
        cached = rng.random((3, 10)) < 0.4
        without = cached.copy()
        without[1] = False
        worth = problem.objective(Placement(cached)) - problem.objective(Placement(without))
        assert best_response(Groups(problem), cached, 1)[2] == pytest.approx(worth, abs=1e-12)


def test_the_trap_of_pure_max() -> None:
    """Alone no placement gains, so plain succession finds nothing; the surrogate finds the optimum."""
    trap = instance("max trap")
    assert edgeopt.solve(trap.problem, PLAIN).objective == 0
    with_surrogate = MaxConvolution(search_work=0)
    assert edgeopt.solve(trap.problem, with_surrogate).objective == pytest.approx(trap.optimum)
    result = edgeopt.solve(trap.problem, MaxConvolution())
    assert result.objective == pytest.approx(trap.optimum)
    assert isinstance(result.guarantee, Heuristic)
    assert "r = 0" in result.guarantee.source


def test_tiny_instances(tiny: Tiny) -> None:
    """Optimal on nearly every tiny instance, never below 99 %, and the bound holds."""
    result = edgeopt.solve(tiny.problem, MaxConvolution(search_work=1e6))
    assert tiny.optimum <= result.bound * (1 + 1e-9) + 1e-12
    if tiny.problem.is_modular_per_set:
        assert result.objective >= tiny.optimum / 2 - 1e-12
    else:
        assert result.objective >= 0.99 * tiny.optimum - 1e-12


@given(st.integers(0, 10_000), st.sampled_from(["exact", "envelope"]))
@settings(max_examples=30)
def test_ratio_for_modular_sets(seed: int, profiles: str) -> None:
    """Without sweeps, at least the guaranteed share of the optimum for K = 1 and latency sum."""
    rng = np.random.default_rng(seed)
    top_k = int(rng.integers(1, 3))
    problem = random_problem(rng, num_servers=3, num_users=4, experts=(5,), top_k=top_k, device=0.1)
    solver = MaxConvolution(profiles=profiles, max_sweeps=0)  # type: ignore[arg-type]
    guarantee = solver.guarantee_for(problem)
    result = edgeopt.solve(problem, solver)
    optimum, _ = brute_force(problem)
    if isinstance(guarantee, Ratio):
        assert result.objective >= guarantee.alpha * optimum - 1e-12
    assert result.bound >= optimum - 1e-12


def test_same_seed_same_result() -> None:
    """The search is cut by work, not by the clock."""
    problem = random_problem(
        np.random.default_rng(3), num_servers=4, num_users=8, experts=(20,), num_layers=2, top_k=3, latency="max"
    )
    solver = MaxConvolution(search_work=2e6, bound_steps=2)
    one, two = (edgeopt.solve(problem, solver, seed=5) for _ in range(2))
    assert one.solution == two.solution
    assert one.bound == two.bound


def test_bad_parameters() -> None:
    """Messages name the field."""
    for name, value in (("profiles", "convex"), ("surrogates", (-1.0,)), ("search_work", -1), ("max_sweeps", -1)):
        with pytest.raises(EdgeOptError, match=name):
            MaxConvolution(**{name: value})


def test_every_tiny_instance_is_covered() -> None:
    """There are joint instances with devices and with two models among the tiny ones."""
    assert sum(not one.problem.is_modular_per_set for one in TINY) >= 6
