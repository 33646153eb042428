"""`blind-matching`: what it believes against enumeration, that it meets no server twice, and the bound on busy clients."""

from itertools import product

import numpy as np
import pytest

import edgeopt
from edgeopt.problems import ClientSelection
from edgeopt.problems.client_selection.environment import SelectionEnvironment
from edgeopt.problems.client_selection.scenario import draw_scenarios, stationary
from edgeopt.solvers.client_selection.blind_matching import _beliefs, _heard, expected_values, least_busy
from edgeopt.solvers.client_selection.matching import delivery_values

PROBLEM = ClientSelection.random(num_servers=3, num_clients=12, picks=2, rounds=6, seed=3)


def test_beliefs_are_those_of_all_regime_paths():
    """The chance that a client is busy in the coming round, by enumeration of its regimes given all servers' outcomes."""
    environment, beliefs = SelectionEnvironment(PROBLEM), _beliefs(PROBLEM)
    picks = edgeopt.solve(PROBLEM, "blind-matching").solution.picks
    moves, often = PROBLEM.regime_transition, PROBLEM.busy_probability
    seen = []
    while not environment.done:
        now = environment.now
        expected = np.zeros(PROBLEM.num_clients)
        for c in range(PROBLEM.num_clients):
            total = 0.0
            for path in product((0, 1), repeat=now + 1):
                p = stationary(moves)[path[0]]
                for t in range(now):
                    o, k = seen[t][c], path[t]
                    p *= (1.0 if o < 0 else often[k] if o else 1 - often[k]) * moves[k, path[t + 1]]
                total += p
                expected[c] += p * often[path[now]]
            expected[c] /= total
        np.testing.assert_allclose(beliefs.covered_probability[0, 0], expected, rtol=1e-9)
        environment.step(picks[now][None])
        heard = _heard(environment)
        seen.append(heard[0, 0])
        beliefs.update(heard)


@pytest.mark.parametrize("busy", [True, False])
def test_no_two_servers_meet(busy: bool):
    problem = ClientSelection.random(num_servers=4, num_clients=30, picks=3, rounds=30, seed=1)
    if not busy:
        problem = problem.replace(regime_transition=None, busy_probability=None)
    result = edgeopt.solve(problem, "blind-matching")
    assert result.feasible
    assert problem.report(result.solution).collision_rate == 0
    assert busy or problem.report(result.solution).conflict_rate == 0


def test_values_are_those_of_matching_where_busy_is_certain():
    """With chances 0 and 1 of being busy, values are those of `matching` and of a wasted pick."""
    environment = SelectionEnvironment(PROBLEM)
    value = expected_values(environment, environment.busy[0].astype(float))
    sighted = delivery_values(environment, environment.bonus[0])
    usable = np.isfinite(sighted)
    np.testing.assert_allclose(value[usable], sighted[usable])
    assert (value[~usable & PROBLEM.coverage] == -2 / 2).all()


def test_nobody_can_pick_fewer_busy_clients_than_the_bound():
    """Given the regimes of the round before, the share of busy clients is the bound or more in either regime."""
    problem = ClientSelection.random()
    assert least_busy(problem) == pytest.approx(0.97 * 0.05 + 0.03 * 0.75)
    scenarios = draw_scenarios(problem, range(20))
    for regime in (0, 1):
        after = scenarios.busy[:, 1:][scenarios.regime[:, :-1] == regime].mean()
        assert after > least_busy(problem) - 0.005
    assert least_busy(problem.replace(regime_transition=None, busy_probability=None)) == 0
