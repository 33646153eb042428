"""Kernels of fountain codes: who is whose neighbour, parities, and sums and products over a graph."""

import numpy as np
from numpy.typing import NDArray

from edgeopt.jit import kernel

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

MOST = 18.0
"""Magnitude at which messages are held: beyond it a float64 can no longer tell tanh(m / 2) from 1."""

_STEP = np.uint64(0x9E3779B97F4A7C15)
_ONE, _TWO = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S32 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(32)
_DRAWS = np.uint64(1 << 24)  # numbers that a symbol may use


@kernel
def below(key: np.uint64, counter: np.uint64, limit: int) -> int:
    """Return the number in 0, ..., limit - 1 that key and counter stand for (SplitMix64); the same on every machine."""
    z = key + counter * _STEP
    z = (z ^ (z >> _S30)) * _ONE
    z = (z ^ (z >> _S27)) * _TWO
    z = z ^ (z >> _S31)
    drawn: int = np.int64(((z >> _S32) * np.uint64(limit)) >> _S32)  # type: ignore[assignment]
    return drawn


@kernel
def draw_degrees(key: np.uint64, first: int, count: int, upto: Integers) -> Integers:
    """Return which degree [count] symbols first, first + 1, ... have, by the thresholds `upto`, the last of them 2^32."""
    found = np.empty(count, np.int64)
    for j in range(count):
        drawn = below(key, np.uint64(first + j) * _DRAWS, 1 << 32)
        at = 0
        while upto[at] <= drawn:
            at += 1
        found[j] = at
    return found


@kernel
def draw_neighbours(key: np.uint64, first: int, start: Integers, upto: Integers) -> Integers:
    """Return distinct bits, the neighbours of symbols first, first + 1, ..., one after another in the order drawn.

    Parameters
    ----------
    start : [n + 1], where the neighbours of each symbol start.
    upto : [K], cumulated weights of bits, whole numbers.
    """
    num_bits, total = len(upto), upto[-1]
    found = np.empty(start[-1], np.int64)
    last = np.full(num_bits, -1, np.int64)
    for j in range(len(start) - 1):
        counter = np.uint64(first + j) * _DRAWS
        at = start[j]
        while at < start[j + 1]:
            counter += np.uint64(1)
            drawn = below(key, counter, total)
            low, high = 0, num_bits - 1
            while low < high:  # the first bit whose cumulated weight is above what was drawn
                middle = (low + high) // 2
                if upto[middle] > drawn:
                    high = middle
                else:
                    low = middle + 1
            if last[low] != j:
                last[low] = j
                found[at] = low
                at += 1
    return found


@kernel
def parities(bits: NDArray[np.uint8], start: Integers, neighbours: Integers) -> NDArray[np.uint8]:
    """Return the exclusive or [n] of each symbol's neighbours."""
    found = np.empty(len(start) - 1, np.uint8)
    for j in range(len(found)):
        value = 0
        for e in range(start[j], start[j + 1]):
            value ^= bits[neighbours[e]]
        found[j] = value
    return found


@kernel
def gather(belief: Floats, message: Floats, neighbours: Integers, half: Floats) -> None:
    """Write half of what bits tell symbols along every edge: what they believe without what they were told there."""
    for e in range(len(neighbours)):
        half[e] = min(max(belief[neighbours[e]] - message[e], -MOST), MOST) / 2


@kernel
def combine(symbol: Floats, start: Integers, factor: Floats, most: float, odds: Floats) -> None:
    """Write (1 + v) / (1 - v) for every edge, v the product of the symbol and its other factors, held within `most`.

    The product over the others is that of those before and of those after, so that a factor of 0 divides nothing.
    """
    for j in range(len(start) - 1):
        product = symbol[j]
        for e in range(start[j], start[j + 1]):
            odds[e] = product
            product *= factor[e]
        product = 1.0
        for e in range(start[j + 1] - 1, start[j] - 1, -1):
            odds[e] = min(max(odds[e] * product, -most), most)
            product *= factor[e]
    for e in range(len(odds)):
        odds[e] = (1 + odds[e]) / (1 - odds[e])


@kernel
def scatter(prior: Floats, message: Floats, neighbours: Integers, belief: Floats) -> None:
    """Write what bits believe: what was known beforehand, and what all symbols tell."""
    belief[:] = prior
    for e in range(len(neighbours)):
        belief[neighbours[e]] += message[e]
