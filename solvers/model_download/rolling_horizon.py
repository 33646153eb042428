"""`rolling_horizon`: requests arrive over time, downloads end and free their bandwidth, a solver decides anew each time.

The one-shot problem and its solution are the paper's (SLIDE, arXiv 2512.20946). Everything about time is ours: arrivals,
the queue, keeping allocations until a download ends, re-solving at events, and giving up on a request.
"""

import heapq
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.problems import DownloadPlan, ModelDownload
from edgeopt.rng import stream
from edgeopt.series import TimeSeries
from edgeopt.solve import Solver, solve
from edgeopt.solvers import get_solver
from edgeopt.solvers.model_download.rolling_result import RollingResult
from edgeopt.stop import Limit
from edgeopt.validate import float_array, int_array

USER_FIELDS = (
    "task", "min_accuracy", "memory_bytes", "deadline_s", "samples", "cycles_per_flop", "min_frequency_hz",
    "max_frequency_hz", "energy_j", "energy_coefficient", "receive_j_per_bit", "spectral_efficiency", "snr_hz", "user_weight",
)  # fmt: skip
"""Fields of `ModelDownload` with one entry per user."""
NO_BANDWIDTH = 1e-9  # a smaller share of the band than this is rounding, not spare bandwidth


def poisson_arrivals(num_requests: int, per_s: float, *, seed: int = 0) -> NDArray[np.float64]:
    """Return the arrival times of a Poisson process; with the same seed, more requests leave the earlier ones alone.

    Parameters
    ----------
    num_requests : how many, at least 1.
    per_s : mean arrivals per second.
    seed : same seed, same times.

    Returns
    -------
    float64 [num_requests], ascending, in s.

    Examples
    --------
    >>> poisson_arrivals(3, 20.0).round(4)
    array([0.0377, 0.0831, 0.0869])
    """
    requests = int_array("num_requests", num_requests, (), low=1).item()
    rate = float_array("per_s", per_s, (), positive=True, unit="1/s").item()
    return np.cumsum(stream(seed, "poisson-arrivals").exponential(1.0 / rate, requests))


def rolling_horizon(
    problem: ModelDownload,
    arrival_s: ArrayLike,
    solver: str | Solver = "slide",
    *,
    rates: TimeSeries | None = None,
    seed: int = 0,
) -> RollingResult:
    """Serve requests as they arrive: at each event a solver decides on the waiting requests and the free bandwidth.

    A request is a user of `problem`; its deadline counts from its arrival. An event is an arrival or the end of a download.
    At each event the solver gets the waiting requests, with what is left of their deadlines, and the bandwidth that no
    download holds. Whom it admits keeps model, bandwidth and frequencies of that plan until the download has ended;
    inference may go on after that and holds no bandwidth. Whom it does not admit waits. A request is refused as soon as
    even the whole band at full frequency would miss its deadline: later it can only be worse. (That test leaves energy
    aside, so it never refuses too early; with energy limits a hopeless request may stay in the queue a little longer.)

    Each decision is as good as its solver: with `slide` the most valuable admission at that event. Over time nothing is
    promised, because nobody knows what arrives next. If all requests arrive at once, the first decision is the one-shot
    solution, and freed bandwidth can only add to it.

    With `rates`, downloads follow measured links. A decision knows the rates of its moment and plans as if they stayed; each
    download then takes what the trace says, so that a request that was admitted may be late. Decisions are also taken when
    a rate of a waiting request changes; a request without a link waits, and is refused when computing alone would be late.

    Parameters
    ----------
    problem : K requests as the users of one problem; ``bandwidth_hz`` is the whole band.
    arrival_s : float64 [K], arrival times, in s, in any order; see `poisson_arrivals`.
    solver : name or object of a solver of model download.
    rates : a column for each request, bit/s that it would have on the whole band; a share of the band has that share of it.
    seed : the solve number n is run with seed + n.

    Returns
    -------
    RollingResult

    Notes
    -----
    At most one solve per event, each over the requests that wait then: O(K log K) beside the solves.

    Examples
    --------
    >>> from edgeopt.problems import ModelDownload
    >>> problem = ModelDownload.random(num_users=50, seed=1)
    >>> result = rolling_horizon(problem, poisson_arrivals(50, 20.0, seed=1))
    >>> result.num_done + result.num_refused
    50
    """
    arrival = check_requests(problem, arrival_s, rates)
    chosen = get_solver(problem.kind, solver) if isinstance(solver, str) else solver
    with _one_thread():
        state = _State(problem, arrival, chosen, seed, rates)
        _serve(state)
    return state.result()


def check_requests(problem: ModelDownload, arrival_s: ArrayLike, rates: TimeSeries | None) -> NDArray[np.float64]:
    """Return the arrivals, float64 [K], or raise `InvalidProblemError` if they or the rates do not fit the requests."""
    if not isinstance(problem, ModelDownload):
        raise InvalidProblemError(f"problem: expected a ModelDownload, got {type(problem).__name__}")
    arrival = float_array("arrival_s", arrival_s, (problem.num_users,), nonnegative=True, unit="s")
    if rates is not None and (not isinstance(rates, TimeSeries) or rates.quantity != "rate"):
        raise InvalidProblemError(f"rates: expected a TimeSeries of the quantity rate, got {quoted(rates)}")
    if rates is not None and rates.num_columns != problem.num_users:
        raise InvalidProblemError(
            f"rates: {rates.num_columns} columns, expected {problem.num_users}: one for each request"
        )
    return arrival


def _serve(state: "_State") -> None:
    """Go from event to event until all requests are decided."""
    arrival = state.arrival
    order = np.argsort(arrival, kind="stable")
    position, now = 0, 0.0
    while position < order.size or state.waiting:
        next_arrival = float(arrival[order[position]]) if position < order.size else math.inf
        now = min(next_arrival, state.next_event(now))
        changed = state.end_downloads(now) or state.rates is not None
        while position < order.size and arrival[order[position]] == now:
            changed |= state.arrive(int(order[position]))
            position += 1
        if changed:
            state.decide(now)
        state.give_up(now)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run parallel kernels on one thread: for some ten users at a time, waking threads takes longer than the work."""
    import numba  # late: it takes 0.3 s to import

    before = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        yield
    finally:
        numba.set_num_threads(before)


@dataclass(slots=True)
class _State:
    """The system at one moment, and the record of what happened to every request."""

    problem: ModelDownload
    arrival: NDArray[np.float64]
    solver: Solver
    seed: int
    rates: TimeSeries | None = None
    waiting: set[int] = field(default_factory=set)
    active: dict[int, float] = field(default_factory=dict)  # bandwidth of the downloads in progress
    ends: list[tuple[float, int]] = field(default_factory=list)  # heap of their ends
    last_chances: list[tuple[float, int]] = field(default_factory=list)  # heap, of those that wait or waited
    num_solves: int = 0
    least_s: NDArray[np.float64] = field(init=False)
    hopeless: dict[int, str] = field(init=False)
    reason: list[str] = field(init=False)
    start: NDArray[np.float64] = field(init=False)
    downloaded: NDArray[np.float64] = field(init=False)
    finish: NDArray[np.float64] = field(init=False)
    refused: NDArray[np.float64] = field(init=False)
    model: NDArray[np.int32] = field(init=False)
    bandwidth: NDArray[np.float64] = field(init=False)
    frequency: dict[int, NDArray[np.float64]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        users = self.problem.num_users
        self.least_s = least_latency(self.problem, computing_alone=self.rates is not None)
        self.hopeless = {
            refusal.user: refusal.message
            for refusal in self.problem.refusals()
            if self.rates is None or refusal.reason not in ("rate", "bandwidth")
        }
        self.reason = [""] * users
        self.start, self.downloaded, self.finish, self.refused = np.full((4, users), math.nan)
        self.model = np.full(users, -1, np.int32)
        self.bandwidth = np.zeros(users)

    def next_event(self, now: float) -> float:
        """Return when something happens to those that wait, apart from arrivals."""
        if not self.waiting:
            return math.inf
        while self.last_chances[0][1] not in self.waiting:
            heapq.heappop(self.last_chances)
        found = min(self.last_chances[0][0], self.ends[0][0] if self.ends else math.inf)
        if self.rates is not None:
            found = min(found, float(self.rates.next_change(now, np.array(sorted(self.waiting))).min()))
        return found

    def end_downloads(self, now: float) -> bool:
        """Free the bandwidth of the downloads that have ended; return whether there were any."""
        before = len(self.ends)
        while self.ends and self.ends[0][0] <= now:
            del self.active[heapq.heappop(self.ends)[1]]
        return len(self.ends) < before

    def arrive(self, user: int) -> bool:
        """Let a request wait, or refuse it at once if it could not be served even alone; return whether it waits."""
        now = float(self.arrival[user])
        if user in self.hopeless:
            self._refuse(user, now, self.hopeless[user])
            return False
        slack = max(0.0, float(self.problem.deadline_s[user] - self.least_s[user]))
        self.waiting.add(user)
        heapq.heappush(self.last_chances, (now + slack, user))
        return True

    def give_up(self, now: float) -> None:
        """Refuse those whose last chance has come without bandwidth."""
        while self.last_chances and self.last_chances[0][0] <= now:
            user = heapq.heappop(self.last_chances)[1]
            if user in self.waiting:
                self.waiting.remove(user)
                waited = now - self.arrival[user]
                self._refuse(
                    user,
                    now,
                    f"no bandwidth in time: after {waited:.4g} s of waiting the whole {self.problem.bandwidth_hz / 1e6:g} MHz "
                    f"would just have met the deadline of {self.problem.deadline_s[user]:.4g} s",
                )

    def decide(self, now: float) -> None:
        """Solve for those that wait, on the free bandwidth, and admit whom the plan admits."""
        free = self._free_bandwidth()
        if not self.waiting or free <= NO_BANDWIDTH * self.problem.bandwidth_hz:
            return
        users = np.array(sorted(self.waiting))
        left_s = self.problem.deadline_s[users] - (now - self.arrival[users])
        if self.rates is None:
            part = waiting_problem(self.problem, users, left_s, free)
        else:
            rate = self.rates.at(now, users)
            there = (rate > 0) & (left_s > 0)
            if not there.any():
                return
            users = users[there]
            part = waiting_problem(self.problem, users, left_s[there], free)
            part = part.replace(spectral_efficiency=rate[there] / self.problem.bandwidth_hz, snr_hz=None)
        result = solve(part, self.solver, seed=self.seed + self.num_solves)
        if result.limit is Limit.INTERRUPT:  # there is no half of a simulation to return
            raise KeyboardInterrupt
        plan: Any = result.raise_for_status().solution
        self.num_solves += 1
        timeline = part.simulate(plan)
        admitted = np.flatnonzero(plan.model >= 0)
        for i in admitted:
            user = int(users[i])
            self.waiting.remove(user)
            self.start[user] = now
            layers = slice(timeline.indptr[i], timeline.indptr[i + 1])
            if self.rates is None:
                self.downloaded[user] = now + timeline.download_finish_s[layers][-1]
                self.finish[user] = now + timeline.completion_s[i]
            else:
                share = float(plan.bandwidth_hz[i]) / self.problem.bandwidth_hz
                times = self._along_the_trace(user, int(plan.model[i]), share, plan.frequency_hz[layers], now)
                self.downloaded[user], self.finish[user] = times
            self.model[user], self.bandwidth[user] = plan.model[i], plan.bandwidth_hz[i]
            self.frequency[user] = plan.frequency_hz[layers]
            self.active[user] = float(plan.bandwidth_hz[i])
            heapq.heappush(self.ends, (float(self.downloaded[user]), user))

    def _along_the_trace(
        self, user: int, model: int, share: float, frequency_hz: NDArray[np.float64], now: float
    ) -> tuple[float, float]:
        """Return when the download ends and when the inference does, if a share of the band is held from now on."""
        assert self.rates is not None
        problem = self.problem
        own = slice(problem.layer_indptr[model], problem.layer_indptr[model + 1])
        bits = problem.prefix_bits[own] / share
        arrived = now + self.rates.seconds(bits, now, np.full(bits.size, user))
        work_s = (
            problem.layer_fixed_s[own] + problem.cycles_per_layer_flop[user] * problem.layer_flops[own] / frequency_hz
        )
        done = now
        for at, seconds in zip(arrived.tolist(), work_s.tolist(), strict=True):
            done = max(at, done) + seconds
        return float(arrived[-1]), done

    def result(self) -> RollingResult:
        """Return what happened."""
        return RollingResult(
            solver=self.solver.name,
            seed=self.seed,
            num_solves=self.num_solves,
            band_hz=self.problem.bandwidth_hz,
            arrival_s=self.arrival,
            deadline_s=self.problem.deadline_s,
            start_s=self.start,
            downloaded_s=self.downloaded,
            finish_s=self.finish,
            refused_s=self.refused,
            reason=tuple(self.reason),
            plan=DownloadPlan(
                model=self.model,
                bandwidth_hz=self.bandwidth,
                frequency_hz=np.concatenate([np.zeros(0), *(self.frequency[k] for k in sorted(self.frequency))]),
            ),
        )

    def _refuse(self, user: int, now: float, reason: str) -> None:
        self.refused[user] = now
        self.reason[user] = reason

    def _free_bandwidth(self) -> float:
        band, used = self.problem.bandwidth_hz, math.fsum(self.active.values())
        if not self.active or (block := self.problem.resource_block_hz) is None:
            return band - used
        return (math.floor(band / block * (1 + 1e-12)) - round(used / block)) * block


def least_latency(problem: ModelDownload, *, computing_alone: bool = False) -> NDArray[np.float64]:
    """Return float64 [K]: seconds of each user alone on the whole band at full frequency, with the quickest allowed model.

    No plan is quicker: less bandwidth, lower frequencies, whole resource blocks and energy limits only add to it. Infinite
    without an allowed model. O(K P). With `computing_alone` models are there at once.
    """
    rate = np.inf if computing_alone else problem.rate_bps(problem.bandwidth_hz)[:, None]
    s_per_flop = (problem.cycles_per_layer_flop / problem.top_frequency_hz)[:, None]
    bits, flops, fixed_s = problem.prefix_bits, problem.suffix_flops, problem.suffix_fixed_s
    least = np.full(problem.num_users, math.inf)
    for i, (first, end) in enumerate(pairwise(problem.layer_indptr)):
        own = slice(first, end)
        done_s = (bits[own] / rate + fixed_s[own] + flops[own] * s_per_flop).max(axis=1)  # [K], over the layers
        least = np.where(problem.allowed[:, i], np.minimum(least, done_s), least)
    return least


def waiting_problem(
    problem: ModelDownload, users: NDArray[np.int64], deadline_s: NDArray[np.float64], bandwidth_hz: float
) -> ModelDownload:
    """Return the problem of some of the users, with what is left of their deadlines and of the bandwidth."""
    of_users = {name: getattr(problem, name) for name in USER_FIELDS}
    taken = {name: value[users] for name, value in of_users.items() if value is not None}
    return problem.replace(**taken | {"deadline_s": deadline_s, "bandwidth_hz": bandwidth_hz})
