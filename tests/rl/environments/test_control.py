"""Classic control: laws by Gymnasium's own environments, changes, and runs that go on where they stopped."""

import numpy as np
import pytest

gymnasium = pytest.importorskip("gymnasium")
from edgeopt.errors import EdgeOptError
from edgeopt.rl.environments import Acrobot, CartPole, Change, Control, Pendulum

KINDS = {"CartPole-v1": CartPole, "Acrobot-v1": Acrobot, "Pendulum-v1": Pendulum}
FACTORS = {
    "CartPole-v1": {"gravity": 2.0, "half_length": 1.5, "force": 0.5},
    "Acrobot-v1": {"mass": 1.5, "length": 1.2},
    "Pendulum-v1": {"gravity": 1.5, "mass": 2.0, "length": 0.8},
}


def theirs(name: str, changed: bool):
    """Return Gymnasium's environment, with the constants of `FACTORS` where it is changed."""
    env = gymnasium.make(name).unwrapped
    if changed and name == "CartPole-v1":
        env.gravity, env.length, env.force_mag = 9.8 * 2, 0.5 * 1.5, 10 * 0.5
        env.polemass_length = env.masspole * env.length
    elif changed and name == "Acrobot-v1":
        env.LINK_MASS_1 = env.LINK_MASS_2 = 1.5
        env.LINK_LENGTH_1 = env.LINK_LENGTH_2 = 1.2
        env.LINK_COM_POS_1 = env.LINK_COM_POS_2 = 0.6
    elif changed:
        env.g, env.m, env.l = 15.0, 2.0, 0.8
    return env


def actions_of(environment: Control, rng: np.random.Generator) -> np.ndarray:
    if environment.name == "pendulum":
        return rng.uniform(-1, 1, (environment.num_agents, 1)).astype(np.float32)
    return rng.integers(environment.actions.count, size=environment.num_agents)


@pytest.mark.parametrize("changed", [False, True], ids=["usual", "changed"])
@pytest.mark.parametrize("name", KINDS)
def test_laws_are_those_of_gymnasium(name: str, changed: bool):
    """From equal states, equal actions lead to equal states, rewards and ends, also with other constants."""
    change = Change(at=0, factors=FACTORS[name]) if changed else None
    ours, rng = KINDS[name]([5, 6, 7], change=change), np.random.default_rng(0)
    env = theirs(name, changed)
    env.reset(seed=0)
    for _ in range(300):
        action, before = actions_of(ours, rng), ours._state.copy()
        moment = ours.step(action)
        for g in range(3):
            state = before[g, :2] if name == "Pendulum-v1" else before[g].copy()
            env.state = state
            if name == "CartPole-v1":
                env.steps_beyond_terminated = None
            given = 2 * action[g] if name == "Pendulum-v1" else int(action[g])
            observation, reward, terminated, _, _ = env.step(given)
            np.testing.assert_allclose(moment.following[g], observation, rtol=1e-5, atol=1e-5)
            assert moment.reward[g] == pytest.approx(float(reward), rel=1e-5, abs=1e-5)
            assert moment.terminated[g] == terminated


def test_an_agent_is_the_same_alone_and_among_others():
    """Episodes start where a stream of seed and episode says, whatever the other copies do."""
    both, alone, rng = CartPole([3, 9]), CartPole([9]), np.random.default_rng(1)
    for _ in range(200):
        action = rng.integers(2, size=2)
        np.testing.assert_array_equal(both.step(action).observation[1:], alone.step(action[1:]).observation)


@pytest.mark.parametrize("kind", KINDS.values())
def test_horizon_and_change_cut_episodes_off(kind: type[Control]):
    """At the horizon and at the change an episode is truncated, and the next one starts at once."""
    environment = kind([0, 1], change=Change(at=[3, 8]), horizon=5)
    cut = []
    for _ in range(10):
        moment = environment.step(actions_of(environment, np.random.default_rng(0)))
        cut.append(moment.truncated.tolist())
    assert np.flatnonzero([c[0] for c in cut]).tolist() == [2, 7]
    assert np.flatnonzero([c[1] for c in cut]).tolist() == [4, 7]


@pytest.mark.parametrize("kind", KINDS.values())
def test_partial_and_reward_changes(kind: type[Control]):
    """A partial change leaves the other part as it was; a change of reward leaves the laws as they were."""
    names = dict.fromkeys(kind.constants, 2.0)
    partly = kind([4], change=Change(at=0, factors=names, partly=True))
    usual, whole, paid = (
        kind([4]),
        kind([4], change=Change(at=0, factors=names)),
        kind([4], change=Change(at=0, reward=True)),
    )
    rng, differ = np.random.default_rng(2), [0, 0]
    for _ in range(200):
        state = kind([4])._draw(rng)[None] * 5
        action = actions_of(usual, rng)
        for environment in (partly, usual, whole, paid):
            environment._state = state.copy()
        inside = bool(usual._region(state)[0])
        p, u, w, r = (environment.step(action) for environment in (partly, usual, whole, paid))
        np.testing.assert_array_equal(p.following, w.following if inside else u.following)
        np.testing.assert_array_equal(r.following, u.following)
        differ[inside] += not np.array_equal(u.following, w.following)
        assert r.reward[0] == pytest.approx(float(usual._other_reward(usual._move(state, action, usual._usual)[0])[0]))
    assert min(differ) > 0


@pytest.mark.parametrize("kind", KINDS.values())
def test_goes_on_where_it_stopped(kind: type[Control]):
    """What `arrays` gives is all that the next steps depend on."""
    one, other = (kind([1, 2], change=Change(at=30, reward=True), horizon=20) for _ in range(2))
    rng = np.random.default_rng(3)
    for _ in range(25):
        one.step(actions_of(one, rng))
    other.restore(one.arrays())
    for _ in range(30):
        action = actions_of(one, rng)
        for a, b in zip(one.step(action), other.step(action), strict=True):
            np.testing.assert_array_equal(a, b)


def test_bad_input():
    """What does not fit is named."""
    with pytest.raises(EdgeOptError, match=r"factors: 'weight': expected one of gravity, cart_mass"):
        CartPole([0], change=Change(at=0, factors={"weight": 2.0}))
    with pytest.raises(EdgeOptError, match=r"factors.force = 0"):
        Change(at=0, factors={"force": 0})
    with pytest.raises(EdgeOptError, match="seeds: expected at least one"):
        CartPole([])
    with pytest.raises(EdgeOptError, match=r"at: expected shape \[2\], got \[3\]"):
        CartPole([0, 1], change=Change(at=[1, 2, 3]))
