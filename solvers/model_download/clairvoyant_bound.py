"""`clairvoyant_bound`: what no planner of requests over time can exceed, whatever it knows. The bound is ours."""

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from edgeopt.errors import SolverError
from edgeopt.fields import check_table
from edgeopt.problems import ModelDownload
from edgeopt.problems.model_download.instance import TOLERANCE
from edgeopt.series import TimeSeries
from edgeopt.solvers.back_ends import highs_module
from edgeopt.solvers.ending import End
from edgeopt.solvers.highs import end_of_run, new_highs, own_scheduler
from edgeopt.solvers.model_download.rolling_horizon import check_requests

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

TANGENTS = 8  # of a concave rate, at shares of the band of 1, 1/2, 1/4, ...


def clairvoyant_bound(problem: ModelDownload, arrival_s: ArrayLike, *, rates: TimeSeries | None = None) -> float:
    r"""Return an upper bound on the value of the requests that any planner can have done in time, even one that knows the future.

    The bound is the optimum of a linear programme. Time is cut where a request arrives, where its last bits and those of the
    layer that is most urgent would be too late, and where a rate changes; interval t is :math:`\ell_t` long and ends at :math:`e_t`. Request j is served with
    model i to an extent :math:`x_{ji}`, and :math:`w_{jt}` is the time in interval t, in shares of the band, that goes to it:

    .. math:: \max \sum_{j, i} v_{ji} x_{ji}, \quad \sum_i x_{ji} \le 1, \quad \sum_j w_{jt} \le \ell_t, \quad
        \sum_{t' \le t} R_{jt'} w_{jt'} \ge \sum_i P_{ji}(e_t) x_{ji}

    with :math:`R` the bit/s of the whole band, and :math:`P_{ji}(e)` the bits that have to be there at time e if model i is to be
    done by the deadline: all layers up to l, if the layers from l on take longer than what is left, run as fast as they can be.

    *Why it is a bound.* Take any schedule: requests that are done in time with a model each, and shares of the band over time,
    constant or not, that add up to 1 at most. Set x to 1 for them and 0 elsewhere, and w to the integrals of their shares over the
    intervals. The value is the objective. The first two rows hold. In an interval R is constant, so the sum of
    the third row is what has arrived by :math:`e_t`, as nothing arrives before the request does. A layer l that is not there at e is
    run after e, and so are all behind it, one after another; if that takes longer than what is left, the request is late. So the bits
    of layer l are there, which is the third row. The programme allows more than any schedule can do, fractions of requests and a
    division of the band that changes at any time, so that the bound may be out of reach.

    The seconds from layer l on are fixed ones and those of C cycles at the highest speed. Under an energy limit E, of which receiving
    leaves E', C cycles in T seconds take :math:`a C^3 / T^2` at least (the power mean inequality over layers), so T is at
    least :math:`\sqrt{a C^3 / E'}`. Models that are too late, or take more energy, even alone on an infinite rate, are left out.
    Resource blocks and frequency levels below the highest only take from what can be done; they are not looked at. A rate that
    is concave in the band, at fixed transmit power, is replaced by the least of tangents at shares of 1, 1/2, 1/4, ..., which is never
    less; over an interval of changing shares the mean rate is at most the rate of the mean share.

    The programme is solved by HiGHS, but its word is not taken: for any prices :math:`\pi \ge 0` of the rows, the optimum of
    ``max c x, A x <= b, 0 <= x <= u`` is at most ``b pi + sum(max(0, c - A' pi) u)``. This is what is returned, for the prices that
    HiGHS found. Deadlines, band and energy are wider by 1e-9, which is what a plan may miss them by, and the bound by 1e-9 for rounding.

    Parameters
    ----------
    problem : K requests as the users of one problem; ``bandwidth_hz`` is the whole band.
    arrival_s : float64 [K], arrival times, in s, in any order.
    rates : a column for each request, bit/s that it would have on the whole band; as for `rolling_horizon`.

    Returns
    -------
    In units of the value; at most that of all requests, each with its best model.

    Raises
    ------
    InvalidProblemError
        As `rolling_horizon`; also if requests and intervals are too many, where rates change very often.
    SolverError
        If HiGHS ends without an optimum.

    Notes
    -----
    A variable for each request and interval between its arrival and its deadline, as many rows at most.

    Examples
    --------
    >>> from edgeopt.solvers.model_download import poisson_arrivals, rolling_horizon
    >>> problem = ModelDownload.random(num_users=50, seed=1)
    >>> arrival_s = poisson_arrivals(50, 20.0, seed=1)
    >>> rolling_horizon(problem, arrival_s).num_done, round(clairvoyant_bound(problem, arrival_s), 2)
    (24, 28.27)
    """
    arrival = check_requests(problem, arrival_s, rates)
    check_table("requests x layers", problem.num_users, problem.layer_bits.size)
    latest = _latest_s(problem, arrival)
    first, last = problem.layer_indptr[:-1], problem.layer_indptr[1:] - 1
    is_open = problem.allowed & (latest[:, first] >= arrival[:, None])
    users = np.flatnonzero(is_open.any(axis=1))
    if not users.size:
        return 0.0
    ends = np.where(is_open, latest[:, last], -np.inf)
    until = ends.max(axis=1)
    changes = [] if rates is None else _changes(rates, users, arrival[users], until[users])
    cuts = np.unique(
        np.concatenate([arrival[users], ends[is_open], _tightest(problem, latest, arrival)[is_open], *changes])
    )
    intervals = _Intervals.between(cuts, arrival[users], until[users])
    needed = _needed_bits(problem, latest, is_open, users, intervals, cuts[intervals.time + 1])
    pieces = _pieces(problem, rates, users, intervals, (cuts[:-1] + cuts[1:]) / 2, np.diff(cuts))
    return _Programme(problem, is_open, users, intervals, needed, pieces, np.diff(cuts)).bound()


def _latest_s(problem: ModelDownload, arrival: Floats) -> Floats:
    """Return float64 [K, P]: when each layer, and those before, must have arrived at the latest; -inf if no time is early enough."""
    model = np.repeat(np.arange(problem.num_models), problem.num_layers)
    cycles = problem.cycles_per_layer_flop[:, None] * problem.suffix_flops
    received = problem.receive_j_per_bit[:, None] * problem.model_bits[model]
    left_j = problem.energy_j[:, None] * (1 + TOLERANCE) - received
    per_square = problem.energy_coefficient[:, None] * cycles  # J of these cycles at 1 Hz
    fastest = np.full_like(cycles, np.inf)
    np.divide(np.maximum(left_j, 0.0), per_square, out=fastest, where=(per_square > 0) & np.isfinite(left_j))
    fastest = np.sqrt(fastest)
    speed = np.minimum(fastest, problem.top_frequency_hz[:, None])
    seconds = problem.suffix_fixed_s + np.divide(cycles, speed, out=np.full_like(cycles, np.inf), where=speed > 0)
    never = (left_j < 0) | (fastest < problem.min_frequency_hz[:, None] * (1 - TOLERANCE))
    seconds[never] = np.inf
    return np.asarray((arrival + problem.deadline_s * (1 + TOLERANCE))[:, None] - seconds)


def _tightest(problem: ModelDownload, latest: Floats, arrival: Floats) -> Floats:
    """Return float64 [K, I]: when the layer is due that asks for most bits per second from the arrival on."""
    found = np.empty(problem.allowed.shape)
    for i, (start, stop) in enumerate(pairwise(problem.layer_indptr.tolist())):
        seconds = latest[:, start:stop] - arrival[:, None]
        most = (problem.prefix_bits[start:stop] / np.where(seconds > 0, seconds, np.inf)).argmax(axis=1)
        found[:, i] = latest[np.arange(most.size), start + most]
    return found


def _changes(rates: TimeSeries, users: Ints, start: Floats, end: Floats) -> list[Floats]:
    """Return when rates change between start and end of each user."""
    found, now = [], rates.next_change(start, users)
    while (inside := now < end).any():
        users, end, now = users[inside], end[inside], now[inside]
        found.append(now)
        now = rates.next_change(now, users)
    return found


class _Intervals(NamedTuple):
    """The N pairs of a request and an interval of time in which it can receive, request by request.

    Parameters
    ----------
    request : int64 [N], ascending.
    time : int64 [N], number of the interval, ascending for each request.
    is_first : bool [N], whether it is the first of its request.
    """

    request: Ints
    time: Ints
    is_first: Bools

    @classmethod
    def between(cls, cuts: Floats, start: Floats, end: Floats) -> "_Intervals":
        """Return those from start to end, which are cuts."""
        first = np.searchsorted(cuts, start)
        count = np.searchsorted(cuts, end) - first
        check_table("intervals of requests", int(count.sum()))
        request = np.repeat(np.arange(start.size), count)
        place = np.arange(request.size) - np.repeat(np.cumsum(count) - count, count)
        return cls(request, first[request] + place, place == 0)


def _needed_bits(
    problem: ModelDownload, latest: Floats, is_open: Bools, users: Ints, intervals: _Intervals, end_s: Floats
) -> Floats:
    """Return float64 [N, I]: bits of each model that must be there when an interval ends, 0 for models that are left out."""
    user = users[intervals.request]
    needed = np.zeros((user.size, problem.num_models))
    for i, (start, stop) in enumerate(pairwise(problem.layer_indptr.tolist())):
        some = np.flatnonzero(is_open[user, i])
        due = latest[user[some], start:stop] <= end_s[some, None]  # of one layer after another: they are due in order
        needed[some, i] = np.concatenate([[0.0], problem.prefix_bits[start:stop]])[due.sum(axis=1)]
    return needed


class _Pieces(NamedTuple):
    """Rates by pieces: piece m of an interval carries up to ``most`` [N, M] shares times seconds at ``bps`` [N, M], for ``cost`` [M]."""

    bps: Floats
    most: Floats
    cost: Floats


def _pieces(
    problem: ModelDownload, rates: TimeSeries | None, users: Ints, intervals: _Intervals, middle: Floats, length: Floats
) -> _Pieces:
    """Return what the band carries to each request in each interval."""
    user, seconds = users[intervals.request], length[intervals.time][:, None]
    if rates is not None or problem.snr_hz is None:
        full = problem.rate_bps(problem.bandwidth_hz)[user] if rates is None else rates.at(middle[intervals.time], user)
        return _Pieces(full[:, None], seconds, np.ones(1))
    share = 0.5 ** np.arange(TANGENTS)[::-1]
    band = share * problem.bandwidth_hz
    snr = problem.snr_hz[:, None]
    rate = band * np.log1p(snr / band) / np.log(2)
    slope = problem.bandwidth_hz * (np.log1p(snr / band) - snr / (snr + band)) / np.log(2)
    height = rate - slope * share  # of the tangents over a share of 0: to be had for nothing
    apart = slope[:, :-1] - slope[:, 1:]
    meet = np.divide(np.diff(height), apart, out=np.tile(share[:-1], (snr.size, 1)), where=apart > 0)
    edges = np.column_stack([np.zeros(snr.size), meet.clip(share[:-1], share[1:]), np.full(snr.size, 1 + TOLERANCE)])
    bps = np.column_stack([height[:, 0], slope])
    width = np.column_stack([np.ones(snr.size), np.diff(edges)])
    return _Pieces(bps[user], width[user] * seconds, np.array([0.0] + [1.0] * TANGENTS))


class _Programme:
    """The linear programme: columns x, w and what a request has received before it is due, all scaled to about 1.

    What is due is counted from one row of a request to the next, with what was received too early carried on, so that a
    column is in two rows at most.
    """

    def __init__(
        self,
        problem: ModelDownload,
        is_open: Bools,
        users: Ints,
        intervals: _Intervals,
        needed: Floats,
        pieces: _Pieces,
        length: Floats,
    ) -> None:
        request, models = np.nonzero(is_open[users])
        value = problem.value[users[request], models]
        self.scale = float(value.max())
        unit_s = float(length.mean())
        unit_bits = np.where(is_open, problem.model_bits, 0.0).max(axis=1)[users]
        due = np.diff(needed, axis=0, prepend=0.0)
        due[intervals.is_first] = needed[intervals.is_first]
        rows = np.flatnonzero((due > 0).any(axis=1))  # of the others, the row before says as much
        row_of = np.searchsorted(rows, np.arange(intervals.time.size))  # the next one: bits count there
        # columns: x of every open pair, w by interval and piece, what is carried on to the next row of the request
        count = pieces.cost.size
        carried = np.flatnonzero(np.diff(intervals.request[rows]) == 0)
        x, w = np.arange(request.size), request.size + np.arange(intervals.time.size * count)
        h = request.size + w.size + np.arange(carried.size)
        at, model = np.nonzero(due[rows])
        column = np.full(is_open[users].shape, -1)
        column[request, models] = x
        own = intervals.request[rows]
        band, once = rows.size, rows.size + length.size
        bits = (pieces.bps * (unit_s / unit_bits[intervals.request][:, None])).ravel()
        costs = np.tile(pieces.cost, intervals.time.size)
        entries = (
            (at, column[own[at], model], due[rows][at, model] / unit_bits[own[at]]),
            (np.repeat(row_of, count), w, -bits),
            (carried, h, np.ones(h.size)),
            (carried + 1, h, -np.ones(h.size)),
            (band + np.repeat(intervals.time, count), w, costs),
            (once + request, x, np.ones(x.size)),
        )
        row, col, number = (np.concatenate(some) for some in zip(*entries, strict=True))
        shape = (once + users.size, request.size + w.size + h.size)
        self.matrix = sparse.csr_array((number, (row, col)), shape=shape)
        self.limit = np.concatenate([np.zeros(rows.size), length / unit_s * (1 + TOLERANCE), np.ones(users.size)])
        self.cost = np.concatenate([value / self.scale, np.zeros(w.size + h.size)])
        self.upper = np.concatenate(
            [np.ones(x.size), (pieces.most / unit_s).ravel() * (1 + TOLERANCE), np.ones(h.size)]
        )

    def bound(self) -> float:
        """Return the bound by the prices that HiGHS finds."""
        highspy = highs_module()
        rows, columns = self.matrix.shape
        programme = (
            columns, rows, self.matrix.nnz, highspy.MatrixFormat.kRowwise.value, highspy.ObjSense.kMaximize.value, 0.0,
            self.cost, np.zeros(columns), self.upper, np.full(rows, -np.inf), self.limit,
            self.matrix.indptr.astype(np.int32), self.matrix.indices.astype(np.int32), self.matrix.data,
            np.zeros(columns, np.int32),
        )  # fmt: skip
        with own_scheduler():
            highs = new_highs(programme, {"threads": 1})
            ending = end_of_run(highs)
        if ending.end is not End.OPTIMAL:
            raise SolverError(ending.message)
        price = np.maximum(np.array(highs.getSolution().row_dual), 0.0)
        rest = np.maximum(self.cost - self.matrix.T @ price, 0.0)
        return self.scale * (math.fsum(self.limit * price) + math.fsum(rest * self.upper)) * (1 + TOLERANCE)
