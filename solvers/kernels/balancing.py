"""Kernels of expert balancing: replicas handed out greedily, packed onto devices, and moved until nothing helps."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.jit import kernel

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SLACK = 1e-12  # relative: loads that are closer are the same


@kernel
def hand_out(load: Floats, total: int) -> Ints:
    """Return int64 [E]: `total` replicas, one for each expert, then each to the expert whose replicas have most load."""
    replicas = np.ones(load.size, np.int64)
    share = load.copy()
    for _ in range(total - load.size):
        most = np.argmax(share)
        replicas[most] += 1
        share[most] = load[most] / replicas[most]
    return replicas


@kernel
def pack(load: Floats, replicas: Ints, slots: Ints) -> Ints:
    """Return int64 [D, S]: replicas, those with most load first, each to the device with least load that has a slot left."""
    expert = np.repeat(np.arange(load.size), replicas)
    order = np.argsort(-(load / replicas)[expert], kind="mergesort")
    placed = np.full((slots.size, slots.max()), -1, np.int64)
    used = np.zeros(slots.size, np.int64)
    total = np.zeros(slots.size)
    for i in order:
        best = -1
        for d in range(slots.size):
            if used[d] < slots[d] and (best < 0 or total[d] < total[best]):
                best = d
        placed[best, used[best]] = expert[i]
        used[best] += 1
        total[best] += load[expert[i]] / replicas[expert[i]]
    return placed


@kernel
def descend(load: Floats, slots: Ints, present: Ints, cost: float, floor: float, placed: Ints) -> Any:
    """Improve a placement [D, S] in place, as long as the device with most load gets less and nobody gets as much.

    A step swaps a replica of that device with one, or an empty slot, of another device; or it fills a slot anew: with one
    more replica of an expert that this device has, or, on the device itself, with any expert or none. Of all steps that
    leave each device that they change below the largest load, the one is taken after which those devices' largest load is
    least, with what its moves cost. The sorted loads fall with every step, so the descent ends.

    Parameters
    ----------
    present : int64 [D, E], replicas at present, for the moves.
    cost : of a move.
    floor : the load that the layer waits for anyway; below it, there is no use.

    Returns
    -------
    max(floor, largest load) + cost * moves of the best placement on the way, which `placed` then is.
    """
    devices, width, experts = slots.size, placed.shape[1], load.size
    counts, replicas = np.zeros((devices, experts), np.int64), np.zeros(experts, np.int64)
    total, everyone = np.zeros(devices), np.arange(-1, experts)
    for d in range(devices):
        for s in range(width):
            if placed[d, s] >= 0:
                counts[d, placed[d, s]] += 1
                replicas[placed[d, s]] += 1
    share = load / replicas
    moves = 0
    for d in range(devices):
        for e in range(experts):
            total[d] += counts[d, e] * share[e]
            moves += max(0, counts[d, e] - present[d, e])
    best = max(floor, total.max()) + cost * moves
    best_placed = placed.copy()
    while True:
        top = np.argmax(total)
        limit = total[top] * (1.0 - SLACK)
        least, step = np.inf, (-1, -1, -1, -1, -1)  # what, slot of the top device or -1, device, slot, expert
        if total[top] <= floor:
            break
        for s in range(slots[top]):
            a = placed[top, s]
            if a < 0:
                continue
            for d in range(devices):
                if d == top:
                    continue
                for t in range(slots[d]):
                    b = placed[d, t]
                    change = share[a] - (share[b] if b >= 0 else 0.0)
                    value = max(total[top] - change, total[d] + change)
                    if b == a or change <= 0.0 or value >= limit:
                        continue
                    more = int(counts[d, a] >= present[d, a]) - int(counts[top, a] > present[top, a])
                    if b >= 0:
                        more += int(counts[top, b] >= present[top, b]) - int(counts[d, b] > present[d, b])
                    if value + cost * more < least:
                        least, step = value + cost * more, (0, s, d, t, b)
        there = np.flatnonzero(counts[top])
        for d in range(devices):
            for t in range(slots[d]):
                b = placed[d, t]
                if b >= 0 and replicas[b] < 2:
                    continue
                lost = load[b] / (replicas[b] - 1) if b >= 0 else 0.0
                for a in everyone if d == top else there:
                    if a == b:
                        continue
                    won = load[a] / (replicas[a] + 1) if a >= 0 else 0.0
                    value = 0.0
                    for i in range(-1, devices):  # what each device has then, first the one that is to get less
                        k = i if i >= 0 else top
                        new = total[k]
                        if a >= 0:
                            new += counts[k, a] * (won - share[a])
                        if b >= 0:
                            new += counts[k, b] * (lost - share[b])
                        if k == d:
                            new += won
                            new -= lost
                        if i < 0 or new != total[k]:
                            value = max(value, new)
                            if value >= limit or value - cost >= least:  # a step spares one move at most
                                break
                    if value >= limit:
                        continue
                    more = 0
                    if a >= 0:
                        more += int(counts[d, a] >= present[d, a])
                    if b >= 0:
                        more -= int(counts[d, b] > present[d, b])
                    if value + cost * more < least:
                        least, step = value + cost * more, (1, -1, d, t, int(a))
        what, s, d, t, a = step
        if what < 0:
            break
        b = placed[d, t]
        if what == 0:
            a = placed[top, s]
            placed[top, s], placed[d, t] = b, a
            moves += move(counts, present, top, a, -1) + move(counts, present, d, a, 1)
            moves += move(counts, present, d, b, -1) + move(counts, present, top, b, 1)
        else:
            placed[d, t] = a
            moves += move(counts, present, d, a, 1) + move(counts, present, d, b, -1)
            if a >= 0:
                replicas[a] += 1
                share[a] = load[a] / replicas[a]
            if b >= 0:
                replicas[b] -= 1
                share[b] = load[b] / replicas[b]
        for k in range(devices):  # anew: rounding does not add up
            total[k] = 0.0
            for u in range(slots[k]):
                if placed[k, u] >= 0:
                    total[k] += share[placed[k, u]]
        reached = max(floor, total.max()) + cost * moves
        if reached < best:
            best = reached
            best_placed[:] = placed
    placed[:] = best_placed
    return best


@kernel
def move(counts: Ints, present: Ints, device: Any, expert: Any, change: int) -> Any:
    """Add or take a replica, and return by how much the moves change; expert -1 is none."""
    if expert < 0:
        return 0
    before = max(0, counts[device, expert] - present[device, expert])
    counts[device, expert] += change
    return max(0, counts[device, expert] - present[device, expert]) - before


@kernel
def kick(slots: Ints, placed: Ints, numbers: Floats) -> None:
    """Swap the replicas of pairs of slots that random numbers [any, 4] of [0, 1) choose, or copy one over the other."""
    replicas = np.zeros(placed.max() + 1, np.int64)
    for e in placed.ravel():
        if e >= 0:
            replicas[e] += 1
    for i in range(len(numbers)):
        c, d = int(numbers[i, 0] * slots.size), int(numbers[i, 1] * slots.size)
        if slots[c] == 0 or slots[d] == 0:
            continue
        s, t = int(numbers[i, 2] * slots[c]), int(numbers[i, 3] * slots[d])
        a, b = placed[c, s], placed[d, t]
        if i % 2 == 0 and a >= 0 and (b < 0 or replicas[b] > 1):
            placed[d, t] = a
            replicas[a] += 1
            if b >= 0:
                replicas[b] -= 1
        else:
            placed[c, s], placed[d, t] = b, a
