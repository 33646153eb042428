"""The baselines do what their names say, each server for itself."""

from typing import Any

import numpy as np
import pytest

import edgeopt
from edgeopt.errors import EdgeOptError
from edgeopt.problems import ClientSelection
from edgeopt.problems.client_selection.environment import SelectionEnvironment, ServerView
from edgeopt.solve import configure
from edgeopt.solvers import solvers_of
from edgeopt.solvers.client_selection import Fastest, PowerOfChoice, RandomPicks, RlCrp, RoundRobin
from edgeopt.solvers.client_selection.policy import cyclic_plan
from edgeopt.stop import MaxIterations

PROBLEM = ClientSelection.random(num_servers=4, num_clients=24, picks=3, rounds=30, seed=5)
LOCAL = (PowerOfChoice(), RoundRobin(), Fastest(), RandomPicks())


def played(solver: Any, seed: int = 0) -> np.ndarray:
    """Return the picks [T, S, M] of a solver."""
    return np.asarray(edgeopt.solve(PROBLEM, solver, seed=seed).solution.picks)


def view(**changes: Any) -> ServerView:
    """Return the view of a server of four clients, 2, 3, 5 and 7, two picks, in round 6."""
    fields: dict[str, Any] = {
        "server": 0, "round": 6, "num_picks": 2, "clients": np.array([2, 3, 5, 7]),
        "latency_s": np.array([3.0, 1.0, 2.0, 1.0]), "last": np.array([-1, 5, -1, 3], np.int32),
        "picked": np.zeros(4, np.int32), "delivered": np.zeros(4, np.int32),
        "outcome": np.full(4, -1, np.int8),
    }  # fmt: skip
    return ServerView(**(fields | changes))


def test_fastest_takes_the_least_latency():
    assert Fastest().policy(0, 0).pick(view()).tolist() == [3, 7]
    assert Fastest().policy(0, 0).pick(view(latency_s=np.ones(4))).tolist() == [2, 3]
    environment = SelectionEnvironment(PROBLEM)
    for picks in played("fastest"):
        for s in range(PROBLEM.num_servers):
            known = environment.view(s)
            cut = np.sort(known.latency_s)[2]
            assert (known.latency_s[np.searchsorted(known.clients, picks[s])] <= cut).all()
        environment.step(picks[None])


def test_round_robin_takes_everyone_once_per_cycle():
    """Over any whole cycle of a server each client is picked, and counts differ by at most one; orders differ by seed."""
    picks = played("round-robin")
    for s, covered in enumerate(PROBLEM.coverage):
        counts = np.bincount(picks[:, s].ravel(), minlength=PROBLEM.num_clients)
        assert counts[~covered].sum() == 0
        assert counts[covered].max() - counts[covered].min() <= 1
    assert (played("round-robin", seed=1) != picks).any()


def test_power_of_choice_takes_the_stalest_candidates():
    """With every client a candidate, the stalest are picked, the faster on ties; with one per pick it is random."""
    assert sorted(PowerOfChoice(candidates=2.0).policy(0, 0).pick(view()).tolist()) == [2, 5]
    assert PowerOfChoice(candidates=9.0).policy(0, 0).pick(view(num_picks=1)).tolist() == [5]
    few = np.concatenate([PowerOfChoice(candidates=1.0).policy(0, seed).pick(view()) for seed in range(200)])
    assert np.bincount(few)[[2, 3, 5, 7]].min() > 60  # 100 each on average
    with pytest.raises(EdgeOptError, match=r"candidates = 0\.5: expected a number >= 1"):
        PowerOfChoice(candidates=0.5)


def test_random_takes_everyone_alike():
    few = np.concatenate([RandomPicks().policy(0, seed).pick(view()) for seed in range(200)])
    assert np.bincount(few)[[2, 3, 5, 7]].min() > 60
    assert (played("random", seed=1) != played("random", seed=2)).any()


@pytest.mark.parametrize("solver", LOCAL, ids=lambda solver: solver.name)
def test_servers_do_not_depend_on_each_other(solver: Any):
    """A server's policy picks the same when it is made and asked alone as in the company of others."""
    together = played(solver, seed=3)
    environment = SelectionEnvironment(PROBLEM)
    policy = solver.policy(2, 3)
    for picks in together:
        assert sorted(policy.pick(environment.view(2)).tolist()) == picks[2].tolist()
        environment.step(picks[None])


@pytest.mark.parametrize("solver", LOCAL, ids=lambda solver: solver.name)
def test_after_a_limit_clients_come_in_turn(solver: Any):
    """The rounds before the limit are played, those after it filled with the plan that goes by ids."""
    whole, turns = played(solver), np.sort(cyclic_plan(PROBLEM), axis=2)
    part = edgeopt.solve(PROBLEM, solver, stop=MaxIterations(10)).solution.picks
    np.testing.assert_array_equal(part[:10], whole[:10])
    np.testing.assert_array_equal(part[10:], turns[10:])


def test_the_plan_by_ids_is_feasible_and_fair():
    uneven = PROBLEM.replace(picks=[1, 2, 3, 4])
    from edgeopt.problems import SelectionPlan

    plan = SelectionPlan(cyclic_plan(uneven))
    assert uneven.is_feasible(plan)
    for s, covered in enumerate(uneven.coverage):
        counts = plan.mask(24)[:, s].sum(axis=0)[covered]
        assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("solver", solvers_of("client-selection"), ids=lambda solver: solver.name)
def test_solvers_say_whether_servers_decide_alone(solver: Any):
    """One policy for each server, whose picks round by round are the solver's; none from the coordinator."""
    solver = configure(solver, iterations=1, episodes=1) if isinstance(solver, RlCrp) else solver
    policies = solver.policies(PROBLEM, seed=3)
    assert (policies is None) == (solver.name in ("matching", "blind-matching"))
    if policies is not None:
        first = [policies[server].pick(SelectionEnvironment(PROBLEM).view(server)) for server in range(4)]
        assert all(len(set(picks.tolist())) == 3 for picks in first)
    if solver in LOCAL:
        assert np.array_equal(played(solver, seed=3)[0], np.sort(first))


def test_what_is_learned_does_not_depend_on_the_length_of_the_run():
    """A run that is resumed for more rounds has the same policies: they learn on a hundred rounds, or those recorded."""
    learner = RlCrp(iterations=1, episodes=1)
    short, long = (learner.policies(PROBLEM.replace(rounds=rounds), seed=0) for rounds in (30, 300))
    environment = SelectionEnvironment(PROBLEM)
    for server in range(4):
        np.testing.assert_array_equal(
            short[server].pick(environment.view(server)), long[server].pick(environment.view(server))
        )
