"""`lagrangian`: price each server's storage, read off a bound and nearly optimal placements, close the gap between them."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import EdgeOptError
from edgeopt.problem import Problem
from edgeopt.problems import ExpertCaching, Placement
from edgeopt.result import Guarantee, Heuristic, Result
from edgeopt.rng import stream
from edgeopt.solve import Run, SolveOptions
from edgeopt.solvers.expert_caching.common import empty_placement, supports_expert_caching
from edgeopt.solvers.expert_caching.exchange import Exchange
from edgeopt.solvers.expert_caching.facility import Facility
from edgeopt.solvers.expert_caching.greedy import greedy_placement
from edgeopt.solvers.expert_caching.pricing import AscentPricing, Prices, Pricing, pricing_for, start_prices
from edgeopt.solvers.expert_caching.successive import respond

ROUND_EVERY = 20  # dual steps between two roundings


@dataclass(frozen=True, slots=True)
class Lagrangian:
    """Lagrangian relaxation."""

    max_iterations: int = 500
    rounds: int = 30

    name: ClassVar[str] = "lagrangian"
    guarantee: ClassVar[Guarantee] = Heuristic("certifies itself")

    def guarantee_for(self, problem: ExpertCaching) -> Guarantee:
        """Return that nothing is promised beforehand."""
        return self.guarantee

    def supports(self, problem: Problem) -> str | None:
        """Support every expert-caching problem."""
        return supports_expert_caching(problem)

    def solve(self, problem: ExpertCaching, options: SolveOptions) -> Result[Any]:
        """Solve by Lagrangian relaxation, rounding and exchange."""
        with Run[Placement](self, problem, options) as run:
            run.offer(empty_placement(problem))
            with run.building():
                facility = Facility.of(problem).in_units()
            cached = greedy_placement(run, facility, per_byte=True)
            run.offer(Placement(cached))
            with run.building():
                pricing = pricing_for(facility)
                if isinstance(pricing, AscentPricing):
                    pricing.start_from(cached)
            prices = _descend(run, facility, pricing, start_prices(facility, cached), self.max_iterations)
            rng = stream(run.seed, self.name)
            for k in range(self.rounds):
                if run.stopped():
                    break
                columns = pricing.near(prices, run.bound - _value(run))
                if columns is None:
                    break
                Exchange(facility, columns, prices, rng, scale=(1.0, 0.5, 2.0)[k % 3]).anneal(run)
        return run.result()


def _descend(
    run: Run[Placement], facility: Facility, pricing: Pricing, price: NDArray[np.float64], max_iterations: int
) -> Prices:
    """Minimise the dual by a deflected subgradient method with Polyak steps; round and prune on the way.

    The step aims a fifth of the gap below the best bound, halved whenever three steps bring no better bound.
    """
    now = best = pricing.evaluate(price)
    direction = np.zeros_like(price)
    scale, stale = 1.0, 0
    for iteration in range(1, max_iterations + 1):
        run.tighten(best.bound)
        if not run.step() or scale < 1e-3:
            break
        if iteration % ROUND_EVERY == 0:
            run.offer(Placement(round_down(run, facility, best.choice)))
            pricing.restrict(best, best.bound - _value(run))
        slack = facility.capacity - now.choice @ facility.size
        direction = slack + 0.6 * direction
        direction[(price <= 0) & (direction > 0)] = 0.0
        if not (norm := float(direction @ direction)):
            break
        aim = now.bound - best.bound + 0.2 * max(best.bound - _value(run), 1e-9 * abs(best.bound))
        price = np.maximum(0.0, price - scale * aim / norm * direction)
        now = pricing.evaluate(price)
        if now.bound < best.bound - 1e-9 * abs(best.bound):
            best, stale = now, 0
        else:
            stale += 1
            if stale == 3:
                scale, stale, price, now = scale / 2, 0, best.price, best
    return best


def round_down(run: Run[Placement], facility: Facility, choice: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return a placement [N, E] within all storages: each server's exact best response to a dual point's subsets."""
    cached = choice.copy()
    respond(run, facility, cached, range(facility.num_servers))
    return cached


def _value(run: Run[Placement]) -> float:
    return 0.0 if run.objective is None else run.objective
