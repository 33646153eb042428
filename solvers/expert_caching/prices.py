"""What storage is worth to expert caching: prices of the Lagrangian dual, and the best expert to add to each server."""

import numpy as np
from numpy.typing import NDArray

from edgeopt.prices import Price
from edgeopt.problems import ExpertCaching, Placement
from edgeopt.solvers.expert_caching.dual import minimise_dual
from edgeopt.solvers.expert_caching.facility import Facility
from edgeopt.solvers.expert_caching.pricing import AscentPricing, pricing_for, start_prices
from edgeopt.solvers.kernels.facility import best_of, marginals

STEPS = 150  # of the dual


def prices(problem: ExpertCaching, placement: Placement) -> list[Price]:
    r"""Return a price per byte for the storage of each server.

    The Lagrangian dual :math:`L(\lambda) + \sum_n \lambda_n Q_n` bounds the optimum from above for whatever storages Q, at the
    same prices: one dual point is a bound along every line of storages. Where sizes are whole storage units, storage counts in these. For ``max`` and ``mix`` with K >= 2 it is that of the
    bounding form, which is looser. The expert to add is the one with most saving per byte that a server lacks, by the
    form the solvers start from; its saving is the true one.
    """
    facility = Facility.of(problem, bound=True)
    grid = float(facility.size[0] / facility.units[0]) if facility.exact_units and facility.units[0] > 0 else None
    facility = facility if grid is None else facility.in_units()
    pricing = pricing_for(facility)
    if isinstance(pricing, AscentPricing):
        pricing.start_from(placement.cached)
    value = problem.objective(placement)
    dual = minimise_dual(facility, pricing, start_prices(facility, placement.cached), STEPS, lambda *_: value)
    found = []
    for server, (expert, extra) in enumerate(_best_additions(problem, placement)):
        step = gain = None
        if expert is not None:
            cached = placement.cached.copy()
            cached[server, expert] = True
            gained = problem.objective(Placement(cached)) - value
            if gained > 0:
                step, gain = extra, gained
        found.append(
            Price(
                name=f"storage_bytes[{server}]",
                unit="byte",
                value=problem.storage_bytes[server].item(),
                worth=float(dual.price[server]) / (grid or 1.0),
                claim="at most",
                base=dual.bound,
                grid=grid,
                step=step,
                gain=gain,
            )
        )
    return found


def _best_additions(problem: ExpertCaching, placement: Placement) -> list[tuple[int | None, float]]:
    """Return for each server the expert with most saving per byte of further storage, and those bytes."""
    facility = Facility.of(problem)
    best = best_of(placement.cached, facility.gain, facility.model)
    saving: NDArray[np.float64] = marginals(facility.weight, facility.gain, facility.model, best)  # [E, N]
    free = problem.storage_bytes - problem.storage_used(placement)
    extra = np.maximum(problem.expert_bytes[:, None] - free, 0.0)
    rate = np.where((extra > 0) & ~placement.cached.T, saving, 0.0) / np.maximum(extra, np.finfo(float).tiny)
    experts = rate.argmax(axis=0)
    return [
        (int(expert) if rate[expert, server] > 0 else None, float(extra[expert, server]))
        for server, expert in enumerate(experts)
    ]
