"""`SelectionEnvironment`: client selection played round by round, many episodes at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeopt.display import one_line
from edgeopt.errors import InvalidProblemError
from edgeopt.problems.client_selection.instance import SelectionInstance
from edgeopt.problems.client_selection.kernels import bonuses, first_wrong_pick, play_round
from edgeopt.problems.client_selection.scenario import draw_scenarios
from edgeopt.validate import int_array, listed, seed_number


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServerView:
    """What one server knows when it picks; all arrays are about the n clients it covers.

    Nothing here depends on what other servers do, but through the outcome of this server's own picks: neither their
    picks, nor who is busy or in which regime, nor anything of a later round.

    Parameters
    ----------
    server, round : who picks, and when.
    num_picks : how many clients it must pick.
    clients : int64 [n], ids of the covered clients, rising.
    latency_s : float64 [n], seconds of an update of each client in this round if nothing is in its way: servers
        measure their channels before they pick.
    last : int32 [n], round of the client's last delivery to this server, -1 for none.
    picked, delivered : int32 [n], how often this server has picked the client, and got its update.
    outcome : int8 [n], of the previous round: -1 not picked, 0 no conflict, 1 conflict.
    """

    server: int
    round: int
    num_picks: int
    clients: NDArray[np.int64]
    latency_s: NDArray[np.float64]
    last: NDArray[np.int32]
    picked: NDArray[np.int32]
    delivered: NDArray[np.int32]
    outcome: NDArray[np.int8]

    __repr__ = one_line

    @property
    def staleness(self) -> NDArray[np.int32]:
        """int32 [n], rounds since the last delivery; the round number plus one if there was none."""
        return np.asarray(self.round - self.last, np.int32)

    @property
    def bonus(self) -> NDArray[np.float64]:
        """float64 [n], the fairness that a delivery would earn, see `ClientSelection`."""
        cycle = len(self.clients) / self.num_picks
        return np.where(self.last < 0, 1.0, np.minimum(1.0, self.staleness / cycle))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RoundResult:
    """What one round of E episodes brought; arrays are the caller's own.

    Parameters
    ----------
    reward : float64 [E, S], r_s(t) of `ClientSelection`.
    round_s : float64 [E, S], seconds until each server went on.
    tally : int32 [E, S, 5], per server: picks that conflicted, that collided with another server's, of busy clients,
        updates that were sent, that arrived; columns as in `edgeopt.problems.client_selection.kernels`.
    outcome : int8 [E, S, C], -1 not picked, 0 no conflict, 1 conflict: each server sees its own row.
    """

    reward: NDArray[np.float64]
    round_s: NDArray[np.float64]
    tally: NDArray[np.int32]
    outcome: NDArray[np.int8]

    __repr__ = one_line


class SelectionEnvironment:
    """E episodes of one problem, each with chance of its own, stepped together.

    Arrays over (episode, server, client) hold what each server remembers of its own picks: `last` (round of the last
    delivery, -1 for none), `picked`, `delivered` (counts), `outcome` (of the previous round). They are updated in
    place; treat them as read-only.

    Parameters
    ----------
    problem : the problem.
    seeds : one per episode, at least one. Default: the problem's own.

    Examples
    --------
    >>> from edgeopt.problems import ClientSelection
    >>> problem = ClientSelection.random(num_servers=2, num_clients=8, picks=2, rounds=3, seed=1)
    >>> environment = SelectionEnvironment(problem, seeds=[5, 6])
    >>> while not environment.done:
    ...     picks = [[environment.view(s, e).clients[:2] for s in range(2)] for e in range(2)]
    ...     result = environment.step(picks)
    >>> environment.now, result.reward.shape
    (3, (2, 2))
    """

    def __init__(self, problem: SelectionInstance, seeds: Sequence[int] | None = None) -> None:
        self.problem = problem
        self._covered = [np.flatnonzero(row) for row in problem.coverage]
        self.clients = problem.covered_clients
        """int64 [S, N], ids of the clients that each server covers, filled up with 0."""
        # kernels get writeable arrays: numba would compile them once more for read-only ones
        self._coverage, self._num_picks = problem.coverage.copy(), problem.picks.copy()
        self._num_covered, self._compute_s = problem.num_covered, problem.compute_s.copy()
        self._rate_bps = problem.rate_bps.copy()
        self._weight = np.array([problem.latency_weight, problem.conflict_weight, problem.fairness_weight])
        self.reset((problem.seed,) if seeds is None else seeds)

    def reset(self, seeds: Sequence[int]) -> None:
        """Start over with one episode per seed."""
        given = listed("seeds", seeds, single=(int, np.integer))
        seeds = [seed_number(f"seeds[{i}]", seed) for i, seed in enumerate(given)]
        if not seeds:
            raise InvalidProblemError("seeds: expected at least one")
        problem = self.problem
        self.scenarios = draw_scenarios(problem, seeds)
        self.now = 0
        shape = (len(seeds), problem.num_servers, problem.num_clients)
        self.last = np.full(shape, -1, np.int32)
        self.picked, self.delivered = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        self.outcome = np.full(shape, -1, np.int8)

    @property
    def num_episodes(self) -> int:
        """Episodes, E."""
        return len(self.last)

    @property
    def done(self) -> bool:
        """Whether the horizon is reached."""
        return self.now >= self.problem.rounds

    @property
    def latency_s(self) -> NDArray[np.float64]:
        """float64 [E, S, C], seconds of an undisturbed update in the coming round; inf where not covered."""
        rate = self._rate()
        seconds = np.full_like(rate, np.inf)
        np.divide(self.problem.payload_bits, rate, out=seconds, where=rate > 0)
        fading = self.scenarios.fading[:, self._round(), None, :]
        return np.asarray(self._compute_s + seconds / fading)

    @property
    def staleness(self) -> NDArray[np.int32]:
        """int32 [E, S, C], rounds since the last delivery; the round number plus one where there was none."""
        return np.asarray(self.now - self.last, np.int32)

    @property
    def bonus(self) -> NDArray[np.float64]:
        """float64 [E, S, C], the fairness that a delivery in the coming round would earn."""
        bonus = np.empty(self.last.shape)
        bonuses(self.now, self.last, self._num_picks, self._num_covered, bonus)
        return bonus

    @property
    def busy(self) -> NDArray[np.bool_]:
        """Who is busy in the coming round, bool [E, C]: not for servers, only for an all-knowing coordinator."""
        return self.scenarios.busy[:, self._round()]

    def view(self, server: int, episode: int = 0) -> ServerView:
        """Return what one server knows before the coming round."""
        clients, now = self._covered[server], self._round()
        at = (episode, server, clients)
        seconds = self.problem.payload_bits / self._rate()[server, clients]
        return ServerView(
            server=server,
            round=now,
            num_picks=int(self._num_picks[server]),
            clients=clients,
            latency_s=self._compute_s[clients] + seconds / self.scenarios.fading[episode, now, clients],
            last=self.last[at],
            picked=self.picked[at],
            delivered=self.delivered[at],
            outcome=self.outcome[at],
        )

    def step(self, picks: ArrayLike) -> RoundResult:
        """Play one round.

        Parameters
        ----------
        picks : int [E, S, M], client ids of each episode and server, rows filled up with -1.

        Raises
        ------
        InvalidProblemError
            If a pick is out of range, not covered, double or missing, or the horizon is reached.
        """
        shape = (self.num_episodes, self.problem.num_servers, None)
        chosen = np.array(picks, np.int32, order="C") if _is_plain(picks, shape) else int_array("picks", picks, shape)
        e, s, k = first_wrong_pick(np.require(chosen, requirements=["C", "W"]), self._num_picks, self._coverage)
        if e >= 0:
            raise InvalidProblemError(self._complaint(chosen, e, s, k))
        return self.replay(chosen)

    def replay(self, picks: NDArray[np.int32]) -> RoundResult:
        """Play one round with picks int32 [E, S, M] that are known to be client ids; more is not checked."""
        now, shape = self._round(), self.last.shape[:2]
        reward, round_s, tally = np.empty(shape), np.empty(shape), np.empty((*shape, 5), np.int32)
        play_round(
            np.require(picks, np.int32, ["C", "W"]), self._num_picks, self._num_covered,
            np.ascontiguousarray(self.scenarios.busy[:, now]), np.ascontiguousarray(self.scenarios.fading[:, now]),
            self._compute_s, self._rate(), self.problem.payload_bits, self.problem.timeout_s,
            self.problem.mode == "share", self._weight, now, self.last, self.picked, self.delivered, self.outcome,
            reward, round_s, tally,
        )  # fmt: skip
        self.now += 1
        return RoundResult(reward=reward, round_s=round_s, tally=tally, outcome=self.outcome.copy())

    def _rate(self) -> NDArray[np.float64]:
        return self._rate_bps if self._rate_bps.ndim == 2 else self._rate_bps[self._round()]

    def _round(self) -> int:
        if self.done:
            raise InvalidProblemError(f"round {self.now}: the horizon of {self.problem.rounds} rounds is reached")
        return self.now

    def _complaint(self, picks: NDArray[np.int32], e: int, s: int, k: int) -> str:
        if k == picks.shape[2]:
            count = int((picks[e, s] != -1).sum())
            return f"picks[{e}, {s}]: server {s} picks {count} clients, expected {self._num_picks[s]}"
        return f"picks[{e}, {s}, {k}] = {picks[e, s, k]}: expected another client that server {s} covers"


def _is_plain(picks: ArrayLike, shape: tuple[int, int, None]) -> bool:
    """Whether picks are int32 of the right shape: the checks of other input would take longer than the round."""
    return (
        isinstance(picks, np.ndarray) and picks.dtype == np.int32 and picks.ndim == 3 and picks.shape[:2] == shape[:2]
    )
