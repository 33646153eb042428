"""Limits of caching: hit ratios against every subset of experts, latencies against the solver's own report."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt import EdgeNetwork
from edgeopt.errors import InvalidProblemError
from edgeopt.evaluation.caching_limits import caching_limits
from edgeopt.evaluation.plots.caching.limits import plot_caching_limits
from edgeopt.problems import ExpertCaching, Placement, RoutingTrace, bundled_trace


def drawn(
    seed: int, zipf: float, *, users: int = 2, top_k: int = 1, experts: int = 4, tokens: int = 30
) -> RoutingTrace:
    """Return a trace of two layers, in which every user prefers other experts."""
    rng = np.random.default_rng(seed)
    taste = np.stack([rng.permuted(-zipf * np.log(np.arange(1, experts + 1))) for _ in range(2 * users)])
    user = np.repeat(np.arange(users), tokens)
    noise = rng.gumbel(size=(users * tokens, 2, experts)) + taste.reshape(users, 2, experts)[user]
    return RoutingTrace.from_expert_ids(np.argsort(-noise, axis=-1)[..., :top_k], num_experts=experts, user=user)


@given(st.integers(0, 999), st.integers(1, 2), st.sampled_from([0.125, 0.3, 0.5, 1.0]))
def test_hits_equal_those_of_the_best_subset(seed: int, top_k: int, share: float):
    """No set of experts that fits serves more uses; with a server for each user, and with one for all."""
    trace = drawn(seed, 1.0, top_k=top_k)
    found = caching_limits(trace, [share])
    uses = trace.to_model(1.0).uses / top_k / 2
    room = int(share * 8 + 1e-9)
    subsets = [list(chosen) for chosen in itertools.combinations(range(8), room)]
    own = np.array([max(uses[user, chosen].sum() for chosen in subsets) for user in range(2)])
    np.testing.assert_allclose(found.user_hits[0], own, atol=1e-12)
    limit = found.limits[0]
    assert limit.hit_at_most == pytest.approx(own.mean())
    assert limit.hit_common == pytest.approx(max(uses.mean(axis=0)[chosen].sum() for chosen in subsets))
    assert limit.hit_random == room / 8
    assert found.layer_hits[0].mean() == pytest.approx(limit.hit_at_most)
    assert limit.latency_without_s is None


def test_users_count_by_their_tokens():
    """The mean over users weighs them by how many tokens they have."""
    trace = RoutingTrace.from_expert_ids([[[0]], [[0]], [[1]], [[2]]], user=[0, 0, 1, 1])
    more = RoutingTrace.from_expert_ids([[[0]]] * 6 + [[[1]], [[2]]], user=[0] * 6 + [1] * 2)
    assert caching_limits(trace, [1 / 3]).limits[0].hit_at_most == pytest.approx(0.75)
    assert caching_limits(more, [1 / 3]).limits[0].hit_at_most == pytest.approx(0.875)


def test_effective_experts():
    """One expert in use is one, all alike are all."""
    trace = RoutingTrace.from_expert_ids([[[0], [0]], [[0], [1]], [[0], [2]], [[0], [3]]])
    np.testing.assert_allclose(caching_limits(trace).effective_experts, [[1.0, 4.0]])


@pytest.mark.parametrize("latency", ["sum", "max"])
def test_latencies(latency: str):
    """No placement of experts, tried one by one, is below the bound; what is found is one of them."""
    trace, network = drawn(4, 1.5, top_k=2, experts=3), EdgeNetwork.random(2, 4, seed=2)
    found = caching_limits(
        trace, [0.35, 0.2], network=network, model="switch-base-8", latency=latency, time_limit=1
    )  # fmt: skip
    assert [limit.storage for limit in found.limits] == [0.2, 0.35]
    for limit in found.limits:
        problem = ExpertCaching.from_traces(
            trace, network, models=["switch-base-8"], storage=limit.storage, latency=latency
        )
        subsets = [[e in chosen for e in range(6)] for k in range(3) for chosen in itertools.combinations(range(6), k)]
        placements = [Placement([a, b]) for a in subsets for b in subsets]
        reports = [problem.report(p) for p in placements if not problem.violations(p)]
        best = min(report.latency_s for report in reports)
        assert limit.latency_found_s >= best * (1 - 1e-9)
        assert limit.latency_at_least_s <= best * (1 + 1e-9)
        assert limit.latency_without_s == pytest.approx(reports[0].latency_without_cache_s)
        assert best * (1 - 1e-9) <= min(limit.latency_popularity_s, limit.latency_random_s) <= limit.latency_without_s


def test_verdicts():
    """Even routing is said to be even; skewed routing is not."""
    even = RoutingTrace.from_counts(np.full((2, 2, 8), 10), 1)
    assert "no placement helps" in caching_limits(even).verdict
    assert "even" not in caching_limits(drawn(1, 3.0, experts=8)).verdict
    assert "On the network" in caching_limits(bundled_trace("mixtral8"), [0.2], time_limit=0.1).verdict


def test_json_and_picture():
    """Plain values, and a picture of two parts."""
    found = caching_limits(drawn(3, 1.0), [0.5])
    assert json.loads(json.dumps(found.to_json()))["limits"][0]["storage"] == 0.5
    ax = plot_caching_limits(found)
    assert len(ax.figure.axes) == 3  # curves, map, its bar
    assert len(ax.get_lines()) == 3 + 1


@pytest.mark.parametrize("storage", [[0.0], [-0.1], [1.5], [], [float("nan")]])
def test_bad_storage(storage: list[float]):
    """A share that is none is named."""
    with pytest.raises(InvalidProblemError, match="storage"):
        caching_limits(drawn(0, 1.0), storage)
