"""What the loop asks of a learner: pure hyper-parameters, and functions of an explicit state."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeopt.rl.draws import Draws
from edgeopt.rl.environments.environment import Actions
from edgeopt.rl.replay import Batch, Critic
from edgeopt.training.messages import State
from edgeopt.training.optimizers import Adam


class Learner(Critic, Protocol):
    """A way to learn from replayed transitions; G agents at once, who share nothing. States are overwritten in place."""

    @property
    def name(self) -> str:
        """In rows and on the progress bar."""
        ...

    def start(self, seeds: Sequence[int], observation_size: int, actions: Actions, device: str = "cpu") -> State:
        """Return the state of untrained agents, first axis of all tensors the agent."""
        ...

    def act_draws(self, seeds: Sequence[int], actions: Actions) -> Draws:
        """Return the chance that `act` takes, by step."""
        ...

    def act(
        self, state: State, observation: NDArray[np.float32], step: int, chance: NDArray[np.float64]
    ) -> NDArray[np.generic]:
        """Return every agent's action in a step, exploring as far as the step asks for."""
        ...

    def update(self, state: State, batch: Batch, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step, in place; return errors [G, B] before it, and losses [G]."""
        ...


@lru_cache
def adam(learning_rate: float) -> Adam:
    """Return an optimiser; it is checked once and not in every update."""
    return Adam(learning_rate)


def adam_state(optimizer: Adam, parameters: dict[str, Tensor]) -> State:
    """Return an optimiser's state of parameters [G, ...] that counts the steps of every agent on its own."""
    state = optimizer.start(parameters)
    steps = {
        name: torch.zeros((len(value), *[1] * (value.dim() - 1)), device=value.device)
        for name, value in parameters.items()
    }
    return state | {"steps": dict(steps)}


def tensors(state: State, *names: str) -> tuple[Tensor, ...]:
    """Return tensors of a state by name."""
    found = []
    for name in names:
        value = state[name]
        assert isinstance(value, Tensor)
        found.append(value)
    return tuple(found)


def branch(state: State, name: str) -> State:
    """Return the part of a state below a name."""
    value = state[name]
    assert isinstance(value, dict)
    return value
