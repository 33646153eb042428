"""One user with one model, as `milp` sees it: shares of the limits, and what bandwidth some frequencies need."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from edgeopt.problems import ModelDownload

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SLACK = 4e-9  # relative: more than a plan can gain from all tolerances of `violations` together
EXACT = 5e-10  # relative: what plans made here use of them
LEAST_SHARE = 1e-8  # of all the bandwidth: a pair that needs less is taken to need none at all
LEAST_HZ = 1e-13  # of all the bandwidth: what a served pair gets at least
NEGLIGIBLE = 1e-9  # share of the deadline: computing that takes less is taken to take no time
UNUSABLE = 1e6  # shares of a limit above this are written as this


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
    top : Hz, the highest frequency that is of use: at a higher one every layer alone would take all the energy.
    time, energy : [L, F], shares of the deadline and of the energy limit that each layer takes at each frequency level,
        or at `top`; None where the energy limit does not matter: running everything at `top` is then the best.
    stretch : `top` over the lowest frequency.
    """

    user: int
    model: int
    first: int
    hz: float
    bits: Floats
    free: Floats
    top: float
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
    """Return the bandwidth over which the download alone takes until the deadline, which is wider by `SLACK`.

    It is at least `LEAST_SHARE` of all: ratios of bandwidths stay within what a back end can take, however long the
    deadline is. Tangents at this bandwidth and above let a pair that needs less have none, and cut nothing off.
    """
    hz = _hz_for(problem, user, float(problem.model_bits[model] / (problem.deadline_s[user] * (1 + SLACK))))
    return max(hz, LEAST_SHARE * problem.bandwidth_hz)


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


def even_hz(problem: ModelDownload, user: int, model: int, wider: float) -> float:
    """Return the frequency at which all layers together take all the energy, whose limit is wider by a share.

    It is inf without a limit, or where computing takes no energy; 0 where receiving takes all.
    """
    layers = slice(*problem.layer_indptr[model : model + 2])
    cycles = float((problem.cycles_per_layer_flop[user] * problem.layer_flops[layers]).sum())
    left = problem.energy_j[user] * (1 + wider) - problem.receive_j_per_bit[user] * problem.model_bits[model]
    each = float(problem.energy_coefficient[user] * cycles)
    if left <= 0.0:
        return 0.0
    return math.sqrt(left / each) if each > 0.0 else math.inf


def levels_hz(problem: ModelDownload, user: int) -> Floats:
    """Return the frequencies that a user's processor can be set to, ascending."""
    assert problem.frequency_levels is not None
    levels = problem.frequency_levels * problem.max_frequency_hz[user]
    return np.asarray(levels[levels >= problem.min_frequency_hz[user] * (1 - SLACK)])


def _hz_for(problem: ModelDownload, user: int, rate_bps: float) -> float:
    """Return the bandwidth that gives a rate, `LEAST_HZ` of all at least, by root finding where the rate is concave; inf if none does."""
    if problem.spectral_efficiency is not None:
        return max(rate_bps / float(problem.spectral_efficiency[user]), LEAST_HZ * problem.bandwidth_hz)

    def excess(log_share: float) -> float:
        hz = problem.bandwidth_hz * np.exp([log_share])
        return float(rates(problem, np.array([user]), hz)[0][0]) / rate_bps - 1.0

    high = np.log(4)
    if excess(high) < 0.0:
        return np.inf
    low = np.log(LEAST_HZ)
    if excess(low) >= 0.0:
        return problem.bandwidth_hz * LEAST_HZ
    return problem.bandwidth_hz * float(np.exp(optimize.brentq(excess, low, high, xtol=1e-15, rtol=1e-15)))


def make_pair(problem: ModelDownload, user: int, model: int, first: int, limit_hz: float) -> Pair | None:
    """Return the data of a user with a model, None if even all the bandwidth or energy would not do."""
    layers = slice(*problem.layer_indptr[model : model + 2])
    deadline = problem.deadline_s[user] * (1 + SLACK)
    fixed = np.cumsum(problem.layer_fixed_s[layers][::-1])[::-1] / deadline
    cycles = problem.cycles_per_layer_flop[user] * problem.layer_flops[layers]
    bits = problem.prefix_bits[layers] / problem.model_bits[model]
    slack = SLACK * problem.max_frequency_hz[user]
    highest, low = problem.top_frequency_hz[user] + slack, problem.min_frequency_hz[user]
    low = max(low - slack, low / 2)
    time, energy, free, top = None, None, 1.0 - fixed, highest
    even, run = (even_hz(problem, user, model, wider) for wider in (SLACK, 0.0))
    if even < low:
        return None
    if problem.frequency_levels is not None:
        settings = levels_hz(problem, user)
        run = float(settings[settings <= run].max(initial=0.0))
    if run >= problem.top_frequency_hz[user]:
        free -= np.cumsum((cycles / highest)[::-1])[::-1] / deadline
    elif low <= run and cycles.sum() <= NEGLIGIBLE * deadline * run:
        top = run
    else:
        share = cycles / cycles.sum()
        high = levels = np.array([top := min(highest, even / float(np.sqrt(share[share > 0].min())))])
        if problem.frequency_levels is not None:
            high, levels = settings + slack, np.maximum(settings - slack, settings / 2)
        time = np.minimum(cycles[:, None] / high / deadline, UNUSABLE)
        energy = np.minimum(share[:, None] * np.minimum(levels / even, UNUSABLE) ** 2, UNUSABLE)
        if energy[:, 0].sum() * (low / top if problem.frequency_levels is None else 1.0) ** 2 > 1.0:
            return None
    if free.min() <= 0.0:
        return None
    hz, block = least_hz(problem, user, model), problem.resource_block_hz
    if max(hz, block or 0.0) > limit_hz:
        return None
    if block is not None and block >= LEAST_SHARE * problem.bandwidth_hz:
        hz = block
    return Pair(user, model, first, hz, bits, free, float(top), time, energy, float(top / low))
