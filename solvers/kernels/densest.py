"""Kernels of the bound by counts: sets of experts inside k of them, and how many copies a layer has on each server."""

import math

import numpy as np
from numba import prange
from numpy.typing import NDArray

from edgeopt.jit import kernel, parallel_kernel

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@kernel
def share_sets(
    member: NDArray[np.int32], weight: Floats, low: int, high: int, seen: float, single: Floats, pair: Floats,
    linear: Floats, joint: Floats,
) -> float:  # fmt: skip
    """Share the sets `low` to `high` out among quadratic majorants; return the constant, add to linear [E] and joint [E, E].

    A set of m experts of which j are chosen counts at most C(j, 2) of its pairs, each pair by itself, or
    (j - t) (j - t - 1) / ((m - t) (m - t - 1)) for t = 1 .. m - 2. The shares fall exponentially with what each
    majorant has counted so far: seen in all, single [E] chosen, pair [E, E] chosen together. The pair of experts a < b is at [a, b].
    """
    constant, most = 0.0, member.shape[1]
    odds = np.exp(-pair)
    share = np.empty(most * (most + 1) // 2 + most)
    for a in range(low, high):
        m = 0
        while m < most and member[a, m] >= 0:
            m += 1
        if m == 1:
            linear[member[a, 0]] += weight[a]
            continue
        count, alone, together, total = 0, 0.0, 0.0, 0.0
        for i in range(m):
            alone += single[member[a, i]]
            for j in range(i + 1, m):
                together += pair[member[a, i], member[a, j]]
                share[count] = odds[member[a, i], member[a, j]]
                total += share[count]
                count += 1
        for t in range(1, m - 1):
            counted = (t * (t + 1) * seen - 2 * t * alone + 2 * together) / ((m - t) * (m - t - 1))
            share[count] = math.exp(-counted)
            total += share[count]
            count += 1
        part, at, every = weight[a] / total, m * (m - 1) // 2, 0.0
        for t in range(1, m - 1):
            now = part * share[at] / ((m - t) * (m - t - 1))
            constant += t * (t + 1) * now
            for i in range(m):
                linear[member[a, i]] -= 2 * t * now
            every += 2 * now
            at += 1
        at = 0
        for i in range(m):
            for j in range(i + 1, m):
                joint[member[a, i], member[a, j]] += part * share[at] + every
                at += 1
    return constant


@parallel_kernel
def densest_steps(
    member: NDArray[np.int32], weight: Floats, first: Ints, k: int, start: int, stop: int, steps: int,
    rate: float, length: Floats, seen: Floats, single: Floats, pair: Floats, skew: Floats, apart: Floats, best: Floats,
) -> None:  # fmt: skip
    """Take the steps `start` to `stop` of `steps` of the bound on the sets inside k experts, for each of B problems.

    Problem b has the sets ``first[b]:first[b + 1]`` of member [T, K], -1 where there are fewer than K, with weight [T].
    In place: seen [B], single [B, E] and pair [B, E, E] as in `share_sets`; skew [B, E, E], what a pair counts more for one
    of its experts than for the other; apart [B, E, E], prices of pairs of which neither is chosen; best [B, E + 1], the least bound
    for every number of experts up to now. length [B] is the first step of both multipliers, `rate` that of the scores.
    """
    num_experts = single.shape[1]
    for b in prange(first.size - 1):
        for step in range(start, stop):
            linear, joint = np.zeros(num_experts), np.zeros((num_experts, num_experts))
            constant = share_sets(
                member, weight, first[b], first[b + 1], seen[b], single[b], pair[b], linear, joint
            )  # fmt: skip
            for e in range(num_experts):
                for h in range(e):  # half to either
                    joint[e, h] = joint[h, e] = 0.5 * joint[h, e]
            for e in range(num_experts):
                for h in range(num_experts):
                    constant += apart[b, e, h]
                    linear[e] -= 2.0 * apart[b, e, h]
                    joint[e, h] += apart[b, e, h] + skew[b, e, h]
                joint[e, e] = -np.inf  # comes last
            sums, order = np.empty((num_experts, num_experts)), np.empty((num_experts, num_experts), np.int64)
            for e in range(num_experts):
                order[e] = np.argsort(-joint[e])
                total = linear[e]
                for j in range(num_experts):
                    sums[e, j] = total  # with j partners
                    total += joint[e, order[e, j]]
            chosen, is_head = np.zeros((num_experts, num_experts)), np.zeros(num_experts)
            for j in range(num_experts):
                ranked, bound = np.argsort(-sums[:, j]), constant
                for i in range(j + 1):
                    bound += sums[ranked[i], j]
                best[b, j + 1] = min(best[b, j + 1], bound)
                if j + 1 == k:
                    for i in range(k):
                        is_head[ranked[i]] = 1.0
            for e in range(num_experts):
                for j in range(k - 1):
                    chosen[e, order[e, j]] = is_head[e]
            fall = 0.5 * (1.0 + math.cos(math.pi * step / steps))
            seen[b] += rate * fall
            now = length[b] * fall
            for e in range(num_experts):
                single[b, e] += rate * fall * is_head[e]
                for h in range(num_experts):
                    if h == e:
                        continue
                    mean = 0.5 * (chosen[e, h] + chosen[h, e])
                    pair[b, e, h] += rate * fall * mean
                    skew[b, e, h] -= now * (chosen[e, h] - chosen[h, e])
                    neither = 1.0 - is_head[e] - is_head[h] + mean
                    apart[b, e, h] = max(0.0, apart[b, e, h] - now * neither)


@kernel
def chord_slope(curve: Floats, low: int, high: int) -> float:
    """Return the slope of the lowest line from curve[low] that stays above a rising curve up to `high`."""
    slope = 0.0
    for j in range(low + 1, high + 1):
        slope = max(slope, (curve[j] - curve[low]) / (j - low))
    return slope


@kernel
def held(mask: int, count: Ints) -> int:
    """Return the sum of the counts of the servers in a mask."""
    total = 0
    for n in range(count.size):
        if mask >> n & 1:
            total += count[n]
    return total


@kernel
def best_counts(
    curve: Floats, mask: Ints, k: int, price: Floats, weight: Floats, most: Ints, known: float, tolerance: float,
    max_nodes: int,
) -> tuple[float, Ints]:  # fmt: skip
    """Return an upper bound on, and counts c [N] that nearly attain, the largest sum of curves less prices.

    Maximise ``sum_p curve[p, min(k, c(mask p))] - sum_n price[n] weight[c[n]]`` over ``0 <= c <= most``, ``sum c >= k``: branch and
    bound over boxes. Over a box each curve lies below a chord, and each cost above its first slope, so that the bound is a
    linear programme with one row. The bound is at most `tolerance` above the maximum, unless `max_nodes` boxes were not enough. The search
    ends as soon as some counts are worth what is `known` as a bound: then it has nothing to add.
    """
    num_servers, num_masks = most.size, mask.size
    room = 64 * num_servers + 2  # a range is halved at most so often, and each time one half waits
    stack_low, stack_high = np.zeros((room, num_servers), np.int64), np.zeros((room, num_servers), np.int64)
    stack_bound = np.full(room, np.inf)
    stack_high[0] = np.minimum(most, k)
    depth, nodes = 1, 0
    top, found = -np.inf, np.minimum(most, k)
    count, rise, error = np.zeros(num_servers, np.int64), np.zeros(num_servers), np.zeros(num_servers)
    fewest, start, slope = np.zeros(num_masks, np.int64), np.zeros(num_masks, np.int64), np.zeros(num_masks)
    while depth > 0 and nodes < max_nodes and top + tolerance < known:
        nodes += 1
        depth -= 1
        if stack_bound[depth] <= top + tolerance:
            continue
        low, high = stack_low[depth].copy(), stack_high[depth].copy()
        for p in range(num_masks):
            fewest[p], largest, others = 0, 0, 0
            for n in range(num_servers):
                if mask[p] >> n & 1:
                    fewest[p] += low[n]
                    largest += high[n]
                else:
                    others += high[n]
            start[p] = min(max(fewest[p], k - others), k)  # of k copies the other servers hold no more than fit
            slope[p] = chord_slope(curve[p], start[p], min(largest, k))
        value, flatter = np.inf, True
        while flatter:
            bound = 0.0
            for n in range(num_servers):
                bound -= price[n] * weight[low[n]]
                rise[n] = -price[n] * (weight[low[n] + 1] - weight[low[n]]) if high[n] > low[n] else 0.0
            for p in range(num_masks):
                bound += curve[p, start[p]] - slope[p] * (start[p] - fewest[p])
                for n in range(num_servers):
                    if mask[p] >> n & 1:
                        rise[n] += slope[p]
            short = k
            for n in range(num_servers):
                count[n] = high[n] if rise[n] > 0.0 else low[n]
                bound += rise[n] * (count[n] - low[n])
                short -= count[n]
            while short > 0:
                at = -1
                for n in range(num_servers):
                    if count[n] < high[n] and (at < 0 or rise[n] > rise[at]):
                        at = n
                if at < 0:
                    break
                more = min(short, high[at] - count[at])
                count[at] += more
                bound += rise[at] * more
                short -= more
            value = min(value, bound)
            flatter = False
            for p in range(num_masks):  # where the chord is beyond the end of its curve, take the end for all counts
                if slope[p] > 0.0 and held(mask[p], count) > k:
                    start[p], slope[p], flatter = k, 0.0, True
            flatter &= short <= 0 and value > top + tolerance
        if short > 0 or value <= top + tolerance:
            continue
        exact = 0.0
        for n in range(num_servers):
            exact -= price[n] * weight[count[n]]
            error[n] = 0.0
        for p in range(num_masks):
            at = held(mask[p], count)
            here = curve[p, min(at, k)]
            exact += here
            above = curve[p, start[p]] + slope[p] * (at - start[p]) - here
            for n in range(num_servers):
                if mask[p] >> n & 1:
                    error[n] += above
        if exact > top:
            top = exact
            found[:] = count
        if value <= top + tolerance:
            continue
        wide = -1
        for n in range(num_servers):  # where the chords are farthest off
            if high[n] > low[n] and (
                wide < 0 or error[n] * (high[n] - low[n]) > error[wide] * (high[wide] - low[wide])
            ):
                wide = n
        if wide < 0:
            continue
        middle = (low[wide] + high[wide]) // 2
        for upper in range(2):
            stack_low[depth], stack_high[depth], stack_bound[depth] = low, high, value
            if upper:
                stack_low[depth, wide] = middle + 1
            else:
                stack_high[depth, wide] = middle
            depth += 1
    bound = top + tolerance
    for i in range(depth):
        bound = max(bound, stack_bound[i])
    return bound, found
