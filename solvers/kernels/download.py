"""Least rates and least-energy speeds of model download: a convex hull per user and model, and Newton's method on it.

Seconds are counted back from the deadline. With one bit taking x = 1 / rate seconds, layer l has arrived when
``A_l = D - x (S_1 + ... + S_l) - (V_l + ... + V_L)`` seconds of computing are left, and ``C_l + ... + C_L`` cycles remain.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import prange

from edgeopt.jit import kernel, parallel_kernel
from edgeopt.solvers.kernels import Bools, Floats, Ints

Index = int | np.integer[Any]

FIT = 1e-12  # relative precision to which an energy limit is met
STEPS = 100  # of Newton's method, which takes about four
HALVINGS = 50  # of the seconds per bit, until rounded frequencies meet the energy limit


class Layers(NamedTuple):
    """Layers of all models: ``indptr`` [I + 1], and sums [P] over a model's layers up to, or from, each layer."""

    indptr: Ints
    prefix_bits: Floats
    suffix_flops: Floats
    suffix_fixed: Floats


class Users(NamedTuple):
    """float64 [K] each: deadline, cycles per FLOP over all samples, energy coefficient, joules per bit, energy limit, frequencies."""

    deadline: Floats
    cycles: Floats
    coefficient: Floats
    receive: Floats
    energy: Floats
    low: Floats
    high: Floats


@kernel
def corners(layers: Layers) -> tuple[Floats, Floats, Ints]:
    """Return work arrays for `hull`: seconds left, cycles to go and first layer of as many corners as there can be."""
    most = 1
    for i in range(layers.indptr.size - 1):
        most = max(most, 1 + layers.indptr[i + 1] - layers.indptr[i])
    return np.empty(most), np.empty(most), np.empty(most, np.int64)


@kernel
def hull(k: Index, i: Index, x: float, users: Users, layers: Layers, left: Floats, work: Floats, layer: Ints) -> int:
    """Fill in the corners of the least-energy schedule of user k and model i, and return how many there are.

    Computing must have ``work`` cycles to go when ``left`` seconds are left, for every layer. Energy is convex in speed,
    so the best schedule is the upper hull of these points and the origin: one speed between two corners, rising
    towards the deadline (speed scaling after Yao, Demers and Shenker 1995). Corner 0 is the deadline; corner j starts
    with layer ``layer[j]``. O(L): layers are looked at from the last, and each is removed from the hull at most once.
    """
    start, stop = layers.indptr[i], layers.indptr[i + 1]
    left[0], work[0], layer[0] = 0.0, 0.0, stop
    n = 1
    for l in range(stop - 1, start - 1, -1):
        w = users.cycles[k] * layers.suffix_flops[l]
        if w == 0.0:  # nothing to run from here on: any time left is enough, and the highest frequency saw to that
            continue
        a = users.deadline[k] - layers.suffix_fixed[l] - x * layers.prefix_bits[l]
        a = max(a, w / users.high[k])  # differs by rounding only, at rates that the highest frequency can do with
        while n > 1:
            cycles, seconds = work[n - 1] - work[n - 2], left[n - 1] - left[n - 2]
            if cycles * (a - left[n - 2]) > (w - work[n - 2]) * seconds:
                break
            n -= 1
        left[n], work[n], layer[n] = a, w, l
        n += 1
    return n


@kernel
def least_energy(
    k: Index, i: Index, x: float, users: Users, layers: Layers, left: Floats, work: Floats, layer: Ints
) -> tuple[float, float]:
    """Return the least energy of computing in J at x seconds per bit, and its derivative by x.

    Speeds below the lowest frequency are raised to it. That stays optimal: it shortens layers that nothing waits for.
    """
    n = hull(k, i, x, users, layers, left, work, layer)
    energy, slope, later_bits = 0.0, 0.0, 0.0
    for j in range(1, n):
        bits, cycles = layers.prefix_bits[layer[j]], work[j] - work[j - 1]
        if cycles > 0.0:
            speed = cycles / (left[j] - left[j - 1])
            energy += users.coefficient[k] * cycles * max(speed, users.low[k]) ** 2
            if speed > users.low[k]:
                slope += 2.0 * users.coefficient[k] * speed**3 * (bits - later_bits)
        later_bits = bits
    return energy, slope


@kernel
def energy_rate(
    k: Index, i: Index, rate: float, users: Users, layers: Layers, left: Floats, work: Floats, layer: Ints
) -> float:
    """Return the least rate, at least `rate`, that the highest frequency needs, at which the energy limit is met too.

    E(x)^(-1/2) of the least energy E is concave in x: it is the largest, over schedules that are feasible together
    with x, of a power mean of order -2, which is concave. Newton's method from above therefore never passes the root.
    """
    start = layers.indptr[i]
    cycles = users.cycles[k] * layers.suffix_flops[start]
    budget = users.energy[k] - users.receive[k] * layers.prefix_bits[layers.indptr[i + 1] - 1]
    if users.coefficient[k] * cycles * users.high[k] ** 2 <= budget:
        return rate
    slowest = cycles / (users.deadline[k] - layers.suffix_fixed[start])
    least = users.coefficient[k] * cycles * max(slowest, users.low[k]) ** 2
    if least > budget * (1.0 + FIT) or (slowest > users.low[k] and least >= budget):
        return np.inf
    x, target = 1.0 / rate, budget * (1.0 - FIT)
    for _ in range(STEPS):
        energy, slope = least_energy(k, i, x, users, layers, left, work, layer)
        if energy <= budget * (1.0 + FIT):
            return max(rate, 1.0 / x)
        if slope <= 0.0:
            break
        x -= max(2.0 * energy * (np.sqrt(energy / target) - 1.0) / slope, FIT * x)
        if x <= 0.0:
            break
    return np.inf


@kernel
def energy_rates_of(k: Index, rates: Floats, prune: bool, users: Users, layers: Layers) -> None:
    """Do the work of `energy_rates` for user k."""
    if not np.isfinite(users.energy[k]):
        return
    left, work, layer = corners(layers)
    best, bound = np.inf, rates[k].copy()
    for tried in range(bound.size):
        i = np.argmin(bound) if prune else tried
        if bound[i] == np.inf:
            continue
        if prune and bound[i] >= best:
            rates[k, i] = np.inf
        else:
            rates[k, i] = energy_rate(k, i, bound[i], users, layers, left, work, layer)
            best = min(best, rates[k, i])
        bound[i] = np.inf


@parallel_kernel
def energy_rates(rates: Floats, prune: bool, users: Users, layers: Layers) -> None:
    """Raise the rates [K, I], which the highest frequencies need, to what the energy limits need too, in place.

    With `prune`, only the model of the least rate matters: models are tried by rising rate until none can beat the best
    so far, and those not tried become inf.
    """
    for k in prange(rates.shape[0]):  # the index is unsigned, and would have everything below compiled twice
        energy_rates_of(np.int64(k), rates, prune, users, layers)


@kernel
def round_to_levels(
    k: Index, i: Index, x: float, users: Users, layers: Layers, levels: Floats, speed: Floats, left: Floats, work: Floats,
    layer: Ints,
) -> float:  # fmt: skip
    """Fill in a level for every layer of user k and model i at x seconds per bit; return the energy of computing in J.

    Least-energy speeds are rounded up to levels; then, from the last layer back, each layer goes down by one level
    where the time gained by rounding allows it.
    """
    start, stop = layers.indptr[i], layers.indptr[i + 1]
    lowest = 0
    while lowest < levels.size - 1 and levels[lowest] < users.low[k] * (1.0 - FIT):
        lowest += 1
    speed[: stop - start] = levels[lowest]
    n = hull(k, i, x, users, layers, left, work, layer)
    for j in range(1, n):
        cycles = work[j] - work[j - 1]
        wanted = cycles / (left[j] - left[j - 1]) if cycles > 0.0 else 0.0
        at = lowest
        while at < levels.size - 1 and levels[at] < wanted * (1.0 - FIT):
            at += 1
        for l in range(layer[j], layer[j - 1]):
            speed[l - start] = levels[at]
    slack, seconds = left, 0.0  # from here on: how much later each layer could start
    for l in range(stop - 1, start - 1, -1):
        cycles = users.cycles[k] * (layers.suffix_flops[l] - (layers.suffix_flops[l + 1] if l + 1 < stop else 0.0))
        work[l - start] = cycles
        seconds += cycles / speed[l - start]
        slack[l - start] = users.deadline[k] - layers.suffix_fixed[l] - x * layers.prefix_bits[l] - seconds
    for j in range(1, stop - start):
        slack[j] = min(slack[j], slack[j - 1])
    used, energy = 0.0, 0.0
    for j in range(stop - start - 1, -1, -1):
        at = lowest
        while at < levels.size - 1 and levels[at + 1] < speed[j]:
            at += 1
        longer = work[j] * (1.0 / levels[at] - 1.0 / speed[j])
        if used + longer <= slack[j]:
            used += longer
            speed[j] = levels[at]
        energy += users.coefficient[k] * work[j] * speed[j] ** 2
    return energy


@kernel
def level_rate(
    k: Index, i: Index, rate: float, users: Users, layers: Layers, levels: Floats, speed: Floats, left: Floats, work: Floats,
    layer: Ints,
) -> float:  # fmt: skip
    """Return a rate, at least `rate`, at which frequencies rounded to `levels` meet the energy limit; inf if none is found.

    The seconds per bit are halved until it is met, and then bisected. Rounded energy does not always fall with it, so the result works,
    but need not be the least. It is a rate that was tried, to the last digit: `frequencies` then finds the same energy.
    """
    bits = layers.prefix_bits[layers.indptr[i + 1] - 1]
    budget = (users.energy[k] - users.receive[k] * bits) * (1.0 + FIT)
    good = bad = rate
    for _ in range(HALVINGS):
        if round_to_levels(k, i, 1.0 / good, users, layers, levels, speed, left, work, layer) <= budget:
            break
        bad, good = good, 2.0 * good
    else:
        return np.inf
    while good - bad > FIT * good:
        middle = 2.0 / (1.0 / good + 1.0 / bad)
        if round_to_levels(k, i, 1.0 / middle, users, layers, levels, speed, left, work, layer) <= budget:
            good = middle
        else:
            bad = middle
    return good


@kernel
def level_rates_of(k: Index, rates: Floats, prune: bool, users: Users, layers: Layers, levels: Floats) -> None:
    """Do the work of `level_rates` for user k."""
    if not np.isfinite(users.energy[k]):
        return
    left, work, layer = corners(layers)
    speed, hertz = np.empty(left.size), levels * users.high[k] / levels[-1]
    best, bound = np.inf, rates[k].copy()
    for tried in range(bound.size):
        i = np.argmin(bound) if prune else tried
        if bound[i] == np.inf:
            continue
        if prune and bound[i] >= best:
            rates[k, i] = np.inf
        else:
            rates[k, i] = level_rate(k, i, bound[i], users, layers, hertz, speed, left, work, layer)
            best = min(best, rates[k, i])
        bound[i] = np.inf


@parallel_kernel
def level_rates(rates: Floats, prune: bool, users: Users, layers: Layers, levels: Floats) -> None:
    """Raise the rates [K, I] of free frequencies until frequencies rounded to levels meet the energy limits, in place.

    `levels` are shares of the maximum frequency, `prune` is as in `energy_rates`.
    """
    for k in prange(rates.shape[0]):
        level_rates_of(np.int64(k), rates, prune, users, layers, levels)


@kernel
def full_speed_deadline(k: Index, i: Index, x: float, users: Users, layers: Layers) -> float:
    """Return the least deadline in s of user k with model i at x seconds per bit and the highest frequency."""
    longest = 0.0
    for l in range(layers.indptr[i], layers.indptr[i + 1]):
        compute = layers.suffix_fixed[l] + users.cycles[k] * layers.suffix_flops[l] / users.high[k]
        longest = max(longest, x * layers.prefix_bits[l] + compute)
    return longest


@kernel
def least_deadline(
    k: Index, i: Index, x: float, best: float, users: Users, layers: Layers, left: Floats, work: Floats, layer: Ints
) -> float:
    """Return the least deadline in s of user k with model i at x seconds per bit, inf if it is none below `best`.

    With the least energy E of a deadline, E^(-1/2) is concave in it, as in `energy_rate`, and only the last stretch of one
    speed gets longer with it: Newton's method from below never passes the root. The user's deadline is where it tries.
    """
    start = layers.indptr[i]
    seconds = full_speed_deadline(k, i, x, users, layers)
    if seconds >= best:
        return np.inf
    joules = users.coefficient[k] * users.cycles[k] * layers.suffix_flops[start]  # at a speed of 1
    budget = users.energy[k] - users.receive[k] * layers.prefix_bits[layers.indptr[i + 1] - 1]
    if joules * users.high[k] ** 2 <= budget:
        return seconds
    if budget <= 0.0 or joules * users.low[k] ** 2 > budget * (1.0 + FIT):
        return np.inf
    target = budget * (1.0 - FIT)
    for _ in range(STEPS):
        users.deadline[k] = seconds
        energy, _ = least_energy(k, i, x, users, layers, left, work, layer)
        if energy <= budget * (1.0 + FIT):
            return seconds
        speed = work[1] / left[1]
        if speed <= users.low[k]:
            break
        slope = 2.0 * users.coefficient[k] * speed**3
        seconds += max(2.0 * energy * (np.sqrt(energy / target) - 1.0) / slope, FIT * seconds)
        if seconds >= best:
            break
    return np.inf


@kernel
def least_deadline_of(k: Index, x: float, allowed: Bools, users: Users, layers: Layers) -> float:
    """Do the work of `least_deadlines` for user k."""
    left, work, layer = corners(layers)
    best = np.inf
    for i in range(allowed.size):
        if allowed[i]:
            best = min(best, least_deadline(k, i, x, best, users, layers, left, work, layer))
    return best


@parallel_kernel
def least_deadlines(x: Floats, allowed: Bools, users: Users, layers: Layers) -> Floats:
    """Return the least deadlines [K] in s at which users can have a model at x [K] seconds per bit, inf for never.

    Frequencies are free. The deadlines of `users` are overwritten. A few hulls for each pair with an energy limit that matters.
    """
    found = np.empty(x.size)
    for k in prange(x.size):
        found[k] = least_deadline_of(np.int64(k), x[k], allowed[k], users, layers)
    return found


@kernel
def least_energy_of(k: Index, x: float, allowed: Bools, users: Users, layers: Layers) -> float:
    """Do the work of `least_energies` for user k."""
    left, work, layer = corners(layers)
    best = np.inf
    for i in range(allowed.size):
        if allowed[i] and full_speed_deadline(k, i, x, users, layers) <= users.deadline[k] * (1.0 + FIT):
            energy, _ = least_energy(k, i, x, users, layers, left, work, layer)
            best = min(best, energy + users.receive[k] * layers.prefix_bits[layers.indptr[i + 1] - 1])
    return best


@parallel_kernel
def least_energies(x: Floats, allowed: Bools, users: Users, layers: Layers) -> Floats:
    """Return the least energy limits [K] in J with which users can have a model in time at x [K] seconds per bit, inf for never.

    Frequencies are free. One hull for each pair.
    """
    found = np.empty(x.size)
    for k in prange(x.size):
        found[k] = least_energy_of(np.int64(k), x[k], allowed[k], users, layers)
    return found


@kernel
def frequencies(model: Ints, rate: Floats, indptr: Ints, users: Users, layers: Layers, levels: Floats) -> Floats:
    """Return the frequencies of all layers of the admitted users' models at the given rates [K].

    Users with an energy limit run at least energy, rounded to `levels` if there are any; the others at full speed.
    """
    frequency = np.empty(indptr[-1])
    left, work, layer = corners(layers)
    for k in range(model.size):
        i = model[k]
        if i < 0:
            continue
        speed = frequency[indptr[k] : indptr[k + 1]]
        if not np.isfinite(users.energy[k]):
            speed[:] = users.high[k]
            continue
        if levels.size > 0:
            hertz = levels * users.high[k] / levels[-1]
            round_to_levels(k, i, 1.0 / rate[k], users, layers, hertz, speed, left, work, layer)
            continue
        speed[:] = users.low[k]
        n = hull(k, i, 1.0 / rate[k], users, layers, left, work, layer)
        for j in range(1, n):
            cycles = work[j] - work[j - 1]
            wanted = cycles / (left[j] - left[j - 1]) if cycles > 0.0 else 0.0
            for l in range(layer[j], layer[j - 1]):
                speed[l - layers.indptr[i]] = min(max(wanted, users.low[k]), users.high[k])
    return frequency


@kernel
def bandwidth_of_rate(rate: Floats, snr_hz: Floats) -> Floats:
    r"""Return the bandwidths in Hz with :math:`b \log_2(1 + \gamma / b) = r`, inf where r is not below the ceiling.

    With u = gamma / b and y = r ln 2 / gamma this is ln(1 + u) = y u, solved by the branch W_{-1} of Lambert's function:
    u = -W(-y e^{-y}) / y - 1. Newton's method on it keeps the digits that evaluating W near its branch point loses. It
    starts at the upper bound of Chatzigeorgiou (2013) and falls to the root, as ln(1 + u) - y u is concave.
    """
    bandwidth = np.full(rate.size, np.inf)
    for k in range(rate.size):
        y = rate[k] * np.log(2.0) / snr_hz[k]
        if y >= 1.0:
            continue
        s = max(y - np.log(y) - 1.0, 0.0)
        u = max((1.0 + np.sqrt(2.0 * s) + s) / y - 1.0, 2.0 * (1.0 / y - 1.0))
        for _ in range(STEPS):
            step = (np.log1p(u) - y * u) / (1.0 / (1.0 + u) - y)
            u -= step
            if abs(step) <= 1e-15 * u:
                break
        bandwidth[k] = snr_hz[k] / u
    return bandwidth
