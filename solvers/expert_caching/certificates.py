"""How quick solvers of expert caching certify what they found: by marginal values, or by some steps of the dual."""

import contextlib
from typing import Literal

from edgeopt.errors import EdgeOptError, quoted
from edgeopt.problems import ExpertCaching, Placement
from edgeopt.solve import Run
from edgeopt.solvers.expert_caching.common import Stopped, certify
from edgeopt.solvers.expert_caching.distinct_bound import DistinctBound
from edgeopt.solvers.expert_caching.dual import minimise_dual
from edgeopt.solvers.expert_caching.facility import Facility
from edgeopt.solvers.expert_caching.groups import Groups
from edgeopt.solvers.expert_caching.pricing import AscentPricing, Prices, pricing_for, start_prices
from edgeopt.stop import Limit

Certificate = Literal["marginal", "dual"]
"""``marginal``: one pass over weights and gains, quick and loose. ``dual``: steps of the Lagrangian dual after that."""

STEPS = 60  # of the dual of `Lagrangian`; within a tenth of a percent of its end on the instances of the library
SET_STEPS = 40  # of the bound by distinct experts


def check_certificate(value: object) -> None:
    """Refuse what is no `Certificate`."""
    if value not in ("marginal", "dual"):
        raise EdgeOptError(f"certificate = {quoted(value)}: expected 'marginal' or 'dual'")


def certify_by(
    certificate: Certificate, run: Run[Placement], problem: ExpertCaching, facility: Facility | None = None
) -> None:
    """Report a bound by a certificate; limits of the run end the steps of the dual, and spare them once reached."""
    certify(run, problem, facility)
    if certificate == "marginal" or run.solution is None or run.stopped() or run.limit is Limit.INTERRUPT:
        return
    if not problem.is_modular_per_set:
        with run.building():
            groups = Groups(problem)
            bound = DistinctBound(groups) if DistinctBound.supports(groups) else None
        if bound is not None:
            bound.descend(run, SET_STEPS)
        return
    with run.building():
        form = (Facility.of(problem) if facility is None else facility).in_units()
        pricing = pricing_for(form, run.stopped)
        if isinstance(pricing, AscentPricing):
            pricing.start_from(run.solution.cached)
        price = start_prices(form, run.solution.cached)

    def on_step(step: int, _: Prices, best: Prices) -> float | None:
        run.tighten(best.bound)
        return None if run.stopped() else (run.objective or 0.0)

    with contextlib.suppress(Stopped):  # before the first point
        run.tighten(minimise_dual(form, pricing, price, STEPS, on_step).bound)
