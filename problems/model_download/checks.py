"""What a plan of model download violates, and which users cannot be served at all."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.problem import Violation
from edgeopt.problems.model_download.instance import TOLERANCE, DownloadInstance
from edgeopt.problems.model_download.plan import DownloadPlan, DownloadTimeline

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


def violations(problem: DownloadInstance, plan: DownloadPlan, timeline: DownloadTimeline) -> tuple[Violation, ...]:
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
        for k in np.flatnonzero(off > TOLERANCE * np.maximum(plan.bandwidth_hz, block)):
            message = f"user {k} gets {plan.bandwidth_hz[k]:.12g} Hz, expected whole blocks of {block:.12g}"
            found.append(Violation("resource-block", int(k), float(off[k]), message))
    for constraint, verb, unit, amounts, limits in (
        ("deadline", "is done after", "s", timeline.completion_s, problem.deadline_s),
        ("energy", "spends", "J", timeline.energy_j, problem.energy_j),
    ):
        for k in np.flatnonzero(amounts > limits * (1 + TOLERANCE)):
            message = f"user {k} {verb} {amounts[k]:.12g} {unit}, expected at most {limits[k]:.12g}"
            found.append(Violation(constraint, int(k), float(amounts[k] - limits[k]), message))
    return (*found, *_frequency_violations(problem, plan, timeline.indptr))


def _frequency_violations(problem: DownloadInstance, plan: DownloadPlan, indptr: NDArray[np.int64]) -> list[Violation]:
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
    wrong = np.flatnonzero(off > TOLERANCE * high)
    found = []
    for k in np.unique(owner[wrong]):
        slots = wrong[owner[wrong] == k]
        worst = slots[off[slots].argmax()]
        message = f"user {k} runs layer {worst - indptr[k]} at {plan.frequency_hz[worst]:.12g} Hz, expected "
        message += expected.format(low[worst], high[worst])
        found.append(Violation("frequency", int(k), float(off[worst]), message))
    return found


def refusals(problem: DownloadInstance) -> tuple[Refusal, ...]:
    """See `ModelDownload.refusals`."""
    return tuple(_refusal(problem, *refused) for refused in _merged(_refused(problem)))


class RefusalOfUser:
    """The refusals of `refusals`, user by user; messages are made when they are asked for."""

    def __init__(self, problem: DownloadInstance) -> None:
        self._problem, self._groups = problem, _refused(problem)
        self._group, self._place = np.full((2, problem.num_users), -1)
        for number, group in enumerate(self._groups):
            self._group[group.users], self._place[group.users] = number, np.arange(group.users.size)

    def __call__(self, user: int) -> Refusal | None:
        """Return why a user cannot be served even if alone, None for one who can."""
        if self._group[user] < 0:
            return None
        reason, _, models, needs, there = self._groups[self._group[user]]
        at = self._place[user]
        return _refusal(self._problem, reason, user, int(models[at]), float(needs[at]), float(there[at]))


def count_refusals(problem: DownloadInstance) -> dict[Reason, int]:
    """See `ModelDownload.count_refusals`."""
    return _counts(_refused(problem))


def refusal_summary(problem: DownloadInstance) -> str:
    """See `ModelDownload.refusal_summary`."""
    groups = _refused(problem)
    if not (counts := _counts(groups)):
        return ""
    first = _refusal(problem, *_merged([group.head() for group in groups if group.users.size])[0])
    return (
        f"{sum(counts.values())} of {problem.num_users} users cannot be served even alone ({reasons_text(counts)}); "
        f"{first.message}"
    )


def reasons_text(counts: dict[Reason, int]) -> str:
    """Return counts by reason as words."""
    return ", ".join(f"{count} {reason}" for reason, count in counts.items())


class _Group(NamedTuple):
    """Users [R] of one reason, ascending, with the model [R] that comes closest and what it needs [R] of what there is [R]."""

    reason: Reason
    users: NDArray[np.int64]
    models: NDArray[np.int64]
    needs: Floats
    there: Floats

    def head(self) -> "_Group":
        """Return the first user alone."""
        return _Group(self.reason, *(column[:1] for column in self[1:]))  # type: ignore[arg-type]


_Refused = tuple[Reason, int, int, float, float]


def _counts(groups: list[_Group]) -> dict[Reason, int]:
    return {group.reason: group.users.size for group in groups if group.users.size}


def _merged(groups: list[_Group]) -> list[_Refused]:
    """Return reason, user, model, need and what there is of everybody in the groups, by user."""
    everybody = [
        (group.reason, *columns)
        for group in groups
        for columns in zip(*(column.tolist() for column in group[1:]), strict=True)
    ]
    return sorted(everybody, key=lambda refused: refused[1])


def _refused(problem: DownloadInstance) -> list[_Group]:
    """Return who cannot be served even alone, a group for each reason; no messages yet, which take long for many users."""
    from edgeopt.problems.model_download.kernels import least_rates  # late: numba takes 0.3 s to import

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
    ceiling = problem.rate_ceiling_bps
    carried = problem.rate_bps(problem.bandwidth_hz)
    at_most = problem.rate_bps(problem.bandwidth_limit_hz)[:, None]
    compute = np.where(rate < np.inf, compute, np.maximum(compute, deadline))  # a tie, whichever way it was rounded
    stages: tuple[tuple[Reason, Floats, Floats, bool, Floats], ...] = (
        # what is needed [K, I], what there is, whether equal is enough; what the message says there is [K]
        ("deadline", compute, deadline, False, top[:, 0]),
        ("energy", energy, problem.energy_j[:, None] * (1 + TOLERANCE), True, problem.energy_j),
        ("rate", rate, ceiling[:, None], False, ceiling),
        ("bandwidth", rate, at_most * (1 + TOLERANCE), True, carried),
    )
    left = problem.allowed  # pairs that have passed all stages so far
    waiting = left.any(axis=1)
    none = np.flatnonzero(~waiting)
    found = [_Group("model", none, np.full(none.size, -1), np.zeros(none.size), np.zeros(none.size))]
    for reason, need, limit, equal, there in stages:
        passed = left & ((need <= limit) if equal else (need < limit))
        still = passed.any(axis=1)
        users = np.flatnonzero(waiting & ~still)
        closest = np.where(left[users], need[users] / limit[users], np.inf).argmin(axis=1)
        found.append(_Group(reason, users, closest, need[users, closest], there[users]))
        left, waiting = passed, still
    return found


def _refusal(problem: DownloadInstance, reason: Reason, k: int, i: int, need: float, there: float) -> Refusal:
    """Return the refusal of user k, whose model i comes closest."""
    if reason == "model":
        return Refusal(k, reason, f"user {k}: {_none_allowed(problem, k)}")
    name = problem.model_names[i]
    message = {
        "deadline": f"deadline_s = {problem.deadline_s[k]:.6g}, computing {name} takes {need:.6g} s at {there:.6g} Hz",
        "energy": f"energy_j = {there:.6g}, {name} takes at least {need:.6g} J to meet the deadline",
        "rate": f"{name} needs {need:.6g} bit/s, the channel carries less than {there:.6g} over any bandwidth",
        "bandwidth": f"{name} needs {need:.6g} bit/s, the whole bandwidth carries {there:.6g}",
    }[reason]
    return Refusal(k, reason, f"user {k}: {message}")


def _none_allowed(problem: DownloadInstance, k: int) -> str:
    """Return why user k is allowed no model: the first of task, accuracy and memory that leaves none."""
    for_task = problem.model_task == problem.task[k]
    if not for_task.any():
        return f"task = {problem.task[k]}, no model does it"
    if not (accurate := for_task & (problem.accuracy >= problem.min_accuracy[k])).any():
        best = int(np.where(for_task, problem.accuracy, -1.0).argmax())
        return _not_allowed(problem, k, best)
    return _not_allowed(problem, k, int(np.where(accurate, problem.model_bits, np.inf).argmin()))


def _not_allowed(problem: DownloadInstance, k: int, i: int) -> str:
    """Return why user k may not get model i."""
    name = problem.model_names[i]
    if problem.model_task[i] != problem.task[k]:
        return f"task = {problem.task[k]}, {name} does task {problem.model_task[i]}"
    if problem.accuracy[i] < problem.min_accuracy[k]:
        return f"min_accuracy = {problem.min_accuracy[k]:.6g}, {name} has {problem.accuracy[i]:.6g}"
    size = problem.model_bits[i] / 8
    return f"memory_bytes = {problem.memory_bytes[k]:.6g}, {name} takes {size:.6g}"
