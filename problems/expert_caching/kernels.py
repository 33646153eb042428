"""Kernels behind `ExpertCaching.objective`: exact sums over users, experts and activation sets."""

import numpy as np
from numba import prange
from numpy.typing import NDArray

from edgeopt.jit import parallel_kernel

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BLOCK = 64  # experts, and users, whose gains are at hand at once


@parallel_kernel
def best_gain(holders_ptr: Ints, holders: Ints, gain: Floats) -> Floats:
    """Return [U, E]: the largest gain[u, n] over the servers n that hold expert e, 0 if none does.

    ``holders[holders_ptr[e]:holders_ptr[e + 1]]`` are the servers that hold expert e; gain is [U, N], so that one user's
    gains lie side by side.
    """
    num_experts, num_users = holders_ptr.size - 1, gain.shape[0]
    best = np.zeros((num_users, num_experts))
    for u in prange(num_users):
        own = gain[u]
        for e in range(num_experts):
            value = 0.0
            for k in range(holders_ptr[e], holders_ptr[e + 1]):
                value = max(value, own[holders[k]])
            best[u, e] = value
    return best


@parallel_kernel
def modular_saving(
    holders_ptr: Ints, holders: Ints, by_server: Floats, uses: Floats, profile: Ints, device: NDArray[np.bool_]
) -> Floats:
    """Return [U]: the sum of ``uses[profile[u], e]`` times what `best_gain` says, over the experts that the device lacks.

    Without a table of users and experts, which would take longer to write than the sums. by_server is the gain [N, U], so that one
    server's users lie side by side; device is [U, E].
    """
    num_experts, num_users = holders_ptr.size - 1, by_server.shape[1]
    total = np.zeros(num_users)
    for block in prange((num_users + BLOCK - 1) // BLOCK):
        users = np.arange(block * BLOCK, min((block + 1) * BLOCK, num_users))
        own = by_server[:, users[0] : users[-1] + 1].copy()
        best = np.zeros((BLOCK, users.size))
        for first in range(0, num_experts, BLOCK):
            experts = min(BLOCK, num_experts - first)
            for i in range(experts):
                most = best[i]
                most[:] = 0.0
                for k in range(holders_ptr[first + i], holders_ptr[first + i + 1]):
                    here = own[holders[k]]
                    for j in range(users.size):
                        most[j] = max(most[j], here[j])
            for j, u in enumerate(users):
                row, saved = uses[profile[u]], total[u]
                for i in range(experts):
                    saved += 0.0 if device[u, first + i] else row[first + i] * best[i, j]
                total[u] = saved
    return total


@parallel_kernel
def expected_saving(
    base: Floats,
    saving: Floats,
    profile: Ints,
    indptr: Ints,
    indices: NDArray[np.int32],
    probability: Floats,
    sets: NDArray[np.int32],
    theta: float,
) -> Floats:
    """Return [U]: expected seconds saved per token, (1 - theta) sum + theta K max over each activated set.

    base [U, E] is the latency of each expert without any edge cache, saving [U, E] what the placement takes off it.
    ``theta * K`` of the maximum is the caller's `theta` here: ``sum`` is 0, plain ``max`` is passed as -1.
    """
    num_users, top_k = base.shape[0], sets.shape[1]
    total = np.zeros(num_users)
    for u in prange(num_users):
        value = 0.0
        for k in range(indptr[profile[u]], indptr[profile[u] + 1]):
            added, before, after = 0.0, 0.0, 0.0
            for j in range(top_k):
                e = sets[indices[k], j]
                added += saving[u, e]
                before = max(before, base[u, e])
                after = max(after, base[u, e] - saving[u, e])
            if theta < 0.0:
                value += probability[k] * (before - after)
            else:
                value += probability[k] * ((1.0 - theta) * added + theta * top_k * (before - after))
        total[u] = value
    return total
