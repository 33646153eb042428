"""Kernels for latency ``max`` and ``mix``: experts that are activated together, one layer of one model at a time.

A *row* is one user of one model. The places that can serve it (servers that beat the cloud, the cloud, the device) in
order of latency are its *levels* 0, 1, ...; ``level[slot]`` is where an expert is served from now, `slot` =
``slot_of[e] + row - row_first[model of e]``. A set of experts is as late as its latest member, so with ``step[row, k]``
the weighted seconds from level k to k + 1, the value of a placement is the sum over rows and k of
``step[row, k] * P(all members of the activated set at level k or below)``, up to a constant.

``cover[slot, k]`` is the probability of the sets with that expert whose *other* members are all at level k or below:
bringing the expert from level j down to i then gains the sum of ``step * cover`` over k = i ... j - 1, exactly. A
constant `bias` times the expected uses in ``cover`` adds a share of the *sum* of the savings.
"""

from typing import NamedTuple

import numpy as np
from numba import prange
from numpy.typing import NDArray

from edgeopt.jit import kernel, parallel_kernel

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Members = NDArray[np.int32]

ROUNDING = 1e-15  # of the best single change: a smaller gain of a swap is none


class Rows(NamedTuple):
    """What no placement changes: where the slots of experts are, which level each server has, what levels take.

    Parameters
    ----------
    model, slot_of : int64 [E], model and first slot of each expert.
    row_first : int64 [M + 1], the rows of each model.
    server_level : int64 [I, N], the level at which each server serves a row.
    base : int64 [S], level of each slot without any server; final : bool [S], it is the device's, and stays.
    step : float64 [I, R], weighted seconds from each level to the next.
    """

    model: Ints
    slot_of: Ints
    row_first: Ints
    server_level: Ints
    base: Ints
    final: Bools
    step: Floats


class Inverted(NamedTuple):
    """The sets with each expert by profile, see `invert`, and the profile [I] of each row."""

    row_profile: Ints
    at: Ints
    first_expert: Ints
    first: Ints
    others: Members
    probability: Floats


class State(NamedTuple):
    """A placement bool [N, E] with best and second-best level [S] and cover [S, R] of its slots; changed in place."""

    cached: Bools
    level: Ints
    second: Ints
    cover: Floats


@parallel_kernel
def levels_of(
    cached: Bools, skip: int, base: Ints, final: Bools, slot_of: Ints, row_first: Ints, model: Ints, server_level: Ints
) -> tuple[Ints, Ints]:
    """Return the level [S] and the second-best level [S] of every slot with server `skip` left out (-1: none).

    base [S] is the level without any server: the cloud's, or the device's (then final).
    """
    num_servers, num_experts = cached.shape
    first, second = base.copy(), base.copy()
    for e in prange(num_experts):
        low, high = row_first[model[e]], row_first[model[e] + 1]
        for n in range(num_servers):
            if cached[n, e] and n != skip:
                for i in range(low, high):
                    s = slot_of[e] + i - low
                    if not final[s]:
                        a, b, new = first[s], second[s], server_level[i, n]
                        first[s] = min(a, new)
                        second[s] = min(b, max(a, new))
    return first, second


@parallel_kernel
def cover_of(
    level: Ints, cover: Floats, slot_of: Ints, row_first: Ints, model: Ints, row_profile: Ints, entry_first: Ints,
    entry_set: Ints, entry_probability: Floats, member: Members, width: Ints,
) -> None:  # fmt: skip
    """Add to cover [S, R] the probabilities of all sets, from scratch."""
    num_levels = cover.shape[1]
    for i in prange(row_profile.size):
        p = row_profile[i]
        for t in range(entry_first[p], entry_first[p + 1]):
            a = entry_set[t]
            top, below, leader = -1, -1, -1  # largest and second-largest level, and who is at the largest
            for j in range(width[a]):
                e = member[a, j]
                here = level[slot_of[e] + i - row_first[model[e]]]
                if here > top:
                    below, top, leader = top, here, j
                elif here > below:
                    below = here
            for j in range(width[a]):
                e = member[a, j]
                others = max(0, below if j == leader else top)
                s = slot_of[e] + i - row_first[model[e]]
                for k in range(others, num_levels):
                    cover[s, k] += entry_probability[t]


@parallel_kernel
def gains_and_losses(
    first: int, last: int, level: Ints, second: Ints, final: Bools, cover: Floats, step: Floats, level_server: Ints,
    slot_of: Ints, row_first: Ints, model: Ints, gain: Floats, loss: Floats,
) -> None:  # fmt: skip
    """Fill gain and loss [E, N] for experts first ... last - 1: of caching it there too, of dropping it there.

    Entries of gain where the expert is cached, and of loss where it is not, are zero. O(E I R).
    """
    for e in prange(first, last):
        gain[e] = 0.0
        loss[e] = 0.0
        low = row_first[model[e]]
        for i in range(low, row_first[model[e] + 1]):
            s = slot_of[e] + i - low
            if final[s]:
                continue
            here = level[s]
            if level_server[i, here] >= 0:
                value = 0.0
                for k in range(here, second[s]):
                    value += step[i, k] * cover[s, k]
                loss[e, level_server[i, here]] += value
            value = 0.0
            for k in range(here - 1, -1, -1):
                value += step[i, k] * cover[s, k]
                if level_server[i, k] >= 0:
                    gain[e, level_server[i, k]] += value


@kernel
def change_value(e: int, leave: int, enter: int, state: State, rows: Rows) -> float:
    """Return what it adds to move expert e from server `leave` to server `enter` (-1: only add, or only drop), O(I R)."""
    level, second, cover = state.level, state.second, state.cover
    server_level, step = rows.server_level, rows.step
    low = rows.row_first[rows.model[e]]
    total = 0.0
    for i in range(low, rows.row_first[rows.model[e] + 1]):
        s = rows.slot_of[e] + i - low
        if rows.final[s]:
            continue
        old = level[s]
        new = old
        if leave >= 0 and server_level[i, leave] == old:
            new = second[s]
        if enter >= 0:
            new = min(new, server_level[i, enter])
        for k in range(new, old):
            total += step[i, k] * cover[s, k]
        for k in range(old, new):
            total -= step[i, k] * cover[s, k]
    return total


@kernel
def change(e: int, leave: int, enter: int, state: State, rows: Rows, inverted: Inverted) -> int:
    """Move expert e from server `leave` to server `enter` (-1: only add, or only drop), bring everything up to date.

    Only the sets that contain e are visited, and only for rows that are served differently. Returns how many rows and other members were visited.
    """
    cached, level, second, cover = state.cached, state.level, state.second, state.cover
    server_level, base, slot_of = rows.server_level, rows.base, rows.slot_of
    low, high = rows.row_first[rows.model[e]], rows.row_first[rows.model[e] + 1]
    first_expert = inverted.first_expert[rows.model[e]]
    visited = int(high - low)
    others = inverted.others.shape[1]
    if leave >= 0:
        cached[leave, e] = False
    if enter >= 0:
        cached[enter, e] = True
    for i in range(low, high):
        s = slot_of[e] + i - low
        if rows.final[s]:
            continue
        old = level[s]
        if leave >= 0 and server_level[i, leave] < base[s] and server_level[i, leave] <= second[s]:
            best, next_best = base[s], base[s]
            for q in range(cached.shape[0]):
                if cached[q, e]:
                    at = server_level[i, q]
                    if at < best:
                        best, next_best = at, best
                    elif at < next_best:
                        next_best = at
            level[s], second[s] = best, next_best
        elif enter >= 0:
            there = server_level[i, enter]
            second[s] = min(second[s], max(old, there))
            level[s] = min(old, there)
        new = level[s]
        if new == old:
            continue
        where = inverted.at[inverted.row_profile[i]] + e - first_expert
        visited += others * (inverted.first[where + 1] - inverted.first[where])
        for t in range(inverted.first[where], inverted.first[where + 1]):
            top, below, leader = 0, 0, -1  # of the members other than e
            for j in range(others):
                f = inverted.others[t, j]
                if f >= 0:
                    here = level[slot_of[f] + i - low]
                    if here > top:
                        below, top, leader = top, here, j
                    elif here > below:
                        below = here
            for j in range(others):
                f = inverted.others[t, j]
                if f < 0:
                    continue
                rest = below if j == leader else top
                before, after = max(rest, old), max(rest, new)
                sf = slot_of[f] + i - low
                for k in range(after, before):
                    cover[sf, k] += inverted.probability[t]
                for k in range(before, after):
                    cover[sf, k] -= inverted.probability[t]
    return visited


@kernel
def invert(
    entry_first: Ints, entry_set: Ints, entry_probability: Floats, member: Members, width: Ints, inverted_at: Ints,
    first_expert: Ints, size: int,
) -> tuple[Ints, Members, Floats]:  # fmt: skip
    """Return, in CSR form per (profile, expert), the other members of the expert's sets (-1: none), and probabilities.

    The list of profile p and expert e has the number ``inverted_at[p] + e - first_expert[p]``; `size` lists in all.
    """
    first = np.zeros(size + 1, np.int64)
    for p in range(entry_first.size - 1):
        for t in range(entry_first[p], entry_first[p + 1]):
            for j in range(width[entry_set[t]]):
                first[inverted_at[p] + member[entry_set[t], j] - first_expert[p] + 1] += 1
    for k in range(size):
        first[k + 1] += first[k]
    at = first[:-1].copy()
    others = np.full((first[size], member.shape[1] - 1), np.int32(-1), np.int32)
    probability = np.empty(first[size])
    for p in range(entry_first.size - 1):
        for t in range(entry_first[p], entry_first[p + 1]):
            for j in range(width[entry_set[t]]):
                where = inverted_at[p] + member[entry_set[t], j] - first_expert[p]
                q = 0
                for k in range(width[entry_set[t]]):
                    if k != j:
                        others[at[where], q] = member[entry_set[t], k]
                        q += 1
                probability[at[where]] = entry_probability[t]
                at[where] += 1
    return first, others, probability


@parallel_kernel
def server_values(
    n: int, level: Ints, final: Bools, seconds: Floats, server_level: Ints, slot_of: Ints, row_first: Ints, model: Ints,
    uses: Floats, bias: Floats,
) -> Floats:  # fmt: skip
    """Return [E]: what each expert at server n adds to the part of the value that is a plain sum over experts.

    level [S] is without server n; seconds [I, R] sums ``step`` up to each level; uses [S] are the expected uses.
    """
    values = np.zeros(slot_of.size)
    for e in prange(slot_of.size):
        low = row_first[model[e]]
        total = 0.0
        for i in range(low, row_first[model[e] + 1]):
            s = slot_of[e] + i - low
            if not final[s] and server_level[i, n] < level[s]:
                total += uses[s] * (seconds[i, level[s]] - seconds[i, server_level[i, n]])
        values[e] = bias[model[e]] * total
    return values


@parallel_kernel
def server_sets(
    n: int, first: int, last: int, level: Ints, final: Bools, seconds: Floats, server_level: Ints, slot_of: Ints,
    row_first: Ints, model: Ints, profile_rows: Ints, use_first: Ints, use_profile: Ints, use_probability: Floats,
    member: Members, width: int,
) -> Floats:  # fmt: skip
    """Return [A, 2^width]: for sets first ... last - 1, what having exactly these missing members at server n adds.

    Entry (a, b) is the value that server n unlocks once it holds at least the members b (a bit mask) of set a: the
    time between the levels where exactly those members are the ones served later. All entries are >= 0.
    """
    parts = np.zeros((last - first, 1 << width))
    for a in prange(first, last):
        levels = np.empty(width, np.int64)
        m = model[member[a, 0]]
        low = row_first[m]
        for t in range(use_first[a], use_first[a + 1]):
            for i in range(profile_rows[use_profile[t]], profile_rows[use_profile[t] + 1]):
                here = server_level[i, n]
                mask, blocked = 0, False
                for j in range(width):
                    s = slot_of[member[a, j]] + i - low
                    levels[j] = level[s]
                    if levels[j] > here:
                        mask |= 1 << j
                        blocked = blocked or final[s]
                while mask != 0:
                    if blocked:  # a device that is slower than this level: it counts from its own level on
                        blocked = False
                        for j in range(width):
                            if mask >> j & 1 and final[slot_of[member[a, j]] + i - low]:
                                here = max(here, levels[j])
                        mask = 0
                        for j in range(width):
                            if levels[j] > here:
                                mask |= 1 << j
                        continue
                    next_level = np.int64(1 << 40)
                    for j in range(width):
                        if mask >> j & 1:
                            next_level = min(next_level, levels[j])
                    parts[a - first, mask] += use_probability[t] * (seconds[i, next_level] - seconds[i, here])
                    here = next_level
                    for j in range(width):
                        if levels[j] <= here:
                            mask &= ~(1 << j)
    return parts


@kernel
def subset_sums(table: Floats) -> None:
    """Replace every entry of table [A, 2^K] by the sum over the subsets of its mask, in place, O(A K 2^K)."""
    bits = 1
    while bits < table.shape[1]:
        for a in range(table.shape[0]):
            for mask in range(table.shape[1]):
                if mask & bits:
                    table[a, mask] += table[a, mask ^ bits]
        bits *= 2


@kernel
def all_subsets(parts: Floats, member: Members, width: int, first_expert: int, values: Floats) -> Floats:
    """Return [2^E]: the value of every subset of a group's E experts at one server, O(A 2^K + E 2^E).

    parts [A, 2^K] as `server_sets` gives them, values [E] what each expert adds on its own.
    """
    table = np.zeros((1, 1 << values.size))
    for a in range(parts.shape[0]):
        for b in range(1, 1 << width):
            if parts[a, b] > 0.0:
                mask = 0
                for j in range(width):
                    if b >> j & 1:
                        mask |= 1 << (member[a, j] - first_expert)
                table[0, mask] += parts[a, b]
    for e in range(values.size):
        table[0, 1 << e] += values[e]
    subset_sums(table)
    best: Floats = table[0]
    return best


@kernel
def chain(
    sums: Floats, linear: Floats, member: Members, width: int, first_expert: int, of_first: Ints, of_set: Ints,
    values: Floats, size: Floats, pull: float, upwards: bool,
) -> tuple[Ints, Floats]:  # fmt: skip
    """Order a group's experts greedily and return (order [E], value of each prefix [E + 1]).

    Upwards: start with none and add the expert worth most per size, where a set counts for its exact value plus
    `pull` times the even share of what it could still unlock (linear [E]). Downwards: start with all, drop the expert
    that loses least per size; the order is then the reverse of the dropping. sums [A, 2^K] holds the value of each
    set per mask of members held, (of_first, of_set) the sets of each expert. O(sum over sets of K^2 + E^2).
    """
    count = values.size
    held = np.full(count, not upwards)
    mask = np.zeros(sums.shape[0], np.int64) if upwards else np.full(sums.shape[0], (1 << width) - 1, np.int64)
    delta = values.copy()  # what flipping an expert adds or loses
    total = 0.0
    if not upwards:
        for e in range(count):
            total += values[e]
        for a in range(sums.shape[0]):
            total += sums[a, (1 << width) - 1]
    for a in range(sums.shape[0]):
        for j in range(width):
            delta[member[a, j] - first_expert] += abs(sums[a, mask[a] ^ (1 << j)] - sums[a, mask[a]])
    order = np.empty(count, np.int64)
    prefix = np.empty(count + 1)
    prefix[0 if upwards else count] = total
    for done in range(count):
        best, pick = -np.inf, -1
        for e in range(count):
            if held[e] != upwards:
                key = (delta[e] + pull * linear[e]) / size[e] if upwards else -delta[e] / size[e]
                if key > best:
                    best, pick = key, e
        total += delta[pick] if upwards else -delta[pick]
        held[pick] = upwards
        order[done if upwards else count - 1 - done] = pick
        prefix[done + 1 if upwards else count - 1 - done] = total
        for t in range(of_first[pick], of_first[pick + 1]):
            a = of_set[t]
            bit = 0
            for j in range(width):
                if member[a, j] - first_expert == pick:
                    bit = 1 << j
            old = mask[a]
            new = old ^ bit
            mask[a] = new
            for j in range(width):
                other = 1 << j
                if other != bit and (old & other == 0) == upwards:
                    delta[member[a, j] - first_expert] += abs(sums[a, new ^ other] - sums[a, new]) - abs(
                        sums[a, old ^ other] - sums[a, old]
                    )
    return order, prefix


@kernel
def swap_in_group(
    held: Bools, sums: Floats, member: Members, width: int, first_expert: int, of_first: Ints, of_set: Ints,
    values: Floats, size: Floats, max_swaps: int,
) -> float:  # fmt: skip
    """Improve a group's set at one server by swaps that need no more storage, in place; return its value.

    A swap's exact gain is the two single changes plus their interaction over the sets that hold both; that is never
    positive, so pairs whose single changes do not gain are skipped.
    """
    count = values.size
    mask = np.zeros(sums.shape[0], np.int64)
    for a in range(sums.shape[0]):
        for j in range(width):
            if held[member[a, j] - first_expert]:
                mask[a] |= 1 << j
    delta = values.copy()
    for a in range(sums.shape[0]):
        for j in range(width):
            delta[member[a, j] - first_expert] += abs(sums[a, mask[a] ^ (1 << j)] - sums[a, mask[a]])
    both = np.zeros(count)  # interaction of dropping f with every expert
    for _ in range(max_swaps):
        most = 0.0
        for e in range(count):
            if not held[e]:
                most = max(most, delta[e])
        best, leave, enter = ROUNDING * most, -1, -1
        for f in range(count):
            if not held[f] or delta[f] >= most:
                continue
            both[:] = 0.0
            for t in range(of_first[f], of_first[f + 1]):
                a = of_set[t]
                bit = 0
                for j in range(width):
                    if member[a, j] - first_expert == f:
                        bit = 1 << j
                for j in range(width):
                    other = 1 << j
                    if mask[a] & other == 0:
                        both[member[a, j] - first_expert] += (
                            sums[a, (mask[a] ^ bit) | other] - sums[a, mask[a] ^ bit]
                        ) - (sums[a, mask[a] | other] - sums[a, mask[a]])
            for e in range(count):
                if not held[e] and size[e] <= size[f] and delta[e] - delta[f] + both[e] > best:
                    best, leave, enter = delta[e] - delta[f] + both[e], f, e
        if leave < 0:
            break
        for flip in (leave, enter):
            held[flip] = not held[flip]
            for t in range(of_first[flip], of_first[flip + 1]):
                a = of_set[t]
                bit = 0
                for j in range(width):
                    if member[a, j] - first_expert == flip:
                        bit = 1 << j
                old = mask[a]
                new = old ^ bit
                mask[a] = new
                for j in range(width):
                    other = 1 << j
                    if other != bit:
                        delta[member[a, j] - first_expert] += abs(sums[a, new ^ other] - sums[a, new]) - abs(
                            sums[a, old ^ other] - sums[a, old]
                        )
    total = 0.0
    for e in range(count):
        if held[e]:
            total += values[e]
    for a in range(sums.shape[0]):
        total += sums[a, mask[a]]
    return total
