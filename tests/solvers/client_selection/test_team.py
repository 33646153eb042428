"""Servers as agents that learn together: what they see and earn is the environment's, and orders are picks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")
import edgeopt
from edgeopt.errors import EdgeOptError
from edgeopt.problems import ClientSelection
from edgeopt.problems.client_selection.environment import SelectionEnvironment
from edgeopt.rl import (
    Demonstrations,
    Leed,
    NoisyPlanner,
    Request,
    ScriptedPlanner,
    carried_out,
    learn_together,
    parse,
    play,
)
from edgeopt.rl.environments import Routing, grid
from edgeopt.solvers.client_selection.features import FEATURES, view_features
from edgeopt.solvers.client_selection.team import SelectionTeam, SolverSource

PROBLEM = ClientSelection.random(num_servers=3, num_clients=14, picks=2, rounds=6, seed=2)
UNEVEN = PROBLEM.replace(picks=np.array([1, 2, 3]))


def test_agents_see_and_earn_what_servers_do():
    """Observations are those of each server's own view; rewards are the environment's."""
    team, rng = SelectionTeam(UNEVEN), np.random.default_rng(0)

    def act(seen, step):
        noise = np.where(seen.allowed, rng.random(seen.allowed.shape), -1)
        return np.argsort(-noise, axis=-1)[..., : UNEVEN.max_picks]

    played = play(team, [7, 8], act)
    for e, seed in enumerate((7, 8)):
        environment = SelectionEnvironment(UNEVEN, [seed])
        for t in range(UNEVEN.rounds):
            picks = np.full((1, 3, 3), -1, np.int32)
            for s in range(3):
                view = environment.view(s)
                own = played.observation[s, t, e]
                np.testing.assert_allclose(own[: len(view.clients)], view_features(view, UNEVEN.timeout_s), rtol=1e-5)
                assert (own[len(view.clients) :] == 0).all()
                assert played.allowed[s, t, e].sum() == len(view.clients)
                chosen = view.clients[played.action[s, t, e, : UNEVEN.picks[s]]]
                picks[0, s, : UNEVEN.picks[s]] = chosen
            np.testing.assert_allclose(played.reward[:, t, e], environment.step(picks).reward[0], rtol=1e-6)
    assert team.observation_shape == (team.num_actions, len(FEATURES))


@pytest.mark.parametrize("problem", [PROBLEM, UNEVEN], ids=["even", "uneven"])
def test_the_planner_is_matching(problem: ClientSelection):
    """Its instructions, carried out, earn what `matching` earns in the same episodes."""
    team = SelectionTeam(problem)
    found, rejected = carried_out(team, ScriptedPlanner(), [4, 5])
    assert rejected == []
    for e, seed in enumerate((4, 5)):
        result = edgeopt.solve(problem.replace(seed=seed), "matching")
        assert found.reward[..., e].mean() == pytest.approx(result.objective, rel=1e-5)
    own = carried_out(team, SolverSource("matching"), [4, 5])[0]
    np.testing.assert_array_equal(own.action, found.action)


def test_any_solver_can_show():
    team = SelectionTeam(PROBLEM)
    found = carried_out(team, SolverSource("fastest"), [4])[0]
    assert found.reward.mean() == pytest.approx(edgeopt.solve(PROBLEM.replace(seed=4), "fastest").objective, rel=1e-5)
    other = Routing(grid(2), 1, seed=0)
    with pytest.raises(EdgeOptError, match="SelectionTeam"):
        SolverSource().instructions(Request(other, 0, 0))


@given(st.lists(st.integers(0, 13), max_size=25), st.integers(0, 2))
def test_repaired_orders_are_picks(places: list[int], server: int):
    """Enough different covered clients for every round; a valid order stays what it is."""
    team = SelectionTeam(UNEVEN)
    count, covered = int(UNEVEN.picks[server]), set(np.flatnonzero(UNEVEN.coverage[server]).tolist())
    found = team.repaired(server, 0, places)
    assert len(found) == count * UNEVEN.rounds
    for first in range(0, len(found), count):
        own = found[first : first + count]
        assert len(set(own)) == count
        assert set(own) <= covered
    assert team.repaired(server, 0, found) == found


def test_noise_and_words():
    team = SelectionTeam(PROBLEM)
    team.reset([3])
    request = Request(team, 0, 3)
    assert "[Select, Client_0, Server_0]" in request.prompt
    assert "selects 2 in each round" in request.prompt
    spoilt = parse(NoisyPlanner(0.5).instructions(request), team.grammar)
    assert spoilt.rejected == ()
    assert spoilt.orders != team.plan(0)


@pytest.mark.parametrize("critic", ["own", "all"])
def test_servers_learn_from_matching(critic: str):
    """Two updates with uneven numbers of picks; the same seed gives the same."""
    learner = Leed(episodes=2, hidden=4, minibatches=1, epochs=1, critic=critic, gather_every=1)
    one, other = (
        learn_together(SelectionTeam(UNEVEN), learner, Demonstrations(ScriptedPlanner()), updates=2, seed=1)
        for _ in range(2)
    )
    np.testing.assert_array_equal(one.returns, other.returns)
    assert np.isfinite(one.returns).all()
