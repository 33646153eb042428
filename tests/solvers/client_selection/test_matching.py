"""`matching`: each round optimal, no conflict that can be avoided, and a bound that holds for every plan."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgeopt
from edgeopt.problems import ClientSelection, SelectionPlan
from edgeopt.problems.client_selection.environment import SelectionEnvironment
from edgeopt.solvers.client_selection.matching import delivery_values, round_bound, round_picks
from edgeopt.stop import Limit, MaxIterations
from tests.solvers.client_selection.instances import choices, hand_made, random_plan, random_problem

few = settings(max_examples=40)
seeds = st.integers(0, 2**32 - 1)


def somewhere(seed: int) -> SelectionEnvironment:
    """Return the environment of a small random problem before its last round, with a random past."""
    rng = np.random.default_rng(seed)
    problem = random_problem(rng)
    environment = SelectionEnvironment(problem)
    for of_round in random_plan(problem, rng)[:-1]:
        picks = np.full((1, problem.num_servers, problem.max_picks), -1, np.int32)
        for s, clients in enumerate(of_round):
            picks[0, s, : len(clients)] = clients
        environment.step(picks)
    return environment


def value(environment: SelectionEnvironment, chosen: tuple[tuple[int, ...], ...]) -> float:
    """Return the sum of the values of picks, by the definition in `Matching`: a client that two take is wasted."""
    problem, taken = environment.problem, [c for clients in chosen for c in clients]
    values = delivery_values(environment, environment.bonus[0])
    total = 0.0
    for s, clients in enumerate(chosen):
        for c in clients:
            wasted = values[s, c] == -np.inf or taken.count(c) > 1
            worst = -(problem.latency_weight + problem.conflict_weight) / problem.picks[s]
            total += worst if wasted else values[s, c]
    return total


@given(seeds)
@few
def test_the_picks_of_a_round_are_the_best_of_all(seed: int):
    """No picks without collisions have a larger sum of values; if the picks have none, no others at all have."""
    environment = somewhere(seed)
    everything = choices(environment.problem)
    chosen = tuple(tuple(c for c in row if c >= 0) for row in round_picks(environment).tolist())
    assert tuple(tuple(sorted(clients)) for clients in chosen) in everything
    taken = [c for clients in chosen for c in clients]
    if len(set(taken)) == len(taken):
        assert value(environment, chosen) == pytest.approx(max(value(environment, one) for one in everything), abs=1e-9)
    usable = environment.problem.coverage & ~environment.busy[0]
    apart = [one for one in everything if len({c for row in one for c in row}) == len(taken)]
    if apart:
        assert value(environment, chosen) == pytest.approx(max(value(environment, one) for one in apart), abs=1e-9)
    if any(all(usable[s, c] for s, row in enumerate(one) for c in row) for one in apart):
        assert len(set(taken)) == len(taken)


@given(seeds)
@few
def test_no_round_earns_more_than_its_bound(seed: int):
    """Whatever the past and the picks, the rewards of a round sum up to at most its bound."""
    environment = somewhere(seed)
    bound = round_bound(environment)
    problem, now = environment.problem, environment.now
    everything = choices(problem)
    best = -np.inf
    for chosen in everything:
        picks = np.full((1, problem.num_servers, problem.max_picks), -1, np.int32)
        for s, clients in enumerate(chosen):
            picks[0, s, : len(clients)] = clients
        again = SelectionEnvironment(problem)
        again.now = now
        again.last[:] = environment.last
        best = max(best, again.step(picks).reward.sum())
    assert best <= bound + 1e-9


def test_the_bound_is_attained_where_picks_are_alike():
    """One pick per server, everyone new: the mean is the longest time and fairness counts in full, so the bound is met."""
    problem = ClientSelection.random(num_servers=3, num_clients=30, picks=1, rounds=1, seed=4)
    result = edgeopt.solve(problem, "matching")
    assert result.objective == pytest.approx(result.bound, abs=1e-12)
    assert result.status is edgeopt.Status.OPTIMAL


@pytest.mark.parametrize("mode", ["fail", "share"])
def test_no_conflict_where_there_are_clients_enough(mode):
    """On the default problem the coordinator meets neither busy clients nor collisions, and no baseline is near it."""
    problem = ClientSelection.random(mode=mode, rounds=40, seed=1)
    result = edgeopt.solve(problem, "matching")
    assert problem.report(result.solution).conflict_rate == 0.0
    assert result.objective <= result.bound
    for other in ("random", "round-robin", "fastest", "power-of-choice"):
        assert edgeopt.solve(problem, other).objective < result.objective - 0.5


def test_too_few_clients_harm_as_few_servers_as_possible():
    """Three servers, two clients, one pick each: one collision is forced, and only two servers are in it."""
    problem = hand_made(coverage=np.ones((3, 2), bool), rounds=3)
    report = problem.report(edgeopt.solve(problem, "matching").solution)
    assert report.conflicts.sum(axis=1).tolist() == [2, 2, 2]
    busy = hand_made(coverage=np.ones((3, 3), bool), rounds=3, busy=np.tile([False, False, True], (3, 1)))
    report = busy.report(edgeopt.solve(busy, "matching").solution)
    assert report.conflicts.sum(axis=1).tolist() == [1, 1, 1]  # the third goes to the busy client, harming nobody
    assert report.collision_rate == 0.0


def test_a_busy_client_is_better_than_a_collision():
    """Server 1 needs both its clients, so that server 0 has to take its busy one, although client 0 is worth more to it."""
    coverage, rate = [[True, True, False], [True, False, True]], [[1e6, 1e6, 0.0], [2e6, 0.0, 2e6]]
    problem = hand_made(
        coverage=coverage, picks=[1, 2], rate_bps=rate, rounds=1, busy=[[False, True, False]], compute_s=1.0
    )
    assert edgeopt.solve(problem, "matching").solution.to_json() == {"picks": [[[1], [0, 2]]]}


def test_a_limit_leaves_no_bound():
    """Stopped after one of two rounds, the plan is whole, and nothing is said about its distance to the best."""
    problem = hand_made()
    result = edgeopt.solve(problem, "matching", stop=MaxIterations(1))
    assert result.limit is Limit.ITERATION
    assert result.bound == np.inf
    assert isinstance(result.solution, SelectionPlan)
    assert result.feasible
