"""`ServerBesideNeighbour`: client selection as one server sees it, whose clients or neighbour change their ways in mid-run."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import EdgeOptError
from edgeopt.problems.client_selection.environment import SelectionEnvironment
from edgeopt.problems.client_selection.instance import SelectionInstance
from edgeopt.problems.client_selection.scenario import Scenarios
from edgeopt.rl.environments.environment import Discrete, Floats, Moment, Observations, seeds_of
from edgeopt.rng import stream
from edgeopt.storage import Arrays
from edgeopt.validate import flag, int_array, integer

_BUSY = (0.7, 0.1)  # chances of the two halves of the clients
_SEEN = 2  # numbers that are seen of each client
_NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionChange:
    """A change that the server is not told of.

    Parameters
    ----------
    at : step, one for all agents or one for each.
    habit : whether the neighbour goes through the clients the other way round.
    busy : whether the half of the clients that was busy is idle, and the other way round.
    """

    at: int | Sequence[int]
    habit: bool = False
    busy: bool = False

    def __post_init__(self) -> None:
        flag("habit", self.habit)
        flag("busy", self.busy)


class ServerBesideNeighbour:
    """G copies of a server that picks one of N clients in every round, beside one who picks `taken` of them by habit.

    Rounds are those of `edgeopt.problems.ClientSelection`, in mode `fail`: a client that is busy, or that the neighbour
    takes in the same round, costs the whole time-out. The neighbour takes neighbouring clients, one further on in every
    round. The even clients are busy with a chance of 0.7, the odd ones of 0.1. An action is the client that is picked; a
    reward is the server's. Observed are the phase of the neighbour, step mod N, as N zeros and ones, and of every client
    the rounds since its last delivery as a share of N, and the last outcome of a pick, 1 for a conflict, -1 for none,
    which fades by a tenth in every round.

    Parameters
    ----------
    seeds : one for each agent.
    change : default: nothing ever changes.
    clients, taken : N, and how many the neighbour takes.
    horizon : rounds of an episode.

    Examples
    --------
    >>> servers = ServerBesideNeighbour([1, 2], clients=6, taken=2)
    >>> servers.step(np.array([3, 4])).following.shape
    (2, 18)
    """

    name = "client-selection"

    def __init__(
        self,
        seeds: Sequence[int],
        *,
        change: SelectionChange | None = None,
        clients: int = 8,
        taken: int = 3,
        horizon: int = 40,
    ) -> None:
        self.seeds, self.change = seeds_of(seeds), change
        self.clients, self.taken = integer("clients", clients, low=2), integer("taken", taken, low=1)
        if self.taken >= self.clients:
            raise EdgeOptError(f"taken = {taken}: expected fewer than clients = {clients}")
        self.horizon = integer("horizon", horizon, low=1)
        self.actions = Discrete(self.clients)
        self._at = np.full(len(self.seeds), _NEVER)
        if change is not None:
            self._at = int_array("at", change.at, (len(self.seeds),), low=0, dtype=np.int64)
        self._outcome: Floats = np.zeros((len(self.seeds), self.clients))
        self._problem = SelectionInstance(
            coverage=np.ones((2, self.clients), bool),
            picks=np.array([1, self.taken], np.int32),
            compute_s=np.linspace(0.2, 0.8, self.clients),
            payload_bits=1e6,
            rate_bps=np.full((2, self.clients), 2e6),
            timeout_s=3.0,
            rounds=self.horizon,
        )
        self.reset()

    def __repr__(self) -> str:
        return (
            f"ServerBesideNeighbour({self.seeds}, change={self.change}, clients={self.clients}, taken={self.taken}, "
            f"horizon={self.horizon})"
        )

    @property
    def num_agents(self) -> int:
        """Copies, G."""
        return len(self.seeds)

    @property
    def observation_size(self) -> int:
        """Numbers of an observation, D."""
        return (1 + _SEEN) * self.clients

    def reset(self) -> Observations:
        """Start over at step 0, and return observations float32 [G, D]."""
        self.now, self._episode = 0, 0
        self._begin()
        return self._observe()

    def step(self, action: NDArray[np.generic]) -> Moment:
        """Play one round of all copies."""
        changed = self.now >= self._at
        picks = np.full((len(self.seeds), 2, self.taken), -1, np.int32)
        picks[:, 0, 0] = action
        picks[:, 1] = self.neighbour(changed)
        result = self._rounds.step(picks)
        own = result.outcome[:, 0]  # (G, N)
        self._outcome = np.where(own >= 0, 2.0 * own - 1.0, 0.9 * self._outcome)
        self.now += 1
        over = self._rounds.done
        if over:
            following = self._observe()
            self._episode += 1
            self._begin()
            observation = self._observe()
        else:
            self._reveal()
            following = observation = self._observe()
        ended = np.full(len(self.seeds), over)
        return Moment(observation, result.reward[:, 0].astype(np.float32), np.zeros_like(ended), ended, following)

    def neighbour(self, changed: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return whom the neighbour picks in this round, int64 [G, taken]."""
        phase, count = self.now % self.clients, self.clients
        other = changed if self.change is not None and self.change.habit else np.zeros(len(self.seeds), bool)
        first = np.where(other, (count // 2 - phase) % count, phase)
        return (first[:, None] + np.arange(self.taken)) % count

    def busy(self, changed: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return the chance [G, N] of each client to be busy."""
        chance = np.where(np.arange(self.clients) % 2 == 0, *_BUSY)
        other = changed if self.change is not None and self.change.busy else np.zeros(len(self.seeds), bool)
        return np.where(other[:, None], _BUSY[0] + _BUSY[1] - chance, chance)

    def arrays(self) -> Arrays:
        """Return what the next step depends on."""
        rounds = self._rounds
        return {
            "now": np.array(self.now), "episode": np.array(self._episode), "faded": self._outcome.copy(),
            **{name: getattr(rounds, name).copy() for name in _REMEMBERED},
        }  # fmt: skip

    def restore(self, arrays: Arrays) -> None:
        """Take over what `arrays` gave."""
        self.now, self._episode = int(arrays["now"]), int(arrays["episode"])
        self._begin()
        self._outcome = arrays["faded"].copy()
        self._rounds.now = self.now % self.horizon
        for name in _REMEMBERED:
            getattr(self._rounds, name)[:] = arrays[name]
        self._reveal()

    def _begin(self) -> None:
        self._draws = np.stack(
            [stream(seed, self.name, self._episode).random((self.horizon, self.clients)) for seed in self.seeds]
        )
        self._rounds = SelectionEnvironment(self._problem, seeds=self.seeds)
        self._outcome = np.zeros((len(self.seeds), self.clients))
        self._reveal()

    def _reveal(self) -> None:
        """Decide who is busy in the coming round: a change may have come in mid-episode."""
        busy = np.zeros(self._draws.shape, bool)
        now = self._rounds.now
        busy[:, now] = self._draws[:, now] < self.busy(self.now >= self._at)
        drawn = self._rounds.scenarios
        self._rounds.scenarios = Scenarios(regime=drawn.regime, busy=busy, fading=drawn.fading)

    def _observe(self) -> Observations:
        """Return what is seen, float32 [G, D]."""
        agents, count = len(self.seeds), self.clients
        stale = np.minimum(1.0, (self._rounds.now - self._rounds.last[:, 0]) / count)  # (G, N)
        seen = np.stack([stale, self._outcome], axis=2).reshape(agents, -1)
        phase = np.zeros((agents, count))
        phase[:, self.now % count] = 1.0
        return np.concatenate([phase, seen], axis=1).astype(np.float32)


_REMEMBERED = ("last", "picked", "delivered", "outcome")
