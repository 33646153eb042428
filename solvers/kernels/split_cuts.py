"""Kernel of split training: the best cuts for given batch sizes, by branch and bound over the slowest times."""

import numpy as np
from numpy.typing import NDArray

from edgeopt.jit import kernel
from edgeopt.solvers.kernels.split import sift

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MAX = 4  # thresholds of a box: way up, way down, aggregation up, aggregation down


@kernel
def _probe(
    deepest: int, a: Floats, d: Floats, bits: Floats, fed_up: Floats, fed_down: Floats, deep: Ints, raised: int,
    low: Floats, high: Floats, cut: Ints, taken: Floats,
) -> bool:  # fmt: skip
    """Choose the deepest allowed cut of each device under the thresholds `high`; return whether that is a plan.

    `taken` becomes the largest times of these cuts. `low` rises to what any plan within the box takes: each device at
    least its least allowed time; and the threshold that was just `raised` (-1 for none) to the next time that any
    device can take. A plan must reach the deepest cut itself, else it belongs to a box of another deepest cut.
    """
    taken[:] = 0.0
    reached, following = False, np.inf
    for i in range(a.shape[0]):
        chosen, least_a, least_d, first = -1, np.inf, np.inf, -1
        for k in range(min(deepest, deep[i]) + 1):
            if bits[k] * fed_up[i] > high[2] or bits[k] * fed_down[i] > high[3]:
                break
            if a[i, k] > high[0] or d[i, k] > high[1]:
                continue
            chosen = k
            if first < 0:
                first = k
            least_a, least_d = min(least_a, a[i, k]), min(least_d, d[i, k])
            if raised >= 0:
                if raised == 0:
                    time = a[i, k]
                elif raised == 1:
                    time = d[i, k]
                else:
                    time = bits[k] * (fed_up[i] if raised == 2 else fed_down[i])
                if low[raised] <= time < following:
                    following = time
        if chosen < 0:
            return False
        cut[i] = chosen
        reached |= chosen == deepest
        low[0], low[1] = max(low[0], least_a), max(low[1], least_d)
        low[2], low[3] = max(low[2], bits[first] * fed_up[i]), max(low[3], bits[first] * fed_down[i])
        taken[0], taken[1] = max(taken[0], a[i, chosen]), max(taken[1], d[i, chosen])
        taken[2] = max(taken[2], bits[chosen] * fed_up[i])
        taken[3] = max(taken[3], bits[chosen] * fed_down[i])
    if raised >= 0:
        if following == np.inf:
            return False
        low[raised] = max(low[raised], following)
    return reached


@kernel
def best_cuts(
    a: Floats, d: Floats, server: Floats, batch: Floats, bits: Floats, fed_up: Floats, fed_down: Floats,
    server_up: float, server_down: float, left: Floats, deep: Ints, cut: Ints, best: float, max_boxes: int,
    tolerance: float,
) -> tuple[float, float, int]:  # fmt: skip
    """Improve the cuts in place; return their ratio, a lower bound on the best one, and the boxes examined.

    Minimises (max a + sum batch server + max d + max(max bits fed_up, extra server_up) + the same down) / left[deepest]
    over the cuts 0..deep of each device. For a deepest cut and a threshold on each of the four maxima, each device's
    deepest allowed cut is best: the server's work and the extra bits fall with it. A box is a range of thresholds: its
    upper corner gives a plan and, with the lower corner's maxima, a bound. Best first, until no box may be better than
    `best` by more than `tolerance` (relative) or `max_boxes` have been examined.

    Parameters
    ----------
    a, d : float64 [N, L], seconds of each device's batch each way.
    server : float64 [L], seconds per sample at the server.
    batch : float64 [N].
    bits : float64 [L], bits of the devices' part.
    fed_up, fed_down, server_up, server_down : seconds per bit of an aggregation, divided by the interval.
    left : float64 [L], the denominator for each deepest cut; not positive if that is too deep.
    deep : int64 [N], deepest cut with enough memory.
    cut : int64 [N], cuts to start from, overwritten by the best.
    best : ratio of these cuts, maybe inf.
    """
    num_devices, num_layers = a.shape
    space = 2 * max_boxes + num_layers + 2
    low, high, took = np.empty((space, MAX)), np.empty((space, MAX)), np.empty((space, MAX))
    layer, key, extra_s = np.empty(space, np.int64), np.empty(space), np.empty(space)
    heap = np.empty(space, np.int64)
    trial = np.empty(num_devices, np.int64)
    size, used, examined = 0, 0, 0
    parent, split, middle = -1, 0, 0.0
    root = 0
    while True:
        # two children of the box in hand, or the next deepest cut
        if parent >= 0:
            first, last = used, used + 2
        elif root < num_layers:
            first, last = used, used + 1
        else:
            if size == 0 or key[heap[0]] >= best * (1.0 - tolerance) or examined >= max_boxes:
                break
            parent = heap[0]
            size -= 1
            heap[0] = heap[size]
            if size:
                sift(heap, key, size, 0)
            split, gap = -1, 0.0
            for t in range(MAX):
                upper, lower = took[parent, t], low[parent, t]
                if t >= 2:  # below the edge server's own time a threshold costs nothing
                    floor = extra_s[parent] * (server_up if t == 2 else server_down)
                    upper, lower = max(upper, floor), max(lower, floor)
                if upper - lower > gap:
                    split, gap = t, upper - lower
            if split < 0:  # its plan attains its bound
                parent = -1
                continue
            middle = 0.5 * (low[parent, split] + took[parent, split])
            first, last = used, used + 2
        for box in range(first, last):
            if parent >= 0:
                low[box], high[box], layer[box] = low[parent], high[parent], layer[parent]
                if box == first:
                    high[box, split] = middle
                else:
                    low[box, split] = np.nextafter(middle, np.inf)
            else:
                low[box], high[box], layer[box] = 0.0, np.inf, root
                root += 1
                if left[layer[box]] <= 0.0:
                    continue
            examined += 1
            deepest = layer[box]
            raised = split if parent >= 0 and box > first else -1
            if not _probe(deepest, a, d, bits, fed_up, fed_down, deep, raised, low[box], high[box], trial, took[box]):
                continue
            seconds, extra = 0.0, 0.0
            for i in range(num_devices):
                seconds += batch[i] * server[trial[i]]
                extra += bits[deepest] - bits[trial[i]]
            extra_s[box] = extra
            value = seconds + took[box, 0] + took[box, 1]
            value += max(took[box, 2], extra * server_up) + max(took[box, 3], extra * server_down)
            if value / left[deepest] < best:
                best = value / left[deepest]
                cut[:] = trial
            bound = seconds + low[box, 0] + low[box, 1]
            bound += max(low[box, 2], extra * server_up) + max(low[box, 3], extra * server_down)
            if bound / left[deepest] < best * (1.0 - tolerance):
                if used < box:  # the first child was dropped: close the gap
                    low[used], high[used], took[used] = low[box], high[box], took[box]
                    layer[used], extra_s[used] = layer[box], extra_s[box]
                key[used] = bound / left[deepest]
                heap[size] = used
                size += 1
                used += 1
                sift(heap, key, size, size - 1)
        parent = -1
    bound = best * (1.0 - tolerance)
    if size and key[heap[0]] < bound:
        bound = key[heap[0]]
    return best, bound, examined
