"""Block coordinate descent over batch sizes, cuts and the aggregation interval, and starts that reach the target."""

from collections.abc import Iterator

import numpy as np

from edgeopt.problems import SplitPlan, SplitTraining
from edgeopt.solve import Run
from edgeopt.solvers.split_training.common import Costs, Ints, offer_feasible, plan_of
from edgeopt.solvers.split_training.steps import (
    MAX_BOXES,
    BatchUpdate,
    best_batches,
    best_cuts,
    best_interval,
    better_pairs,
    kicked,
    relaxed_point,
)

Point = tuple[float, Ints, Ints, int]
"""Objective, batch sizes, cuts counted from 0, aggregation interval."""

LEAST_GAIN = 1e-9  # relative: less than that is no progress
TOLERANCE = 1e-4  # relative, of a step over cuts


def descend(
    costs: Costs,
    problem: SplitTraining,
    point: Point,
    *,
    cuts: bool = True,
    batches: bool = True,
    joint: bool = False,
    max_boxes: int = MAX_BOXES,
    tolerance: float = TOLERANCE,
    batch_update: BatchUpdate = "dinkelbach",
    seen: set[bytes] | None = None,
) -> Iterator[Point]:
    """Yield the start and the point after each step, none worse than the one before, until a round brings nothing.

    Parameters
    ----------
    cuts, batches : the blocks that move; the interval does where the problem leaves it open.
    joint : where these bring nothing, change batch sizes and cuts together.
    max_boxes, tolerance, batch_update : see `Hasfl`.
    seen : points of other descents; where one of them comes by again, this descent ends, since it would only follow.
    """
    seen = set() if seen is None else seen
    yield point
    while True:
        before, batch, cut, interval = point
        if (key := batch.tobytes() + cut.tobytes() + interval.to_bytes(4)) in seen:
            return
        seen.add(key)
        value = before
        if batches:
            batch, value = best_batches(costs, cut, interval, batch, batch_update, max_boxes)
            yield value, batch, cut, interval
        if cuts:
            cut, value, _ = best_cuts(costs, batch, interval, cut, max_boxes, tolerance)
            yield value, batch, cut, interval
        if problem.min_interval < problem.max_interval:
            interval, value = best_interval(costs, batch, cut, problem.min_interval, problem.max_interval)
            yield value, batch, cut, interval
        if joint and value >= before * (1 - LEAST_GAIN):
            batch, cut, value = better_pairs(costs, batch, cut, interval)
            yield value, batch, cut, interval
        if value >= before * (1 - LEAST_GAIN):
            return
        point = value, batch, cut, interval


def kick(costs: Costs, point: Point, batch_update: BatchUpdate, max_boxes: int) -> Point | None:
    """Return the first better point with the cuts of a kick and the best batch sizes for them, None if there is none."""
    value, batch, cut, interval = point
    tried: set[bytes] = set()
    for new_cut in kicked(costs, batch, cut, interval):
        if (key := new_cut.tobytes()) in tried:
            continue
        tried.add(key)
        if relaxed_point(costs, new_cut, interval)[0] >= value:
            continue
        new_batch, new_value = best_batches(costs, new_cut, interval, None, batch_update, max_boxes)
        if new_value < value * (1 - LEAST_GAIN):
            return new_value, new_batch, new_cut, interval
    return None


def follow(run: Run[SplitPlan], points: Iterator[Point]) -> None:
    """Offer the points of a descent until a limit is reached, the first plan in any case; one iteration each."""
    for value, batch, cut, interval in points:
        if value < (
            np.inf if run.objective is None else run.objective
        ):  # asking the problem takes longer than many a step
            offer_feasible(run, plan_of(batch, cut, interval))
        if not run.step() and run.solution is not None:
            return


def repaired(costs: Costs, problem: SplitTraining, batch: Ints, cut: Ints) -> Point | None:
    """Return batch sizes and cuts that fit the memory and reach the target, changed as little as that takes.

    Batches shrink to the memory. If the bound misses the target, they double up to it, and then cuts become shallower
    by one, again and again: the end of that road reaches every target that can be reached. None if there is none.
    """
    cut = np.minimum(cut, costs.deepest(np.ones_like(cut)))
    while True:
        batch = np.minimum(batch, costs.limit_at(cut))
        interval, value = best_interval(costs, batch, cut, problem.min_interval, problem.max_interval)
        if value < np.inf:
            return value, batch, cut, interval
        if (batch < costs.limit_at(cut)).any():
            batch = 2 * batch
        elif cut.any():
            cut = np.maximum(cut - 1, 0)
            batch = costs.limit_at(cut)
        else:
            return None


def doubled(costs: Costs, number: int) -> Iterator[Ints]:
    """Yield one batch size for all, twice that and so on, up to what each device's memory takes at cut 0."""
    most = costs.limit[:, 0]
    while True:
        yield np.minimum(number, most)
        if number >= most.max():
            return
        number *= 2


def at_uniform_cuts(costs: Costs, problem: SplitTraining, batch: Ints) -> Iterator[Point]:
    """Yield given batch sizes at every cut, the same for all that have the memory, with the best interval for each."""
    deepest = costs.deepest(batch)
    for k in range(int(deepest.max()) + 1):
        cut = np.minimum(k, deepest)
        interval, value = best_interval(costs, batch, cut, problem.min_interval, problem.max_interval)
        yield value, batch, cut, interval


def uniform(costs: Costs, number: int) -> Ints:
    """Return int64 [N] full of one number."""
    return np.full(costs.num_devices, number, np.int64)


def middle(costs: Costs, cut: int | None) -> Ints:
    """Return int64 [N], counted from 0: the given layer, counted from 1, at most L, or the middle one."""
    return uniform(costs, (costs.num_layers - 1) // 2 if cut is None else min(cut, costs.num_layers) - 1)
