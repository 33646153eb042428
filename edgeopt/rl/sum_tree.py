"""Kernels of sum trees: draw from a part of a ring buffer in proportion to priorities, in O(log n).

A tree float64 [2 L] has the priority of slot i at L + i, L a power of two, and at k < L the sum of its children 2 k and
2 k + 1; trees of G agents are an array [G, 2 L]. A parent is always computed anew from both children, so that rounding
never builds up. Entries of a ring buffer are counted from the first that was ever added: entry n is in slot n mod C, for
C slots.
"""

import numpy as np
from numpy.typing import NDArray

from edgeopt.jit import kernel

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def empty_trees(agents: int, capacity: int) -> Floats:
    """Return trees [G, 2 L] of priorities 0 with room for `capacity` slots."""
    return np.zeros((agents, 2 << max(capacity - 1, 0).bit_length()))


@kernel
def write(trees: Floats, slots: Integers, priorities: Floats) -> None:
    """Set the priorities [G, B] of slots [G, B]; of a slot that is named twice, the last one counts."""
    leaves = trees.shape[1] // 2
    for g in range(slots.shape[0]):
        for b in range(slots.shape[1]):
            at = leaves + slots[g, b]
            trees[g, at] = priorities[g, b]
            while at > 1:
                at //= 2
                trees[g, at] = trees[g, 2 * at] + trees[g, 2 * at + 1]


@kernel
def before(tree: Floats, slot: int) -> float:
    """Return the sum of the priorities of slots below `slot`."""
    at, total = tree.shape[0] // 2 + slot, 0.0
    if slot >= tree.shape[0] // 2:
        return float(tree[1])
    while at > 1:
        if at % 2 == 1:
            total += tree[at - 1]
        at //= 2
    return total


@kernel
def mass(tree: Floats, capacity: int, first: int, end: int) -> float:
    """Return the sum of the priorities of entries first, ..., end - 1 of a ring buffer, at most `capacity` of them."""
    if end <= first:
        return 0.0
    one, other = before(tree, first % capacity), before(tree, (end - 1) % capacity + 1)
    return other - one if first % capacity <= (end - 1) % capacity else tree[1] - one + other


@kernel
def masses(trees: Floats, capacity: int, first: Integers, end: Integers) -> Floats:
    """Return `mass` [G] of the entries first[g], ..., end[g] - 1 of each agent."""
    found = np.empty(len(trees))
    for g in range(len(trees)):
        found[g] = mass(trees[g], capacity, first[g], end[g])
    return found


@kernel
def draw(
    trees: Floats,
    capacity: int,
    first: Integers,
    end: Integers,
    start: Integers,
    stop: Integers,
    uniform: Floats,
    found: Integers,
) -> None:
    """Draw entries first[g], ..., end[g] - 1 in proportion to their priorities, into found[g, start[g]:stop[g]].

    Draws are stratified: the k-th of K falls into the k-th of K parts of equal mass. An agent whose range is empty gets
    nothing.

    Parameters
    ----------
    uniform : [G, B], independent numbers in [0, 1).
    """
    leaves = trees.shape[1] // 2
    for g in range(len(trees)):
        tree, count = trees[g], stop[g] - start[g]
        if end[g] <= first[g]:
            continue
        whole = mass(tree, capacity, first[g], end[g])
        ahead = before(tree, first[g] % capacity)
        for k in range(count):
            aim = ahead + whole * (k + uniform[g, start[g] + k]) / count
            if aim >= tree[1]:  # the range goes on at the first slot
                aim -= tree[1]
            at = 1
            while at < leaves:
                at *= 2
                if aim >= tree[at]:
                    aim -= tree[at]
                    at += 1
            slot = min(at - leaves, capacity - 1)
            entry = first[g] + (slot - first[g]) % capacity
            if entry >= end[g]:  # rounding at an edge of the range: take what is next to it
                entry = end[g] - 1 if slot == end[g] % capacity else first[g]
            found[g, start[g] + k] = entry
