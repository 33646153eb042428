"""0/1 knapsack: dynamic programming, exact reduction to a core, and bounds for real weights."""

from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.jit import kernel
from edgeopt.solvers.kernels import Bools, Floats, Ints, float_vector, int_vector, require

Weights = TypeVar("Weights", Ints, Floats)
Words = NDArray[np.uint64]

BLOCK = 1024  # states updated at a time: a block of float64 stays in the first-level cache
WORD = 64  # choices packed into one word
CORE = 48  # items of the first, small core; a larger core pays only when this one leaves a gap
EXACT_TOTAL = 2.0**40  # integral values up to this total let bounds be rounded down safely
ROUNDING = 1e-14  # relative rounding error of a bound, below which an improvement is no improvement


@kernel
def dp_kernel(values: Floats, weights: Ints, capacity: int, choices: Words) -> Floats:
    """Fill the table f[c] item by item and return it; pack the choices unless `choices` has no rows.

    Weights lie in 1..capacity. With choices ``uint64 [n, capacity // 64 + 1]``, bit c of row i says that item i is
    taken at capacity c; then only states that can still reach `capacity` are kept and just f[capacity] is meaningful.
    Blocks go downwards, and each is computed in `fresh` before it is written: reads and writes never
    overlap, so the loops vectorise, and one table is enough.
    """
    keep = choices.shape[0] > 0
    size = (capacity // WORD + 1) * WORD
    table = np.zeros(size)
    fresh = np.empty(BLOCK)
    rest = np.int64(0)
    for i in range(weights.size):
        rest += weights[i]
    used = np.int64(0)
    top = np.int64(0)  # the table is constant from here on, and not filled in yet
    for i in range(weights.size):
        weight = weights[i]
        value = values[i]
        rest -= weight
        used += weight
        low = max(weight, capacity - rest) if keep else weight
        start = low // WORD * WORD
        stop = min(size, (used // WORD + 1) * WORD)
        if stop > top + 1:
            table[top + 1 : stop] = table[top]
            top = stop - 1
        while stop > start:
            first = max(start, stop - BLOCK)
            old = table[first:stop]
            skip = max(0, weight - first)
            for t in range(skip):
                fresh[t] = old[t]
            without = table[first + skip : stop]
            before = table[first + skip - weight : stop - weight]
            best = fresh[skip : stop - first]
            for t in range(without.size):
                x = without[t]
                y = before[t] + value
                best[t] = max(x, y)
            if keep:
                _pack(fresh, old, choices[i, first // WORD :])
            for t in range(old.size):
                old[t] = fresh[t]
            stop = first
    if top + 1 < size:
        table[top + 1 :] = table[top]
    return table[: capacity + 1]


@kernel
def _pack(fresh: Floats, old: Floats, words: Words) -> None:
    for q in range(old.size // WORD):
        word = np.uint64(0)
        for t in range(WORD):
            if fresh[q * WORD + t] > old[q * WORD + t]:
                word |= np.uint64(1) << np.uint64(t)
        words[q] = word


@kernel
def profile_kernel(values: Floats, weights: Ints, capacity: int) -> Floats:
    """Best value at every capacity, float64 [capacity + 1]; see `knapsack_profile`."""
    free = 0.0
    index = np.empty(values.size, np.int64)
    m = 0
    for i in range(values.size):
        if values[i] > 0.0 and weights[i] <= capacity:
            if weights[i] == 0:
                free += values[i]
            else:
                index[m] = i
                m += 1
    index = index[:m]
    table = dp_kernel(values[index], weights[index], capacity, np.empty((0, 0), np.uint64))
    if free > 0.0:
        for c in range(table.size):
            table[c] += free
    return table


@kernel
def dp_choose_kernel(values: Floats, weights: Ints, capacity: int) -> Bools:
    """Choose by plain dynamic programming, bool [n]; every weight in 1..capacity."""
    n = values.size
    taken = np.zeros(n, np.bool_)
    choices = np.empty((n, capacity // WORD + 1), np.uint64)
    dp_kernel(values, weights, capacity, choices)
    used = np.int64(0)
    for i in range(n):
        used += weights[i]
    c = np.int64(capacity)
    for i in range(n - 1, -1, -1):
        c = min(c, used)  # beyond the weight of all items up to i, the table is constant
        used -= weights[i]
        if c >= weights[i] and (choices[i, c // WORD] >> np.uint64(c % WORD)) & np.uint64(1):
            taken[i] = True
            c -= weights[i]
    return taken


@kernel
def _greedy(v: Floats, w: Ints, p: Floats, s: Ints, b: int, capacity: int) -> tuple[float, Bools]:
    # The best of: greedy in density order; the first b items plus one; the first b + 1 without one (both filled up).
    n = v.size
    best = -1.0
    drop = -1
    add = -1
    for j in range(b, n):
        if s[b] + w[j] <= capacity and p[b] + v[j] > best:
            best = p[b] + v[j]
            add = j
    for j in range(b):
        if s[b + 1] - w[j] <= capacity and p[b + 1] - v[j] > best:
            best = p[b + 1] - v[j]
            drop = j
    lower = -1.0
    taken = np.zeros(n, np.bool_)
    for attempt in range(2):
        trial = np.zeros(n, np.bool_)
        trial[:b] = True
        weight = s[b]
        if attempt == 1 and drop >= 0:
            trial[b] = True
            trial[drop] = False
            weight = s[b + 1] - w[drop]
        elif attempt == 1 and add >= 0:
            trial[add] = True
            weight = s[b] + w[add]
        total = 0.0
        for j in range(n):
            if not trial[j] and j != drop and weight + w[j] <= capacity:
                trial[j] = True
                weight += w[j]
            if trial[j]:
                total += v[j]
        if total > lower:
            lower = total
            taken = trial
    return lower, taken


@kernel
def _free_items(v: Floats, w: Ints, p: Floats, s: Ints, b: int, capacity: int, target: float) -> Bools:
    # An item keeps its place (in before the break item b, out after) when the LP bound with the place
    # changed does not reach `target`: no solution worth finding has it elsewhere.
    n = v.size
    free = np.zeros(n, np.bool_)
    for j in range(n):
        room = capacity + w[j] if j < b else capacity - w[j]
        k = np.searchsorted(s, room, side="right") - 1
        bound = p[k]
        if k < n:
            bound += v[k] * ((room - s[k]) / w[k])
        bound += -v[j] if j < b else v[j]
        free[j] = bound >= target
    return free


@kernel
def _solve_core(v: Floats, w: Ints, b: int, capacity: int, free: Bools) -> tuple[float, Bools]:
    # Exact over the free items, the others in place; nothing better exists when these already overflow.
    taken = np.zeros(v.size, np.bool_)
    room = np.int64(capacity)
    for j in range(b):
        if not free[j]:
            taken[j] = True
            room -= w[j]
    core = np.empty(v.size, np.int64)
    m = 0
    total = np.int64(0)
    for j in range(v.size):
        if free[j] and w[j] <= room:
            core[m] = j
            m += 1
            total += w[j]
    core = core[:m]
    if room >= 0 and m > 0:
        if total <= room:
            taken[core] = True
        else:
            taken[core] = dp_choose_kernel(v[core], w[core], int(room))
    value = 0.0
    for j in range(v.size):
        if taken[j]:
            value += v[j]
    return (value if room >= 0 else -1.0), taken


@kernel
def _solve_sorted(v: Floats, w: Ints, capacity: int) -> Bools:
    # Items by falling density, weights in 1..capacity, not all of them fit.
    n = v.size
    p = np.zeros(n + 1)
    s = np.zeros(n + 1, np.int64)
    integral = True
    for j in range(n):
        p[j + 1] = p[j] + v[j]
        s[j + 1] = s[j] + w[j]
        integral = integral and v[j] == np.floor(v[j])
    integral = integral and p[n] < EXACT_TOTAL
    b = int(np.searchsorted(s, capacity, side="right")) - 1
    lower, taken = _greedy(v, w, p, s, b, capacity)
    for attempt in range(2):
        target = lower + 0.999 if integral else lower * (1.0 + ROUNDING)
        free = _free_items(v, w, p, s, b, capacity, target)
        if attempt == 0:
            if free.sum() <= 2 * CORE:
                continue
            near = b  # a small core around the break item often closes the gap
            count = 0
            far = b - 1
            chosen = np.zeros(n, np.bool_)
            while count < CORE and (near < n or far >= 0):
                if near < n:
                    chosen[near] = free[near]
                    count += free[near]
                    near += 1
                if far >= 0:
                    chosen[far] = free[far]
                    count += free[far]
                    far -= 1
            free = chosen
        value, trial = _solve_core(v, w, b, capacity, free)
        if value > lower:
            lower = value
            taken = trial
    return taken


@kernel
def knapsack_kernel(values: Floats, weights: Ints, capacity: int) -> tuple[float, Bools]:
    """Best value and choice, (float, bool [n]); see `knapsack`."""
    n = values.size
    chosen = np.zeros(n, np.bool_)
    index = np.empty(n, np.int64)
    m = 0
    total = np.int64(0)
    for i in range(n):
        if values[i] > 0.0 and weights[i] <= capacity:
            if weights[i] == 0:
                chosen[i] = True
            else:
                index[m] = i
                m += 1
                total += weights[i]
    index = index[:m]
    if total <= capacity:
        chosen[index] = True
    else:
        order = index[np.argsort(-(values[index] / weights[index]), kind="mergesort")]
        chosen[order] = _solve_sorted(values[order], weights[order], capacity)
    best = 0.0
    for i in range(n):
        if chosen[i]:
            best += values[i]
    return best, chosen


@kernel
def fractional_kernel(values: Floats, weights: Floats, capacity: float) -> tuple[float, float]:
    """Linear-programming value and price, (float, float), real weights; see `fractional_knapsack`."""
    index = np.empty(values.size, np.int64)
    m = 0
    bound = 0.0
    for i in range(values.size):
        if values[i] > 0.0 and weights[i] <= capacity:
            if weights[i] == 0.0:
                bound += values[i]
            else:
                index[m] = i
                m += 1
    index = index[:m]
    density = values[index] / weights[index]
    room = capacity
    for k in np.argsort(-density, kind="mergesort"):
        i = index[k]
        if weights[i] > room:
            return bound + values[i] * (room / weights[i]), density[k]
        bound += values[i]
        room -= weights[i]
    return bound, 0.0


def knapsack_profile(values: ArrayLike, weights: ArrayLike, capacity: int) -> Floats:
    """Return the best value of a 0/1 knapsack at every capacity from 0 to `capacity`.

    Parameters
    ----------
    values
        Worth of each item, real [n], >= 0.
    weights
        Weight of each item in units, integer [n], >= 0.
    capacity
        Largest capacity in units, >= 0.

    Returns
    -------
    NDArray[np.float64]
        Non-decreasing, [capacity + 1]. Time O(n * capacity), memory O(capacity).

    Raises
    ------
    InvalidProblemError
        If lengths differ, a number is negative or not finite, or a weight is not an integer.

    References
    ----------
    Kellerer, Pferschy, Pisinger, "Knapsack Problems", Springer 2004, section 2.3.

    Examples
    --------
    >>> knapsack_profile([6, 10, 12], [1, 2, 3], 5)
    array([ 0.,  6., 10., 16., 18., 22.])
    """
    v, w = _items(values, int_vector("weights", weights))
    return profile_kernel(v, w, _capacity(capacity))


def knapsack(values: ArrayLike, weights: ArrayLike, capacity: int) -> tuple[float, Bools]:
    """Solve a 0/1 knapsack exactly and return the best value and the items chosen.

    Items whose place (in or out) is settled by the bound of the linear relaxation are fixed, then dynamic programming
    runs over the few that are left, the core. Exact up to rounding (a relative 1e-14); of equally good choices one is
    returned, always the same. Items of value 0 are never chosen, other items of weight 0 always.

    Parameters
    ----------
    values
        Worth of each item, real [n], >= 0.
    weights
        Weight of each item in units, integer [n], >= 0.
    capacity
        Capacity in units, >= 0.

    Returns
    -------
    best : float
        Sum of the values chosen.
    chosen : NDArray[np.bool_]
        Whether an item is chosen, [n].

    Raises
    ------
    InvalidProblemError
        If lengths differ, a number is negative or not finite, or a weight is not an integer.

    Notes
    -----
    Time O(n log n + m r) and memory m r / 8 bytes for the packed choices, with m <= n core items and r <= capacity
    units left to them: mostly a few dozen items; n and capacity at worst, on strongly correlated items.

    References
    ----------
    Dembo, Hammer, "A reduction algorithm for knapsack problems", Methods of Operations Research 36, 1980.
    Pisinger, "A minimal algorithm for the 0-1 knapsack problem", Operations Research 45, 1997.

    Examples
    --------
    >>> best, chosen = knapsack([6, 10, 12], [1, 2, 3], 5)
    >>> best, chosen.tolist()
    (22.0, [False, True, True])
    """
    v, w = _items(values, int_vector("weights", weights))
    best, chosen = knapsack_kernel(v, w, _capacity(capacity))
    return float(best), chosen


def fractional_knapsack(values: ArrayLike, weights: ArrayLike, capacity: float) -> tuple[float, float]:
    """Return an upper bound on a 0/1 knapsack with real weights, and the price of one unit of capacity.

    The bound is the optimum of the linear relaxation over the items that fit on their own, valid up to the rounding of
    its sum; the price is the density (value per weight) of the item cut in two, 0 if everything fits.

    Parameters
    ----------
    values
        Worth of each item, real [n], >= 0.
    weights
        Weight of each item, real [n], >= 0, in the unit of `capacity`.
    capacity
        Capacity, real, >= 0.

    Returns
    -------
    bound : float
        Never below the best value. Time O(n log n).
    price : float
        Optimal dual price: bound = capacity * price + sum of max(0, value - price * weight) over the items that fit
        on their own; infinite where a tiny weight makes the quotient overflow.

    Raises
    ------
    InvalidProblemError
        If lengths differ or a number is negative or not finite.

    References
    ----------
    Dantzig, "Discrete-variable extremum problems", Operations Research 5, 1957.

    Examples
    --------
    >>> fractional_knapsack([6, 10, 12], [1.0, 2.0, 3.0], 5.0)
    (24.0, 4.0)
    """
    v, w = _items(values, float_vector("weights", weights))
    return _linear(v, w, _real("capacity", capacity))


def warm_up() -> None:
    """Compile or load every kernel of this module.

    Examples
    --------
    >>> warm_up()
    """
    knapsack_profile([1.0], [1], 1)
    knapsack([2.0, 2.0], [1, 1], 1)
    fractional_knapsack([1.0], [1.0], 1.0)


def _items(values: ArrayLike, w: Weights) -> tuple[Floats, Weights]:
    v = float_vector("values", values)
    if v.size != w.size:
        raise InvalidProblemError(f"weights: got {w.size} entries, expected {v.size}, one per value")
    require("values", v, np.isfinite(v) & (v >= 0.0), "a finite number >= 0")
    require("weights", w, np.isfinite(w) & (w >= 0), "a finite number >= 0")
    return v, w


def _linear(v: Floats, w: Floats, capacity: float) -> tuple[float, float]:
    with np.errstate(over="ignore"):  # a density beyond float64 is infinite: first in order, as it should be
        bound, price = fractional_kernel(v, w, capacity)
    return float(bound), float(price)


def _capacity(capacity: int) -> int:
    if isinstance(capacity, bool) or not isinstance(capacity, int | np.integer) or capacity < 0:
        raise InvalidProblemError(f"capacity = {quoted(capacity)}, expected an integer >= 0")
    return int(capacity)


def _real(name: str, number: float) -> float:
    if not (np.isfinite(number) and number >= 0.0):
        raise InvalidProblemError(f"{name} = {quoted(number)}, expected a finite number >= 0")
    return float(number)
