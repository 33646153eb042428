"""Minimising the Lagrangian dual: prices on storage whose bound is as low as can be."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edgeopt.solvers.expert_caching.facility import Facility
from edgeopt.solvers.expert_caching.pricing import Prices, Pricing, Stopped

FIRST_STEP = 0.05  # length of a step, relative to the prices at the start
DILATION = 2.5  # space is stretched so much along the difference of two subgradients
SHORTER, LONGER = 0.95, 1.2  # factors of the step length: if the first move already went too far; for every third move
LEAST_PRICE = 0.1  # of the mean: what a lower price is scaled by
NO_GAIN = 1e-3  # of the gap: less than this in as many steps as prices and 10 more is the end


def minimise_dual(
    facility: Facility,
    pricing: Pricing,
    price: NDArray[np.float64],
    max_steps: int,
    on_step: Callable[[int, Prices, Prices], float | None],
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
    """
    now = best = pricing.evaluate(price)
    mean = float(price.mean()) or float(facility.weight.sum() * facility.gain.max(initial=0.0) / facility.size.sum())
    space = np.diag(np.maximum(price, LEAST_PRICE * mean))
    slope, length = _slope(facility, now, price), FIRST_STEP
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


def _slope(facility: Facility, at: Prices, price: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a subgradient [N]: the storage left over; where a price is below zero, one that leads back."""
    slope: NDArray[np.float64] = facility.capacity - at.choice @ facility.size
    return np.where(price < 0, -facility.size.sum(), slope)
