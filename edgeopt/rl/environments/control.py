"""`Control`: classic control problems whose laws change in mid-run, many copies at once; `Change`: what changes and when."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import EdgeOptError, quoted
from edgeopt.rl.environments.environment import Actions, Bools, Floats, Moment, Observations, seeds_of
from edgeopt.rng import stream
from edgeopt.storage import Arrays
from edgeopt.validate import flag, int_array, real


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change that nobody tells the agents of.

    Parameters
    ----------
    at : step, one for all agents or one for each; from this step on the new laws hold.
    factors : by what constants of the environment are multiplied, by name.
    partly : whether they are so only in a part of the state space, which the environment names.
    reward : whether the reward becomes the environment's other one.
    """

    at: int | Sequence[int]
    factors: Mapping[str, float] = field(default_factory=dict)
    partly: bool = False
    reward: bool = False

    def __post_init__(self) -> None:
        for name, factor in self.factors.items():
            real(f"factors.{name}", factor, positive=True)
        flag("partly", self.partly)
        flag("reward", self.reward)


class Control(ABC):
    """G copies of a control problem.

    A copy's episodes depend on its seed alone: episode k starts where a stream of seed and k says. At a change all
    copies that change start a new episode, as if it had been cut off.

    Parameters
    ----------
    seeds : one for each agent.
    change : default: nothing ever changes.
    horizon : steps after which an episode is cut off.
    """

    name: ClassVar[str]
    observation_size: ClassVar[int]
    actions: ClassVar[Actions]
    constants: ClassVar[dict[str, float]]
    """What a `Change` can multiply."""
    usual_horizon: ClassVar[int]

    def __init__(self, seeds: Sequence[int], *, change: Change | None = None, horizon: int | None = None) -> None:
        self.seeds = seeds_of(seeds)
        self.horizon = int(int_array("horizon", self.usual_horizon if horizon is None else horizon, (), low=1))
        self.change = change
        count = len(self.seeds)
        self._at = np.full(count, np.iinfo(np.int64).max)
        if change is not None:
            if unknown := [name for name in change.factors if name not in self.constants]:
                raise EdgeOptError(
                    f"factors: {quoted(unknown[0])}: expected one of {', '.join(self.constants)} ({self.name})"
                )
            self._at = int_array("at", change.at, (count,), low=0, dtype=np.int64)
        self._usual = {name: np.full(count, value) for name, value in self.constants.items()}
        factors = {} if change is None else change.factors
        self._changed = {name: value * factors.get(name, 1.0) for name, value in self._usual.items()}
        self.reset()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.seeds}, change={self.change}, horizon={self.horizon})"

    @property
    def num_agents(self) -> int:
        """Copies, G."""
        return len(self.seeds)

    def reset(self) -> Observations:
        """Start over at step 0, and return observations float32 [G, D]."""
        self.now = 0
        self._state = np.zeros((len(self.seeds), self._state_size))
        self._age, self._episode = np.zeros(len(self.seeds), np.int64), np.zeros(len(self.seeds), np.int64)
        self._begin(np.ones(len(self.seeds), bool))
        return self._observe(self._state).astype(np.float32)

    def step(self, action: NDArray[np.generic]) -> Moment:
        """Play one step of all copies."""
        new = self.now >= self._at  # (G,)
        constants = self._usual
        if new.any():
            other = new & self._region(self._state) if self.change is not None and self.change.partly else new
            constants = {name: np.where(other, self._changed[name], usual) for name, usual in self._usual.items()}
        state, reward, terminated = self._move(self._state, action, constants)
        if self.change is not None and self.change.reward and new.any():
            reward = np.where(new, self._other_reward(state), reward)
        self.now += 1
        self._age += 1
        self._state = state
        truncated = ~terminated & ((self._age >= self.horizon) | (self.now == self._at))
        following = self._observe(state).astype(np.float32)
        observation = following
        if (ended := terminated | truncated).any():
            self._begin(ended)
            observation = self._observe(self._state).astype(np.float32)
        return Moment(observation, reward.astype(np.float32), terminated, truncated, following)

    def arrays(self) -> Arrays:
        """Return what the next step depends on."""
        return {
            "now": np.array(self.now), "state": self._state.copy(), "age": self._age.copy(),
            "episode": self._episode.copy(),
        }  # fmt: skip

    def restore(self, arrays: Arrays) -> None:
        """Take over what `arrays` gave."""
        self.now = int(arrays["now"])
        self._state, self._age = arrays["state"].copy(), arrays["age"].copy()
        self._episode = arrays["episode"].copy()

    def _begin(self, which: Bools) -> None:
        self._state = self._state.copy()
        for g in np.flatnonzero(which):
            self._state[g] = self._draw(stream(self.seeds[g], self.name, int(self._episode[g])))
        self._age[which] = 0
        self._episode[which] += 1

    # --- what an environment says of itself ------------------------------------------------------------------------

    _state_size: ClassVar[int]

    @abstractmethod
    def _draw(self, rng: np.random.Generator) -> Floats:
        """Return the state [K] that an episode starts from."""

    @abstractmethod
    def _move(
        self, state: Floats, action: NDArray[np.generic], constants: Mapping[str, Floats]
    ) -> tuple[Floats, Floats, Bools]:
        """Return states [G, K] after a step, rewards [G], and whose episode has ended."""

    @abstractmethod
    def _observe(self, state: Floats) -> Floats:
        """Return what is seen of states, [G, D]."""

    @abstractmethod
    def _region(self, state: Floats) -> Bools:
        """Return which states [G] are in the part of the state space that a `partly` change touches."""

    @abstractmethod
    def _other_reward(self, state: Floats) -> Floats:
        """Return the rewards [G] that a change of reward brings, of states after a step."""
