"""Popularity per server against hand counts."""

import numpy as np

import edgeopt
from edgeopt.problems import ExpertCaching
from edgeopt.solvers.expert_caching.popularity import Popularity, uses_at_servers
from tests.solvers.expert_caching.instances import TINY, hand_made


def two_servers(**changes: object) -> ExpertCaching:
    """Two users with opposite tastes, one per server; the second expert is twice as large."""
    problem = ExpertCaching.from_facility(
        gain=[[2.0, 1.0], [1.0, 2.0]], weight=[[0.6, 0.4], [0.3, 0.7]], size=[1.0, 2.0], capacity=[1.0, 2.0]
    )
    return problem.replace(**changes)


def test_counts_the_users_attached():
    """A user counts at its access server, wherever it would be served best."""
    problem = two_servers(access_server=[1, 1])
    np.testing.assert_allclose(uses_at_servers(problem), [[0.0, 0.0], [0.9, 1.1]])


def test_detached_users_count_where_they_gain_most():
    """Without an access server the one with the largest gain counts; without any gain, none does."""
    np.testing.assert_allclose(uses_at_servers(two_servers()), [[0.6, 0.4], [0.3, 0.7]])
    idle = hand_made(sets=[[0], [1]], probability=[0.5, 0.5], num_experts=2, server=[np.inf], storage=[2.0])
    assert uses_at_servers(idle).tolist() == [[0.0, 0.0]]
    assert edgeopt.solve(idle, Popularity()).solution.num_copies == 0


def test_experts_of_the_device_do_not_count():
    """What a device holds it does not ask a server for."""
    problem = two_servers(device_indptr=[0, 1, 1], device_experts=[0])
    np.testing.assert_allclose(uses_at_servers(problem), [[0.0, 0.4], [0.3, 0.7]])


def test_most_used_first():
    """Each server takes its favourite that fits; per byte the smaller expert leads at the second server too."""
    problem = two_servers(storage_bytes=[1.0, 2.0])
    assert edgeopt.solve(problem, Popularity()).solution.cached.tolist() == [[True, False], [False, True]]
    equal = two_servers(user_weight=[1.0, 1.0], access_server=[1, 1])  # 0.9 and 1.1: per byte 0.9 and 0.55
    assert edgeopt.solve(equal, Popularity()).solution.cached.tolist() == [[False, False], [False, True]]
    assert edgeopt.solve(equal, Popularity(per_byte=True)).solution.cached.tolist() == [[False, False], [True, False]]


def test_uses_add_up():
    """All uses are counted once, except those of devices and of users without any help."""
    for tiny in TINY:
        problem = tiny.problem.replace(access_server=np.zeros(tiny.problem.num_users, int))
        mask, total = problem.device_mask(), 0.0
        for m, model in enumerate(problem.models):
            away = ~mask[:, problem.first_expert[m] : problem.first_expert[m + 1]]
            uses = model.uses[problem.profile[:, m]] * away
            total += float((problem.user_weight * problem.request[:, m]) @ uses.sum(axis=1))
        counted = uses_at_servers(problem)
        assert np.isclose(counted[0].sum(), total)
        assert not counted[1:].any()
