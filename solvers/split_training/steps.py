"""The three steps of the descent: batch sizes for given cuts, cuts for given batch sizes, the aggregation interval."""

from collections.abc import Iterator
from typing import Literal

import numpy as np

from edgeopt.solvers.split_training.common import Costs, Floats, Ints

MAX_BOXES = 3000  # threshold boxes per step, over batch sizes or cuts
KICKS = (0.5, 0.67, 0.8, 0.9, 1.1, 1.25, 1.5, 2.0)  # factors on one of the slowest times

BatchUpdate = Literal["dinkelbach", "newton-jacobi"]


def best_batches(
    costs: Costs,
    cut: Ints,
    interval: int,
    batch: Ints | None = None,
    update: BatchUpdate = "dinkelbach",
    max_boxes: int = MAX_BOXES,
) -> tuple[Ints, float]:
    """Return batch sizes for given cuts and their objective, no worse than those of `batch`; inf if there are none.

    Every device must have memory for one sample at its cut. The best real batch sizes lead to good whole ones, which
    branch and bound makes the best, unless `max_boxes` runs out.
    """
    from edgeopt.solvers.kernels.split import whole_batches

    fixed, left, a, d, s, cap = _of_devices(costs, cut, interval)
    real = newton_jacobi if update == "newton-jacobi" else dinkelbach
    _, up, down, ratio = real(fixed, left, costs.noise, a, d, s, cap)
    whole = np.array(cap if batch is None else np.minimum(batch, cap), np.float64)
    if ratio < np.inf:
        ratio, _ = whole_batches(fixed, left, costs.noise, up, down, ratio, a, d, s, cap, whole, max_boxes)
    return whole.astype(np.int64), costs.scale * ratio


def relaxed_point(costs: Costs, cut: Ints, interval: int) -> tuple[float, tuple[float, Ints, Ints, int]]:
    """Return the objective of the best real batch sizes for given cuts, inf if there are none, and these rounded."""
    fixed, left, a, d, s, cap = _of_devices(costs, cut, interval)
    real, _, _, ratio = dinkelbach(fixed, left, costs.noise, a, d, s, cap)
    batch = np.rint(real).astype(np.int64)
    return costs.scale * ratio, (costs.objective(batch, cut, interval), batch, cut, interval)


def _of_devices(costs: Costs, cut: Ints, interval: int) -> tuple[float, float, Floats, Floats, Floats, Floats]:
    """Return what the choice of batch sizes depends on: fixed seconds, rest of the target, and per device a, d, s, cap."""
    device = np.arange(cut.size)
    return (
        costs.aggregation(cut) / interval,
        float(costs.left(interval)[cut.max()]),
        costs.forward[device, cut],
        costs.backward[device, cut],
        costs.server[cut],
        costs.limit_at(cut).astype(np.float64),
    )


def dinkelbach(
    fixed: float, left: float, noise: float, a: Floats, d: Floats, s: Floats, cap: Floats
) -> tuple[Floats, float, float, float]:
    """Return real batch sizes, times up and down, and the ratio: thresholds and batch sizes for one ratio at a time."""
    from edgeopt.solvers.kernels.split import dinkelbach_batches

    batch, up, down, ratio = dinkelbach_batches(fixed, left, noise, a, d, s, cap)
    return batch, float(up), float(down), float(ratio)


def newton_jacobi(
    fixed: float, left: float, noise: float, a: Floats, d: Floats, s: Floats, cap: Floats
) -> tuple[Floats, float, float, float]:
    """Return the same as `dinkelbach`: for one pair of thresholds at a time, batch sizes by HASFL's update.

    The fixed point of the update has F_i = 0, that is b_i^2 = c Num / (s_i Den): Dinkelbach's batch size for the
    ratio Num / Den. So both end at the same batch sizes.
    """
    from edgeopt.solvers.kernels.split import best_thresholds, newton_jacobi_batches, totals

    batch, ratio = cap.copy(), np.inf
    up, down = float((a * cap).max()), float((d * cap).max())
    while True:
        top = np.minimum(np.divide(up, a, out=cap.copy(), where=a > 0), cap)
        np.minimum(top, np.divide(down, d, out=cap.copy(), where=d > 0), out=top)
        trial = np.ones(cap.size) if noise == 0 else np.minimum(batch, top)
        if noise > 0:
            newton_jacobi_batches(fixed, left, noise, up, down, s, np.maximum(top, 1.0), trial, 100)
        seconds, inverse = totals(trial, a, d, s)
        rest = left - noise * inverse
        if rest <= 0 or fixed + seconds >= ratio * rest * (1 - 1e-9):
            return batch, up, down, ratio
        batch, ratio = trial, (fixed + seconds) / rest
        up, down = best_thresholds(ratio * noise, a, d, s, cap)


def best_cuts(
    costs: Costs, batch: Ints, interval: int, cut: Ints, max_boxes: int, tolerance: float
) -> tuple[Ints, float, float]:
    """Return cuts for given batch sizes, no worse than `cut`, with their objective and a lower bound on the best one."""
    from edgeopt.solvers.kernels import split_cuts

    left = costs.left(interval) - costs.noise * float((1 / batch).sum())
    b = batch.astype(np.float64)
    found = cut.copy()
    ratio, bound, _ = split_cuts.best_cuts(
        b[:, None] * costs.forward, b[:, None] * costs.backward, costs.server, b, costs.client_bits,
        costs.fed_up / interval, costs.fed_down / interval, costs.server_up / interval, costs.server_down / interval,
        left, costs.deepest(batch), found, costs.objective(batch, cut, interval) / costs.scale, max_boxes, tolerance,
    )  # fmt: skip
    return found, costs.scale * ratio, costs.scale * bound


def better_pairs(costs: Costs, batch: Ints, cut: Ints, interval: int) -> tuple[Ints, Ints, float]:
    """Return batch sizes and cuts changed together, no worse than those given, and their objective."""
    from edgeopt.solvers.kernels.split_pairs import improve_pairs

    new_batch, new_cut = batch.copy(), cut.copy()
    ratio = improve_pairs(
        new_batch, new_cut, costs.forward, costs.backward, costs.server, costs.limit, costs.client_bits,
        costs.fed_up / interval, costs.fed_down / interval, costs.server_up / interval, costs.server_down / interval,
        costs.left(interval), costs.noise,
    )  # fmt: skip
    return new_batch, new_cut, costs.scale * ratio


def kicked(costs: Costs, batch: Ints, cut: Ints, interval: int) -> Iterator[Ints]:
    """Yield cuts that are best, with free batch sizes, when one of the slowest times is allowed to be another.

    Way up, way down, and the devices' own aggregation up and down, each by a few factors, all for the present ratio.
    """
    from edgeopt.solvers.kernels.split_pairs import choose_pairs, ratio_of

    left, taken = costs.left(interval), np.empty(4)
    fed = costs.fed_up / interval, costs.fed_down / interval, costs.server_up / interval, costs.server_down / interval
    ratio, extra = ratio_of(
        batch, cut, costs.forward, costs.backward, costs.server, costs.client_bits, *fed, left, costs.noise, taken
    )
    price = sum(cost for cost, slowest in zip(fed[2:], taken[2:], strict=True) if extra * cost > slowest)
    for stage in range(4):
        for factor in KICKS:
            allowed = taken.copy()
            allowed[stage] *= factor
            new_batch, new_cut = batch.copy(), cut.copy()
            found = choose_pairs(
                ratio * costs.noise, int(cut.max()), allowed, float(price), costs.forward, costs.backward, costs.server,
                costs.limit, costs.client_bits, fed[0], fed[1], new_batch, new_cut,
            )  # fmt: skip
            if found and (new_cut != cut).any():
                yield new_cut


def best_interval(costs: Costs, batch: Ints, cut: Ints, low: int, high: int) -> tuple[int, float]:
    """Return the best aggregation interval from `low` to `high` for given batch sizes and cuts, and its objective."""
    from edgeopt.solvers.kernels import split

    round_s, aggregation_s = costs.round_and_aggregation(batch, cut)
    noise, drift = costs.noise * float((1 / batch).sum()), float(costs.drift[cut.max()])
    _, interval = split.best_interval(low, high, round_s, aggregation_s, costs.target, noise, drift)
    return int(interval), costs.objective(batch, cut, int(interval))
