r"""Upper bounds for latency ``max`` and ``mix``: share every set's saving out among its experts, as well as possible.

Let z[e, k] say that expert e is served to a user from its level k or below (levels: the places that can serve the user,
by latency). A set A is served by level k only if all of its experts are, so for any shares alpha >= 0 that sum to one
over the experts of A that the device lacks,

.. math:: [\text{A served by level k}] = \min_{e \in A} z_{ek} \le \sum_{e \in A} \alpha_{Aek} z_{ek}

while experts on the device count as served at their own level and above, and a set with one that is slower than level k
gains nothing there. Summed with the seconds between levels, every alpha gives a plain sum over experts that is nowhere
below the objective: a facility-location problem whose bounds are bounds of ours. Equal shares are the start; the best
ones put their weight on the experts of A that the relaxed solution serves least. Since the objective is linear in alpha,
multiplicative weights on z find them: alpha is the softmax over A of scores that fall with z, so that
only the scores [slots, levels] are kept, not one number per set and expert. The bound tends to that of the linear
relaxation with one row y <= z per set, level and expert.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numba import prange
from numpy.typing import NDArray

from edgeopt.jit import parallel_kernel
from edgeopt.problems import ExpertCaching, Placement
from edgeopt.solve import Run
from edgeopt.solvers.expert_caching.dual import minimise_dual
from edgeopt.solvers.expert_caching.facility import Facility, certificate
from edgeopt.solvers.expert_caching.groups import Groups
from edgeopt.solvers.expert_caching.pricing import Prices, SubsetPricing, start_prices

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

BoundOf = Callable[[Facility], tuple[float, Floats]]
"""Takes a facility; returns an upper bound on its optimum and a fractional placement [N, E] that nearly attains it."""

MAX_SLOTS = 1 << 25  # most entries of the scores; beyond, shares stay equal
MAX_SERVERS = 12  # up to so many, all subsets of servers are priced


@parallel_kernel
def share_out(
    score: Floats, level: Ints, final: Bools, slot_of: Ints, row_first: Ints, model: Ints, row_profile: Ints,
    cloud: Ints, entry_first: Ints, entry_set: Ints, entry_probability: Floats, member: NDArray[np.int32], width: Ints,
    shares: Floats,
) -> None:  # fmt: skip
    """Add to shares [S, R] the part of every set's probability that each of its experts gets at each level.

    score [S, R] > 0 are the unnormalised shares, level [S] the levels without any server. O(R K sum over rows of sets).
    """
    for i in prange(row_profile.size):
        p = row_profile[i]
        slots = np.empty(member.shape[1], np.int64)
        for t in range(entry_first[p], entry_first[p + 1]):
            a = entry_set[t]
            count, start = 0, 0
            for j in range(width[a]):
                e = member[a, j]
                s = slot_of[e] + i - row_first[model[e]]
                if final[s]:
                    start = max(start, level[s])
                else:
                    slots[count] = s
                    count += 1
            for k in range(start, cloud[i]):
                total = 0.0
                for j in range(count):
                    total += score[slots[j], k]
                for j in range(count):
                    shares[slots[j], k] += entry_probability[t] * (score[slots[j], k] / total)


class Shares:
    """The facility-location problems above an expert-caching problem, one for each choice of scores.

    Parameters
    ----------
    groups : the problem's groups, without a surrogate.
    """

    def __init__(self, groups: Groups) -> None:
        self.groups = groups
        slots = np.diff([*groups.slot_of, groups.num_slots])
        self._slot_expert = np.repeat(np.arange(slots.size), slots)
        self._slot_row = np.arange(groups.num_slots) - groups.slot_of[self._slot_expert]
        self._slot_row += groups.row_first[groups.model[self._slot_expert]]
        self.scores = np.zeros((groups.num_slots, groups.step.shape[1]))

    def facility(self, scores: Floats | None = None) -> Facility:
        """Return the problem for some scores [S, R] (default: the present ones): every one bounds the objective."""
        g, problem = self.groups, self.groups.problem
        given = self.scores if scores is None else scores
        score = np.exp(np.clip(given, -300.0, 300.0))
        slot_model = g.model[self._slot_expert]
        shares = np.repeat((g.bias[slot_model] * g.uses)[:, None], given.shape[1], axis=1)
        cloud = g.cloud_level
        share_out(
            score, g.base, g.final, g.slot_of, g.row_first, g.model, g.row_profile, cloud, g.entry_first, g.entry_set,
            g.entry_probability, g.member, g.width, shares,
        )  # fmt: skip
        shares[g.final] = 0.0
        seconds = np.zeros((g.num_slots, given.shape[1] + 1))
        np.cumsum(shares * g.step[self._slot_row], axis=1, out=seconds[:, 1:])
        at_cloud = np.take_along_axis(seconds, cloud[self._slot_row][:, None], axis=1)
        gain = np.zeros((problem.num_experts, problem.num_users, problem.num_servers))
        here = np.take_along_axis(seconds, g.server_level[self._slot_row], axis=1)
        gain[self._slot_expert, g.row_user[self._slot_row]] = np.maximum(0.0, at_cloud - here)
        return Facility(
            weight=np.ones((problem.num_experts, problem.num_users)),
            gain=gain,
            model=np.arange(problem.num_experts),
            size=problem.expert_bytes,
            capacity=problem.storage_limit,
            units=g.units,
            capacity_units=g.capacity_units,
            exact_units=g.exact_units,
        )

    def served(self, placement: Floats) -> Floats:
        """Return [S, R]: how far a fractional placement [N, E] serves each slot from each level or below, at most 1."""
        g = self.groups
        z = np.zeros_like(self.scores)
        for n in range(placement.shape[0]):
            np.add.at(z, (np.arange(len(z)), g.server_level[self._slot_row, n]), placement[n, self._slot_expert])
        return np.minimum(1.0, np.cumsum(z, axis=1))

    def update(self, placement: Floats, rate: float) -> None:
        """Shift shares towards the experts that a fractional placement [N, E] serves least."""
        self.scores -= rate * self.served(placement)
        self.scores -= self.scores.max(axis=0, keepdims=True)


@dataclass(slots=True)
class PriceBound:
    """Lagrangian bound of a facility: a price on every server's storage, each expert picks its best set of servers.

    Prices are kept from call to call, so that a sequence of similar problems needs few steps each. At most
    `MAX_SERVERS` servers.

    Parameters
    ----------
    steps : subgradient steps per call.
    target : value of a feasible placement, for the step length.
    """

    steps: int = 30
    target: float = 0.0
    price: Floats | None = field(default=None, init=False)

    def __call__(self, facility: Facility) -> tuple[float, Floats]:
        """Return the best bound and the placement averaged over the steps."""
        facility = facility.in_units()
        mean = np.zeros((facility.num_servers, facility.num_experts))

        def average(step: int, now: Prices, best: Prices) -> float:
            mean[:] += (0.2 if step > 1 else 1.0) * (now.choice - mean)
            return self.target

        start = start_prices(facility, mean > 0) if self.price is None else self.price
        best = minimise_dual(facility, SubsetPricing(facility), start, self.steps, average)
        self.price = best.price
        return best.bound, mean


def bound_max(
    run: Run[Placement], groups: Groups, *, iterations: int = 100, rate: float = 0.3, bound_of: BoundOf | None = None
) -> float:
    """Report to the run, and return, the best bound over `iterations` choices of shares.

    Iteration t solves the facility-location relaxation for the present shares and lowers the scores by
    ``rate / sqrt(t)`` times how far its solution serves each expert. Every iteration's bound is valid.

    Parameters
    ----------
    run : the run; its limits end the iterations. One of its iterations is one choice of shares.
    groups : the problem's groups, without a surrogate.
    iterations : choices of shares to try, the first one equal.
    rate : length of the first step.
    bound_of : bounds one facility; default `PriceBound`, or beyond `MAX_SERVERS` servers the marginal certificate.
    """
    problem = groups.problem
    if groups.num_slots * groups.step.shape[1] > MAX_SLOTS:
        iterations = 1
    shares, best = Shares(groups), np.inf
    if bound_of is None:
        bound_of = _default_bound(problem, run)
    for t in range(1, iterations + 1):
        bound, placement = bound_of(shares.facility())
        best = min(best, bound)
        run.tighten(bound)
        if problem.is_modular_per_set or run.gap < 1e-9 or not run.step():
            break
        shares.update(placement, rate / np.sqrt(t))
    return best


def _default_bound(problem: ExpertCaching, run: Run[Placement]) -> BoundOf:
    if problem.num_servers <= MAX_SERVERS:
        return PriceBound(target=run.objective or 0.0)
    solution = run.solution or Placement(np.zeros((problem.num_servers, problem.num_experts), bool))
    return lambda facility: (certificate(problem, facility, solution), solution.cached.astype(np.float64))
