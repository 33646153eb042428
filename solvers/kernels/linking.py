"""Kernels of the linking dual: a price on every (expert, server) pair, so that servers keep their whole knapsacks.

A *pair* is an expert and a server of which the expert's columns disagree. Pairs are numbered by server, by size within a
server: those of server n and size g are ``pair_first[n * G + g]:pair_first[n * G + g + 1]``. ``link[link_first[c]:link_first[c + 1]]``
are the pairs that column c holds. order [P] lists the pairs of each (server, size) by falling worth.
"""

import numpy as np
from numpy.typing import NDArray

from edgeopt.jit import kernel
from edgeopt.solvers.kernels.knapsack import knapsack_kernel

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

MAX_COUNTS = 1 << 16  # combinations of counts up to which a server's knapsack is enumerated by them


@kernel
def cheapest_columns(first: Ints, loss: Floats, link_first: Ints, link: Ints, price: Floats) -> tuple[Floats, Ints]:
    """Return for each expert [E] the least loss plus prices of the pairs held over its columns, and the column."""
    num_experts = first.size - 1
    least, choice = np.empty(num_experts), np.empty(num_experts, np.int64)
    for e in range(num_experts):
        least[e], choice[e] = np.inf, first[e]
        for c in range(first[e], first[e + 1]):
            total = loss[c]
            for k in range(link_first[c], link_first[c + 1]):
                total += price[link[k]]
            if total < least[e]:
                least[e], choice[e] = total, c
    return least, choice


@kernel
def fill_servers(worth: Floats, sizes: Ints, room: Ints, pair_first: Ints, order: Ints) -> tuple[Floats, Bools]:
    """Return the best value [N] of each server's knapsack, and whether each pair [P] is in it; sorts `order` in place.

    worth [P], sizes [G] and room [N] in units. Of one size the most worthy come first, so that only their counts
    are to be found: all combinations of counts of all sizes but the last are tried, which takes whatever room they
    leave. If those are too many, the pairs are the items of a general knapsack.
    """
    num_servers, num_sizes = room.size, sizes.size
    value, chosen = np.zeros(num_servers), np.zeros(worth.size, np.bool_)
    for n in range(num_servers):
        start, stop = pair_first[n * num_sizes], pair_first[(n + 1) * num_sizes]
        counts = _sort_pairs(worth, sizes.size, pair_first, order, n, True)
        if _combinations(counts, num_sizes - 1) <= MAX_COUNTS:
            last = np.arange(num_sizes)
            value[n], taken = _best_counts(worth, sizes, room[n], pair_first, order, n, counts, last, np.empty(0))
            for g in range(num_sizes):
                at = pair_first[n * num_sizes + g]
                for k in range(taken[g]):
                    chosen[order[at + k]] = True
        else:
            weight, item = np.empty(stop - start, np.int64), np.empty(stop - start)
            for g in range(num_sizes):
                for i in range(pair_first[n * num_sizes + g], pair_first[n * num_sizes + g + 1]):
                    weight[i - start], item[i - start] = sizes[g], max(0.0, worth[i])
            value[n], chosen[start:stop] = knapsack_kernel(item, weight, room[n])
    return value, chosen


@kernel
def switching_costs(worth: Floats, sizes: Ints, room: Ints, pair_first: Ints, order: Ints) -> tuple[Floats, Floats]:
    """Return what each server's knapsack loses if a pair [P] must be out, and if it must be in; zero where not enumerated.

    With H(k) the best value with exactly k pairs of a size, and worths sorted, the pair of rank r is in at no loss
    for k > r and takes the place of the last one for k <= r; out at no loss for k <= r, and the next one takes its place
    for k > r.
    """
    num_servers, num_sizes = room.size, sizes.size
    out, into = np.zeros(worth.size), np.zeros(worth.size)
    for n in range(num_servers):
        counts = _sort_pairs(worth, num_sizes, pair_first, order, n, False)
        if _combinations(counts, num_sizes) // max(1, counts.min() + 1) > MAX_COUNTS:
            continue
        for g in range(num_sizes):
            turn = np.arange(num_sizes)  # this size goes first, so that its counts are enumerated
            turn[0], turn[g] = g, 0
            exactly = np.full(counts[g] + 1, -np.inf)
            _best_counts(worth, sizes, room[n], pair_first, order, n, counts, turn, exactly)
            best, at = exactly.max(), pair_first[n * num_sizes + g]
            for r in range(counts[g]):
                own = worth[order[at + r]]
                most_in, most_out = -np.inf, -np.inf
                for k in range(counts[g] + 1):
                    if k > r:
                        most_in = max(most_in, exactly[k])
                        if k < counts[g]:
                            most_out = max(most_out, exactly[k] - own + worth[order[at + k]])
                    else:
                        most_out = max(most_out, exactly[k])
                        if k > 0:
                            most_in = max(most_in, exactly[k] - worth[order[at + k - 1]] + own)
                out[order[at + r]], into[order[at + r]] = max(0.0, best - most_out), max(0.0, best - most_in)
    return out, into


@kernel
def _sort_pairs(worth: Floats, num_sizes: int, pair_first: Ints, order: Ints, n: int, worthy: bool) -> Ints:
    """Sort a server's pairs of each size by falling worth, in place; return how many [G], or how many are worth anything."""
    counts = np.zeros(num_sizes, np.int64)
    for g in range(num_sizes):
        start, stop = pair_first[n * num_sizes + g], pair_first[n * num_sizes + g + 1]
        for i in range(start + 1, stop):  # by insertion: the order of the last prices is nearly right
            item, j = order[i], i
            while j > start and worth[order[j - 1]] < worth[item]:
                order[j] = order[j - 1]
                j -= 1
            order[j] = item
        counts[g] = stop - start
        while worthy and counts[g] > 0 and worth[order[start + counts[g] - 1]] <= 0.0:
            counts[g] -= 1
    return counts


@kernel
def _combinations(counts: Ints, number: int) -> float:
    """Return how many combinations of counts the first so many sizes have."""
    total = 1.0
    for g in range(number):
        total *= counts[g] + 1
    return total


@kernel
def _best_counts(
    worth: Floats,
    sizes: Ints,
    room: int,
    pair_first: Ints,
    order: Ints,
    n: int,
    counts: Ints,
    turn: Ints,
    exactly: Floats,
) -> tuple[float, Ints]:
    """Return the best value of a server's knapsack and its counts [G]; `exactly` gets the best for each count of ``turn[0]``.

    The counts of all sizes but ``turn[-1]`` are enumerated; `exactly` may be empty. With one size, its count is.
    """
    num_sizes = sizes.size
    longest = counts.max() + 1
    sums = np.zeros((num_sizes, longest))
    for g in range(num_sizes):
        at = pair_first[n * num_sizes + g]
        for k in range(counts[g]):
            sums[g, k + 1] = sums[g, k] + worth[order[at + k]]
    last = turn[num_sizes - 1]
    if num_sizes == 1 and exactly.size:
        for k in range(min(counts[0], room // sizes[0]) + 1):
            exactly[k] = sums[0, k]
    top = counts[last]  # beyond it the last size's pairs are worth nothing
    while top > 0 and sums[last, top] <= sums[last, top - 1]:
        top -= 1
    taken, best_taken, best = np.zeros(num_sizes, np.int64), np.zeros(num_sizes, np.int64), -np.inf
    left, value = room, 0.0
    while True:
        rest = min(top, left // sizes[last])
        total = value + sums[last, rest]
        if total > best:
            best = total
            taken[last] = rest
            best_taken[:] = taken
        if num_sizes > 1 and exactly.size:
            exactly[taken[turn[0]]] = max(exactly[taken[turn[0]]], total)
        i = num_sizes - 2  # the next combination: one more of the innermost size that has one more and fits
        while i >= 0:
            g = turn[i]
            if taken[g] < counts[g] and left >= sizes[g]:
                taken[g] += 1
                left -= sizes[g]
                break
            left += taken[g] * sizes[g]
            taken[g] = 0
            i -= 1
        if i < 0:
            return best, best_taken
        value = 0.0
        for j in range(num_sizes - 1):
            value += sums[turn[j], taken[turn[j]]]
