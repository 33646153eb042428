"""`ParallelTeam`: any PettingZoo environment of agents with equal spaces, as a team that learns together."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import EdgeOptError
from edgeopt.rl.environments.team import Seen
from edgeopt.rl.grammar import Grammar, Orders
from edgeopt.validate import integer


class ParallelTeam:
    """Copies of a PettingZoo ``ParallelEnv``, one for each episode, stepped one after another.

    All agents observe a box of one shape and have equally many discrete actions. An agent whose episode has ended earlier
    gets zeros. There is no planner: demonstrations need a subclass that has one.

    Parameters
    ----------
    make : returns a new environment, such as ``lambda: simple_spread_v3.parallel_env(N=3)`` of mpe2.
    horizon : steps of an episode.
    """

    grammar = Grammar("Do", "Action", "Agent", 1, 1)

    def __init__(self, make: Callable[[], Any], *, horizon: int) -> None:
        self._make, self.horizon = make, integer("horizon", horizon, low=1)
        self._copies = [make()]
        first = self._copies[0]
        self.names: list[str] = list(first.possible_agents)
        self.num_agents = len(self.names)
        shapes = {first.observation_space(name).shape for name in self.names}
        counts = {getattr(first.action_space(name), "n", None) for name in self.names}
        if len(shapes) != 1 or len(counts) != 1 or None in counts:
            raise EdgeOptError(
                f"make: spaces {shapes} and {counts}: expected one shape, and equally many discrete actions"
            )
        self.observation_shape = (int(np.prod(shapes.pop())),)
        self.num_actions = integer("actions", counts.pop(), low=1)
        self.taken = np.ones((self.num_agents, 1), np.bool_)

    def reset(self, seeds: Sequence[int]) -> Seen:
        """Start one episode in each copy."""
        self._copies += [self._make() for _ in range(len(seeds) - len(self._copies))]
        self._running = len(seeds)
        return self._seen([copy.reset(seed=int(seed))[0] for copy, seed in zip(self._copies, seeds, strict=False)])

    def step(self, action: NDArray[np.int64]) -> tuple[NDArray[np.float32], Seen]:
        """Step all copies."""
        reward = np.zeros((self.num_agents, self._running), np.float32)
        seen = []
        for e, copy in enumerate(self._copies[: self._running]):
            chosen = {name: int(action[n, e, 0]) for n, name in enumerate(self.names) if name in copy.agents}
            observed, brought, *_ = copy.step(chosen) if chosen else ({}, {})
            reward[:, e] = [brought.get(name, 0.0) for name in self.names]
            seen.append(observed)
        return reward, self._seen(seen)

    def _seen(self, observed: list[dict[str, Any]]) -> Seen:
        found = np.zeros((self.num_agents, self._running, *self.observation_shape), np.float32)
        for e, own in enumerate(observed):
            for n, name in enumerate(self.names):
                if name in own:
                    found[n, e] = np.asarray(own[name], np.float32).ravel()
        return Seen(found, np.ones((self.num_agents, self._running, self.num_actions), np.bool_))

    # --- instructions ----------------------------------------------------------------------------------------------

    def plan(self, episode: int) -> Orders:
        """Refuse: nobody plans."""
        raise EdgeOptError(f"{type(self).__name__}: there is no planner, and so there are no demonstrations")

    def choices(self, agent: int, episode: int, places: Sequence[int]) -> Sequence[int]:
        """Refuse."""
        return self.plan(episode)[0]

    def describe(self, episode: int) -> str:
        """Return nothing."""
        return ""

    def lessons(self) -> str:
        """Return nothing."""
        return ""

    def repaired(self, agent: int, episode: int, places: Sequence[int]) -> list[int]:
        """Refuse."""
        return self.plan(episode)[0]

    def obey(self, orders: NDArray[np.int64]) -> NDArray[np.int64]:
        """Refuse."""
        return np.array(self.plan(0))
