"""Multiple-choice knapsack with real weights: at most one option per class, exact by a core that grows.

A *point* is an option that no other of its class dominates, or the empty choice (weight 0, value 0, option -1). The
points of class k are ``first[k]:first[k + 1]``, by rising weight and value. A *rise* goes from one corner of the upper
hull of a class to the next; its slope is value per weight.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.jit import kernel
from edgeopt.solvers.kernels import Bools, Floats, Ints, float_vector, int_vector, require

SMALL = 32  # options up to which a class is sorted by insertion
MAX_STATES = 1 << 20  # pairs (weight, value) kept at a time
MAX_NODES = 1 << 24  # decisions remembered, 16 bytes each, taken as they are needed
BUDGET = 20_000_000  # pairs looked at between two looks at `stop`: about 0.1 s
FIT = 1e-12  # relative excess of the capacity allowed to weights that are not whole
ROUNDING = 1e-13  # relative rounding error of a bound; a smaller improvement is no improvement
EXACT_TOTAL = 2.0**40  # whole values up to this total let bounds be rounded down safely
DONE, PAUSED, FULL = 0, 1, 2


@kernel
def points_kernel(
    indptr: Ints, weight: Floats, value: Floats, capacity: float
) -> tuple[Ints, Ints, Floats, Floats, Ints, Ints, Ints, Floats]:
    """Return points (first, option, weight, value) and rises (class, from, to, slope) of all classes."""
    num_classes = indptr.size - 1
    size = weight.size + num_classes
    first = np.zeros(num_classes + 1, np.int64)
    option, w, v = np.empty(size, np.int64), np.empty(size), np.empty(size)
    rise_class, rise_from, rise_to = np.empty(size, np.int64), np.empty(size, np.int64), np.empty(size, np.int64)
    slope = np.empty(size)
    hull = np.empty(size, np.int64)
    n, rises = 0, 0
    for k in range(num_classes):
        low, high = indptr[k], indptr[k + 1]
        order = np.arange(low, high)
        if high - low > SMALL:
            order = low + np.argsort(weight[low:high], kind="mergesort")
        else:
            for i in range(1, order.size):
                j, at = order[i], i
                while at > 0 and weight[order[at - 1]] > weight[j]:
                    order[at] = order[at - 1]
                    at -= 1
                order[at] = j
        start = n
        option[n], w[n], v[n] = -1, 0.0, 0.0
        n += 1
        for j in order:
            if weight[j] <= capacity and value[j] > v[n - 1]:
                if weight[j] > w[n - 1]:
                    n += 1
                option[n - 1], w[n - 1], v[n - 1] = j, weight[j], value[j]
        first[k + 1] = n
        hull[0], corners, bottom = start, 1, rises
        for p in range(start + 1, n):  # as computed, slopes fall strictly: rises of a class stay in order when sorted
            while True:
                q = hull[corners - 1]
                steep = (v[p] - v[q]) / (w[p] - w[q])
                if rises == bottom or steep < slope[rises - 1]:
                    break
                corners -= 1
                rises -= 1
            rise_class[rises], rise_from[rises], rise_to[rises], slope[rises] = k, q, p, steep
            rises += 1
            hull[corners] = p
            corners += 1
    return (
        first, option[:n], w[:n], v[:n], rise_class[:rises], rise_from[:rises], rise_to[:rises], slope[:rises]
    )  # fmt: skip


@kernel
def climb_kernel(
    order: Ints, rise_class: Ints, rise_from: Ints, rise_to: Ints, w: Floats, point: Ints, room: float
) -> tuple[int, Ints]:
    """Take rises in order; return the place of the first that does not fit (-1: all do) and the points filled up.

    `point` [K] is moved to the last points before that place. After it, every rise that fits is taken in a copy.
    """
    used, lost = 0.0, 0.0  # Neumaier's summation: as exact as one rounding, however many classes there are
    split = -1
    filled = point
    for i in range(order.size):
        h = order[i]
        k = rise_class[h]
        if filled[k] != rise_from[h]:
            continue
        step = w[rise_to[h]] - w[rise_from[h]]
        total = used + step
        error = (used - total) + step if used >= step else (step - total) + used
        if total + (lost + error) <= room:
            used = total
            lost += error
            filled[k] = rise_to[h]
        elif split < 0:
            split = i
            filled = point.copy()
    return split, filled


@kernel
def gradients_kernel(
    first: Ints, w: Floats, v: Floats, point: Ints, price: float, room: float, target: float
) -> tuple[Floats, Floats]:
    """Return, per class, the largest gain and the least loss per weight over the points worth a look, [K].

    A point is worth a look when the linear bound with it in place of ``point[k]`` exceeds `target`. No such heavier
    point: 0; no such lighter point: infinite.
    """
    up, down = np.zeros(point.size), np.full(point.size, np.inf)
    for k in range(point.size):
        b = point[k]
        for p in range(first[k], first[k + 1]):
            dw, dv = w[p] - w[b], v[p] - v[b]
            if p != b and dv + price * (room - dw) > target:
                if dw > 0.0:
                    up[k] = max(up[k], dv / dw)
                else:
                    down[k] = min(down[k], dv / dw)
    return up, down


@kernel
def merge_kernel(
    a: Floats, a_node: Ints, a_size: int, b: Floats, b_node: Ints, b_size: int, out: Floats, out_node: Ints,
    dw: float, dv: float, choice: int, nodes: Ints, at: Ints, best: Floats,
    room: float, up: float, down: float, margin: float,
) -> int:  # fmt: skip
    """Merge states `a` with states `b` moved by (dw, dv) into `out`; return how many are kept, -1 if there is no room.

    States ``[2, S]`` are weight and value against the linear solution, both strictly rising. Kept are those that none
    dominates and whose bound, at the gradients of the classes still to come, exceeds ``best[0] + margin``.
    """
    i, j, n = 0, 0, 0
    last = -np.inf
    while i < a_size or j < b_size:
        take_b = i == a_size
        x, y = 0.0, 0.0
        if j < b_size:
            x, y = b[0, j] + dw, b[1, j] + dv
            take_b = take_b or x < a[0, i] or (x == a[0, i] and y > a[1, i])
        if take_b:
            node = b_node[j]
            j += 1
        else:
            x, y, node = a[0, i], a[1, i], a_node[i]
            i += 1
        if y <= last:
            continue
        last = y
        better = x <= room and y > best[0]
        slack = room - x
        if not better and y + slack * (up if slack >= 0.0 else down) <= best[0] + margin:
            continue
        if n == out.shape[1] or at[1] == nodes.shape[1]:
            return -1
        if take_b:
            nodes[0, at[1]], nodes[1, at[1]] = node, choice
            node = at[1]
            at[1] += 1
        if better:
            best[0], at[2] = y, node
        out[0, n], out[1, n], out_node[n] = x, y, node
        n += 1
    return n


@kernel
def expand_kernel(
    first: Ints, w: Floats, v: Floats, point: Ints, orders: Ints, gradients: Floats, used: Bools,
    states: Floats, state_nodes: Ints, nodes: Ints, at: Ints, best: Floats,
    price: float, room: float, margin: float, budget: int,
) -> int:  # fmt: skip
    """Add classes to the core until no state is left (DONE), the budget is spent (PAUSED) or memory is (FULL).

    Classes come in turn from ``orders[0]``, by falling gain, and ``orders[1]``, by rising loss per weight, each ended by
    -1. ``at`` holds the number of states, of nodes, the best node, the turn, two places in the orders, and the buffer.
    """
    looked = 0
    while at[0] > 0:
        side = at[3]
        for s in range(2):
            while orders[s, at[4 + s]] >= 0 and used[orders[s, at[4 + s]]]:
                at[4 + s] += 1
        if orders[side, at[4 + side]] < 0:
            side = 1 - side
        k = orders[side, at[4 + side]]
        if k < 0:
            return DONE
        at[3] = 1 - side
        used[k] = True
        for s in range(2):
            while orders[s, at[4 + s]] >= 0 and used[orders[s, at[4 + s]]]:
                at[4 + s] += 1
        plus, minus = orders[0, at[4]], orders[1, at[5]]
        up = gradients[0, plus] if plus >= 0 else 0.0
        down = gradients[1, minus] if minus >= 0 else np.inf
        old = at[6]
        old_size, now = at[0], old
        for p in range(first[k], first[k + 1]):
            dw, dv = w[p] - w[point[k]], v[p] - v[point[k]]
            if p == point[k] or dv + price * (room - dw) <= best[0] + margin:
                continue
            out = (now + 1) % 3
            if out == old:
                out = (out + 1) % 3
            looked += at[0] + old_size
            size = merge_kernel(
                states[now], state_nodes[now], at[0], states[old], state_nodes[old], old_size,
                states[out], state_nodes[out], dw, dv, p, nodes, at, best, room, up, down, margin,
            )  # fmt: skip
            if size < 0:
                return FULL
            at[0], now = size, out
        at[6] = now
        if looked > budget:
            return PAUSED
    return DONE


def solve_multiple_choice(
    indptr: ArrayLike,
    weight: ArrayLike,
    value: ArrayLike,
    capacity: float,
    *,
    stop: Callable[[], bool] | None = None,
) -> tuple[Ints, float, float]:
    r"""Solve a multiple-choice knapsack: at most one option per class, weights within the capacity, most value.

    .. math:: \max \sum_j v_j x_j, \quad \sum_j w_j x_j \le W, \quad \sum_{j \in k} x_j \le 1 \; (k), \quad x \in \{0, 1\}

    The linear relaxation takes the rises of the upper hulls of all classes by falling slope until one does not fit.
    A class is decided by it unless another of its points, put in its place, leaves a linear bound above the best
    choice known. Over the undecided classes, those first that gain or lose most, dynamic programming keeps the pairs
    (weight, value) that no other dominates and whose own linear bound is high enough. When none is left, the best
    choice known is optimal.

    Parameters
    ----------
    indptr
        Options of class k are ``indptr[k]:indptr[k + 1]``, integer [K + 1].
    weight
        Weight of each option, real [M], >= 0.
    value
        Worth of each option, real [M], >= 0.
    capacity
        Capacity W, >= 0.
    stop
        Asked about ten times a second whether to give up.

    Returns
    -------
    chosen : NDArray[np.int64]
        Option chosen in each class, -1 for none, [K]. Of equal options the first, and none rather than one of value 0.
    best : float
        Sum of the values chosen.
    bound : float
        Never below the optimum, up to a relative 1e-12; `best` itself unless the search was given up, because of
        `stop` or because there were more than 2**20 pairs or 2**24 decisions to remember.

    Raises
    ------
    InvalidProblemError
        If lengths differ, `indptr` does not rise from 0 to M, or a number is negative or not finite.

    Notes
    -----
    Where weights or capacity are not whole, the weights chosen may exceed the capacity by a relative 1e-12 (sums taken
    without rounding), so that a choice that fits exactly is not lost to rounding: `best` is at least the value of every
    choice within the capacity, up to a relative 1e-13. Whole numbers are summed without error up to 2**53.

    Guarantee when given up: best >= bound / 2. Let B be the value of the rises before the one that does not fit, which
    ends at option j. The linear optimum is at most B plus the value of that rise, which is at most v_j, and j alone fits,
    as options heavier than the capacity are left out first. `best` is at least B and at least every single value, so
    2 best >= B + v_j >= bound.

    Time O(M log M) and the pairs looked at: few on most data, exponentially many in the worst case.

    References
    ----------
    Sinha, Zoltners, "The multiple-choice knapsack problem", Operations Research 27, 1979 (linear relaxation).
    Pisinger, "A minimal algorithm for the multiple-choice knapsack problem", European Journal of Operational Research
    83, 1995 (core, gradients). Real weights and values, and the tree of decisions, are ours.

    Examples
    --------
    >>> chosen, best, bound = solve_multiple_choice([0, 2, 4], [2.0, 5.0, 3.0, 4.0], [3.0, 9.0, 4.0, 5.0], 8.0)
    >>> chosen.tolist(), best, bound
    ([1, 2], 13.0, 13.0)
    """
    classes, w, v = _options(indptr, weight, value)
    if not (np.isfinite(capacity) and capacity >= 0.0):
        raise InvalidProblemError(f"capacity = {quoted(capacity)}, expected a finite number >= 0")
    is_whole = float(capacity).is_integer() and bool((w == np.floor(w)).all())
    share, exponent = math.frexp(capacity)  # a unit near the capacity: the slopes of tiny weights stay finite
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows does not fit, or is almost without weight
        return _solve(classes, np.ldexp(w, -exponent), v, share if is_whole else share * (1.0 + FIT), stop)


def _solve(
    indptr: Ints, weight: Floats, value: Floats, room: float, stop: Callable[[], bool] | None
) -> tuple[Ints, float, float]:
    first, option, w, v, rise_class, rise_from, rise_to, slope = points_kernel(indptr, weight, value, room)
    order = np.argsort(-slope, kind="stable")
    point = first[:-1].copy()
    split, filled = climb_kernel(order, rise_class, rise_from, rise_to, w, point, room)
    if split < 0:
        best = math.fsum(v[point])
        return option[point], best, best
    base_value, left = math.fsum(v[point]), max(0.0, room - math.fsum(w[point]))
    if v.max() > (best := math.fsum(v[filled])):
        alone = int(v.argmax())
        filled = first[:-1].copy()
        filled[np.searchsorted(first, alone, side="right") - 1] = alone
        best = math.fsum(v[filled])
    start, end = rise_from[order[split]], rise_to[order[split]]
    price = float(slope[order[split]])
    linear = base_value + (v[end] - v[start]) * (left / (w[end] - w[start]))
    is_whole = linear < EXACT_TOTAL and bool((v == np.floor(v)).all())
    margin = 0.999 if is_whole else ROUNDING * linear
    found, is_done = _grow_core(first, w, v, point, price, left, best - base_value, margin, stop)
    if found is not None:
        filled = found
        best = math.fsum(v[filled])
    return option[filled], best, best if is_done else max(best, linear * (1.0 + FIT))


def _grow_core(
    first: Ints, w: Floats, v: Floats, point: Ints, price: float, room: float, best: float, margin: float,
    stop: Callable[[], bool] | None,
) -> tuple[Ints | None, bool]:  # fmt: skip
    """Return the points of a choice that beats `best`, if there is one, and whether the search has finished."""
    gradients = np.stack(gradients_kernel(first, w, v, point, price, room, best + margin))
    up, down = np.flatnonzero(gradients[0] > 0.0), np.flatnonzero(gradients[1] < np.inf)
    orders = np.full((2, max(up.size, down.size) + 1), -1)
    orders[0, : up.size] = up[np.argsort(-gradients[0, up], kind="stable")]
    orders[1, : down.size] = down[np.argsort(gradients[1, down], kind="stable")]
    states, state_nodes = np.empty((3, 2, MAX_STATES)), np.empty((3, MAX_STATES), np.int64)
    states[0, :, 0], state_nodes[0, 0] = 0.0, -1
    nodes, at = np.empty((2, MAX_NODES), np.int64), np.array([1, 0, -1, 0, 0, 0, 0])
    used, value = np.zeros(point.size, np.bool_), np.array([best])
    status = PAUSED
    while status == PAUSED and not (stop is not None and stop()):
        status = expand_kernel(
            first, w, v, point, orders, gradients, used, states, state_nodes, nodes, at, value, price, room, margin,
            BUDGET,
        )  # fmt: skip
    node = int(at[2])
    if node < 0:
        return None, status == DONE
    found = point.copy()
    while node >= 0:
        node, p = nodes[0, node], nodes[1, node]
        found[np.searchsorted(first, p, side="right") - 1] = p
    return found, status == DONE


def warm_up() -> None:
    """Compile or load every kernel of this module.

    Examples
    --------
    >>> warm_up()
    """
    solve_multiple_choice([0, 2, 4], [2.0, 5.0, 3.0, 4.0], [3.0, 9.0, 4.0, 5.0], 8.0)


def _options(indptr: ArrayLike, weight: ArrayLike, value: ArrayLike) -> tuple[Ints, Floats, Floats]:
    classes, w, v = int_vector("indptr", indptr), float_vector("weight", weight), float_vector("value", value)
    if v.size != w.size:
        raise InvalidProblemError(f"value: got {v.size} entries, expected {w.size}, one per weight")
    require("weight", w, np.isfinite(w) & (w >= 0.0), "a finite number >= 0")
    require("value", v, np.isfinite(v) & (v >= 0.0), "a finite number >= 0")
    if classes.size == 0 or classes[0] != 0 or classes[-1] != w.size or (np.diff(classes) < 0).any():
        raise InvalidProblemError(f"indptr: expected integers that rise from 0 to {w.size}, the number of options")
    return classes, w, v
