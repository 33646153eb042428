"""What the solvers of expert caching share."""

import numpy as np
from numpy.typing import NDArray

from edgeopt.jit import kernel
from edgeopt.problem import Problem
from edgeopt.problems import ExpertCaching, Placement
from edgeopt.solve import Run
from edgeopt.solvers.expert_caching.facility import Facility, certificate
from edgeopt.stop import Limit

QUICK = 1 << 28  # servers x experts x users whose values take a tenth of a second or less


class Stopped(Exception):
    """Leaves work that takes longer than a limit allows."""


def supports_expert_caching(problem: Problem) -> str | None:
    """Return None for an `ExpertCaching` problem, else what was expected."""
    return None if isinstance(problem, ExpertCaching) else f"expected an expert-caching problem, got {problem.kind}"


def empty_placement(problem: ExpertCaching) -> Placement:
    """Return the placement that caches nothing: the solution to fall back on."""
    return Placement(np.zeros((problem.num_servers, problem.num_experts), bool))


def has_equal_sizes(problem: ExpertCaching) -> bool:
    """Whether all experts take the same storage."""
    sizes = problem.expert_bytes
    return bool((sizes == sizes[0]).all())


def has_nothing(run: Run[Placement]) -> bool:
    """Whether nothing that saves anything has been found, and nobody has said that this will do."""
    return not run.objective and run.limit in (None, Limit.TIME, Limit.INTERRUPT)


def certify(run: Run[Placement], problem: ExpertCaching, facility: Facility | None = None) -> None:
    """Report the marginal certificate of the incumbent as a bound, also when a limit has been reached, unless it takes long.

    It costs one pass over weights and gains. `facility` spares building it when it is at hand.
    """
    work = problem.num_servers * problem.num_experts * problem.num_users
    if run.solution is None or run.limit is Limit.INTERRUPT or (work > QUICK and run.stopped()):
        return
    if facility is None or not problem.is_modular_per_set:
        facility = Facility.of(problem, bound=True)
    run.tighten(certificate(problem, facility, run.solution, run.stopped if work > QUICK else lambda: False))


def fill_in_order(order: NDArray[np.int64], problem: ExpertCaching) -> NDArray[np.bool_]:
    """Return bool [N, E]: each server n takes the experts ``order[n]`` one by one, skipping what no longer fits."""
    return _fill_in_order(order, problem.expert_bytes, problem.storage_limit)


@kernel
def _fill_in_order(
    order: NDArray[np.int64], size: NDArray[np.float64], capacity: NDArray[np.float64]
) -> NDArray[np.bool_]:
    cached = np.zeros(order.shape, np.bool_)
    for n in range(order.shape[0]):
        left = capacity[n]
        for k in range(order.shape[1]):
            e = order[n, k]
            if size[e] <= left:
                cached[n, e] = True
                left -= size[e]
    return cached
