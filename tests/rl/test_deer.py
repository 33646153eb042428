"""DEER: priorities by their formulas, pools and the cap, the fork against plain copies, runs that are resumed."""

import numpy as np
import pytest
import torch

from edgeopt.errors import EdgeOptError
from edgeopt.rl import Deer, DeerReplay, Dqn, Priorities, PrioritisedReplay, Replay, TrueChange, learn
from edgeopt.rl.environments import CartPole, Change, Discrete, Moment

DQN = Dqn(hidden=(16,), explore_steps=200)


def filled(replay: Replay, count: int, agents: int = 2, batch: int = 16) -> Replay:
    """Return a buffer with `count` transitions, whose first observed number says which one it is."""
    replay.start(range(agents), 2, Discrete(3), batch)
    rng = np.random.default_rng(0)
    for n in range(count):
        seen = np.full((agents, 2), n, np.float32)
        ends = np.zeros(agents, bool)
        reward = rng.standard_normal(agents).astype(np.float32)
        replay.add(seen, rng.integers(3, size=agents), Moment(seen, reward, ends, ends, seen + 1))
    return replay


def test_priorities_are_those_of_the_formulas():
    """Before a change the discrepancy makes less of a transition, after it more."""
    rng, deer = np.random.default_rng(1), Deer(eta=2.0)
    size, discrepancy = rng.random((2, 5)), rng.random((2, 5))
    new = rng.random((2, 5)) < 0.5
    found = deer.priority(size, discrepancy, new, np.array([[0.5], [2.0]]), 0.6)
    for g in range(2):
        for b in range(5):
            d, s, tau = discrepancy[g, b], size[g, b], (0.5, 2.0)[g]
            expected = (s + 2 * d) ** 0.6 if new[g, b] else s**0.6 * np.exp(-d / tau)
            assert found[g, b] == pytest.approx(expected)


def test_without_a_change_it_is_prioritised_replay():
    """The same draws and weights, to the bit, in a whole run."""
    made = [PrioritisedReplay(500), DeerReplay(500, trigger=TrueChange(10**6))]
    runs = [learn(CartPole([1, 2]), DQN, r, steps=400, seeds=[1, 2], batch=8, learn_after=40) for r in made]
    np.testing.assert_array_equal(runs[0].reward, runs[1].reward)
    assert torch.equal(runs[0].state["online"], runs[1].state["online"])


@pytest.mark.parametrize("cap_least", [0.05, 0.3, 1.0])
def test_pools_and_cap(cap_least: float):
    """A batch has no more from before the change than the cap, and without a cap as much as priorities ask for."""
    replay = filled(DeerReplay(300, trigger=TrueChange(0), deer=Deer(cap_least=cap_least, cap_decay=20.0)), 400)
    replay.change[:] = [350, 150]  # of the second agent, most of what is there is from after the change
    shares = np.zeros(2)
    for _ in range(200):
        batch = replay.sample()
        assert (batch.entry >= 100).all()
        assert (batch.entry < 400).all()
        np.testing.assert_array_equal(batch.observation[..., 0].numpy(), batch.entry)
        old = (batch.entry < replay.change[:, None]).sum(axis=1)
        cap = replay.deer.cap(400 - replay.change)
        assert (old <= np.ceil(cap * 16)).all()
        shares += old / 16 / 200
    natural = np.array([250 / 300, 50 / 300])  # all priorities are equal
    assert shares == pytest.approx(np.minimum(natural, np.minimum(cap, 15 / 16)), abs=0.02)


def test_weights_are_of_each_pool():
    """(n P) ** -beta within a pool, over the largest of the batch in that pool."""
    replay = filled(DeerReplay(200, trigger=TrueChange(0), priorities=Priorities(beta=0.5, beta_steps=10**9)), 200)
    replay.change[:] = 120
    priority = np.random.default_rng(2).uniform(0.2, 3.0, (2, 200))
    replay._prioritise(np.broadcast_to(np.arange(200), (2, 200)).copy(), priority)
    batch = replay.sample()
    for g in range(2):
        for pool in (range(120), range(120, 200)):
            drawn = np.isin(batch.entry[g], pool)
            own = priority[g, list(pool)]
            chance = priority[g, batch.entry[g][drawn]] / own.sum()
            expected = (len(pool) * chance) ** -0.5
            np.testing.assert_allclose(batch.weight[g].numpy()[drawn], expected / expected.max(), rtol=1e-5)


def test_the_fork_learns_from_what_came_after():
    """The fork learns from what came after the change alone; discrepancies are those of it and the critic before."""
    seeds = [1, 2]
    replay = DeerReplay(400, trigger=TrueChange([200, 10**6]), deer=Deer(refresh=8))
    taught = []

    class Noted(Dqn):
        """Notes what the fork is taught."""

        def critic_step(self, state, batch, noise):
            taught.append(int(batch.entry[0].min()))
            return super().critic_step(state, batch, noise)

    learner = Noted(hidden=(16,), explore_steps=200)
    history = learn(CartPole(seeds), learner, replay, steps=300, seeds=seeds, batch=8, learn_after=40)
    assert len(taught) == 99  # of the updates after the change was found, at 201 entries
    assert min(taught) >= 200
    every = np.broadcast_to(np.arange(300), (2, 300))
    before = learner.values(history.state | replay._before, replay.at(every)).numpy()
    apart = learner.values(history.state | replay._fork, replay.at(every)).numpy()
    replay._compare(learner, history.state, np.ascontiguousarray(every))
    np.testing.assert_allclose(replay._discrepancy[0, :300], np.abs(apart - before)[0])
    assert (replay._discrepancy[1] == 0).all()  # nothing has changed for the second agent
    assert replay.changes == [(201, 0, 200)]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("deer", [Deer(), Deer(fork=False), Deer(discrepancy=False), Deer(fork_updates=50)])
def test_resumed_is_one_long_run(deer: Deer, tmp_path):
    """To the bit, whether the checkpoint is from before or after the change."""

    def run(steps: int, **options):
        replay = DeerReplay(250, trigger=TrueChange([150, 180]), deer=deer)
        world = CartPole([1, 2], change=Change(at=[150, 180], factors={"force": 0.5}))
        return learn(world, DQN, replay, steps=steps, seeds=[1, 2], batch=8, learn_after=40, **options)

    long = run(320)
    for cut in (120, 240):
        path = tmp_path / f"{cut}.safetensors"
        run(cut, checkpoint=path)
        resumed = run(320, checkpoint=path, resume=True)
        np.testing.assert_array_equal(resumed.reward, long.reward)
        assert torch.equal(resumed.state["online"], long.state["online"])
        assert resumed.rows[-1] == long.rows[-1]


def test_takes_over_another_buffers_transitions(tmp_path):
    """A run may go on with another buffer: its transitions stay, and all of them are new to it."""
    path, options = tmp_path / "run.safetensors", {"seeds": [1], "batch": 8, "learn_after": 40}
    learn(CartPole([1]), DQN, Replay(250), steps=200, checkpoint=path, **options)
    replay = DeerReplay(250, trigger=TrueChange(220))
    learn(CartPole([1]), DQN, replay, steps=260, checkpoint=path, resume=True, **options)
    assert replay.count == 260
    assert replay.change.tolist() == [220]


def test_bad_input():
    for options, message in (
        ({"cap_from": 1.5}, "cap_from = 1.5"),
        ({"temperature": 0}, "temperature"),
        ({"refresh": 0}, "refresh"),
    ):
        with pytest.raises(EdgeOptError, match=message):
            Deer(**options)
