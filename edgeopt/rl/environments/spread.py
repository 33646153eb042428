"""`Spread`: agents on a plane that cover landmarks without bumping into each other, as `simple_spread` of mpe2."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from edgeopt.errors import EdgeOptError
from edgeopt.rl.environments.team import Seen
from edgeopt.rl.grammar import Grammar, Orders
from edgeopt.validate import integer

Floats = NDArray[np.float64]

DT, DAMPING, PUSH, SIZE = 0.1, 0.25, 5.0, 0.15
CONTACT_FORCE, CONTACT_MARGIN, MASS = 1e2, 1e-3, 1.0
_MOVES = np.array([[0.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])
_NEAR = 0.1  # one push carries an agent twice as far


class Spread:
    """N agents and N landmarks, stepped for many episodes at once in NumPy; step for step what mpe2 plays.

    The physics, observations and rewards are those of ``mpe2.simple_spread_v3`` with discrete actions (none, left, right, down,
    up): half of an agent's reward is minus the sum of distances from each landmark to its nearest agent, the other
    half -1 for every agent that it touches. The same seed is the same episode as there.

    Parameters
    ----------
    num_agents : N.
    horizon : steps of an episode.

    References
    ----------
    R. Lowe et al., arXiv 1706.02275; mpe2 1.1.1.
    """

    num_actions = 5

    def __init__(self, num_agents: int = 3, *, horizon: int = 25) -> None:
        self.num_agents, self.horizon = integer("num_agents", num_agents, low=2), integer("horizon", horizon, low=1)
        self.grammar = Grammar("MoveTo", "Landmark", "Agent", num_agents, num_agents)
        self.taken = np.ones((num_agents, 1), np.bool_)
        self.observation_shape = (4 + 2 * num_agents + 4 * (num_agents - 1),)
        self._others = np.array([[j for j in range(num_agents) if j != i] for i in range(num_agents)])
        self.reset([0])

    def reset(self, seeds: Sequence[int]) -> Seen:
        """Start episodes with agents and landmarks at random places."""
        self.position, self.landmark = np.empty((2, len(seeds), self.num_agents, 2))
        for e, seed in enumerate(seeds):
            rng = np.random.default_rng(seed)  # as gymnasium seeds mpe2
            for place in (self.position, self.landmark):
                place[e] = rng.uniform(-1, 1, (self.num_agents, 2))
        self.velocity = np.zeros_like(self.position)
        self.now = 0
        return self._look()

    def step(self, action: NDArray[np.int64]) -> tuple[NDArray[np.float32], Seen]:
        """Push every agent, and let contacts push back."""
        if self.now >= self.horizon:
            raise EdgeOptError(f"step {self.now}: an episode has {self.horizon} steps")
        force = PUSH * _MOVES[action[..., 0].T]  # (E, N, 2)
        gap = self.position[:, :, None] - self.position[:, None]  # (E, N, N, 2)
        length = np.sqrt((gap**2).sum(axis=-1))
        own = np.arange(self.num_agents)
        length[:, own, own] = 1.0
        deep = CONTACT_MARGIN * np.logaddexp(0, -(length - 2 * SIZE) / CONTACT_MARGIN)
        deep[:, own, own] = 0.0
        force += (CONTACT_FORCE * gap * (deep / length)[..., None]).sum(axis=2)
        self.position = self.position + self.velocity * DT
        self.velocity = self.velocity * (1 - DAMPING) + force / MASS * DT
        self.now += 1
        gap = self.position[:, :, None] - self.position[:, None]
        touching = (np.sqrt((gap**2).sum(axis=-1)) < 2 * SIZE).sum(axis=2) - 1  # (E, N), each touches itself
        apart = np.sqrt(((self.landmark[:, :, None] - self.position[:, None]) ** 2).sum(axis=-1))
        reward = -0.5 * apart.min(axis=2).sum(axis=1)[:, None] - 0.5 * touching
        return np.ascontiguousarray(reward.T, np.float32), self._look()

    def _look(self) -> Seen:
        episodes, agents = self.position.shape[:2]
        to_marks = self.landmark[:, None] - self.position[:, :, None]
        to_others = self.position[:, None, :] - self.position[:, :, None]
        to_others = to_others[:, np.arange(agents)[:, None], self._others]
        parts = [self.velocity, self.position, to_marks, to_others, np.zeros((episodes, agents, 2 * (agents - 1)))]
        seen = np.concatenate([part.reshape(episodes, agents, -1) for part in parts], axis=2)
        allowed = np.ones((agents, episodes, self.num_actions), np.bool_)
        return Seen(np.ascontiguousarray(seen.swapaxes(0, 1), np.float32), allowed)

    # --- instructions ----------------------------------------------------------------------------------------------

    def plan(self, episode: int) -> Orders:
        """Return one landmark for each agent: the assignment of least distance in all."""
        apart = np.sqrt(((self.position[episode][:, None] - self.landmark[episode][None]) ** 2).sum(axis=-1))
        return [[int(mark)] for mark in linear_sum_assignment(apart)[1]]

    def choices(self, agent: int, episode: int, places: Sequence[int]) -> range:
        """Return all landmarks."""
        return range(self.num_agents)

    def describe(self, episode: int) -> str:
        """Return where agents and landmarks are."""
        agents = [f"Agent_{n} is at ({x:.2f}, {y:.2f})." for n, (x, y) in enumerate(self.position[episode].tolist())]
        marks = [f"Landmark_{n} is at ({x:.2f}, {y:.2f})." for n, (x, y) in enumerate(self.landmark[episode].tolist())]
        return "\n".join([*agents, *marks, "Every landmark should have an agent near it, and agents should not touch."])

    def lessons(self) -> str:
        """Return nothing."""
        return ""

    def repaired(self, agent: int, episode: int, places: Sequence[int]) -> list[int]:
        """Return the last landmark named; the nearest one if there is none."""
        if places:
            return [places[-1]]
        apart = ((self.landmark[episode] - self.position[episode, agent]) ** 2).sum(axis=-1)
        return [int(np.argmin(apart))]

    def obey(self, orders: NDArray[np.int64]) -> NDArray[np.int64]:
        """Push along the axis on which the place where an agent would come to rest is farthest from its landmark [ours]."""
        target = self.landmark[np.arange(len(self.landmark))[:, None], orders[..., 0].T]
        ahead = target - (self.position + self.velocity * DT / DAMPING)  # (E, N, 2)
        axis = np.argmax(np.abs(ahead), axis=-1)
        off = np.take_along_axis(ahead, axis[..., None], -1)[..., 0]
        action = np.where(np.abs(off) <= _NEAR, 0, 1 + 2 * axis + (off > 0))
        return np.ascontiguousarray(action.T[..., None], np.int64)
