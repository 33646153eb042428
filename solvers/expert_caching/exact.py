"""What the exact solvers of expert caching share."""

import numpy as np
from numpy.typing import NDArray

from edgeopt.problem import Problem
from edgeopt.problems import ExpertCaching, Placement
from edgeopt.problems.expert_caching.terms import count_nonzeros
from edgeopt.solve import Run
from edgeopt.solvers.expert_caching.common import certify, empty_placement, has_nothing
from edgeopt.solvers.expert_caching.facility import Facility, exact_divisor, storage_units
from edgeopt.solvers.expert_caching.greedy import greedy_placement
from edgeopt.solvers.expert_caching.popularity import offer_popular


def supports_size(problem: Problem, max_nonzeros: int) -> str | None:
    """Return None if the model of a problem has at most so many nonzeros, else the numbers."""
    assert isinstance(problem, ExpertCaching)
    if (nonzeros := count_nonzeros(problem)) > max_nonzeros:
        return f"the model may have {nonzeros:,} nonzeros, expected at most max_nonzeros = {max_nonzeros:,}"
    return None


def offer_start(run: Run[Placement], problem: ExpertCaching, *, greedy: bool) -> None:
    """Offer the empty placement and, if wanted, greedy ones, with the bound that they certify."""
    run.offer(empty_placement(problem))
    if greedy and (not run.stopped() or has_nothing(run)):
        with run.building():
            facility = Facility.of(problem)
        run.offer(Placement(greedy_placement(run, facility, per_byte=True)))
        offer_popular(run, problem)
        certify(run, problem, facility)


def offer_feasible(run: Run[Placement], placement: Placement) -> None:
    """Offer a placement unless the problem itself finds it too large, by a back end's tolerance; one iteration."""
    if run.problem.is_feasible(placement):
        run.offer(placement)
    run.step()


def offer_bound(run: Run[Placement], bound: float) -> None:
    """Report a bound; one iteration."""
    run.tighten(bound)
    run.step()


def whole_sizes(problem: ExpertCaching) -> tuple[NDArray[np.int64], NDArray[np.int64], bool]:
    """Return sizes [E] and capacities [N] as integers, and whether they say the same as the real ones.

    Unlike `storage_units`, sizes with a common divisor stay exact however many units there are.
    """
    size, capacity = problem.expert_bytes, np.minimum(problem.storage_limit, problem.expert_bytes.sum())
    found, divisor = storage_units(size, problem.storage_limit), exact_divisor(size)
    if found[2] or divisor is None or size.sum() / divisor >= 2**53:
        return found
    units = np.round(size / divisor).astype(np.int64)
    return units, np.floor(capacity / divisor * (1 + 1e-15)).astype(np.int64), True
