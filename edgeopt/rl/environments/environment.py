"""What learners act in: many copies of one environment, stepped together, a copy for each agent."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import EdgeOptError
from edgeopt.storage import Arrays
from edgeopt.validate import listed, seed_number

Floats = NDArray[np.float64]
Observations = NDArray[np.float32]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Discrete:
    """One of `count` actions, int64 [G]."""

    count: int


@dataclass(frozen=True, slots=True)
class Continuous:
    """`size` numbers from -1 to 1, float32 [G, size]; the environment scales them."""

    size: int


Actions = Discrete | Continuous


class Moment(NamedTuple):
    """What a step brought; the first axis is the agent.

    Parameters
    ----------
    observation : float32 [G, D], what agents see now: of a new episode where one has ended.
    reward : float32 [G].
    terminated, truncated : bool [G], whether the episode has ended for good, or was cut off.
    following : float32 [G, D], what followed the action, also where the episode has ended with it.
    """

    observation: Observations
    reward: NDArray[np.float32]
    terminated: Bools
    truncated: Bools
    following: Observations


class Environment(Protocol):
    """G copies of an environment. An ended episode is followed by a new one at once."""

    @property
    def num_agents(self) -> int:
        """Copies, G."""
        ...

    @property
    def observation_size(self) -> int:
        """Numbers of an observation, D."""
        ...

    @property
    def actions(self) -> Actions:
        """What an agent can do."""
        ...

    def reset(self) -> Observations:
        """Start over, and return float32 [G, D]."""
        ...

    def step(self, action: NDArray[np.generic]) -> Moment:
        """Play one step of all copies."""
        ...

    def arrays(self) -> Arrays:
        """Return what the next step depends on."""
        ...

    def restore(self, arrays: Arrays) -> None:
        """Take over what `arrays` gave."""
        ...


def seeds_of(seeds: Sequence[int]) -> tuple[int, ...]:
    """Return seeds, one for each agent, checked."""
    found = tuple(seed_number(f"seeds[{i}]", s) for i, s in enumerate(listed("seeds", seeds, single=(int, np.integer))))
    if not found:
        raise EdgeOptError("seeds: expected at least one")
    return found
