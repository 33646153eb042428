"""Soft actor-critic: densities by torch's own distributions, a step by plain layers and autograd, that it learns."""

import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from edgeopt.errors import EdgeOptError
from edgeopt.rl import Batch, Mlp, Replay, Sac, learn
from edgeopt.rl.environments import Change, Continuous, Discrete, Pendulum

SEEDS, SIZE, ACTIONS, DRAWN = [3, 4], 3, 2, 5
SAC = Sac(hidden=(8,), learning_rate=0.01, discount=0.9, target_rate=0.2)


def batch(seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)

    def draws(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal((2, DRAWN, *shape)).astype(np.float32))

    going_on = (draws() > -0.5).float()
    return Batch(
        draws(SIZE),
        torch.tanh(draws(ACTIONS)),
        draws(),
        going_on,
        draws(SIZE),
        draws().abs(),
        np.zeros((2, DRAWN), int),
    )


def policy(weights: torch.Tensor, seen: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return actions and logarithms of densities of one agent, by torch's distributions."""
    mean, log_std = Mlp((SIZE, 8, 2 * ACTIONS))(weights[None], seen[None])[0].chunk(2, dim=1)
    plain = Independent(Normal(mean, log_std.clamp(-5, 2).exp()), 1)
    squashed = TransformedDistribution(plain, [TanhTransform(cache_size=1)])
    action = torch.tanh(mean + log_std.clamp(-5, 2).exp() * noise)
    return action, squashed.log_prob(action)


def value(critics: torch.Tensor, seen: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    """Return both critics of one agent, [2, B]."""
    network = Mlp((SIZE + ACTIONS, 8, 1))
    both = [network(w[None], torch.cat([seen, action], dim=1)[None])[0, :, 0] for w in critics]
    return torch.stack(both)


def test_steps_are_those_of_plain_losses():
    """Two steps of two agents: critics, targets, actors and temperatures, one agent at a time with `torch.optim.Adam`."""
    state = SAC.start(SEEDS, SIZE, Continuous(ACTIONS))
    alone = []
    for g in range(2):
        own = {n: state[n][g].clone().requires_grad_(n != "target") for n in ("actor", "critic", "target", "log_alpha")}
        alone.append((own, {n: torch.optim.Adam([own[n]], lr=0.01) for n in ("actor", "critic", "log_alpha")}))
    for k in range(2):
        seen = batch(k)
        noise = torch.from_numpy(
            np.random.default_rng(9 + k).standard_normal((2, 2, DRAWN, ACTIONS)).astype(np.float32)
        )
        errors, _ = SAC.update(state, seen, noise)
        for g, (own, adams) in enumerate(alone):
            with torch.no_grad():
                action, logs = policy(own["actor"], seen.following[g], noise[g, 0])
                following = value(own["target"], seen.following[g], action).amin(dim=0) - own["log_alpha"].exp() * logs
                aim = seen.reward[g] + 0.9 * seen.going_on[g] * following
            found = value(own["critic"], seen.observation[g], seen.action[g])
            torch.testing.assert_close(errors[g], (aim - found.mean(dim=0)).detach(), rtol=1e-3, atol=1e-4)
            loss = sum((seen.weight[g] * (one - aim).square()).mean() for one in found) / 2
            step(adams["critic"], loss)
            with torch.no_grad():
                own["target"] += 0.2 * (own["critic"] - own["target"])
            action, logs = policy(own["actor"], seen.observation[g], noise[g, 1])
            best = value(own["critic"].detach(), seen.observation[g], action).amin(dim=0)
            step(adams["actor"], (own["log_alpha"].exp().detach() * logs - best).mean())
            step(adams["log_alpha"], -(own["log_alpha"] * (logs.detach() - ACTIONS)).mean())
    for g, (own, _) in enumerate(alone):
        for name, weights in own.items():
            torch.testing.assert_close(state[name][g], weights.detach(), rtol=1e-3, atol=1e-3)


def step(adam: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    adam.zero_grad()
    loss.backward()
    adam.step()


def test_first_actions_are_even_draws():
    """Before `random_steps`, actions are uniform from -1 to 1."""
    learner = Sac(random_steps=10)
    state, draws = learner.start([0], SIZE, Continuous(1)), learner.act_draws([0], Continuous(1))
    found = np.array([learner.act(state, np.zeros((1, SIZE), np.float32), 0, draws.at(k))[0, 0] for k in range(4000)])
    assert np.histogram(found, bins=4, range=(-1, 1))[0] / 4000 == pytest.approx(0.25, abs=0.03)


@pytest.mark.slow
def test_learns_to_hold_still():
    """With gravity nearly gone, agents learn in a few hundred updates to bring the pendulum up."""
    seeds = [0, 1]
    world = Pendulum(seeds, change=Change(at=0, factors={"gravity": 0.01, "torque": 3.0}), horizon=50)
    learner = Sac(hidden=(32,), learning_rate=3e-3, discount=0.9, random_steps=200)
    history = learn(world, learner, Replay(2000), steps=1000, seeds=seeds, batch=32, learn_after=200)
    returns = history.returns()
    assert returns[-200:].mean() > 0.5 * returns[:200].mean()  # costs are halved at least


def test_refuses_other_actions():
    with pytest.raises(EdgeOptError, match="sac: expected an environment whose actions are numbers"):
        Sac().start([0], 3, Discrete(2))
