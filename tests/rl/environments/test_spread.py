"""Spread is `simple_spread` of mpe2, step for step; a team of PettingZoo copies is what they are."""

import numpy as np
import pytest

from edgeopt.errors import EdgeOptError
from edgeopt.rl import Demonstrations, Leed, ScriptedPlanner, carried_out, learn_together, play
from edgeopt.rl.environments import ParallelTeam, Spread

mpe2 = pytest.importorskip("mpe2")


def theirs(agents: int, horizon: int = 25) -> ParallelTeam:
    from mpe2 import simple_spread_v3

    return ParallelTeam(lambda: simple_spread_v3.parallel_env(N=agents, max_cycles=horizon), horizon=horizon)


@pytest.mark.parametrize("agents", [2, 3, 5])
def test_equals_mpe2(agents: int):
    """Observations and rewards of whole episodes, with random pushes, and with ones that make agents collide."""
    rng = np.random.default_rng(agents)
    actions = rng.integers(5, size=(agents, 25, 2, 1))
    team, other = Spread(agents), theirs(agents)
    target = play(team, [3, 8], lambda seen, step: actions[:, step])
    found = play(other, [3, 8], lambda seen, step: actions[:, step])
    assert team.observation_shape == other.observation_shape
    np.testing.assert_allclose(target.observation, found.observation, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(target.reward, found.reward, rtol=1e-5, atol=1e-6)
    to_first = [[0]] * agents
    orders = np.zeros((agents, 2, 1), np.int64)
    assert team.repaired(0, 0, to_first[0]) == [0]
    crowded = play(team, [3, 8], lambda seen, step: team.obey(orders))
    again = play(other, [3, 8], lambda seen, step: crowded.action[:, step])
    assert (crowded.reward < -0.5).any()
    np.testing.assert_allclose(crowded.reward, again.reward, rtol=1e-4, atol=1e-5)


def test_the_planner_covers_landmarks():
    """Every landmark has an agent near it at the end, unless agents had to pass each other; far better than standing still."""
    team = Spread(3)
    found, rejected = carried_out(team, ScriptedPlanner(), list(range(20)))
    assert rejected == []
    apart = np.sqrt(((team.landmark[:, :, None] - team.position[:, None]) ** 2).sum(axis=-1)).min(axis=2)
    assert np.median(apart) < 0.15
    still = play(team, list(range(20)), lambda seen, step: np.zeros((3, 20, 1), np.int64))
    assert found.returns.mean() > 0.6 * still.returns.mean()


def test_copies_of_pettingzoo_learn_too():
    """Without demonstrations; there is nobody who could make them."""
    team = theirs(2, horizon=5)
    learner = Leed(episodes=2, hidden=4, weight="none", minibatches=1, epochs=1)
    history = learn_together(team, learner, updates=2, seed=0)
    assert history.returns.shape == (2, 2)
    with pytest.raises(EdgeOptError, match="no planner"):
        learn_together(team, Leed(episodes=2, hidden=4), Demonstrations(ScriptedPlanner()), updates=1, seed=0)
