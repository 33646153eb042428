"""What a plan of model download violates, and which users cannot be served at all."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from edgeopt.problem import Violation
from edgeopt.problems.download_plan import DownloadPlan

if TYPE_CHECKING:
    from edgeopt.problems.model_download import ModelDownload

Reason = Literal["model", "deadline", "energy", "rate", "bandwidth"]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a user cannot be served even if alone.

    Parameters
    ----------
    user : which user.
    reason : ``model`` (none is allowed), ``deadline`` (below the compute time), ``energy`` (below the least there is),
        ``rate`` (above the ceiling at fixed transmit power) or ``bandwidth`` (more than there is).
    message : one sentence with the numbers, of the model that comes furthest in this order and then closest.
    """

    user: int
    reason: Reason
    message: str


def violations(problem: "ModelDownload", plan: DownloadPlan, tolerance: float) -> tuple[Violation, ...]:
    """See `ModelDownload.violations`."""
    found = []
    users = np.flatnonzero(plan.model >= 0)
    for k in users[~problem.allowed[users, plan.model[users]]]:
        name = problem.model_names[plan.model[k]]
        found.append(
            Violation("model", int(k), 1.0, f"user {k} gets {name}: {_not_allowed(problem, k, plan.model[k])}")
        )
    total = float(plan.bandwidth_hz.sum())
    if total > problem.bandwidth_limit_hz:
        message = f"users get {total:.12g} Hz, the bandwidth is {problem.bandwidth_hz:.12g}"
        found.append(Violation("bandwidth", 0, total - problem.bandwidth_hz, message))
    if (block := problem.resource_block_hz) is not None:
        off = np.abs(plan.bandwidth_hz - block * np.round(plan.bandwidth_hz / block))
        for k in np.flatnonzero(off > tolerance * np.maximum(plan.bandwidth_hz, block)):
            message = f"user {k} gets {plan.bandwidth_hz[k]:.12g} Hz, expected whole blocks of {block:.12g}"
            found.append(Violation("resource-block", int(k), float(off[k]), message))
    timeline = problem.simulate(plan)
    for constraint, verb, unit, amounts, limits in (
        ("deadline", "is done after", "s", timeline.completion_s, problem.deadline_s),
        ("energy", "spends", "J", timeline.energy_j, problem.energy_j),
    ):
        for k in np.flatnonzero(amounts > limits * (1 + tolerance)):
            message = f"user {k} {verb} {amounts[k]:.12g} {unit}, expected at most {limits[k]:.12g}"
            found.append(Violation(constraint, int(k), float(amounts[k] - limits[k]), message))
    return (*found, *_frequency_violations(problem, plan, timeline.indptr, tolerance))


def _frequency_violations(
    problem: "ModelDownload", plan: DownloadPlan, indptr: NDArray[np.int64], tolerance: float
) -> list[Violation]:
    """Return one violation for each user with a frequency out of range or between levels, at the worst layer."""
    owner = np.repeat(np.arange(problem.num_users), np.diff(indptr))
    low, high = problem.min_frequency_hz[owner], problem.max_frequency_hz[owner]
    off = np.maximum(low - plan.frequency_hz, plan.frequency_hz - high)
    expected = "from {:.12g} to {:.12g}"
    if (levels := problem.frequency_levels) is not None:
        after = np.searchsorted(levels, plan.frequency_hz / high).clip(1, max(1, levels.size - 1))
        nearest = np.abs(plan.frequency_hz - high * levels[after - 1])
        if levels.size > 1:
            nearest = np.minimum(nearest, np.abs(plan.frequency_hz - high * levels[after]))
        off = np.maximum(off, nearest)
        expected += ", at a level"
    wrong = np.flatnonzero(off > tolerance * high)
    found = []
    for k in np.unique(owner[wrong]):
        slots = wrong[owner[wrong] == k]
        worst = slots[off[slots].argmax()]
        message = f"user {k} runs layer {worst - indptr[k]} at {plan.frequency_hz[worst]:.12g} Hz, expected "
        message += expected.format(low[worst], high[worst])
        found.append(Violation("frequency", int(k), float(off[worst]), message))
    return found


def refusals(problem: "ModelDownload", tolerance: float) -> tuple[Refusal, ...]:
    """See `ModelDownload.refusals`."""
    from edgeopt.problems.model_download_kernels import least_rates  # late: numba takes 0.3 s to import

    first = problem.layer_indptr[:-1]
    top, cycles = problem.top_frequency_hz[:, None], problem.cycles_per_layer_flop[:, None]
    flops, fixed = problem.suffix_flops[first], problem.suffix_fixed_s[first]
    deadline = problem.deadline_s[:, None]
    compute = fixed + cycles * flops / top  # [K, I] from here on
    steady = np.divide(cycles * flops, deadline - fixed, out=np.zeros_like(compute), where=compute < deadline)
    slowest = np.maximum(problem.min_frequency_hz[:, None], steady)
    energy = problem.receive_j_per_bit[:, None] * problem.model_bits
    energy = energy + problem.energy_coefficient[:, None] * cycles * flops * slowest**2
    rate = least_rates(
        np.array(problem.allowed), np.array(problem.layer_indptr), problem.prefix_bits, problem.suffix_flops,
        problem.suffix_fixed_s, np.array(problem.deadline_s), (cycles / top).ravel(),
    )  # fmt: skip
    at_most = problem.rate_bps(problem.bandwidth_limit_hz)[:, None]
    ceiling = problem.rate_ceiling_bps[:, None]
    compute = np.where(rate < np.inf, compute, np.maximum(compute, deadline))  # a tie, whichever way it was rounded
    stages: tuple[
        tuple[Reason, Floats, Floats, bool], ...
    ] = (  # what is needed, what there is, whether equal is enough
        ("deadline", compute, deadline, False),
        ("energy", energy, problem.energy_j[:, None] * (1 + tolerance), True),
        ("rate", rate, ceiling, False),
        ("bandwidth", rate, at_most * (1 + tolerance), True),
    )
    left = problem.allowed  # pairs that have passed all stages so far
    found: dict[int, Refusal] = {}
    for k in np.flatnonzero(~left.any(axis=1)):
        found[int(k)] = Refusal(int(k), "model", f"user {k}: {_none_allowed(problem, int(k))}")
    for reason, need, limit, equal in stages:
        passed = left & ((need <= limit) if equal else (need < limit))
        for k in np.flatnonzero(left.any(axis=1) & ~passed.any(axis=1)):
            i = int(np.where(left[k], need[k] / limit[k], np.inf).argmin())
            numbers = _numbers(problem, reason, int(k), i, float(need[k, i]))
            found[int(k)] = Refusal(int(k), reason, f"user {k}: {numbers}")
        left = passed
    return tuple(found[k] for k in sorted(found))


def _numbers(problem: "ModelDownload", reason: Reason, k: int, i: int, need: float) -> str:
    """Return the sentence about user k and model i, which needs `need` of what the reason is about."""
    name = problem.model_names[i]
    if reason == "deadline":
        top = problem.top_frequency_hz[k]
        return f"deadline_s = {problem.deadline_s[k]:.6g}, computing {name} takes {need:.6g} s at {top:.6g} Hz"
    if reason == "energy":
        return f"energy_j = {problem.energy_j[k]:.6g}, {name} takes at least {need:.6g} J to meet the deadline"
    if reason == "rate":
        ceiling = problem.rate_ceiling_bps[k]
        return f"{name} needs {need:.6g} bit/s, the channel carries less than {ceiling:.6g} over any bandwidth"
    carried = problem.rate_bps(problem.bandwidth_hz)[k]
    return f"{name} needs {need:.6g} bit/s, the whole bandwidth carries {carried:.6g}"


def _none_allowed(problem: "ModelDownload", k: int) -> str:
    """Return why user k is allowed no model: the first of task, accuracy and memory that leaves none."""
    for_task = problem.model_task == problem.task[k]
    if not for_task.any():
        return f"task = {problem.task[k]}, no model does it"
    if not (accurate := for_task & (problem.accuracy >= problem.min_accuracy[k])).any():
        best = int(np.where(for_task, problem.accuracy, -1.0).argmax())
        return _not_allowed(problem, k, best)
    return _not_allowed(problem, k, int(np.where(accurate, problem.model_bits, np.inf).argmin()))


def _not_allowed(problem: "ModelDownload", k: int, i: int) -> str:
    """Return why user k may not get model i."""
    name = problem.model_names[i]
    if problem.model_task[i] != problem.task[k]:
        return f"task = {problem.task[k]}, {name} does task {problem.model_task[i]}"
    if problem.accuracy[i] < problem.min_accuracy[k]:
        return f"min_accuracy = {problem.min_accuracy[k]:.6g}, {name} has {problem.accuracy[i]:.6g}"
    size = problem.model_bits[i] / 8
    return f"memory_bytes = {problem.memory_bytes[k]:.6g}, {name} takes {size:.6g}"
