"""Minimising the Lagrangian dual: prices on storage whose bound is as low as can be."""

import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edgeopt.solvers.expert_caching.common import Stopped
from edgeopt.solvers.expert_caching.facility import Facility
from edgeopt.solvers.expert_caching.pricing import AscentPricing, Prices, Pricing

FIRST_STEP = 0.05  # length of a step, relative to the prices at the start
NEAR_STEP = 0.01  # the same from prices of a sample
DILATION = 2.5  # space is stretched so much along the difference of two subgradients
SHORTER, LONGER = 0.95, 1.2  # factors of the step length: if the first move already went too far; for every third move
LEAST_PRICE = 0.1  # of the mean: what a lower price is scaled by
SAMPLE, SAMPLE_STEPS = 500, 60  # experts, and steps on them
NO_GAIN = 1e-3  # of the gap: less than this in as many steps as prices and 10 more is the end


def minimise_dual(
    facility: Facility,
    pricing: Pricing,
    price: NDArray[np.float64],
    max_steps: int,
    on_step: Callable[[int, Prices, Prices], float | None],
    first_step: float = FIRST_STEP,
) -> Prices:
    """Return the best dual point found by Shor's r-algorithm: subgradient steps in a space that is stretched on the way.

    A step goes downhill as long as the slope along it is negative, then space is stretched along the difference
    of the subgradients before and after it, along which the dual zigzags. Prices that all move together, where storage is
    nearly enough for everything, are what plain subgradient steps find only slowly. Below zero the dual continues
    with a slope that leads back; every point evaluated has prices >= 0, so that its bound is valid.

    Sources: Shor 1985 (r-algorithm), Stetsyuk 2014 (step lengths). O(N^2) per step besides the evaluation.

    Parameters
    ----------
    facility, pricing : the problem and how its subproblem is solved.
    price : float64 [N], where to start.
    max_steps : most steps. An evaluation that is stopped on the way is the last one; the first raises `Stopped` then.
    on_step : called before each step with its number, the present point and the best so far; returns the value of the
        best known placement, or None to stop.
    first_step : length of the first step, relative to the prices.
    """
    now = best = pricing.evaluate(price)
    mean = float(price.mean()) or float(facility.weight.sum() * facility.gain.max(initial=0.0) / facility.size.sum())
    space = np.diag(np.maximum(price, LEAST_PRICE * mean))
    slope, length = _slope(facility, now, price), first_step
    old, moves, direction = best.bound, 0, np.zeros_like(price)
    for step in range(1, max_steps + 1):
        lower = on_step(step, now, best)
        if lower is None:
            break
        if step % (price.size + 10) == 0:
            if old - best.bound <= NO_GAIN * max(best.bound - lower, 1e-9 * abs(best.bound)):
                break
            old = best.bound
        if not moves:
            downhill = space.T @ slope
            if not (norm := float(np.linalg.norm(downhill))):
                break
            direction = -space @ downhill / norm
        price = price + length * direction
        moves += 1
        try:
            now = pricing.evaluate(np.maximum(price, 0.0))
        except Stopped:
            break
        if now.bound < best.bound:
            best = now
        after = _slope(facility, now, price)
        if moves % 3 == 0:
            length *= LONGER
        if float(direction @ after) < 0:
            continue
        if moves == 1:
            length *= SHORTER
        turn = space.T @ (after - slope)
        if norm := float(np.linalg.norm(turn)):
            space += (1 / DILATION - 1) * np.outer(space @ (turn / norm), turn / norm)
        slope, moves = after, 0
    return best


def sampled_prices(
    facility: Facility,
    price: NDArray[np.float64],
    cached: NDArray[np.bool_],
    stopped: Callable[[], bool],
    on_step: Callable[[], float | None],
) -> NDArray[np.float64]:
    """Return nearly the best prices [N] from every so many experts, of each model by falling use, with their share of storage.

    Prices are the same for all experts, so that few of them tell them: a step costs that much less, and the bound is
    second order in what the prices are off. Few experts, or a table, need no sample: returns `price` then.

    Parameters
    ----------
    facility, price, cached : the problem, prices [N] to start from and a placement [N, E] to search subsets from.
    stopped : looked at during evaluations; `Stopped` is raised if the first one is stopped.
    on_step : called before each step; returns the value of a placement, or None to stop.
    """
    every = facility.num_experts // SAMPLE
    if every < 2:
        return price
    by_use = np.lexsort((-facility.weight.sum(axis=1), facility.model))
    some = by_use[every // 2 :: every]
    bytes_share = float(facility.size[some].sum() / facility.size.sum())
    weight = facility.weight[some]
    value_share = float(weight.sum() / max(facility.weight.sum(), np.finfo(float).tiny))
    sample = dataclasses.replace(
        facility, weight=weight, model=facility.model[some], size=facility.size[some],
        units=facility.units[some], capacity=facility.capacity * bytes_share,
    )  # fmt: skip
    pricing = AscentPricing(sample, stopped)
    pricing.start_from(np.ascontiguousarray(cached[:, some]))

    def lower(*_: object) -> float | None:
        value = on_step()
        return None if value is None else value * value_share

    return minimise_dual(sample, pricing, price, SAMPLE_STEPS, lower).price


def _slope(facility: Facility, at: Prices, price: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a subgradient [N]: the storage left over; where a price is below zero, one that leads back."""
    slope: NDArray[np.float64] = facility.capacity - at.choice @ facility.size
    return np.where(price < 0, -facility.size.sum(), slope)
