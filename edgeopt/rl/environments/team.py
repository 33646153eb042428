"""What agents that learn together act in: many episodes at once, first axis of all arrays the agent."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeopt.rl.grammar import Grammar, Orders


class Seen(NamedTuple):
    """What N agents see in E episodes; each its own row, and nothing of the others'.

    Parameters
    ----------
    observation : float32 [N, E, D], or [N, E, A, F] with a row for each action.
    allowed : bool [N, E, A], what they can do, at least one thing.
    """

    observation: NDArray[np.float32]
    allowed: NDArray[np.bool_]


class Team(Protocol):
    """An environment of N agents, E episodes stepped together; all end after the same number of steps.

    Attributes
    ----------
    grammar : of instructions to the agents.
    num_agents, num_actions, horizon : N, A and T.
    taken : bool [N, M], which of up to M different things an agent does in a step: an action is an ordered pick.
    observation_shape : of one agent: (D,), or (A, F).
    """

    @property
    def grammar(self) -> Grammar: ...  # noqa: D102
    @property
    def num_agents(self) -> int: ...  # noqa: D102
    @property
    def num_actions(self) -> int: ...  # noqa: D102
    @property
    def horizon(self) -> int: ...  # noqa: D102
    @property
    def taken(self) -> NDArray[np.bool_]: ...  # noqa: D102
    @property
    def observation_shape(self) -> tuple[int, ...]: ...  # noqa: D102

    def reset(self, seeds: Sequence[int]) -> Seen:
        """Start one episode for each seed; the same seed is the same episode."""
        ...

    def step(self, action: NDArray[np.int64]) -> tuple[NDArray[np.float32], Seen]:
        """Play one step of all episodes with actions [N, E, M]; return rewards float32 [N, E], and what agents see then."""
        ...

    # --- instructions: asked at the start of episodes, but for `obey` ----------------------------------------------

    def plan(self, episode: int) -> Orders:
        """Return what a planner would tell every agent."""
        ...

    def choices(self, agent: int, episode: int, places: Sequence[int]) -> Sequence[int]:
        """Return what an agent could be told after it was told `places`."""
        ...

    def describe(self, episode: int) -> str:
        """Return the facts of an episode in words, for a language model."""
        ...

    def lessons(self) -> str:
        """Return in words what was bad in the episodes played last; may be empty."""
        ...

    def repaired(self, agent: int, episode: int, places: Sequence[int]) -> list[int]:
        """Return what an agent can really do that is close to what it was told, also where that is nothing."""
        ...

    def obey(self, orders: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the actions [N, E, M] of the coming step by repaired orders [N, E, L], -1 where there are no more."""
        ...
