"""`greedy` and `density-greedy`: take the (server, expert) pair with the largest marginal value until nothing fits."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numba import config
from numpy.typing import NDArray

from edgeopt.problem import Problem
from edgeopt.problems import ExpertCaching, Placement
from edgeopt.result import Guarantee, Heuristic, Ratio, Result
from edgeopt.solve import Run, SolveOptions
from edgeopt.solvers.expert_caching.certificates import Certificate, certify_by, check_certificate
from edgeopt.solvers.expert_caching.common import (
    empty_placement,
    has_equal_sizes,
    has_nothing,
    supports_expert_caching,
)
from edgeopt.solvers.expert_caching.facility import Facility
from edgeopt.solvers.expert_caching.popularity import offer_popular
from edgeopt.solvers.kernels.facility import Picking, fill_in_turns, lazy_greedy, marginals, shares_left

PICKS_PER_STEP = 20_000  # between two looks at the clock, and
WORK_PER_STEP = 1 << 34  # picks x experts x users: fewer picks where each takes longer
BATCH, MANY_USERS = 64, 500  # values that all threads compute at once, where each takes so many users
ROUNDING = 1e-12  # relative, that first values are raised by: none is below what the kernel works out before a pick

_HALF = Ratio(
    0.5,
    "Fisher, Nemhauser, Wolsey 1978: a monotone submodular function over a partition matroid",
    "1/2 (equal sizes, K = 1 or sum)",
)


@dataclass(frozen=True, slots=True)
class Greedy:
    """Take the pair that saves the most, whatever its size.

    Guarantee: 1/2 of the optimum if all experts have one size and sets are modular (K = 1 or latency ``sum``), and
    no more: on two servers the first pick can block the only server of another user. None otherwise; for ``max`` the
    values are those of the sum surrogate, and the placement of `Popularity` is kept where it is better. O(N E U) time
    and as much again for the picks in the worst case, in practice a few evaluations per pick. One iteration is up to 20,000 picks.
    A run that is stopped fills what is left in turns: every expert gets a copy before any gets a second.

    Parameters
    ----------
    lazy : re-evaluate only the pairs that may lead (Minoux 1978); otherwise after each pick every pair of the same
        expert. Both give the same placement; the plain way is there to check the lazy one.
    certificate : ``marginal`` bounds the optimum by marginal values, quick and loose; ``dual`` by steps of the dual after that.
    """

    lazy: bool = True
    certificate: Certificate = "marginal"

    name: ClassVar[str] = "greedy"
    guarantee: ClassVar[Guarantee] = _HALF

    def __post_init__(self) -> None:
        check_certificate(self.certificate)

    def guarantee_for(self, problem: ExpertCaching) -> Guarantee:
        """Return 1/2 for equal sizes and modular sets."""
        return _half_if_equal(problem)

    def supports(self, problem: Problem) -> str | None:
        """Support every expert-caching problem."""
        return supports_expert_caching(problem)

    def solve(self, problem: ExpertCaching, options: SolveOptions) -> Result[Any]:
        """Solve greedily."""
        with Run[Placement](self, problem, options) as run:
            run.offer(empty_placement(problem))
            with run.building():
                facility = Facility.of(problem)
            run.offer(Placement(greedy_placement(run, facility, per_byte=False, lazy=self.lazy)))
            offer_popular(run, problem)
            certify_by(self.certificate, run, problem, facility)
        return run.result()


@dataclass(frozen=True, slots=True)
class DensityGreedy:
    """Take the pair that saves the most per byte; keep the better of that and the best single expert per server.

    Guarantee: 1/2 of the optimum if all experts have one size (then it is `Greedy`); none is proved for unequal sizes
    and several storages. O(N E U) time, as `Greedy`.

    Parameters
    ----------
    lazy, certificate : as in `Greedy`.
    """

    lazy: bool = True
    certificate: Certificate = "marginal"

    name: ClassVar[str] = "density-greedy"
    guarantee: ClassVar[Guarantee] = _HALF

    def __post_init__(self) -> None:
        check_certificate(self.certificate)

    def guarantee_for(self, problem: ExpertCaching) -> Guarantee:
        """Return 1/2 for equal sizes and modular sets."""
        return _half_if_equal(problem)

    def supports(self, problem: Problem) -> str | None:
        """Support every expert-caching problem."""
        return supports_expert_caching(problem)

    def solve(self, problem: ExpertCaching, options: SolveOptions) -> Result[Any]:
        """Solve greedily by value per byte."""
        with Run[Placement](self, problem, options) as run:
            run.offer(empty_placement(problem))
            with run.building():
                facility = Facility.of(problem)
            if not run.stopped():
                run.offer(Placement(_best_singletons(facility)))
            run.offer(Placement(greedy_placement(run, facility, per_byte=True, lazy=self.lazy)))
            offer_popular(run, problem)
            certify_by(self.certificate, run, problem, facility)
        return run.result()


def offer_something(run: Run[Placement], problem: ExpertCaching, facility: Facility | None = None) -> None:
    """Offer greedy picks by value per byte if time or Ctrl-C has ended the run before anything was found.

    `facility` spares building it when it is at hand.
    """
    if run.stopped() and has_nothing(run):
        facility = Facility.of(problem) if facility is None else facility
        run.offer(Placement(greedy_placement(run, facility, per_byte=True)))


def greedy_placement(
    run: Run[Placement], facility: Facility, *, per_byte: bool, lazy: bool = True
) -> NDArray[np.bool_]:
    """Return the greedy placement [N, E]; if the run is stopped, what has been placed so far, with the rest filled in turns.

    First picks give the experts that are used most to all servers, so that all is filled in turns if they take less than half of the
    storage.
    """
    weight, size = facility.weight, facility.size
    num_users = weight.shape[1]
    if not lazy:
        return _plain_greedy(run, facility, per_byte)
    values = (1 + ROUNDING) * facility.first_values()
    key = values / size if per_byte else values
    picking = Picking.of(key.copy(), facility.capacity, num_users)
    gain = facility.gain_by_server()
    batch = BATCH if num_users >= MANY_USERS and config.NUMBA_NUM_THREADS > 1 else 1
    picks = min(PICKS_PER_STEP, max(1, WORK_PER_STEP // max(1, weight.size)))
    remaining = picking.heap.size
    while remaining and not run.stopped():
        remaining = lazy_greedy(picking, remaining, weight, gain, facility.model, size, per_byte, picks, batch)
        run.step()
    if not remaining:
        return picking.cached
    many = picking.left.sum() <= 0.5 * facility.capacity.sum()
    return filled_in_turns(facility, values, picking.cached if many else None)


def filled_in_turns(
    facility: Facility, values: NDArray[np.float64], cached: NDArray[np.bool_] | None = None
) -> NDArray[np.bool_]:
    """Return a placement [N, E] by first values [N, E]: every expert gets a copy before any gets a second, and so on, in no time.

    What is cached already stays.
    """
    cached = np.zeros(values.shape, bool) if cached is None else cached.copy()
    left, per_byte = facility.capacity - cached @ facility.size, values / facility.size
    fill_in_turns(cached, left, cached.sum(axis=0), per_byte, facility.size, facility.model, shares_left(facility.gain))
    return cached


def _plain_greedy(run: Run[Placement], facility: Facility, per_byte: bool) -> NDArray[np.bool_]:
    num_experts = facility.num_experts
    cached, left = np.zeros((facility.num_servers, num_experts), bool), facility.capacity.copy()
    best = np.zeros_like(facility.weight)
    values = marginals(facility.weight, facility.gain, facility.model, best).T
    key = np.where(facility.size <= left[:, None], values / facility.size if per_byte else values, 0.0).ravel()
    while key.max() > 0 and run.step():
        n, e = divmod(int(key.argmax()), num_experts)
        cached[n, e] = True
        left[n] -= facility.size[e]
        fresh = _placed(facility, best, n, e)
        key[e::num_experts] = fresh / facility.size[e] if per_byte else fresh
        fits = (facility.size[None, :] <= left[:, None]) & ~cached
        key[~fits.ravel()] = 0.0
    return cached


def _best_singletons(facility: Facility) -> NDArray[np.bool_]:
    """Return the placement that caches at each server in turn the single expert that adds the most."""
    cached = np.zeros((facility.num_servers, facility.num_experts), bool)
    best = np.zeros(facility.weight.shape)  # pages that are not touched cost nothing, unlike those of zeros_like
    values = facility.first_values().T
    for n in range(facility.num_servers):
        own = np.where(facility.size <= facility.capacity[n], values[:, n], 0.0)
        e = int(own.argmax())
        if own[e] > 0:
            cached[n, e] = True
            values[e] = _placed(facility, best, n, e)
    return cached


def _placed(facility: Facility, best: NDArray[np.float64], n: int, e: int) -> NDArray[np.float64]:
    """Update the gains [E, U] for expert e at server n, in place, and return its marginal values [N] afterwards."""
    np.maximum(best[e], facility.gain[facility.model[e], :, n], out=best[e])
    one = slice(e, e + 1)
    return np.asarray(marginals(facility.weight[one], facility.gain, facility.model[one], best[one])[0])


def _half_if_equal(problem: ExpertCaching) -> Guarantee:
    if has_equal_sizes(problem) and problem.is_modular_per_set:
        return _HALF
    return Heuristic("1/2 is proved for equal sizes and K = 1 or latency sum")
