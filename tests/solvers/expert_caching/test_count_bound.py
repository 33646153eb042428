"""The bound by counts: curves above the densest sets, counts above every placement, and branch and bound above all counts."""

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.problems import ExpertCaching, Placement
from edgeopt.solve import Run, SolveOptions
from edgeopt.solvers.expert_caching import Lagrangian, MaxConvolution, count_bound, layer_bound
from edgeopt.solvers.expert_caching.count_bound import Counts, Curves
from edgeopt.solvers.expert_caching.distinct_bound import DistinctBound
from edgeopt.solvers.expert_caching.groups import Groups
from edgeopt.solvers.expert_caching.max_convolution import pooled_placement
from edgeopt.solvers.kernels.densest import best_counts
from edgeopt.solvers.kernels.distinct import densest_subsets, sets_inside
from tests.solvers.expert_caching.instances import Instance, brute_force, random_problem


def never() -> bool:
    """Return that no limit has been reached."""
    return False


def sets_of(rng: np.random.Generator, num_experts: int, count: int, lists: int) -> Curves:
    """Return curves of some lists of random sets of one to four experts, before any step."""
    member = np.full((count * lists, 4), -1, np.int32)
    for row in member:
        size = rng.integers(1, min(4, num_experts) + 1)
        row[:size] = np.sort(rng.choice(num_experts, size, replace=False))
    return Curves(member, rng.exponential(size=count * lists), np.arange(0, count * lists + 1, count), num_experts)


def densest(curves: Curves, k: int, part: int) -> float:
    """Return the largest weight of the sets of a list inside k experts, trying all."""
    num_experts = curves.curve.shape[1] - 1
    own = slice(int(curves.first[part]), int(curves.first[part + 1]))
    best = 0.0
    for chosen in combinations(range(num_experts), k):
        inside = np.isin(curves.member[own], [*chosen, -1]).all(axis=1)
        best = max(best, float(curves.weight[own][inside].sum()))
    return best


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_curves_are_above_the_densest_sets(seed: int) -> None:
    """After steps for any number of experts, at every size and for every list."""
    rng = np.random.default_rng(seed)
    num_experts, lists = int(rng.integers(2, 8)), int(rng.integers(1, 3))
    curves = sets_of(rng, num_experts, int(rng.integers(1, 30)), lists)
    for _ in range(3):
        curves.sharpen(int(rng.integers(1, num_experts + 1)), int(rng.integers(1, 40)), rng.exponential(30.0), never)
    for part, k in product(range(lists), range(num_experts + 1)):
        exact = densest(curves, k, part)
        assert curves.curve[part, k] >= exact - 1e-9 * (1 + exact)


def test_curves_are_nearly_tight_on_sets_that_are_all_alike() -> None:
    """Of all sets of four of eight experts, five hold 5 of 70; pairs alone would allow 20/56 of them."""
    member = np.array(list(combinations(range(8), 4)), np.int32)
    curves = Curves(member, np.ones(70), np.array([0, 70]), 8)
    curves.sharpen(5, 200, 300.0, never)
    assert 5 - 1e-9 <= curves.curve[0, 5] <= 17.5
    curves.sharpen(7, 200, 300.0, never)
    assert 35 - 1e-9 <= curves.curve[0, 7] <= 35.5


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_sets_inside_are_added_up(seed: int) -> None:
    """The table of all subsets agrees with adding up the sets inside each."""
    rng = np.random.default_rng(seed)
    curves = sets_of(rng, 5, 12, 2)
    table = sets_inside(curves.member, curves.weight, curves.first, 5)
    for part, mask in product(range(2), range(32)):
        chosen = [e for e in range(5) if mask >> e & 1]
        own = slice(int(curves.first[part]), int(curves.first[part + 1]))
        inside = np.isin(curves.member[own], [*chosen, -1]).all(axis=1)
        assert table[part, mask] == pytest.approx(curves.weight[own][inside].sum())
    curve = densest_subsets(np.eye(2), table, 5)
    for part, k in product(range(2), range(6)):
        assert curve[part, k] == pytest.approx(densest(curves, k, part))


@given(st.integers(0, 10_000), st.sampled_from([1, 5, 1000]))
@settings(max_examples=60, deadline=None)
def test_counts_are_bounded(seed: int, max_nodes: int) -> None:
    """Branch and bound is above all counts, and within its tolerance of the best where it is given the nodes."""
    rng = np.random.default_rng(seed)
    num_servers, num_experts = int(rng.integers(1, 4)), int(rng.integers(1, 7))
    mask = rng.permutation(np.arange(1, 1 << num_servers))[: rng.integers(1, 1 << num_servers)].astype(np.int64)
    curve = np.cumsum(rng.exponential(size=(mask.size, num_experts + 1)), axis=1)
    curve -= curve[:, :1]
    weight = np.concatenate([[0.0], np.cumsum(np.sort(rng.uniform(0.5, 2.0, num_experts)))])
    price, most = rng.exponential(size=num_servers), rng.integers(0, num_experts + 1, num_servers)
    k = int(rng.integers(1, num_experts + 1))
    best = -np.inf
    for count in product(*(range(min(m, k) + 1) for m in most.tolist())):
        if sum(count) < k:
            continue
        held = [sum(c for n, c in enumerate(count) if m >> n & 1) for m in mask.tolist()]
        value = sum(own[min(k, c)] for own, c in zip(curve, held, strict=True))
        best = max(best, value - float(price @ weight[list(count)]))
    known = rng.choice([np.inf, best + 0.5, best - 0.5])
    bound, found = best_counts(curve, mask, k, price, weight, most, known, 1e-3, max_nodes)
    assert bound >= min(best, known) - 1e-9 or best == -np.inf
    if max_nodes == 1000 and known > best > -np.inf:
        assert bound <= best + 1e-3 + 1e-9
        assert (found <= most).all()
        assert found.sum() >= k


@given(st.integers(0, 10_000), st.sampled_from(["sum", "max", "mix"]), st.booleans())
@settings(max_examples=30, deadline=None)
def test_no_placement_is_worth_more_than_its_counts(seed: int, latency: str, enumerated: bool) -> None:
    """Layer by layer, what a placement that fits saves less the price of its copies is below both bounds at its size."""
    rng = np.random.default_rng(seed)
    problem = random_problem(
        rng, num_servers=2, experts=(5, 3), top_k=(int(rng.integers(2, 5)), int(rng.integers(1, 3))),
        latency=latency, theta=rng.random(), device=rng.choice([0.0, 0.3]),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layer_bound, "MAX_ENUMERATED", 10 if enumerated else 0)
        patch.setattr(count_bound, "MAX_EXACT", 16 if enumerated else 0)
        groups = Groups(problem)
        bound = DistinctBound(groups)
        counts = [Counts(groups, layer, bound.capacity, never) for layer in bound.layers]
        if not enumerated:
            for own in counts:
                own.sharpen(int(rng.integers(1, own.layer.num_experts + 1)))
    size = np.concatenate([layer.size for layer in bound.layers])
    for _ in range(10):
        cached = rng.random((2, problem.num_experts)) < rng.random()
        while (over := cached @ size > bound.capacity).any():
            cached[over, rng.integers(0, problem.num_experts)] = False
        price = rng.random(2) * rng.choice([0.0, 0.02, 0.2])
        for group, own in enumerate(counts):
            part = cached & (groups.group == group)
            k = int(part.any(axis=0).sum())
            worth = problem.objective(Placement(part)) - float(price @ part @ size)
            assert own.ceiling(price)[k] >= worth - 1e-9
            assert k == 0 or own.bound(k, price)[0] >= worth - 1e-9


@given(st.integers(0, 10_000), st.sampled_from(["max", "mix"]), st.booleans())
@settings(max_examples=15, deadline=None)
def test_no_placement_beats_the_closed_bound(seed: int, latency: str, enumerated: bool) -> None:
    """The bound with counts is above the optimum of random problems of two models."""
    rng = np.random.default_rng(seed)
    problem = random_problem(
        rng, num_servers=2, experts=(4, 3), top_k=(int(rng.integers(2, 4)), int(rng.integers(1, 3))),
        latency=latency, theta=rng.random(), device=rng.choice([0.0, 0.3]),
    )  # fmt: skip
    optimum, best = brute_force(problem)
    with pytest.MonkeyPatch.context() as patch, Run(Lagrangian(), problem, SolveOptions()) as run:
        patch.setattr(layer_bound, "MAX_ENUMERATED", 10 if enumerated else 0)
        patch.setattr(count_bound, "MAX_EXACT", 16 if enumerated else 0)
        run.offer(best)
        bound = DistinctBound(Groups(problem))
        bound.descend(run, 5)
        bound.close(run, 5)
    assert run.bound >= optimum - 1e-9


def test_counts_see_what_fits_on_a_server() -> None:
    """Two layers of six experts, two servers of four: every user finds all of a layer near it only if it were on one server."""
    problem = ExpertCaching.random(
        num_servers=2, num_users=4, num_layers=2, experts_per_layer=6, top_k=2, storage=1 / 3, latency="max", seed=2
    )
    with Run(MaxConvolution(), problem, SolveOptions()) as run:
        run.offer(Placement(pooled_placement(Groups(problem))))
        bound = DistinctBound(Groups(problem))
        bound.descend(run, 100)
        before = run.bound
        bound.close(run, 20)
    assert run.bound < before * (1 - 1e-3)


def test_limits_end_the_search_for_curves(tiny: Instance) -> None:
    """Once a limit is reached no more steps are taken, and what is there is still a bound."""
    groups = Groups(tiny.problem)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(count_bound, "MAX_EXACT", 0)
        bound = DistinctBound(groups)
        counts = [Counts(groups, layer, bound.capacity, lambda: True) for layer in bound.layers]
        for own in counts:
            own.sharpen(1)
            assert own.sharpened == {own.layer.num_experts}
    bound.counts = counts
    assert bound.evaluate(np.zeros(bound.capacity.size))[0] >= tiny.optimum - 1e-9


@given(st.integers(0, 10_000), st.sampled_from(["max", "mix"]))
@settings(max_examples=15, deadline=None)
def test_pooled_placements_fit(seed: int, latency: str) -> None:
    """Whole layers spread over the servers stay within every storage."""
    problem = random_problem(np.random.default_rng(seed), num_servers=3, experts=(5, 4), top_k=(2, 3), latency=latency)
    placement = Placement(pooled_placement(Groups(problem)))
    assert problem.violations(placement) == ()


def test_storage_of_all_servers_together_is_seen() -> None:
    """Six servers that hold a sixth of a layer each cache one whole layer, which no server finds by itself."""
    problem = ExpertCaching.random(
        num_servers=6, num_users=12, num_layers=3, experts_per_layer=12, top_k=4, storage=1 / 18, latency="max", seed=0
    )
    cached = pooled_placement(Groups(problem))
    distinct = np.bincount(Groups(problem).group[cached.any(axis=0)], minlength=3)
    assert sorted(distinct.tolist()) == [0, 0, 12]
