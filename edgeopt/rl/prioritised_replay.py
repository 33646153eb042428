"""`PrioritisedReplay`: a replay buffer that draws what is not yet understood, in O(log n)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from edgeopt.errors import EdgeOptError, InvalidFileError
from edgeopt.rl.environments.environment import Actions, Moment
from edgeopt.rl.replay import Batch, Critic, Integers, Replay, Trigger, refuse_other_forms
from edgeopt.rl.sum_tree import draw, empty_trees, masses, write
from edgeopt.storage import Arrays
from edgeopt.training.messages import State
from edgeopt.validate import integer, real

_OF_PRIORITIES = ("priority", "largest")


@dataclass(frozen=True, slots=True, kw_only=True)
class Priorities:
    """How draws depend on errors.

    Parameters
    ----------
    alpha : exponent of the size of an error; 0 draws evenly.
    beta, beta_steps : exponent of the weights that make up for it, which rises from `beta` to 1 in so many draws.
    least : added to an error, so that all may be drawn again.

    References
    ----------
    T. Schaul et al., arXiv 1511.05952.
    """

    alpha: float = 0.6
    beta: float = 0.4
    beta_steps: int = 10_000
    least: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):
            if not 0 <= real(name, getattr(self, name)) <= 1:
                raise EdgeOptError(f"{name} = {getattr(self, name)!r}: expected a number from 0 to 1")
        integer("beta_steps", self.beta_steps, low=1)
        real("least", self.least, positive=True)

    def exponent(self, draws: int) -> float:
        """Return beta after so many draws."""
        return self.beta + (1 - self.beta) * min(1.0, draws / self.beta_steps)


class PrioritisedReplay(Replay):
    """Draws transitions in proportion to priorities, |error| ** alpha, in O(log n); new ones have the largest so far.

    Weights make up for what is drawn too often: (n P) ** -beta, divided by the largest of the batch.
    """

    def __init__(
        self, capacity: int = 100_000, *, priorities: Priorities | None = None, trigger: Trigger | None = None
    ) -> None:
        super().__init__(capacity, trigger=trigger)
        self.priorities = Priorities() if priorities is None else priorities

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.capacity}, priorities={self.priorities}, trigger={self.trigger})"

    def start(
        self, seeds: Sequence[int], observation_size: int, actions: Actions, batch: int, device: str = "cpu"
    ) -> None:
        """Make room for transitions and priorities."""
        super().start(seeds, observation_size, actions, batch, device)
        self._trees = empty_trees(len(seeds), self.capacity)
        self._largest = np.ones(len(seeds))

    def add(self, observation: NDArray[np.float32], action: NDArray[np.generic], moment: Moment) -> None:
        """Remember a transition of every agent."""
        slots = np.full((len(self._rows), 1), self.count % self.capacity)
        super().add(observation, action, moment)
        write(self._trees, slots, self._largest[:, None])

    def sample(self) -> Batch:
        """Draw a batch."""
        first, end = self.first, np.full(len(self._rows), self.count)
        entry = np.zeros((len(self._rows), self.batch), np.int64)
        none, whole = np.zeros(len(self._rows), np.int64), np.full(len(self._rows), self.batch)
        draw(self._trees, self.capacity, first, end, none, whole, self._uniform.at(self.draws), entry)
        self.draws += 1
        weight = self._weight(entry, first, end)
        return self.at(entry, weight / weight.max(axis=1, keepdims=True))

    def _weight(self, entry: Integers, first: Integers, end: Integers) -> NDArray[np.float64]:
        """Return (n P) ** -beta [G, B] of entries that were drawn among first[g], ..., end[g] - 1."""
        own = self._trees[self._rows, self._trees.shape[1] // 2 + entry % self.capacity]
        all_of = masses(self._trees, self.capacity, first, end)
        chance = own * ((end - first) / np.maximum(all_of, np.finfo(float).tiny))[:, None]
        return np.asarray(np.maximum(chance, np.finfo(float).tiny) ** -self.priorities.exponent(self.draws))

    def learned(self, critic: Critic, state: State, batch: Batch, errors: Tensor) -> None:
        """Take the errors of a batch as its priorities."""
        sizes = np.abs(errors.cpu().numpy().astype(np.float64)) + self.priorities.least
        self._prioritise(batch.entry, sizes**self.priorities.alpha)

    def _prioritise(self, entry: Integers, priority: NDArray[np.float64]) -> None:
        write(self._trees, entry % self.capacity, priority)
        self._largest = np.maximum(self._largest, priority.max(axis=1))

    def arrays(self) -> Arrays:
        """Return all that is remembered."""
        leaves = self._trees.shape[1] // 2
        filled = min(self.count, self.capacity)
        own = {"priority": self._trees[:, leaves : leaves + filled].copy(), "largest": self._largest.copy()}
        return super().arrays() | own

    def restore(self, arrays: Arrays, state: State) -> None:
        """Take over what `arrays` gave, after `start`; of another kind of buffer, what both have."""
        super().restore(arrays, state)
        own = {name: value for name, value in PrioritisedReplay.arrays(self).items() if name in _OF_PRIORITIES}
        if given := [name for name in _OF_PRIORITIES if name in arrays]:
            refuse_other_forms(arrays, own)
            for name in given:
                if (arrays[name] < 0).any():
                    raise InvalidFileError(f"{name}: expected numbers >= 0")
        self._largest = arrays.get("largest", self._largest).copy()  # a buffer without priorities: all are new
        priority = arrays.get("priority", np.repeat(self._largest[:, None], min(self.count, self.capacity), axis=1))
        slots = np.broadcast_to(np.arange(priority.shape[1]), priority.shape)
        write(self._trees, np.ascontiguousarray(slots), np.ascontiguousarray(priority))
