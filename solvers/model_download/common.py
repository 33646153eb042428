"""What the solvers of model download share: from rates to bandwidth, admission, spare bandwidth, plans."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.problem import Problem
from edgeopt.problems import DownloadPlan, ModelDownload
from edgeopt.solve import Run
from edgeopt.solvers.kernels.download import FIT, bandwidth_of_rate

Floats = NDArray[np.float64]

FILL = 5e-10  # relative excess of the bandwidth that counts as rounding: half of what `violations` lets pass


@dataclass(frozen=True, slots=True)
class Admission:
    """Who is admitted with which model.

    Parameters
    ----------
    model : int32 [K], -1 for refused users.
    bandwidth_hz : float64 [K], what each admitted user needs.
    bound : upper bound on the value of any admission at these rates.
    message : what kept the bound from the value, if that was not a limit of the run.
    """

    model: NDArray[np.int32]
    bandwidth_hz: Floats
    bound: float
    message: str = ""


def supports_model_download(problem: Problem) -> str | None:
    """Return None for a `ModelDownload` problem, else what was expected."""
    return None if isinstance(problem, ModelDownload) else f"expected a model-download problem, got {problem.kind}"


def refusal_message(run: Run[DownloadPlan], problem: ModelDownload) -> str:
    """Return who cannot be served even alone, for the result; empty if there is nobody, or everybody is served."""
    served = 0 if run.solution is None else run.solution.num_admitted
    return "" if served == problem.num_users else problem.refusal_summary()


def bandwidth_needed(problem: ModelDownload, rate: Floats) -> Floats:
    """Return the Hz [K, I] that carry the rates [K, I], in whole resource blocks if there are any; inf if nothing does."""
    if problem.snr_hz is None:
        bandwidth = np.asarray(rate / problem.spectral_efficiency[:, None])  # type: ignore[index]
    else:
        snr_hz = np.repeat(problem.snr_hz, rate.shape[1])
        bandwidth = bandwidth_of_rate(rate.ravel(), snr_hz).reshape(rate.shape)
    if (block := problem.resource_block_hz) is not None:
        bandwidth = block * np.ceil(bandwidth / block * (1 - FIT))
    return bandwidth


def admit(run: Run[Any], problem: ModelDownload, rate: Floats) -> Admission:
    """Return the most valuable admission when user k needs the rate ``rate[k, i]`` for model i, inf for never.

    If all users are worth the same, it takes them by rising bandwidth, each with the model of the least rate, while
    they fit. Optimal: exchanging an admitted user for a refused one that needs less, or a model for the cheapest,
    never breaks the limit, so some optimum consists of the first users in this order. Otherwise it is a knapsack with
    one class per user, solved to optimality unless the run is stopped. O(K log K) and O(K I) for the sorting.
    """
    bandwidth = bandwidth_needed(problem, rate)
    if problem.has_model_reward:
        return _admit_by_knapsack(run, problem, bandwidth)
    users = np.arange(problem.num_users)
    best = rate.argmin(axis=1)
    cheapest = bandwidth[users, best]
    if not problem.is_unit_value:
        only = np.full_like(bandwidth, np.inf)
        only[users, best] = cheapest
        return _admit_by_knapsack(run, problem, only)
    order = cheapest.argsort(kind="stable")
    fit = np.zeros(problem.num_users, bool)
    fit[order] = np.cumsum(cheapest[order]) <= problem.bandwidth_hz * (1 + FILL)
    worth = float(problem.user_weight[0] * problem.model_reward[0])
    return Admission(np.where(fit, best, -1).astype(np.int32), np.where(fit, cheapest, 0.0), worth * int(fit.sum()))


def share_spare_bandwidth(problem: ModelDownload, bandwidth_hz: Floats) -> Floats:
    """Return the bandwidths [K] with what is left of the band given out in proportion, in whole blocks if there are any.

    Blocks that proportion leaves over go to the largest remainders.
    """
    total = float(bandwidth_hz.sum())
    if total == 0.0 or total >= problem.bandwidth_hz:
        return bandwidth_hz
    if (block := problem.resource_block_hz) is None:
        return bandwidth_hz * (problem.bandwidth_hz / total)
    blocks = np.round(bandwidth_hz / block)
    spare = np.floor(problem.bandwidth_hz / block * (1 + FIT)) - blocks.sum()
    wanted = spare * blocks / blocks.sum()
    extra = np.floor(wanted)
    left = int(spare - extra.sum())
    extra[np.argsort(extra - wanted, kind="stable")[:left]] += 1
    return np.asarray(block * (blocks + extra))


def constant_speed_plan(problem: ModelDownload, admission: Admission, frequency_hz: Floats) -> DownloadPlan:
    """Return the plan of an admission whose users run all layers at one frequency [K], and share the spare bandwidth."""
    model = admission.model
    layers = np.where(model >= 0, problem.num_layers[model], 0)
    bandwidth = share_spare_bandwidth(problem, admission.bandwidth_hz)
    return DownloadPlan(model=model, bandwidth_hz=bandwidth, frequency_hz=np.repeat(frequency_hz, layers))


def _admit_by_knapsack(run: Run[Any], problem: ModelDownload, bandwidth: Floats) -> Admission:
    from edgeopt.solvers.kernels.multiple_choice import solve_multiple_choice

    unit = problem.resource_block_hz or 1.0
    capacity = problem.bandwidth_hz * (1 + FILL)
    users, models = np.nonzero(bandwidth <= capacity)
    needs = bandwidth[users, models]
    indptr = np.searchsorted(users, np.arange(problem.num_users + 1))
    if problem.resource_block_hz is not None:
        needs, capacity = np.round(needs / unit), np.floor(capacity / unit)
    chosen, best, bound = solve_multiple_choice(
        indptr, needs, problem.value[users, models], float(capacity), stop=run.stopped
    )
    gave_up = bound > best and run.limit is None
    taken = np.flatnonzero(chosen >= 0)
    model = np.full(problem.num_users, -1, np.int32)
    model[taken] = models[chosen[taken]]
    needed = np.zeros(problem.num_users)
    needed[taken] = unit * needs[chosen[taken]]
    message = "the memory of the knapsack was not enough to prove an optimum" if gave_up else ""
    return Admission(model, needed, float(bound), message)
