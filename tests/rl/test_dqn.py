"""Double Q-learning: one step by torch's own layers and optimiser, one agent at a time; exploration; that it learns."""

import itertools

import numpy as np
import pytest
import torch

from edgeopt.errors import EdgeOptError
from edgeopt.rl import Batch, Dqn, Mlp, Replay, learn
from edgeopt.rl.environments import CartPole, Continuous, Discrete

SEEDS, SIZE, ACTIONS = [3, 4], 3, 4


def batch(agents: int, seed: int = 0, terminal: float = 0.3) -> Batch:
    rng = np.random.default_rng(seed)
    real = [torch.from_numpy(rng.standard_normal((agents, 6, SIZE)).astype(np.float32)) for _ in range(2)]
    action = torch.from_numpy(rng.integers(ACTIONS, size=(agents, 6)))
    reward, weight = (torch.from_numpy(rng.random((agents, 6)).astype(np.float32) * 3) for _ in range(2))
    going_on = torch.from_numpy((rng.random((agents, 6)) > terminal).astype(np.float32))
    return Batch(real[0], action, reward, going_on, real[1], weight, np.zeros((agents, 6), np.int64))


def network_of(weights: torch.Tensor, learner: Dqn) -> torch.nn.Sequential:
    """Return torch's own layers with the weights of one agent."""
    sizes, first, layers = (SIZE, *learner.hidden, ACTIONS), 0, []
    for fan_in, fan_out in itertools.pairwise(sizes):
        layer = torch.nn.Linear(fan_in, fan_out)
        with torch.no_grad():
            layer.weight.copy_(weights[first : first + fan_in * fan_out].view(fan_in, fan_out).T)
            layer.bias.copy_(weights[first + fan_in * fan_out : first + (fan_in + 1) * fan_out])
        first += (fan_in + 1) * fan_out
        layers += [layer, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def test_steps_are_those_of_torch():
    """Three steps of two agents: errors, weights and targets as by `torch.optim.Adam` on the weighted Huber loss."""
    learner = Dqn(hidden=(8, 5), learning_rate=0.01, discount=0.9, target_rate=0.2)
    state = learner.start(SEEDS, SIZE, Discrete(ACTIONS))
    alone = []
    for g in range(2):
        online, target = network_of(state["online"][g], learner), network_of(state["target"][g], learner)
        alone.append((online, target, torch.optim.Adam(online.parameters(), lr=0.01)))
    for k in range(3):
        seen = batch(2, k)
        errors, losses = learner.update(state, seen, torch.empty(2, 0))
        for g, (online, target, adam) in enumerate(alone):
            with torch.no_grad():
                best = online(seen.following[g]).argmax(dim=1)
                value = target(seen.following[g])[torch.arange(6), best]
                aim = seen.reward[g] + 0.9 * seen.going_on[g] * value
            error = aim - online(seen.observation[g])[torch.arange(6), seen.action[g]]
            huber = torch.where(error.abs() < 1, error**2 / 2, error.abs() - 0.5)
            loss = (seen.weight[g] * huber).mean()
            adam.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(online.parameters(), 10.0)
            adam.step()
            with torch.no_grad():
                for moved, towards in zip(target.parameters(), online.parameters(), strict=True):
                    moved += 0.2 * (towards - moved)
            torch.testing.assert_close(errors[g], error.detach(), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(losses[g], loss.detach(), rtol=1e-4, atol=1e-5)
    for g, (online, target, _) in enumerate(alone):
        for part, weights in ((online, state["online"]), (target, state["target"])):
            torch.testing.assert_close(
                network_of(weights[g], learner)(batch(2).observation[g]),
                part(batch(2).observation[g]),
                rtol=1e-4,
                atol=1e-4,
            )


def test_exploration_falls():
    """Chance of a random action: all of them at first, a tenth at the end; else the best one."""
    learner = Dqn(hidden=(8,), explore_to=0.1, explore_steps=100)
    state = learner.start([0], SIZE, Discrete(ACTIONS))
    seen, draws = np.ones((1, SIZE), np.float32), learner.act_draws([0], Discrete(ACTIONS))
    best = int(Mlp((SIZE, 8, ACTIONS))(state["online"], torch.ones(1, 1, SIZE)).argmax())
    first = [int(learner.act(state, seen, 0, draws.at(k))[0]) for k in range(2000)]
    last = [int(learner.act(state, seen, 100, draws.at(k))[0]) for k in range(2000)]
    assert np.bincount(first, minlength=ACTIONS) / 2000 == pytest.approx(0.25, abs=0.04)
    assert np.mean(np.array(last) == best) == pytest.approx(0.9 + 0.1 / ACTIONS, abs=0.02)


@pytest.mark.slow
def test_learns_to_balance():
    """Agents hold the pole several times as long as chance, which is 22 steps."""
    seeds, learner = [0, 1, 2, 3], Dqn(hidden=(32, 32), explore_steps=1000)
    history = learn(CartPole(seeds), learner, Replay(5000), steps=3000, seeds=seeds, batch=32)
    assert history.returns()[-500:].mean() > 80


def test_refuses_other_actions():
    with pytest.raises(EdgeOptError, match="dqn: expected an environment with few actions"):
        Dqn().start([0], 3, Continuous(1))
    with pytest.raises(EdgeOptError, match=r"discount = 2.0: expected a number from 0 to 1"):
        Dqn(discount=2.0)
