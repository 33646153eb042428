"""Groups of experts: values, gains, losses and options against the problem's own objective."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.problems import ExpertCaching, Placement
from edgeopt.solvers.expert_caching import groups as module
from edgeopt.solvers.expert_caching.groups import Cover, Groups
from tests.solvers.expert_caching.instances import random_problem

MODES = st.sampled_from(["sum", "max", "mix"])


@st.composite
def problems(draw: st.DrawFn) -> ExpertCaching:
    """Draw a small problem of any mode with devices, several models and unequal sizes."""
    shape = draw(st.sampled_from([((5,), 2, 1), ((6,), 2, 2), ((5, 4), (1, 3), 1), ((7,), 4, 1)]))
    return random_problem(
        np.random.default_rng(draw(st.integers(0, 10_000))), num_servers=draw(st.integers(1, 4)), num_users=3,
        experts=shape[0], top_k=shape[1], num_layers=shape[2], sizes=draw(st.sampled_from([(1.0,), (1.0, 3.0)])),
        latency=draw(MODES), theta=draw(st.sampled_from([0.0, 0.4, 1.0])), device=draw(st.sampled_from([0.0, 0.3])),
    )  # fmt: skip


def value(problem: ExpertCaching, cached: np.ndarray) -> float:
    return problem.objective(Placement(cached))


@given(problems(), st.integers(0, 10_000))
@settings(max_examples=60)
def test_gains_and_losses_are_differences_of_the_objective(problem: ExpertCaching, seed: int) -> None:
    """Every single change is worth the difference of the objective, also after many changes in place."""
    rng = np.random.default_rng(seed)
    cached = rng.random((problem.num_servers, problem.num_experts)) < 0.4
    cover = Cover(Groups(problem), cached)
    for _ in range(8):
        e, n = int(rng.integers(problem.num_experts)), int(rng.integers(problem.num_servers))
        if not cover.cached[n, e]:
            cover.move(e, enter=n)
        else:
            other = int(rng.integers(problem.num_servers))
            cover.move(e, leave=n, enter=-1 if cover.cached[other, e] else other)
    cover.refresh()
    fresh = Cover(cover.groups, cover.cached)
    np.testing.assert_array_equal(cover.level, fresh.level)
    np.testing.assert_array_equal(cover.second, fresh.second)
    np.testing.assert_allclose(cover.cover, fresh.cover, atol=1e-12)
    now = value(problem, cover.cached)
    for n in range(problem.num_servers):
        for e in range(problem.num_experts):
            changed = cover.cached.copy()
            changed[n, e] = not changed[n, e]
            difference = value(problem, changed) - now
            if changed[n, e]:
                assert cover.gain[e, n] == pytest.approx(difference, abs=1e-12)
                assert cover.value_of(e, enter=n) == pytest.approx(difference, abs=1e-12)
                assert cover.loss[e, n] == 0
            else:
                assert cover.loss[e, n] == pytest.approx(-difference, abs=1e-12)
                assert cover.value_of(e, leave=n) == pytest.approx(difference, abs=1e-12)
                assert cover.gain[e, n] == 0
                for other in np.flatnonzero(~cover.cached[:, e]):
                    moved = changed.copy()
                    moved[other, e] = True
                    assert cover.value_of(e, n, other) == pytest.approx(value(problem, moved) - now, abs=1e-12)


def check_options(problem: ExpertCaching, seed: int, exact: bool) -> None:
    """Options at a random server have the values of the objective; exact ones are the best of every weight."""
    rng = np.random.default_rng(seed)
    server = int(rng.integers(problem.num_servers))
    cached = rng.random((problem.num_servers, problem.num_experts)) < 0.4
    groups = Groups(problem)
    level, _ = groups.levels(cached, server)
    values = groups.single_values(server, level)
    without = cached.copy()
    without[server] = False
    start = value(problem, without)
    for g in range(groups.num_groups):
        experts = np.flatnonzero(groups.group == g)
        if not groups.is_joint(g):
            for e in experts:
                one = without.copy()
                one[server, e] = True
                assert values[e] == pytest.approx(value(problem, one) - start, abs=1e-12)
            continue
        options, now = groups.options(server, g, level, values, cached[server])
        same = without.copy()
        same[server, experts] = cached[server, experts]
        assert now == pytest.approx(value(problem, same) - start, abs=1e-12)
        assert options.weight[0] == 0
        assert options.value[0] == 0
        for k, (weight, worth) in enumerate(zip(options.weight, options.value, strict=True)):
            held = options.held_by(k)
            some = without.copy()
            some[server, options.experts[held]] = True
            assert worth == pytest.approx(value(problem, some) - start, abs=1e-12)
            assert weight == groups.units[options.experts[held]].sum() <= groups.capacity_units[server]
        if exact:
            for count in range(experts.size + 1):
                for chosen in combinations(experts, count):
                    weight = groups.units[list(chosen)].sum()
                    if weight <= groups.capacity_units[server]:
                        some = without.copy()
                        some[server, list(chosen)] = True
                        best = options.value[options.weight <= weight].max()
                        assert value(problem, some) - start <= best + 1e-12


@given(problems(), st.integers(0, 10_000))
@settings(max_examples=40)
def test_options_are_exact_for_small_groups(problem: ExpertCaching, seed: int) -> None:
    """Enumeration finds the best subset of every weight, and states its exact value."""
    check_options(problem, seed, exact=True)


@given(problems(), st.integers(0, 10_000))
@settings(max_examples=40)
def test_options_of_large_groups_have_true_values(problem: ExpertCaching, seed: int) -> None:
    """The greedy chains state exact values."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_ENUMERATED", 0)
        check_options(problem, seed, exact=False)


@pytest.mark.parametrize("seed", range(6))
def test_surrogate_adds_a_share_of_the_sum(seed: int) -> None:
    """With lam, gains are those of F + lam F_sum / K."""
    problem = random_problem(np.random.default_rng(seed), experts=(6,), top_k=3, latency="max", device=0.2)
    cached = np.random.default_rng(seed).random((problem.num_servers, problem.num_experts)) < 0.4
    cover = Cover(Groups(problem, 0.5), cached)
    summed = problem.replace(latency="sum")
    for e in range(problem.num_experts):
        more = cached.copy()
        more[0, e] = True
        gain = value(problem, more) - value(problem, cached)
        gain += 0.5 / 3 * (value(summed, more) - value(summed, cached))
        assert cover.value_of(e, enter=0) == pytest.approx(gain, abs=1e-12)
