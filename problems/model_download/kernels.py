"""Kernels behind `ModelDownload`: the recursion over layers, and the least rate when every compute time is known."""

import numpy as np
from numba import prange
from numpy.typing import NDArray

from edgeopt.jit import parallel_kernel

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@parallel_kernel
def recursion(
    first: Ints,
    last: Ints,
    indptr: Ints,
    rate: Floats,
    frequency: Floats,
    bits: Floats,
    flops: Floats,
    fixed: Floats,
    cycles: Floats,
    coefficient: Floats,
    receive: Floats,
) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """Return when each layer has arrived, starts and finishes [indptr[-1]], and finish [K] and energy [K] of each user.

    User k runs the layers ``first[k]:last[k]`` of the tables one after another: layer l starts when it has arrived and
    the one before is done, and takes ``fixed[l] + cycles[k] * flops[l] / f``. Refused users have no layers and take
    no time; without a rate nothing arrives.
    """
    num_users = first.size
    total = indptr[num_users]
    arrival, start, finish = np.empty(total), np.empty(total), np.empty(total)
    done, energy = np.zeros(num_users), np.zeros(num_users)
    for k in prange(num_users):
        received, now, spent = 0.0, 0.0, 0.0
        slot = indptr[k]
        for l in range(first[k], last[k]):
            received += bits[l]
            arrival[slot] = received / rate[k] if rate[k] > 0.0 else np.inf
            start[slot] = max(arrival[slot], now)
            work = cycles[k] * flops[l]
            now = start[slot] + fixed[l] + work / frequency[slot]
            finish[slot] = now
            spent += coefficient[k] * work * frequency[slot] ** 2
            slot += 1
        done[k] = now
        energy[k] = spent + receive[k] * received
    return arrival, start, finish, done, energy


@parallel_kernel
def least_rates(
    allowed: Bools,
    indptr: Ints,
    prefix_bits: Floats,
    suffix_flops: Floats,
    suffix_fixed: Floats,
    deadline: Floats,
    seconds_per_flop: Floats,
) -> Floats:
    r"""Return [K, I]: the least rate in bit/s at which user k is done with model i in time, inf if none is.

    Every layer is run at one speed. Unrolling the recursion, the last layer is done at
    :math:`\max_l (S_1 + ... + S_l) / r + c_l + ... + c_L`, hence the rate is the largest of the L ratios
    :math:`(S_1 + ... + S_l) / (D - c_l - ... - c_L)`. O(L) for each pair.
    """
    num_users, num_models = allowed.shape
    rates = np.full((num_users, num_models), np.inf)
    for k in prange(num_users):
        for i in range(num_models):
            if not allowed[k, i]:
                continue
            start, stop = indptr[i], indptr[i + 1]
            if deadline[k] - suffix_fixed[start] - suffix_flops[start] * seconds_per_flop[k] <= 0.0:
                continue
            rate = 0.0
            for l in range(start, stop):
                left = deadline[k] - suffix_fixed[l] - suffix_flops[l] * seconds_per_flop[k]
                rate = max(rate, prefix_bits[l] / left)
            rates[k, i] = rate
    return rates
