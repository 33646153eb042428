"""Kernels of split training: batch sizes for given cuts, and cuts for given batch sizes.

Batch sizes minimise a ratio of a convex numerator, the seconds of a round, and a concave denominator, what the noise
leaves of the target. For a value ``lam`` of the ratio the numerator less lam times the denominator is convex; given the
slowest times ``up`` and ``down`` that any device may take, each device has a best batch size of its own.
"""

import numpy as np
from numpy.typing import NDArray

from edgeopt.jit import kernel

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

GOLDEN = 0.6180339887498949
SLACK = 1e-12  # relative: a batch size that takes exactly the allowed time is allowed
SEARCH_TOLERANCE = 1e-7  # relative, of the thresholds
PROOF = 1e-10  # relative: a box that may improve the ratio by less is done


@kernel
def respond(
    lam_noise: float, up: float, down: float, a: Floats, d: Floats, s: Floats, cap: Floats, out: Floats
) -> None:
    """Fill `out` with the best real batch size of each device, given the time that it may take each way."""
    for i in range(a.size):
        b = cap[i]
        if s[i] * b * b > lam_noise:
            b = np.sqrt(lam_noise / s[i])
        if a[i] * b > up:
            b = up / a[i]
        if d[i] * b > down:
            b = down / d[i]
        out[i] = max(b, 1.0)


@kernel
def totals(b: Floats, a: Floats, d: Floats, s: Floats) -> tuple[float, float]:
    """Return the seconds of a round, and the sum of 1 / b."""
    up, down, server, inverse = 0.0, 0.0, 0.0, 0.0
    for i in range(b.size):
        up = max(up, a[i] * b[i])
        down = max(down, d[i] * b[i])
        server += s[i] * b[i]
        inverse += 1.0 / b[i]
    return up + down + server, inverse


@kernel
def _best_up(
    lam_noise: float, down: float, low: float, guess: float, a: Floats, d: Floats, s: Floats, want: Floats, room: Floats
) -> tuple[float, float]:
    """Return the best time up for a given time down, and the value of the inner problem there.

    The slope in ``up`` is 1 + sum of (s_i / a_i - lam c a_i / up^2) over the devices that `up` holds back: with these
    fixed it vanishes at a square root. `want` [N] is what a device takes without thresholds, `room` is scratch.
    """
    n = a.size
    high = low
    for i in range(n):
        room[i] = want[i]
        if d[i] * room[i] > down:
            room[i] = max(down / d[i], 1.0)
        high = max(high, room[i] * a[i])
    left, right = low, high
    up = guess if low < guess < high else high
    for _ in range(60):
        if right - left <= SEARCH_TOLERANCE * right:
            break
        slope, inverse = 1.0, 0.0
        for i in range(n):
            if room[i] * a[i] > up:
                slope += s[i] / a[i]
                inverse += a[i]
        if slope > lam_noise * inverse / (up * up):
            right = up
        else:
            left = up
        up = np.sqrt(lam_noise * inverse / slope)
        if not left < up < right:
            up = 0.5 * (left + right)
    value = right + down
    for i in range(n):
        b = room[i]
        if a[i] * b > right:
            b = right / a[i]
        b = max(b, 1.0)
        value += s[i] * b + lam_noise / b
    return right, value


@kernel
def best_thresholds(lam_noise: float, a: Floats, d: Floats, s: Floats, cap: Floats) -> tuple[float, float]:
    """Return the times up and down that minimise the inner problem: golden section over one, slopes over the other."""
    n = a.size
    want, room = np.empty(n), np.empty(n)
    low_up, low, high = 0.0, 0.0, 0.0
    for i in range(n):
        want[i] = cap[i]
        if s[i] * cap[i] * cap[i] > lam_noise:
            want[i] = max(np.sqrt(lam_noise / s[i]), 1.0)
        low_up = max(low_up, a[i])
        low = max(low, d[i])
        high = max(high, d[i] * want[i])
    x, y = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    up_x, value_x = _best_up(lam_noise, x, low_up, 0.0, a, d, s, want, room)
    up_y, value_y = _best_up(lam_noise, y, low_up, up_x, a, d, s, want, room)
    while high - low > SEARCH_TOLERANCE * high:
        if value_x <= value_y:
            high, y, up_y, value_y = y, x, up_x, value_x
            x = high - GOLDEN * (high - low)
            up_x, value_x = _best_up(lam_noise, x, low_up, up_y, a, d, s, want, room)
        else:
            low, x, up_x, value_x = x, y, up_y, value_y
            y = low + GOLDEN * (high - low)
            up_y, value_y = _best_up(lam_noise, y, low_up, up_x, a, d, s, want, room)
    up, value = _best_up(lam_noise, high, low_up, up_y, a, d, s, want, room)
    return (up, high) if value <= min(value_x, value_y) else (up_y, y)


@kernel
def dinkelbach_batches(
    fixed: float, left: float, noise: float, a: Floats, d: Floats, s: Floats, cap: Floats
) -> tuple[Floats, float, float, float]:
    """Return the best real batch sizes for given cuts, the times up and down that bound them, and the least ratio.

    Minimises (fixed + max a b + sum s b + max d b) / (left - noise sum 1 / b) over 1 <= b <= cap. The ratio is inf if no
    b makes the denominator positive.
    """
    b, trial = cap.copy(), cap.copy()
    up, down, lam, equal, top = 0.0, 0.0, np.inf, 1.0, cap.max()
    while equal < 2.0 * top:  # equal batch sizes are a good first guess of the ratio, and the largest ones a safe one
        for i in range(a.size):
            trial[i] = min(equal, cap[i])
        seconds, inverse = totals(trial, a, d, s)
        rest = left - noise * inverse
        if rest > 0.0 and fixed + seconds < lam * rest:
            lam = (fixed + seconds) / rest
            b[:] = trial
        equal *= 2.0
    if lam == np.inf:
        return b, up, down, lam
    for i in range(a.size):
        up, down = max(up, a[i] * b[i]), max(down, d[i] * b[i])
    for _ in range(60):
        new_up, new_down = best_thresholds(lam * noise, a, d, s, cap)
        respond(lam * noise, new_up, new_down, a, d, s, cap, trial)
        seconds, inverse = totals(trial, a, d, s)
        rest = left - noise * inverse
        if rest <= 0.0 or fixed + seconds >= lam * rest * (1.0 - 1e-9):
            break
        b[:] = trial
        up, down, lam = new_up, new_down, (fixed + seconds) / rest
    return b, up, down, lam


@kernel
def newton_jacobi_batches(
    fixed: float, left: float, noise: float, up: float, down: float, s: Floats, top: Floats, b: Floats, steps: int
) -> int:
    """Move `b` to the best real batch sizes for given times up and down, in place; return the steps it took.

    HASFL's update: all devices at once, each by a Newton step on the derivative of the ratio with numerator and
    denominator frozen, b_i - F_i b_i^3 / (2 c Num) with F_i = s_i Den - c Num / b_i^2, clipped to [1, top_i]. `top` is
    the smallest of up / a_i, down / d_i and the memory's limit. Where the denominator is not positive, all go to `top`.
    """
    for step in range(steps):
        server, inverse = 0.0, 0.0
        for i in range(b.size):
            server += s[i] * b[i]
            inverse += 1.0 / b[i]
        numerator, denominator = fixed + up + down + server, left - noise * inverse
        moved = 0.0
        for i in range(b.size):
            new = top[i]
            if denominator > 0.0:
                slope = s[i] * denominator - noise * numerator / (b[i] * b[i])
                new = b[i] - slope * b[i] ** 3 / (2.0 * noise * numerator)
                # far above the root the step would jump below zero: halve instead
                new = min(max(new, 0.5 * b[i], 1.0), top[i])
            moved = max(moved, abs(new - b[i]) / b[i])
            b[i] = new
        if moved < 1e-12:
            return step + 1
    return steps


@kernel
def best_whole(lam_noise: float, server: float) -> float:
    """Return the whole number b >= 1 that minimises b server + lam_noise / b; inf where nothing limits it."""
    if server <= 0.0:
        return np.inf if lam_noise > 0.0 else 1.0
    b = max(float(np.floor(np.sqrt(lam_noise / server))), 1.0)
    return b + 1.0 if server * b * (b + 1.0) < lam_noise else b  # one more sample costs less than it gains


@kernel
def _want_whole(lam_noise: float, s: Floats, cap: Floats, out: Floats) -> None:
    """Fill `out` with the best whole batch size of each device without thresholds."""
    for i in range(s.size):
        out[i] = min(best_whole(lam_noise, s[i]), cap[i])


@kernel
def best_interval(
    low: int, high: int, round_s: float, transfer_s: float, target: float, noise: float, drift: float
) -> tuple[float, int]:
    """Return the least (round_s + transfer_s / I) / Den over the aggregation intervals I from `low` to `high`, and I.

    Den is target - drift I^2 - noise, without the drift for I = 1; the ratio is inf if Den is never positive. From an
    interval of 2 on it falls and then rises: the quotient of a convex and a positive concave function.
    """
    best, interval = np.inf, low
    if low == 1 and target - noise > 0.0:
        best, interval = (round_s + transfer_s) / (target - noise), 1
    low = max(2, low)
    while low <= high:
        middle = (low + high) // 2
        den = target - drift * (middle * middle) - noise
        ratio = (round_s + transfer_s / middle) / den if den > 0.0 else np.inf
        if ratio < best:
            best, interval = ratio, middle
        after = target - drift * ((middle + 1) * (middle + 1)) - noise
        if after > 0.0 and (round_s + transfer_s / (middle + 1)) / after < ratio:
            low = middle + 1
        else:
            high = middle - 1
    return best, interval


@kernel
def _respond_whole(
    want: Floats, up: float, down: float, a: Floats, d: Floats, s: Floats, out: Floats
) -> tuple[float, float, float, float]:
    """Fill `out` with the best whole batch sizes, given the time that each device may take each way, at least 1.

    Returns the slowest times up and down, the server's time and the sum of 1 / b.
    """
    slowest_up, slowest_down, server, inverse = 0.0, 0.0, 0.0, 0.0
    for i in range(want.size):
        b = want[i]
        if a[i] * b > up:
            b = np.floor(up / a[i] * (1.0 + SLACK))
        if d[i] * b > down:
            b = np.floor(down / d[i] * (1.0 + SLACK))
        b = max(b, 1.0)
        out[i] = b
        slowest_up, slowest_down = max(slowest_up, a[i] * b), max(slowest_down, d[i] * b)
        server += s[i] * b
        inverse += 1.0 / b
    return slowest_up, slowest_down, server, inverse


@kernel
def sift(heap: Ints, key: Floats, size: int, place: int) -> None:
    """Move the box at `place` of the heap to where its key belongs, the least first."""
    box = heap[place]
    while place > 0 and key[box] < key[heap[(place - 1) // 2]]:
        heap[place] = heap[(place - 1) // 2]
        place = (place - 1) // 2
    while True:
        child = 2 * place + 1
        if child + 1 < size and key[heap[child + 1]] < key[heap[child]]:
            child += 1
        if child >= size or key[heap[child]] >= key[box]:
            break
        heap[place] = heap[child]
        place = child
    heap[place] = box


@kernel
def whole_batches(
    fixed: float, left: float, noise: float, up: float, down: float, lam: float,
    a: Floats, d: Floats, s: Floats, cap: Floats, b: Floats, max_boxes: int,
) -> tuple[float, int]:  # fmt: skip
    """Improve whole batch sizes `b` in place; return their ratio and the boxes examined.

    The thresholds `up` and `down` and the ratio `lam` of real batch sizes give a first plan. Then branch and bound over
    the two thresholds: in a box of them, each device's best whole batch size at the upper corner, with the times at the
    lower corner, bounds numerator - ratio denominator from below, and has a ratio of its own. A bound stays valid when
    the ratio to beat falls. Best first, until no box may beat the ratio or `max_boxes` have been examined.
    """
    n = a.size
    trial, want = np.empty(n), np.empty(n)
    low, high = np.empty((max_boxes + 2, 2)), np.empty((max_boxes + 2, 2))
    key, heap = np.empty(max_boxes + 2), np.empty(max_boxes + 2, np.int64)
    best = np.inf
    for guess in range(3):
        if guess == 0:
            trial[:] = b
        elif guess == 1:
            trial[:] = cap
        elif best < np.inf:
            _want_whole(min(lam, best) * noise, s, cap, want)
            _respond_whole(want, up, down, a, d, s, trial)
        seconds, inverse = totals(trial, a, d, s)
        rest = left - noise * inverse
        if rest > 0.0 and fixed + seconds < best * rest:
            best = (fixed + seconds) / rest
            b[:] = trial
    if best == np.inf:
        return best, 0
    _want_whole(best * noise, s, cap, want)
    low[0], high[0] = 0.0, np.inf
    for i in range(n):
        low[0, 0], low[0, 1] = max(low[0, 0], a[i]), max(low[0, 1], d[i])
    size, used, examined = 0, 0, 0
    split, middle = -1, 0.0
    first, last = 0, 1
    while True:
        for box in range(first, last):
            if split >= 0:
                if box == first:
                    high[box, split] = middle
                else:  # the next time above the middle that some device takes
                    following = np.inf
                    for i in range(n):
                        cost = a[i] if split == 0 else d[i]
                        if cost > 0.0:
                            b_i = np.floor(middle / cost * (1.0 + SLACK)) + 1.0
                            if b_i <= cap[i]:
                                following = min(following, cost * b_i)
                    if following > high[box, split] * (1.0 + SLACK):
                        continue
                    low[box, split] = following
            examined += 1
            up, down, server, inverse = _respond_whole(want, high[box, 0], high[box, 1], a, d, s, trial)
            rest = left - noise * inverse
            bound = fixed + low[box, 0] + low[box, 1] + server - best * rest
            scale = best * left
            if rest > 0.0 and fixed + up + down + server < best * rest:
                best = (fixed + up + down + server) / rest
                b[:] = trial
                _want_whole(best * noise, s, cap, want)
            # smaller thresholds give smaller batches: no plan of the box takes longer than this one
            high[box, 0], high[box, 1] = max(up, low[box, 0]), max(down, low[box, 1])
            if bound < -PROOF * scale and (up > low[box, 0] or down > low[box, 1]):
                if used < box:
                    low[used], high[used] = low[box], high[box]
                key[used] = bound
                heap[size] = used
                size, used = size + 1, used + 1
                sift(heap, key, size, size - 1)
        if size == 0 or examined >= max_boxes - 1:
            return best, examined
        parent = heap[0]
        size -= 1
        heap[0] = heap[size]
        if size:
            sift(heap, key, size, 0)
        split = 0 if high[parent, 0] - low[parent, 0] >= high[parent, 1] - low[parent, 1] else 1
        middle = 0.5 * (low[parent, split] + high[parent, split])
        first, last = used, used + 2
        for box in range(first, last):
            low[box], high[box] = low[parent], high[parent]
