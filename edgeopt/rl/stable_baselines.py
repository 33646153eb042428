"""`DeerReplayBuffer`: DEER for DQN and SAC of Stable-Baselines3, by ``replay_buffer_class``. Needs that package."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call

from edgeopt.errors import EdgeOptError
from edgeopt.extras import needs
from edgeopt.rl.deer import Deer, DeerReplay
from edgeopt.rl.draws import Draws
from edgeopt.rl.environments.environment import Actions, Continuous, Discrete, Moment
from edgeopt.rl.learner import adam, adam_state, branch
from edgeopt.rl.prioritised_replay import Priorities
from edgeopt.rl.replay import Batch, Trigger
from edgeopt.training.messages import State, Tensors

with needs("DeerReplayBuffer", "test"):
    from gymnasium import spaces
    from stable_baselines3 import DQN, SAC
    from stable_baselines3.common.buffers import ReplayBuffer
    from stable_baselines3.common.type_aliases import ReplayBufferSamples

_TARGET_RATE = 0.01  # of the fork, whatever the model's own is


class DeerReplayBuffer(ReplayBuffer):
    """`edgeopt.rl.DeerReplay` as a replay buffer of Stable-Baselines3, for one environment and observations in a vector.

    Call `attach` with the model before it learns: discrepancies and errors are its critic's. The errors of a batch are
    computed when the next one is drawn, as a model does not tell them; the weights of a batch are left out, as batches
    there have none.

    Parameters
    ----------
    buffer_size, observation_space, action_space, device, n_envs : given by the model.
    trigger, deer, priorities : as in `edgeopt.rl.DeerReplay`; in ``replay_buffer_kwargs``.
    seed : of the draws.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: torch.device | str = "auto",
        n_envs: int = 1,
        *,
        trigger: Trigger,
        deer: Deer | None = None,
        priorities: Priorities | None = None,
        seed: int = 0,
        optimize_memory_usage: bool = False,
    ) -> None:
        super().__init__(1, observation_space, action_space, device, n_envs)  # transitions are kept by `replay`
        if n_envs != 1 or len(self.obs_shape) != 1 or optimize_memory_usage:
            raise EdgeOptError("DeerReplayBuffer: expected one environment, observations in a vector, and plain memory")
        self._actions: Actions = (
            Discrete(0) if isinstance(action_space, spaces.Discrete) else Continuous(self.action_dim)
        )
        self._seed = seed
        self._critic: _Critic | None = None
        self._last: Batch | None = None
        self.replay = DeerReplay(buffer_size, trigger=trigger, deer=deer, priorities=priorities)
        self._begin(1)

    def _begin(self, batch: int) -> None:
        self.replay.start([self._seed], self.obs_shape[0], self._actions, batch, str(self.device))

    def attach(self, model: DQN | SAC) -> None:
        """Take a model's critic for the one that errors and discrepancies are of."""
        self._critic = _DqnCritic(model) if isinstance(model, DQN) else _SacCritic(model)
        self._begin(model.batch_size)

    def size(self) -> int:
        """Return the number of transitions."""
        return min(self.replay.count, self.replay.capacity)

    def add(
        self,
        obs: NDArray[Any],
        next_obs: NDArray[Any],
        action: NDArray[Any],
        reward: NDArray[Any],
        done: NDArray[Any],
        infos: list[dict[str, Any]],
    ) -> None:
        """Remember a transition, and look for a change where it is time to."""
        cut = np.array([info.get("TimeLimit.truncated", False) for info in infos])
        following = next_obs.astype(np.float32)
        ended = np.asarray(done, bool)
        moment = Moment(following, reward.astype(np.float32), ended & ~cut, ended & cut, following)
        given = action.reshape(1) if isinstance(self._actions, Discrete) else action.reshape(1, -1)
        self.replay.add(obs.astype(np.float32), given, moment)
        if self._critic is not None:
            self.replay.look(self._critic, self._critic.state)

    def sample(self, batch_size: int, env: Any = None) -> ReplayBufferSamples:
        """Draw a batch; the errors of the last one are computed first."""
        critic = self._critic
        if critic is None or batch_size != self.replay.batch:
            raise EdgeOptError(
                "DeerReplayBuffer: expected `attach(model)` before learning, and batches of the model's size"
            )
        if self._last is not None:
            state = critic.state
            self.replay.learned(critic, state, self._last, critic.errors(state, self._last))
        self._last = drawn = self.replay.sample()
        action = drawn.action[0]
        return ReplayBufferSamples(
            drawn.observation[0],
            action[:, None] if action.dim() == 1 else action,
            drawn.following[0],
            1 - drawn.going_on[0, :, None],
            drawn.reward[0, :, None],
        )


class _Critic:
    """A model's critic as a function of an explicit state, first axis a single agent."""

    critic_parts: ClassVar[tuple[str, ...]] = ("online", "target", "adam")

    def __init__(self, model: Any, online: torch.nn.Module, target: torch.nn.Module) -> None:
        self.model, self._online, self._target = model, online, target
        self._adam = adam(float(model.lr_schedule(1.0)))
        self._start = adam_state(self._adam, _alone(online))

    @property
    def state(self) -> State:
        """What the model is now."""
        return {"online": dict(_alone(self._online)), "target": dict(_alone(self._target)), "adam": self._start}

    def update_draws(self, seeds: Sequence[int], actions: Actions, batch: int, name: str = "update") -> Draws:
        """Return nothing: steps know no chance."""
        return Draws(seeds, name, (0,))

    def values(self, state: State, batch: Batch) -> Tensor:
        """Return Q(s, a), [1, B]; the mean, where there are several critics."""
        with torch.no_grad():
            return self._value(_weights(state, "online"), batch).mean(dim=0, keepdim=True)

    def errors(self, state: State, batch: Batch) -> Tensor:
        """Return errors [1, B]."""
        with torch.no_grad():
            return self._aim(_weights(state, "target"), batch) - self.values(state, batch)

    def critic_step(self, state: State, batch: Batch, noise: Tensor) -> Tensor:
        """Take one step on the squared error, in place, and move the target."""
        with torch.no_grad():
            aim = self._aim(_weights(state, "target"), batch)
        weights = {name: value.detach().requires_grad_() for name, value in _weights(state, "online").items()}
        value = self._value(weights, batch)
        gradients = torch.autograd.grad((value - aim).square().mean(dim=1).sum() / 2, list(weights.values()))
        online, target = branch(state, "online"), branch(state, "target")
        with torch.no_grad():
            given = {name: gradient[None] for name, gradient in zip(weights, gradients, strict=True)}
            self._adam.overwrite(online, given, branch(state, "adam"))  # type: ignore[arg-type]
            for name, moved in target.items():
                moved.lerp_(online[name], _TARGET_RATE)  # type: ignore[union-attr, arg-type]
        return (aim - value.mean(dim=0)).detach()

    def _value(self, weights: Tensors, batch: Batch) -> Tensor:
        """Return Q(s, a) of every critic, [K, B]."""
        raise NotImplementedError

    def _aim(self, weights: Tensors, batch: Batch) -> Tensor:
        """Return the targets [1, B], with the target critic's weights."""
        raise NotImplementedError


class _DqnCritic(_Critic):
    def __init__(self, model: DQN) -> None:
        super().__init__(model, model.q_net, model.q_net_target)

    def _value(self, weights: Tensors, batch: Batch) -> Tensor:
        values: Tensor = functional_call(self._online, weights, (batch.observation[0],))
        return values.gather(1, batch.action[0][:, None]).T

    def _aim(self, weights: Tensors, batch: Batch) -> Tensor:
        best: Tensor = functional_call(self._target, weights, (batch.following[0],)).amax(dim=1)
        return batch.reward + float(self.model.gamma) * batch.going_on * best


class _SacCritic(_Critic):
    def __init__(self, model: SAC) -> None:
        super().__init__(model, model.critic, model.critic_target)

    def _value(self, weights: Tensors, batch: Batch) -> Tensor:
        both = functional_call(self._online, weights, (batch.observation[0], batch.action[0]))
        return torch.cat(both, dim=1).T

    def _aim(self, weights: Tensors, batch: Batch) -> Tensor:
        action = self.model.actor(batch.following[0], deterministic=True)
        least = torch.cat(functional_call(self._target, weights, (batch.following[0], action)), dim=1).amin(dim=1)
        return batch.reward + float(self.model.gamma) * batch.going_on * least


def _alone(module: torch.nn.Module) -> Tensors:
    return {name: value.detach()[None] for name, value in module.named_parameters()}


def _weights(state: State, name: str) -> Tensors:
    found = {}
    for part, value in branch(state, name).items():
        assert isinstance(value, Tensor)
        found[part] = value[0]
    return found
