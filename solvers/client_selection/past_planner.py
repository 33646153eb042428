"""`PastPlanner`: client selection by what earlier rounds have taken, and nothing else."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from edgeopt.display import one_line
from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.problems import ClientSelection
from edgeopt.schedule import Feedback, RoundPlan
from edgeopt.solvers.client_selection.planner import SelectionPlanner
from edgeopt.solvers.client_selection.policy import Policy
from edgeopt.storage import Arrays
from edgeopt.validate import float_array, int_array, real

Floats = NDArray[np.float64]


@dataclass(slots=True)
class Seen:
    """What was measured of C clients so far.

    Parameters
    ----------
    count : int64 [C], rounds in which a client was measured.
    last : float64 [C], logarithm of the seconds that it took the last time.
    mean : float64 [C], mean of these logarithms.
    squares : float64 [C], sum of their squared distances from the mean.
    when_s : float64 [C], virtual second of the last time.
    """

    count: NDArray[np.int64]
    last: Floats
    mean: Floats
    squares: Floats
    when_s: Floats

    FIELDS: ClassVar[tuple[str, ...]] = ("count", "last", "mean", "squares", "when_s")

    __repr__ = one_line

    def note(self, client: NDArray[np.int32], seconds: Floats, now_s: float) -> None:
        """Note what clients have taken; mean and squares are updated as Welford did."""
        log = np.log(seconds)
        self.count[client] += 1
        off = log - self.mean[client]
        self.mean[client] += off / self.count[client]
        self.squares[client] += off * (log - self.mean[client])
        self.last[client], self.when_s[client] = log, now_s


def _optimistic(seen: Seen, now_s: float, memory_s: float) -> Floats:
    """Return the lower end of what a client may take: the less it was tried, the lower. After UCB1 (Auer et al. 2002)."""
    total, spare = int(seen.count.sum()), int(np.maximum(seen.count - 1, 0).sum())
    spread = np.sqrt(seen.squares.sum() / spare) if spare else 0.0
    return np.asarray(seen.mean - spread * np.sqrt(2 * np.log(max(total, 1)) / np.maximum(seen.count, 1)))


def _ageing(seen: Seen, now_s: float, memory_s: float) -> Floats:
    """Return the last value, which comes back to the mean as it ages: the best forecast of a first-order process."""
    return seen.mean + (seen.last - seen.mean) * np.exp((seen.when_s - now_s) / memory_s)


RULES: dict[str, Callable[[Seen, float, float], Floats]] = {
    "last": lambda seen, now_s, memory_s: seen.last,
    "mean": lambda seen, now_s, memory_s: seen.mean,
    "optimistic": _optimistic,
    "ageing": _ageing,
}
"""What is expected of a client, as the logarithm of seconds."""


@dataclass(slots=True)
class PastPlanner:
    """Let policies pick by the seconds that clients have taken in earlier rounds: nothing is measured beforehand.

    The seconds are those of `edgeopt.schedule.Feedback.client_seconds`: of the clients that were picked. Those that never
    were are expected to take no time, so that `fastest` tries everybody once. Ours.

    Parameters
    ----------
    problem : coverage and numbers of picks.
    policies : one per server, see `SelectionPlanner`.
    rule : ``last``, ``mean`` (geometric), ``optimistic`` (the less a client was tried, the better it may be) or ``ageing`` (the
        last value, which comes back to the mean as it ages).
    memory_s : virtual seconds in which ``ageing`` forgets all but a share of 1/e.

    Examples
    --------
    >>> from edgeopt.solvers.client_selection import Fastest
    >>> problem = ClientSelection.random(num_servers=1, num_clients=4, picks=2, seed=1)
    >>> planner = PastPlanner(problem, [Fastest().policy(0, seed=0)], rule="last")
    >>> first = planner.plan(0, None)
    >>> told = Feedback(round=0, plan=first, seconds=5, client_seconds=[5, 1])
    >>> planner.plan(1, told).client.tolist()  # those who were never tried
    [2, 3]
    """

    problem: ClientSelection
    policies: Sequence[Policy]
    rule: str = "ageing"
    memory_s: float = 60.0
    _inner: SelectionPlanner = field(init=False, repr=False)
    _seen: Seen = field(init=False, repr=False)
    _now_s: float = field(init=False, default=0.0, repr=False)

    __repr__ = one_line

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise InvalidProblemError(f"rule = {quoted(self.rule)}: expected one of {', '.join(RULES)}")
        self.memory_s = real("memory_s", self.memory_s, positive=True, unit="s")
        self._inner = SelectionPlanner(self.problem, self.policies, self._latency_s)
        count = self.problem.num_clients
        self._seen = Seen(np.zeros(count, np.int64), *np.zeros((4, count)))

    def plan(self, round: int, feedback: Feedback | None = None) -> RoundPlan:
        """Return who trains with which server in a round; rounds come one after another, from 0."""
        if feedback is not None:
            self._now_s = feedback.now_s
            client, first = np.unique(feedback.plan.client, return_index=True)  # of one picked twice, the first entry
            seconds = feedback.client_seconds[first]
            known = np.isfinite(seconds)
            self._seen.note(client[known], seconds[known], feedback.now_s)
        return self._inner.plan(round, feedback)

    def _latency_s(self, round: int) -> Floats:
        expected = np.exp(RULES[self.rule](self._seen, self._now_s, self.memory_s))
        expected[self._seen.count == 0] = 0.0
        return np.where(self.problem.coverage, expected, np.inf)

    def state(self) -> Arrays:
        """Return what was measured, and what the picks depend on besides."""
        own = {f"seen_{name}": np.array(getattr(self._seen, name)) for name in Seen.FIELDS}
        return self._inner.state() | own | {"now_s": np.array(self._now_s)}

    def restore(self, state: Arrays) -> None:
        """Go on from what `state` returned."""
        names = [f"seen_{name}" for name in Seen.FIELDS]
        if missing := [name for name in (*names, "now_s") if name not in state]:
            raise InvalidProblemError(f"state: {missing[0]}: array is missing")
        size = (self.problem.num_clients,)
        count = np.array(int_array("seen_count", state["seen_count"], size, low=0, dtype=np.int64))
        floats = [np.array(float_array(name, state[name], size)) for name in names[1:]]
        now = real("now_s", state["now_s"], nonnegative=True)
        self._inner.restore({name: value for name, value in state.items() if name not in (*names, "now_s")})
        self._seen, self._now_s = Seen(count, *floats), now
