"""`Dqn`: double Q-learning with a perceptron, for few actions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import huber_loss

from edgeopt.errors import EdgeOptError, quoted
from edgeopt.rl.draws import Draws
from edgeopt.rl.environments.environment import Actions, Discrete
from edgeopt.rl.learner import adam, adam_state, branch, tensors
from edgeopt.rl.networks import Mlp
from edgeopt.rl.ppo import shorten
from edgeopt.rl.replay import Batch
from edgeopt.training.messages import State
from edgeopt.validate import int_array, integer, real

MAX_GRADIENT_NORM = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Dqn:
    """Hyper-parameters of double Q-learning.

    Parameters
    ----------
    hidden : sizes of the hidden layers.
    learning_rate : of Adam.
    discount : what the next step counts against this one.
    target_rate : by what share the target network goes towards the network in each update.
    explore_from, explore_to, explore_steps : chance of a random action, which falls from the first to the second in so
        many steps.

    References
    ----------
    V. Mnih et al., Nature 518, 2015; H. van Hasselt et al., arXiv 1509.06461. That the target moves a little in every update, as in SAC,
    is ours.
    """

    hidden: tuple[int, ...] = (64, 64)
    learning_rate: float = 1e-3
    discount: float = 0.99
    target_rate: float = 0.01
    explore_from: float = 1.0
    explore_to: float = 0.05
    explore_steps: int = 2000

    name: ClassVar[str] = "dqn"
    critic_parts: ClassVar[tuple[str, ...]] = ("online", "target", "adam")

    def __post_init__(self) -> None:
        int_array("hidden", self.hidden, (None,), low=1)
        real("learning_rate", self.learning_rate, positive=True)
        integer("explore_steps", self.explore_steps, low=1)
        for name in ("discount", "target_rate", "explore_from", "explore_to"):
            if not 0 <= real(name, getattr(self, name)) <= 1:
                raise EdgeOptError(f"{name} = {quoted(getattr(self, name))}: expected a number from 0 to 1")

    def start(self, seeds: Sequence[int], observation_size: int, actions: Actions, device: str = "cpu") -> State:
        """Return the state of untrained agents: weights [G, P], those of the target, and Adam's means."""
        if not isinstance(actions, Discrete):
            raise EdgeOptError("dqn: expected an environment with few actions (Discrete)")
        network = Mlp((observation_size, *self.hidden, actions.count))
        online = network.start(seeds, "q").to(device)
        return {
            "online": online,
            "target": online.clone(),
            "adam": adam_state(adam(self.learning_rate), {"online": online}),
        }

    def act_draws(self, seeds: Sequence[int], actions: Actions) -> Draws:
        """Return two uniform numbers a step: whether to explore, and with which action."""
        return Draws(seeds, "act", (2,))

    def update_draws(self, seeds: Sequence[int], actions: Actions, batch: int, name: str = "update") -> Draws:
        """Return nothing: updates know no chance."""
        return Draws(seeds, name, (0,))

    def act(
        self, state: State, observation: NDArray[np.float32], step: int, chance: NDArray[np.float64]
    ) -> NDArray[np.generic]:
        """Return the action of largest value, or now and then any."""
        (online,) = tensors(state, "online")
        with torch.no_grad():
            values = self._network(online, observation.shape[1])(
                online, torch.from_numpy(observation)[:, None].to(online.device)
            )
        best = values[:, 0].argmax(dim=1).cpu().numpy()
        done = min(1.0, step / self.explore_steps)
        explores = chance[:, 0] < self.explore_from + done * (self.explore_to - self.explore_from)
        return np.where(explores, np.asarray(chance[:, 1] * values.shape[2], np.int64), best)

    def values(self, state: State, batch: Batch) -> Tensor:
        """Return Q(s, a), [G, B]."""
        (online,) = tensors(state, "online")
        with torch.no_grad():
            return self._of(online, batch)

    def errors(self, state: State, batch: Batch) -> Tensor:
        """Return errors [G, B]: r + discount * Q_target(s', a') - Q(s, a), with a' the best action of Q."""
        return self._target(state, batch) - self.values(state, batch)

    def critic_step(self, state: State, batch: Batch, noise: Tensor) -> Tensor:
        """Take one step on the weighted Huber loss, in place, and move the target."""
        return self.update(state, batch, noise)[0]

    def update(self, state: State, batch: Batch, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step on the weighted Huber loss, in place, and move the target; return errors and losses."""
        online, target = tensors(state, "online", "target")
        aim = self._target(state, batch)
        weights = online.detach().requires_grad_()
        value = self._of(weights, batch)
        loss = (batch.weight * huber_loss(value, aim, reduction="none")).mean(dim=1)  # (G,)
        (gradient,) = torch.autograd.grad(loss.sum(), weights)  # agents share no weight: each has its own loss's
        shorten([gradient], MAX_GRADIENT_NORM)
        with torch.no_grad():
            adam(self.learning_rate).overwrite({"online": online}, {"online": gradient}, branch(state, "adam"))
            target.lerp_(online, self.target_rate)
            return aim - value, loss.detach()

    def _target(self, state: State, batch: Batch) -> Tensor:
        online, target = tensors(state, "online", "target")
        network = self._network(online, batch.observation.shape[-1])
        with torch.no_grad():
            both = network(
                torch.stack([online, target]), torch.stack([batch.following, batch.following])
            )  # (2, G, B, N)
            best = both[0].argmax(dim=2, keepdim=True)
            return batch.reward + self.discount * batch.going_on * both[1].gather(2, best).squeeze(2)

    def _of(self, weights: Tensor, batch: Batch) -> Tensor:
        values = self._network(weights, batch.observation.shape[-1])(weights, batch.observation)
        return values.gather(2, batch.action[..., None]).squeeze(2)

    def _network(self, weights: Tensor, observation_size: int) -> Mlp:
        """Return the network; how many actions there are follows from the number of weights."""
        below = Mlp((observation_size, *self.hidden)).size
        return Mlp((observation_size, *self.hidden, (weights.shape[-1] - below) // (self.hidden[-1] + 1)))
