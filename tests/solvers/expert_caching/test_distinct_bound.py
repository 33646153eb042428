"""The bound by distinct experts: above every placement at any prices and shares, and below the linear relaxation where that is weak."""

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.problems import ExpertCaching, Placement, RoutedModel
from edgeopt.solve import Run, SolveOptions
from edgeopt.solvers.expert_caching import Lagrangian, layer_bound
from edgeopt.solvers.expert_caching.distinct_bound import DistinctBound
from edgeopt.solvers.expert_caching.groups import Groups
from edgeopt.solvers.kernels.distinct import best_sizes, values_of_subsets
from tests.solvers.expert_caching.instances import Instance, brute_force, random_problem
from tests.solvers.expert_caching.relaxation import lp_bound

MODES = st.sampled_from(["sum", "max", "mix"])


def problem_of(rng: np.random.Generator, latency: str) -> ExpertCaching:
    """Return a random problem of two models with K from 1 to 3, some experts on devices, quick to enumerate."""
    return random_problem(
        rng, num_servers=2, experts=(4, 3), top_k=(int(rng.integers(2, 4)), int(rng.integers(1, 3))),
        latency=latency, theta=rng.random(), device=rng.choice([0.0, 0.3]),
    )  # fmt: skip


@given(st.integers(0, 10_000), MODES, st.booleans(), st.booleans())
@settings(max_examples=40, deadline=None)
def test_no_placement_beats_the_bound(seed: int, latency: str, enumerated: bool, fine: bool) -> None:
    """At random prices, before and after the shares have moved, with common and with own shares, by subsets and by partners."""
    rng = np.random.default_rng(seed)
    problem = problem_of(rng, latency)
    optimum, _ = brute_force(problem)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layer_bound, "MAX_ENUMERATED", 10 if enumerated else 0)
        bound = DistinctBound(Groups(problem))
        if fine:
            for layer in bound.layers:
                layer.refine()
        typical = optimum / problem.num_experts
        for _ in range(12):
            price = typical * rng.random(2) * rng.choice([0.0, 0.1, 1.0]) / problem.expert_bytes.mean()
            assert bound.evaluate(price)[0] >= optimum - 1e-9


@given(st.integers(0, 10_000), st.sampled_from(["max", "mix"]), st.booleans())
@settings(max_examples=30, deadline=None)
def test_a_layer_is_worth_no_more_than_its_profile(seed: int, latency: str, enumerated: bool) -> None:
    """What placements save less the price of their copies is at most the profiles at their numbers of distinct experts."""
    rng = np.random.default_rng(seed)
    problem = problem_of(rng, latency)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layer_bound, "MAX_ENUMERATED", 10 if enumerated else 0)
        groups = Groups(problem)
        bound = DistinctBound(groups)
        for _ in range(4):
            bound.evaluate(rng.random(2) * 0.05)
        size = np.concatenate([layer.size for layer in bound.layers])
        for _ in range(10):
            cached = rng.random((2, problem.num_experts)) < rng.random()
            price = rng.random(2) * rng.choice([0.0, 0.02, 0.2])
            of_set = np.array([price[0], price[1], price.sum()])
            profiles = [layer.profile(of_set)[0] for layer in bound.layers]
            distinct = np.bincount(groups.group[cached.any(axis=0)], minlength=groups.num_groups)
            above = sum(profile[k] for profile, k in zip(profiles, distinct, strict=True))
            assert above >= problem.objective(Placement(cached)) - price @ cached @ size - 1e-9


def test_descent_bounds_the_optimum(tiny: Instance) -> None:
    """The bound of many steps is above the optimum, and never rises."""
    with Run(Lagrangian(), tiny.problem, SolveOptions()) as run:
        run.offer(tiny.best)
        bound = DistinctBound(Groups(tiny.problem))
        bound.descend(run, 10)
        first = run.bound
        bound.descend(run, 50)
    assert tiny.optimum - 1e-9 <= run.bound <= first


def convex_problem() -> ExpertCaching:
    """Return three layers of four experts whose pairs are all alike, and two servers that hold three experts each.

    The relaxation serves half of every pair. In truth six slots hold a layer of four and a pair of another: 1 + 1/6 of
    what a layer is worth.
    """
    pairs = [pair for layer in range(3) for pair in combinations(range(4 * layer, 4 * layer + 4), 2)]
    model = RoutedModel(
        name="alike", expert_layer=np.repeat(np.arange(3), 4), expert_bytes=1.0, sets=pairs, indptr=[0, 18],
        indices=np.arange(18), probability=np.full(18, 1 / 6),
    )  # fmt: skip
    return ExpertCaching(
        models=(model,), storage_bytes=[3, 3], request=[[1.0]], profile=[[0]], server_latency_s=[[[0.0, 0.0]]],
        cloud_latency_s=[[1.0]], device_latency_s=[[9.0]], latency="max",
    )  # fmt: skip


def test_it_is_exact_where_the_relaxation_is_not() -> None:
    """On layers whose pairs are all alike the relaxation is 9/7 of the optimum, and the bound by distinct experts is the optimum."""
    problem = convex_problem()
    assert lp_bound(problem) == pytest.approx(1.5)
    with Run(Lagrangian(), problem, SolveOptions()) as run:
        run.offer(Placement.from_lists([[0, 1, 4], [2, 3, 5]], 12))
        assert run.objective == pytest.approx(1 + 1 / 6)
        DistinctBound(Groups(problem)).descend(run, 30)
    assert run.bound == pytest.approx(1 + 1 / 6)


def test_own_shares_close_on_the_relaxation() -> None:
    """With storage for all distinct experts, shares of every user and level come within 1 % of the relaxation, or below it."""
    problem = ExpertCaching.random(
        num_servers=3, num_users=6, num_layers=2, experts_per_layer=6, top_k=2, storage=0.4, latency="max", seed=3
    )
    with Run(Lagrangian(), problem, SolveOptions()) as run:
        run.offer(Placement(np.ones((3, 12), bool) & (np.arange(12) % 3 == np.arange(3)[:, None])))
        DistinctBound(Groups(problem)).descend(run, 300)
    assert run.bound <= 1.01 * lp_bound(problem)


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_subsets_are_valued_one_by_one(seed: int) -> None:
    """The Gray code visits every subset, and gives each what its members are worth."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 5))
    base, joint = rng.normal(size=(count, 3)), rng.random((count, 3, count))
    joint[np.arange(count), :, np.arange(count)] = 0.0
    values = values_of_subsets(base, joint)
    for mask in range(1 << count):
        member = (mask >> np.arange(count) & 1).astype(bool)
        each = (base + joint[:, :, member].sum(axis=2)).max(axis=1).clip(0.0)
        assert values[mask] == pytest.approx(each[member].sum(), abs=1e-12)


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_sizes_are_the_best_that_fit(seed: int) -> None:
    """The knapsack over layers finds what trying all choices finds, and its choice is worth that."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 5, 3)
    profiles = [np.concatenate([[0.0], rng.normal(size=n - 1)]) for n in lengths]
    weights = [np.concatenate([[0], np.cumsum(rng.integers(0, 4, n - 1))]).astype(np.int64) for n in lengths]
    capacity = int(rng.integers(0, 12))
    first = np.cumsum([0, *lengths])
    value, chosen = best_sizes(np.concatenate(profiles), first, np.concatenate(weights), capacity)
    fits = [
        sum(profile[j] for profile, j in zip(profiles, choice, strict=True))
        for choice in product(*map(range, lengths))
        if sum(weight[j] for weight, j in zip(weights, choice, strict=True)) <= capacity
    ]
    assert value == pytest.approx(max(fits))
    assert sum(profile[j] for profile, j in zip(profiles, chosen, strict=True)) == pytest.approx(value)
    assert sum(weight[j] for weight, j in zip(weights, chosen, strict=True)) <= capacity


def test_unequal_sizes_keep_the_bound() -> None:
    """Sizes that are whole multiples of nothing are priced in bytes, and the sizes of layers are rounded down."""
    rng = np.random.default_rng(5)
    problem = problem_of(rng, "max")
    models = tuple(
        RoutedModel(
            name=m.name, expert_layer=m.expert_layer, expert_bytes=1 + rng.random(m.num_experts), sets=m.sets,
            indptr=m.indptr, indices=m.indices, probability=m.probability,
        )
        for m in problem.models
    )  # fmt: skip
    problem = problem.replace(models=models, storage_bytes=[4.1, 3.3])
    groups = Groups(problem)
    assert not groups.exact_units
    optimum, best = brute_force(problem)
    with Run(Lagrangian(), problem, SolveOptions()) as run:
        run.offer(best)
        DistinctBound(groups).descend(run, 40)
    assert run.bound >= optimum - 1e-9
