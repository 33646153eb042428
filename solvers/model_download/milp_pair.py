"""One user with one model, as `milp` sees it: shares of the limits, and what bandwidth some frequencies need."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from edgeopt.problems import ModelDownload

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SLACK = 4e-9  # relative: more than a plan can gain from all tolerances of `violations` together
EXACT = 5e-10  # relative: what plans made here use of them


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """One user with one model it may have.

    Parameters
    ----------
    user, model : which.
    first : its first column: x, bandwidth, download time; then, with an energy limit, those of `_add_pair`.
    hz : Hz in one unit of its bandwidth column.
    bits : [L], share of the model's bits up to and including each layer.
    free : [L], share of the deadline left by what no decision changes, from each layer to the last.
    time, energy : [L, F], shares of the deadline and of the energy limit that each layer takes at each frequency level,
        or at the highest frequency; None without an energy limit: the highest frequency is then the best.
    stretch : highest over lowest frequency.
    """

    user: int
    model: int
    first: int
    hz: float
    bits: Floats
    free: Floats
    time: Floats | None
    energy: Floats | None
    stretch: float


def rates(problem: ModelDownload, users: Ints, hz: Floats) -> tuple[Floats, Floats]:
    """Return the rates of some users over a bandwidth each, bit/s, and their slopes, bit/s/Hz."""
    if problem.snr_hz is None:
        assert problem.spectral_efficiency is not None
        return problem.spectral_efficiency[users] * hz, problem.spectral_efficiency[users]
    snr = problem.snr_hz[users] / hz
    bits = np.log1p(snr) / np.log(2)
    return hz * bits, bits - snr / (1 + snr) / np.log(2)


def least_hz(problem: ModelDownload, user: int, model: int) -> float:
    """Return the bandwidth over which the download alone takes until the deadline, which is wider by `SLACK`."""
    return _hz_for(problem, user, float(problem.model_bits[model] / (problem.deadline_s[user] * (1 + SLACK))))


def needed_hz(problem: ModelDownload, pair: Pair, frequency: Floats) -> float:
    """Return the bandwidth over which a pair is done in time when run at some frequencies, inf if it never is."""
    layers = slice(*problem.layer_indptr[pair.model : pair.model + 2])
    cycles = problem.cycles_per_layer_flop[pair.user] * problem.layer_flops[layers]
    busy = np.cumsum((problem.layer_fixed_s[layers] + cycles / frequency)[::-1])[::-1]
    left = problem.deadline_s[pair.user] * (1 + EXACT) - busy
    if left.min() <= 0.0:
        return np.inf
    return _hz_for(problem, pair.user, float((problem.prefix_bits[layers] / left).max()))


def energy_excess(problem: ModelDownload, pair: Pair, frequency: Floats) -> float:
    """Return by which share running a pair at some frequencies takes more energy than it may."""
    layers = slice(*problem.layer_indptr[pair.model : pair.model + 2])
    cycles = problem.cycles_per_layer_flop[pair.user] * problem.layer_flops[layers]
    receive = problem.receive_j_per_bit[pair.user] * problem.model_bits[pair.model]
    if np.isinf(problem.energy_j[pair.user]):
        return -1.0
    spent = problem.energy_coefficient[pair.user] * float(cycles @ frequency**2)
    return float(spent / (problem.energy_j[pair.user] * (1 + EXACT) - receive)) - 1.0


def levels_hz(problem: ModelDownload, user: int) -> Floats:
    """Return the frequencies that a user's processor can be set to, ascending."""
    assert problem.frequency_levels is not None
    levels = problem.frequency_levels * problem.max_frequency_hz[user]
    return np.asarray(levels[levels >= problem.min_frequency_hz[user] * (1 - SLACK)])


def _hz_for(problem: ModelDownload, user: int, rate_bps: float) -> float:
    """Return the bandwidth that gives a rate, by root finding where the rate is concave; inf if none does."""
    if problem.spectral_efficiency is not None:
        return rate_bps / float(problem.spectral_efficiency[user])

    def excess(log_share: float) -> float:
        hz = problem.bandwidth_hz * np.exp([log_share])
        return float(rates(problem, np.array([user]), hz)[0][0]) / rate_bps - 1.0

    high = np.log(4)
    if excess(high) < 0.0:
        return np.inf
    low = high
    while excess(low) > 0.0:
        low -= 2.0
    return problem.bandwidth_hz * float(np.exp(optimize.brentq(excess, low, high, xtol=1e-15, rtol=1e-15)))


def make_pair(problem: ModelDownload, user: int, model: int, first: int, limit_hz: float) -> Pair | None:
    """Return the data of a user with a model, None if even all the bandwidth or energy would not do."""
    layers = slice(*problem.layer_indptr[model : model + 2])
    deadline = problem.deadline_s[user] * (1 + SLACK)
    fixed = np.cumsum(problem.layer_fixed_s[layers][::-1])[::-1] / deadline
    cycles = problem.cycles_per_layer_flop[user] * problem.layer_flops[layers]
    bits = problem.prefix_bits[layers] / problem.model_bits[model]
    slack = SLACK * problem.max_frequency_hz[user]
    top, low = problem.top_frequency_hz[user] + slack, problem.min_frequency_hz[user]
    low = max(low - slack, low / 2)
    time, energy, free = None, None, 1.0 - fixed
    if np.isinf(problem.energy_j[user]):
        free -= np.cumsum((cycles / top)[::-1])[::-1] / deadline
    else:
        receive = problem.receive_j_per_bit[user] * problem.model_bits[model]
        limit = problem.energy_j[user] * (1 + SLACK) - receive
        if limit <= 0.0:
            return None
        high = levels = np.array([top])
        if problem.frequency_levels is not None:
            levels = levels_hz(problem, user)
            high, levels = levels + slack, np.maximum(levels - slack, levels / 2)
        time = cycles[:, None] / high / deadline
        energy = problem.energy_coefficient[user] * cycles[:, None] * levels**2 / limit
        if energy[:, 0].sum() * (low / top if problem.frequency_levels is None else 1.0) ** 2 > 1.0:
            return None
    if free.min() <= 0.0:
        return None
    hz = least_hz(problem, user, model)
    if hz > limit_hz:
        return None
    return Pair(user, model, first, problem.resource_block_hz or hz, bits, free, time, energy, float(top / low))
