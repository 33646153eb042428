"""Kernels of the bound by distinct experts: shares of pairs, subsets of a layer, sizes of all layers."""

import numpy as np
from numba import prange
from numpy.typing import NDArray

from edgeopt.jit import kernel, parallel_kernel

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@parallel_kernel
def pair_weights(
    odds: Floats, which: Ints, first: Ints, last: Ints, rest: NDArray[np.int32], probability: Floats
) -> tuple[Floats, Floats]:
    """Share the probability of every set out among the ordered pairs of its experts, in proportion to their odds.

    Class c has the odds ``odds[which[c]]`` [E, E] > 0 and the entries ``first[c]:last[c]``: the experts rest [T, K] that
    the device lacks, at least one, -1 where there are fewer than K. Return pairs [C, E, E], and alone [C, E] for sets of
    a single expert. O(K^2) per class and entry.
    """
    num_classes, num_experts = first.size, odds.shape[1]
    pairs, alone = np.zeros((num_classes, num_experts, num_experts)), np.zeros((num_classes, num_experts))
    for c in prange(num_classes):
        own = odds[which[c]]
        for t in range(first[c], last[c]):
            count = 0
            while count < rest.shape[1] and rest[t, count] >= 0:
                count += 1
            if count == 1:
                alone[c, rest[t, 0]] += probability[t]
                continue
            total = 0.0
            for j in range(count):
                for h in range(count):
                    if h != j:
                        total += own[rest[t, j], rest[t, h]]
            for j in range(count):
                for h in range(count):
                    if h != j:
                        pairs[c, rest[t, j], rest[t, h]] += probability[t] * (own[rest[t, j], rest[t, h]] / total)
    return pairs, alone


@parallel_kernel
def values_at_servers(pairs: Floats, alone: Floats, gain: Floats, own: Floats, joint: Floats) -> None:
    """Add to own [E, S] and joint [E, S, E] what pairs [C, E, E] and single experts alone [C, E] save at servers, gain [C, S].

    Matrix products, but the threads of a BLAS and those of the kernels, called in turn, wait for each other's idle ones.
    """
    num_classes, num_sets = gain.shape
    for e in prange(own.shape[0]):
        for c in range(num_classes):
            for s in range(num_sets):
                seconds = gain[c, s]
                if seconds > 0.0:
                    own[e, s] += seconds * alone[c, e]
                    for h in range(pairs.shape[2]):
                        joint[e, s, h] += seconds * pairs[c, e, h]


@kernel
def values_of_subsets(base: Floats, joint: Floats) -> Floats:
    """Return [2^E]: for every set T of experts, the sum over e in T of the best over s of base[e, s] + joint[e, s, T].

    base [E, S], joint [E, S, E] with zeros for the pair of an expert with itself; a best below zero counts as zero.
    For each e the sets of the others are visited in the order of a Gray code, one partner at a time: O(2^E E S).
    """
    num_experts, num_sets = base.shape
    width = -(-num_sets // 4) * 4  # four maxima at once, which do not wait for each other
    values = np.zeros(1 << num_experts)
    now, change = np.full(width, -np.inf), np.zeros((num_experts, width))
    for e in range(num_experts):
        now[:num_sets] = base[e]
        for s in range(num_sets):
            for h in range(num_experts):
                change[h, s] = joint[e, s, h]
        mask = 1 << e
        for step in range(1 << (num_experts - 1)):
            if step:
                h = 0
                while not step >> h & 1:
                    h += 1
                h += int(h >= e)
                sign = -1.0 if mask >> h & 1 else 1.0
                mask ^= 1 << h
                for s in range(width):
                    now[s] += sign * change[h, s]
            a = b = c = d = 0.0
            for s in range(0, width, 4):
                a = max(a, now[s])
                b = max(b, now[s + 1])
                c = max(c, now[s + 2])
                d = max(d, now[s + 3])
            values[mask] += max(max(a, b), max(c, d))
    return values


@kernel
def best_sizes(profile: Floats, first: Ints, weight: Ints, capacity: int) -> tuple[float, Ints]:
    """Return the best sum of one entry of each profile whose weights fit, and which: a multiple-choice knapsack.

    Profile g is ``profile[first[g]:first[g + 1]]`` with those weights, the first of which is 0. O(capacity) per entry.
    """
    num_groups = first.size - 1
    table = np.zeros(capacity + 1)
    taken = np.zeros((num_groups, capacity + 1), np.int64)
    for g in range(num_groups):
        fresh = np.full(capacity + 1, -np.inf)
        for j in range(first[g], first[g + 1]):
            for c in range(weight[j], capacity + 1):
                value = table[c - weight[j]] + profile[j]
                if value > fresh[c]:
                    fresh[c], taken[g, c] = value, j - first[g]
        table = fresh
    chosen, left = np.zeros(num_groups, np.int64), capacity
    for g in range(num_groups - 1, -1, -1):
        chosen[g] = taken[g, left]
        left -= weight[first[g] + chosen[g]]
    return table[capacity], chosen


@kernel
def sets_inside(member: NDArray[np.int32], weight: Floats, first: Ints, num_experts: int) -> Floats:
    """Return [B, 2^E]: the weight of the sets ``first[b]:first[b + 1]`` of member [T, K] inside every set of experts."""
    table = np.zeros((first.size - 1, 1 << num_experts))
    for b in range(first.size - 1):
        for t in range(first[b], first[b + 1]):
            mask = 0
            for j in range(member.shape[1]):
                if member[t, j] >= 0:
                    mask |= 1 << member[t, j]
            table[b, mask] += weight[t]
        for e in range(num_experts):
            for mask in range(1 << num_experts):
                if mask >> e & 1:
                    table[b, mask] += table[b, mask ^ (1 << e)]
    return table


@parallel_kernel
def densest_subsets(scale: Floats, inside: Floats, num_experts: int) -> Floats:
    """Return [P, E + 1]: the largest of ``scale @ inside`` over the sets of at most so many experts; scale [P, B], inside [B, 2^E]."""
    curve = np.zeros((scale.shape[0], num_experts + 1))
    for p in prange(scale.shape[0]):
        total = np.zeros(1 << num_experts)
        for b in range(scale.shape[1]):
            if scale[p, b] > 0.0:
                total += scale[p, b] * inside[b]
        for mask in range(1 << num_experts):
            size, rest = 0, mask
            while rest:
                rest &= rest - 1
                size += 1
            curve[p, size] = max(curve[p, size], total[mask])
        for k in range(num_experts):
            curve[p, k + 1] = max(curve[p, k + 1], curve[p, k])
    return curve
