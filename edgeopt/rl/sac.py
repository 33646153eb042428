"""`Sac`: soft actor-critic with perceptrons, for actions that are numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import softplus

from edgeopt.errors import EdgeOptError, quoted
from edgeopt.rl.draws import Draws
from edgeopt.rl.environments.environment import Actions, Continuous
from edgeopt.rl.learner import adam, adam_state, branch, tensors
from edgeopt.rl.networks import Mlp
from edgeopt.rl.replay import Batch
from edgeopt.training.messages import State
from edgeopt.validate import int_array, integer, real

LEAST_LOG_STD, MOST_LOG_STD = -5.0, 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sac:
    """Hyper-parameters of soft actor-critic with two critics and a temperature that is learned.

    Parameters
    ----------
    hidden : sizes of the hidden layers, of actor and critics.
    learning_rate : of Adam, of all that is learned.
    discount : what the next step counts against this one.
    target_rate : by what share the target critics go towards the critics in each update.
    random_steps : steps at the beginning in which actions are even draws.

    References
    ----------
    T. Haarnoja et al., arXiv 1812.05905.
    """

    hidden: tuple[int, ...] = (64, 64)
    learning_rate: float = 1e-3
    discount: float = 0.99
    target_rate: float = 0.01
    random_steps: int = 500

    name: ClassVar[str] = "sac"
    critic_parts: ClassVar[tuple[str, ...]] = ("critic", "target", "critic_adam")

    def __post_init__(self) -> None:
        int_array("hidden", self.hidden, (None,), low=1)
        real("learning_rate", self.learning_rate, positive=True)
        integer("random_steps", self.random_steps, low=0)
        for name in ("discount", "target_rate"):
            if not 0 <= real(name, getattr(self, name)) <= 1:
                raise EdgeOptError(f"{name} = {quoted(getattr(self, name))}: expected a number from 0 to 1")

    def start(self, seeds: Sequence[int], observation_size: int, actions: Actions, device: str = "cpu") -> State:
        """Return the state of untrained agents: actors [G, P], two critics and their targets [G, 2, P], temperatures."""
        if not isinstance(actions, Continuous):
            raise EdgeOptError("sac: expected an environment whose actions are numbers (Continuous)")
        critic_of = Mlp((observation_size + actions.size, *self.hidden, 1))
        actor = Mlp((observation_size, *self.hidden, 2 * actions.size)).start(seeds, "actor").to(device)
        critic = torch.stack([critic_of.start(seeds, f"critic {k}") for k in range(2)], dim=1).to(device)
        log_alpha = torch.zeros(len(seeds), 1, device=device)
        return {
            "actor": actor, "actor_adam": adam_state(adam(self.learning_rate), {"actor": actor}),
            "critic": critic, "target": critic.clone(), "critic_adam": adam_state(adam(self.learning_rate), {"critic": critic}),
            "log_alpha": log_alpha, "alpha_adam": adam_state(adam(self.learning_rate), {"log_alpha": log_alpha}),
        }  # fmt: skip

    def act_draws(self, seeds: Sequence[int], actions: Actions) -> Draws:
        """Return a normal number for each number of an action."""
        assert isinstance(actions, Continuous)
        return Draws(seeds, "act", (actions.size,), normal=True)

    def update_draws(self, seeds: Sequence[int], actions: Actions, batch: int, name: str = "update") -> Draws:
        """Return normal numbers for what is done next, and for what would be done now."""
        assert isinstance(actions, Continuous)
        return Draws(seeds, name, (2, batch, actions.size), normal=True)

    def act(
        self, state: State, observation: NDArray[np.float32], step: int, chance: NDArray[np.float64]
    ) -> NDArray[np.generic]:
        """Return actions float32 [G, A], drawn from the policy, or evenly at the beginning."""
        noise = torch.from_numpy(chance).to(torch.float32)
        if step < self.random_steps:
            return torch.erf(noise / math.sqrt(2)).numpy()  # the distribution function of a normal number, from -1 to 1
        (actor,) = tensors(state, "actor")
        with torch.no_grad():
            action, _ = self._policy(
                actor, torch.from_numpy(observation)[:, None].to(actor.device), noise[:, None].to(actor.device)
            )
        found: NDArray[np.generic] = action[:, 0].cpu().numpy()
        return found

    def values(self, state: State, batch: Batch) -> Tensor:
        """Return the mean of both critics of (s, a), [G, B]."""
        (critic,) = tensors(state, "critic")
        with torch.no_grad():
            return self._value(critic, batch.observation, batch.action).mean(dim=1)

    def errors(self, state: State, batch: Batch) -> Tensor:
        """Return errors [G, B] of the mean of both critics, if the policy's usual action is next."""
        with torch.no_grad():
            return self._target(state, batch, torch.zeros_like(batch.action)) - self.values(state, batch)

    def critic_step(self, state: State, batch: Batch, noise: Tensor) -> Tensor:
        """Take one step of the critics on the weighted squared error, in place, and move the targets."""
        return self._critic_step(state, batch, noise)[0]

    def update(self, state: State, batch: Batch, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step of critics, actor and temperature, in place; return errors and losses of the critics."""
        errors, loss = self._critic_step(state, batch, noise)
        actor, critic, log_alpha = tensors(state, "actor", "critic", "log_alpha")
        weights = actor.detach().requires_grad_()
        action, logs = self._policy(weights, batch.observation, noise[:, 1])
        value = self._value(critic, batch.observation, action).amin(dim=1)
        sought = (log_alpha.exp() * logs - value).mean(dim=1)  # (G,)
        (gradient,) = torch.autograd.grad(sought.sum(), weights)  # agents share no weight
        with torch.no_grad():
            adam(self.learning_rate).overwrite({"actor": actor}, {"actor": gradient}, branch(state, "actor_adam"))
            surplus = -(logs - action.shape[-1]).mean(dim=1, keepdim=True)  # entropy less its target, -A
            adam(self.learning_rate).overwrite(
                {"log_alpha": log_alpha}, {"log_alpha": surplus}, branch(state, "alpha_adam")
            )
        return errors, loss

    def _critic_step(self, state: State, batch: Batch, noise: Tensor) -> tuple[Tensor, Tensor]:
        critic, target = tensors(state, "critic", "target")
        with torch.no_grad():
            aim = self._target(state, batch, noise[:, 0])
        weights = critic.detach().requires_grad_()
        value = self._value(weights, batch.observation, batch.action)  # (G, 2, B)
        loss = (batch.weight[:, None] * (value - aim[:, None]).square()).mean(dim=2).sum(dim=1) / 2  # (G,)
        (gradient,) = torch.autograd.grad(loss.sum(), weights)
        with torch.no_grad():
            adam(self.learning_rate).overwrite({"critic": critic}, {"critic": gradient}, branch(state, "critic_adam"))
            target.lerp_(critic, self.target_rate)
            return aim - value.mean(dim=1), loss.detach()

    def _target(self, state: State, batch: Batch, noise: Tensor) -> Tensor:
        """Return r + discount * (the lesser target critic of (s', a') - alpha log pi(a' | s')), [G, B]."""
        actor, target, log_alpha = tensors(state, "actor", "target", "log_alpha")
        action, logs = self._policy(actor, batch.following, noise)
        following = self._value(target, batch.following, action).amin(dim=1) - log_alpha.exp() * logs
        return batch.reward + self.discount * batch.going_on * following

    def _policy(self, actor: Tensor, observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return actions [G, B, A] for standard normal noise, and the logarithms [G, B] of their densities."""
        network = Mlp((observation.shape[-1], *self.hidden, 2 * noise.shape[-1]))
        mean, log_std = network(actor, observation).chunk(2, dim=-1)
        log_std = log_std.clamp(LEAST_LOG_STD, MOST_LOG_STD)
        plain = mean + log_std.exp() * noise
        normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
        squashed = 2 * (math.log(2) - plain - softplus(-2 * plain))  # log of the slope of tanh
        return torch.tanh(plain), (normal - squashed).sum(dim=-1)

    def _value(self, critic: Tensor, observation: Tensor, action: Tensor) -> Tensor:
        """Return both critics [G, 2, B] of (s, a)."""
        seen = torch.cat([observation, action], dim=-1)[:, None].expand(-1, 2, -1, -1)
        value: Tensor = Mlp((seen.shape[-1], *self.hidden, 1))(critic, seen).squeeze(3)
        return value
