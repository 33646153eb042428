"""Kernel of split training: batch size and cut of every device at once, for given slowest times."""

import numpy as np
from numpy.typing import NDArray

from edgeopt.jit import kernel
from edgeopt.solvers.kernels.split import best_whole

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SLACK = 1e-12  # relative: a batch that takes exactly the allowed time is allowed
FACTORS = (2.0, 1.5, 1.25, 1.1, 1.05, 1.02)  # by which the times allowed are changed, the large ones first


@kernel
def ratio_of(
    batch: Ints, cut: Ints, a: Floats, d: Floats, server: Floats, bits: Floats, fed_up: Floats, fed_down: Floats,
    server_up: float, server_down: float, left: Floats, noise: float, taken: Floats,
) -> tuple[float, float]:  # fmt: skip
    """Return seconds per round over what is left of the target, inf if nothing is, and the extra bits of the server.

    `taken` [4] becomes the slowest times: way up, way down, and each device's own aggregation up and down.
    """
    taken[:] = 0.0
    deepest, inverse, seconds = 0, 0.0, 0.0
    for i in range(batch.size):
        k, b = cut[i], batch[i]
        deepest = max(deepest, k)
        inverse += 1.0 / b
        seconds += b * server[k]
        taken[0], taken[1] = max(taken[0], b * a[i, k]), max(taken[1], b * d[i, k])
        taken[2], taken[3] = max(taken[2], bits[k] * fed_up[i]), max(taken[3], bits[k] * fed_down[i])
    extra = 0.0
    for i in range(batch.size):
        extra += bits[deepest] - bits[cut[i]]
    rest = left[deepest] - noise * inverse
    if rest <= 0.0:
        return np.inf, extra
    seconds += taken[0] + taken[1] + max(taken[2], extra * server_up) + max(taken[3], extra * server_down)
    return seconds / rest, extra


@kernel
def choose_pairs(
    lam_noise: float, deepest: int, allowed: Floats, price: float, a: Floats, d: Floats, server: Floats, limit: Ints,
    bits: Floats, fed_up: Floats, fed_down: Floats, batch: Ints, cut: Ints,
) -> bool:  # fmt: skip
    """Fill `batch` and `cut` with each device's best pair within the times `allowed` [4]; return whether all have one.

    Best is least in b s(l) + lam c / b + price (bits to the deepest cut): the inner problem of the ratio falls apart
    into devices once the slowest times are given.
    """
    most = np.empty(deepest + 1)  # the best batch size without limits, at each cut
    for k in range(deepest + 1):
        most[k] = best_whole(lam_noise, server[k])
    for i in range(batch.size):
        least = np.inf
        for k in range(deepest, -1, -1):
            if bits[k] * fed_up[i] > allowed[2] or bits[k] * fed_down[i] > allowed[3]:
                continue
            b = min(most[k], limit[i, k])
            if a[i, k] * b > allowed[0]:
                b = np.floor(allowed[0] / a[i, k] * (1.0 + SLACK))
            if d[i, k] * b > allowed[1]:
                b = np.floor(allowed[1] / d[i, k] * (1.0 + SLACK))
            if b < 1.0:
                continue
            value = b * server[k] + lam_noise / b + price * (bits[deepest] - bits[k])
            if value < least:
                least = value
                batch[i] = np.int64(b)
                cut[i] = k
        if least == np.inf:
            return False
    return True


@kernel
def improve_pairs(
    batch: Ints, cut: Ints, a: Floats, d: Floats, server: Floats, limit: Ints, bits: Floats, fed_up: Floats,
    fed_down: Floats, server_up: float, server_down: float, left: Floats, noise: float,
) -> float:  # fmt: skip
    """Improve batch sizes and cuts in place by pattern search over the times allowed; return their ratio.

    The times allowed are the present ones, changed by a factor for the way up, the way down, both alike or against one
    another, those of the aggregation alike, or the deepest cut by one. Every device then takes its best pair.
    """
    taken, allowed = np.empty(4), np.empty(4)
    new_batch, new_cut = batch.copy(), cut.copy()
    best, extra = ratio_of(batch, cut, a, d, server, bits, fed_up, fed_down, server_up, server_down, left, noise, taken)
    if best == np.inf:
        return best
    present = taken.copy()
    for factor in FACTORS:
        improved = True
        while improved:
            improved = False
            for move in range(13):
                deepest = 0
                for i in range(cut.size):
                    deepest = max(deepest, cut[i])
                allowed[:] = present
                f = factor if move % 2 == 0 else 1.0 / factor
                if move in (0, 1, 4, 5, 6, 7):
                    allowed[0] *= f
                if move in (2, 3, 4, 5):
                    allowed[1] *= f
                if move in (6, 7):
                    allowed[1] /= f
                if move in (8, 9):
                    allowed[2] *= f
                    allowed[3] *= f
                if move in (10, 11):
                    deepest += 1 if move == 10 else -1
                    if move == 10:
                        allowed[2:] = np.inf
                if not 0 <= deepest < server.size or left[deepest] <= 0.0:
                    continue
                price = 0.0  # of a bit that the edge server passes on, where it is what an aggregation waits for
                if extra * server_up > present[2]:
                    price += server_up
                if extra * server_down > present[3]:
                    price += server_down
                if not choose_pairs(
                    best * noise, deepest, allowed, price, a, d, server, limit, bits, fed_up, fed_down, new_batch,
                    new_cut,
                ):  # fmt: skip
                    continue
                ratio, new_extra = ratio_of(
                    new_batch, new_cut, a, d, server, bits, fed_up, fed_down, server_up, server_down, left, noise, taken
                )
                if ratio < best * (1.0 - 1e-9):
                    best, extra, improved = ratio, new_extra, True
                    present[:] = taken
                    batch[:] = new_batch
                    cut[:] = new_cut
    return best
