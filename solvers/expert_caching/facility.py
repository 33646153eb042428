"""The facility-location form of expert caching that most of its solvers work on."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeopt.problems import ExpertCaching, Placement
from edgeopt.solvers.kernels.facility import best_of, marginals
from edgeopt.solvers.kernels.knapsack import fractional_knapsack

MAX_UNITS = 1 << 20  # finest grid of storage units that a dynamic programme is run on
CHUNK = 1 << 26  # experts x users x servers between two looks at the clock: some tens of milliseconds
NEAR = 1e-9  # of the largest size: a smaller remainder is rounding


@dataclass(frozen=True, slots=True, eq=False)
class Facility:
    """Maximise the sum over e, u of ``weight[e, u] * max over servers n holding e of gain[model[e], u, n]``.

    Parameters
    ----------
    weight : float64 [E, U], expected uses of expert e by user u per token, zero where the device holds it.
    gain : float64 [M, U, N], seconds server n saves user u on one expert of model m, >= 0.
    model : int64 [E], ascending.
    size, capacity : float64 [E] and [N], bytes.
    units, capacity_units : int64 [E] and [N], the same in whole storage units. Sizes are rounded up and capacities
        down, so what fits in units fits in bytes.
    exact_units : whether nothing was lost by that rounding, so that a knapsack in units is the knapsack in bytes.
    """

    weight: NDArray[np.float64]
    gain: NDArray[np.float64]
    model: NDArray[np.int64]
    size: NDArray[np.float64]
    capacity: NDArray[np.float64]
    units: NDArray[np.int64]
    capacity_units: NDArray[np.int64]
    exact_units: bool

    @classmethod
    def of(cls, problem: ExpertCaching, *, bound: bool = False) -> "Facility":
        """Return the facility form of a problem.

        For K = 1 or latency ``sum`` its value is the objective. Otherwise it is a surrogate: each set counts as the
        *sum* of its savings, scaled by (1 - theta) + theta for ``mix`` and 1/K for ``max``. With ``bound=True`` it
        is an upper bound instead: a maximum saves at most the mean saving over the experts that the device lacks,
        because all of those take the cloud's time without a cache (ours).
        """
        device = problem.device_mask()
        weight = np.empty((problem.num_experts, problem.num_users))
        for m, model in enumerate(problem.models):
            experts = slice(problem.first_expert[m], problem.first_expert[m + 1])
            if bound and not problem.is_modular_per_set:
                weight[experts] = _bounding_uses(problem, m, device[:, experts]).T
            else:
                scale = 1.0 if problem.is_modular_per_set else _surrogate_scale(problem, model.top_k)
                by_expert = np.ascontiguousarray(scale * model.uses.T)
                # straight into place: other modes than "clip" take a copy first
                np.take(by_expert, problem.profile[:, m], axis=1, out=weight[experts], mode="clip")
            weight[experts] *= problem.user_weight * problem.request[:, m]
        weight[device.T] = 0.0
        units, capacity_units, exact = storage_units(problem.expert_bytes, problem.storage_limit)
        return cls(
            weight=weight,
            gain=problem.gain_s,
            model=problem.expert_model.astype(np.int64),
            size=np.array(problem.expert_bytes),
            capacity=problem.storage_limit,
            units=units,
            capacity_units=capacity_units,
            exact_units=exact,
        )

    def in_units(self) -> "Facility":
        """Return the same with bytes replaced by units where those are exact: capacities are then whole units too."""
        if not self.exact_units:
            return self
        size, capacity = self.units.astype(np.float64), self.capacity_units.astype(np.float64)
        return dataclasses.replace(self, size=size, capacity=capacity)

    @staticmethod
    def units_are_exact(problem: ExpertCaching) -> bool:
        """Whether a knapsack in whole storage units is the knapsack in bytes."""
        return storage_units(problem.expert_bytes, problem.storage_limit)[2]

    def first_values(self) -> NDArray[np.float64]:
        """Return float64 [N, E]: the value of each expert at each server while nothing is cached anywhere, up to rounding."""
        ends = np.searchsorted(self.model, np.arange(len(self.gain) + 1))
        parts = [gain.T @ self.weight[a:b].T for gain, a, b in zip(self.gain, ends[:-1], ends[1:], strict=True)]
        return np.concatenate(parts, axis=1)

    def gain_by_server(self) -> NDArray[np.float64]:
        """Return the gains with a server's users side by side, [M, N, U], as some kernels want them; a copy."""
        return np.ascontiguousarray(self.gain.transpose(0, 2, 1))

    @property
    def num_servers(self) -> int:
        """Servers, N."""
        return int(self.gain.shape[2])

    @property
    def num_experts(self) -> int:
        """Experts, E."""
        return int(self.weight.shape[0])


def storage_units(
    size: NDArray[np.float64], capacity: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], bool]:
    """Return sizes [E] and capacities [N] in whole units, and whether the units are exact.

    Sizes that are whole multiples of some unit are counted in it, whatever they are measured in. If there is none, or it
    leaves more than `MAX_UNITS` units, the largest useful capacity is cut into `MAX_UNITS` / 64 units: sizes rounded up,
    capacities down.
    """
    total = float(size.sum())
    everything = capacity >= total  # more storage than all experts take changes nothing
    useful = np.where(everything, total, capacity)
    for divisor in (exact_divisor(size), _near_divisor(size)):
        if divisor is not None and useful.max(initial=0.0) / divisor <= MAX_UNITS:
            units = np.round(size / divisor).astype(np.int64)
            return units, np.floor(useful / divisor * (1 + 1e-15)).astype(np.int64), True
    grain = max(float(useful.max(initial=0.0)) / (MAX_UNITS // 64), float(size.min()) / 1024)
    units = np.ceil(size / grain * (1 - 1e-12)).astype(np.int64)
    capacity_units = np.floor(useful / grain * (1 - 1e-12)).astype(np.int64)
    return units, np.where(everything, units.sum(), capacity_units), False


def exact_divisor(size: NDArray[np.float64]) -> float | None:
    """Return the greatest common divisor of sizes, None if they are 2**53 units or more of their last binary digit.

    Examples
    --------
    >>> exact_divisor(np.array([6.0, 4.0])), exact_divisor(np.array([0.75, 2.0]))
    (2.0, 0.25)
    """
    mantissa, exponent = np.frexp(size)
    digits = np.ldexp(mantissa, 53).astype(np.int64)
    lowest = int((exponent + np.log2(digits & -digits).astype(np.int64)).min()) - 53  # of the last digit that is not 0
    multiple = np.ldexp(size, -lowest)
    if multiple.max() >= 2**53:
        return None
    return math.ldexp(math.gcd(*multiple.astype(np.int64).tolist()), lowest)


def _near_divisor(size: NDArray[np.float64]) -> float | None:
    """Return a number of which all sizes are whole multiples but for rounding, found by Euclid's algorithm, or None."""
    largest = float(size.max())
    unit = largest
    for one in np.unique(size).tolist():
        rest = one
        while rest > NEAR * largest:
            unit, rest = rest, math.fmod(unit, rest)
            if unit - rest <= NEAR * largest:
                rest = 0.0
        if unit * MAX_UNITS < largest:
            return None
    unit = largest / round(largest / unit)
    multiple = size / unit
    return unit if (np.abs(multiple - np.round(multiple)) <= 1e-12 * multiple).all() else None


def _surrogate_scale(problem: ExpertCaching, top_k: int) -> float:
    return 1.0 / top_k if problem.latency == "max" else 1.0


def _bounding_uses(problem: ExpertCaching, m: int, device: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return [U, E_m]: uses in which each set is shared evenly by its experts that are not on the user's device."""
    model = problem.models[m]
    theta = 1.0 if problem.latency == "max" else problem.theta
    uses = np.empty((problem.num_users, model.num_experts))
    plain: dict[int, NDArray[np.float64]] = {}
    for p in np.unique(problem.profile[:, m]):
        entries = slice(model.indptr[p], model.indptr[p + 1])
        sets, probability = model.sets[model.indices[entries]], model.probability[entries]
        for u in np.flatnonzero(problem.profile[:, m] == p):
            if device[u].any():
                uses[u] = _shared(sets, probability, ~device[u], theta, problem.latency)
            else:
                if p not in plain:
                    plain[p] = _shared(sets, probability, ~device[u], theta, problem.latency)
                uses[u] = plain[p]
    return uses


def _shared(
    sets: NDArray[np.int32], probability: NDArray[np.float64], remote: NDArray[np.bool_], theta: float, latency: str
) -> NDArray[np.float64]:
    top_k = sets.shape[1]
    share = 1.0 / np.maximum(1, remote[sets].sum(axis=1))
    per_set = probability * (share if latency == "max" else (1.0 - theta) + theta * top_k * share)
    return np.bincount(sets.ravel(), weights=np.repeat(per_set, top_k), minlength=remote.size).astype(np.float64)


def certificate(
    problem: ExpertCaching, facility: Facility, placement: Placement, stopped: Callable[[], bool] = lambda: False
) -> float:
    """Return an upper bound on the optimum from the marginal values at a placement S; inf if stopped before it is there.

    OPT <= F(S) + sum over servers of the fractional knapsack of the marginal values at S: by submodularity the
    optimum adds to S at most the sum of its own marginal values, and those fit each server's storage. `facility` is
    the bounding form of the problem, ``Facility.of(problem, bound=True)`` (the form itself when sets are modular).
    """
    value, values = 0.0, np.empty((facility.num_experts, facility.num_servers))
    chunk = max(1, CHUNK // max(1, facility.weight.shape[1] * facility.num_servers))
    for start in range(0, facility.num_experts, chunk):
        if stopped():
            return math.inf
        some = slice(start, start + chunk)
        weight, model = facility.weight[some], facility.model[some]
        best = best_of(np.ascontiguousarray(placement.cached[:, some]), facility.gain, model)
        value += float(np.einsum("eu,eu->", weight, best))
        values[some] = marginals(weight, facility.gain, model, best)
    return value + sum(
        fractional_knapsack(values[:, n], facility.size, float(facility.capacity[n]))[0]
        for n in range(facility.num_servers)
    )
