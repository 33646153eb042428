"""DEER inside Stable-Baselines3: errors by its own networks, a fork that leaves the model alone, models that learn."""

import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3")
from stable_baselines3 import DQN, SAC

from edgeopt.errors import EdgeOptError
from edgeopt.rl import Deer, TrueChange
from edgeopt.rl.stable_baselines import DeerReplayBuffer

KINDS = {DQN: "CartPole-v1", SAC: "Pendulum-v1"}


def model_of(kind: type, change: int = 150):
    given = {"trigger": TrueChange(change), "deer": Deer(refresh=8)}
    model = kind(
        "MlpPolicy", KINDS[kind], buffer_size=400, learning_starts=50, batch_size=16, seed=1, device="cpu",
        replay_buffer_class=DeerReplayBuffer, replay_buffer_kwargs=given, policy_kwargs={"net_arch": [16]},
        train_freq=2, gradient_steps=1,
    )  # fmt: skip
    model.replay_buffer.attach(model)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_learns_through_a_change(kind: type):
    """The buffer fills, finds the change, forks the critic, and leaves the model's own networks to the model."""
    model = model_of(kind)
    model.learn(260)
    buffer = model.replay_buffer
    replay, critic = buffer.replay, buffer._critic
    assert buffer.size() == replay.count == 260
    assert replay.changes == [(151, 0, 150)]
    before, fork, now = replay._before["online"], replay._fork["online"], critic.state["online"]
    assert set(before) == set(fork) == set(now)
    for one, other in ((before, fork), (fork, now), (before, now)):
        assert any(not torch.equal(one[name], other[name]) for name in one)
    own = {name: value.clone() for name, value in now.items()}
    replay._learn_apart(critic, critic.state)
    assert all(torch.equal(critic.state["online"][name], own[name]) for name in own)
    batch = replay.at(np.arange(200, 210)[None])
    values = critic.values(critic.state, batch)[0]
    with torch.no_grad():
        if kind is DQN:
            expected = model.q_net(batch.observation[0])[torch.arange(10), batch.action[0]]
        else:
            expected = torch.cat(model.critic(batch.observation[0], batch.action[0]), dim=1).mean(dim=1)
    torch.testing.assert_close(values, expected)


def test_errors_are_those_of_q_learning():
    """Errors are r + gamma max Q_target(s', .) - Q(s, a), and no more after the end of an episode."""
    model = model_of(DQN)
    model.learn(120)
    batch = model.replay_buffer.replay.at(np.arange(100)[None])
    with torch.no_grad():
        best = model.q_net_target(batch.following[0]).max(dim=1).values
        value = model.q_net(batch.observation[0]).gather(1, batch.action[0][:, None])[:, 0]
    expected = batch.reward[0] + 0.99 * batch.going_on[0] * best - value
    critic = model.replay_buffer._critic
    torch.testing.assert_close(critic.errors(critic.state, batch)[0], expected)
    assert 0 < float((1 - batch.going_on).sum()) < 20


def test_needs_a_model():
    model = DQN(
        "MlpPolicy", "CartPole-v1", buffer_size=100, learning_starts=10, device="cpu",
        replay_buffer_class=DeerReplayBuffer, replay_buffer_kwargs={"trigger": TrueChange(10)},
    )  # fmt: skip
    with pytest.raises(EdgeOptError, match=r"expected `attach\(model\)` before learning"):
        model.learn(30)
