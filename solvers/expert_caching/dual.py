"""Minimising the Lagrangian dual: prices on storage whose bound is as low as can be."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edgeopt.solvers.expert_caching.facility import Facility
from edgeopt.solvers.expert_caching.pricing import Prices, Pricing, Stopped

MOMENTUM = 0.6
AIM = 0.2  # share of the gap that a step aims below the best bound
PATIENCE = 3  # steps without a better bound until the step length is halved
SMALLEST_STEP = 1e-3


def minimise_dual(
    facility: Facility,
    pricing: Pricing,
    price: NDArray[np.float64],
    max_steps: int,
    on_step: Callable[[int, Prices, Prices], float | None],
) -> Prices:
    """Return the best dual point found by a deflected subgradient method with Polyak steps.

    Parameters
    ----------
    facility, pricing : the problem and how its subproblem is solved.
    price : float64 [N], where to start.
    max_steps : most steps. An evaluation that is stopped on the way is the last one; the first raises `Stopped` then.
    on_step : called before each step with its number, the present point and the best so far; returns the value of the
        best known placement, or None to stop.
    """
    now = best = pricing.evaluate(price)
    direction = np.zeros_like(price)
    scale, stale = 1.0, 0
    for step in range(1, max_steps + 1):
        lower = on_step(step, now, best)
        if lower is None or scale < SMALLEST_STEP:
            break
        slack = facility.capacity - now.choice @ facility.size
        direction = slack + MOMENTUM * direction
        direction[(price <= 0) & (direction > 0)] = 0.0
        if not (norm := float(direction @ direction)):
            break
        aim = now.bound - best.bound + AIM * max(best.bound - lower, 1e-9 * abs(best.bound))
        price = np.maximum(0.0, price - scale * aim / norm * direction)
        try:
            now = pricing.evaluate(price)
        except Stopped:
            break
        if now.bound < best.bound - 1e-9 * abs(best.bound):
            best, stale = now, 0
        else:
            stale += 1
            if stale == PATIENCE:
                scale, stale, price, now = scale / 2, 0, best.price, best
    return best
