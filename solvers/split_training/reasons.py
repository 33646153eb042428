"""Why a target of split training is out of reach: limits that cannot hold together, and what each would have to be."""

import math

import numpy as np
from numpy.typing import NDArray

from edgeopt.explain import Conflict, Explanation, Limit, rounded_up
from edgeopt.problems import SplitTraining
from edgeopt.problems.split_training.limits import reachable_target

Floats = NDArray[np.float64]

NAMED = 6  # devices that a sentence lists


def explain(problem: SplitTraining) -> Explanation:
    r"""Return the fewest limits that keep the target out of reach.

    At cut 1, with the largest batch sizes and the least interval, both terms of the bound are least, so a problem is
    infeasible exactly if :math:`c \sum_i 1 / b_i + I^2 D_1 \ge \epsilon` there. The limits add terms to the left side: a device
    :math:`c / b_i` by the smaller of what its memory takes and its largest batch size, the least interval its drift. Terms of
    limits that are lifted vanish. The largest terms that reach the target together are therefore a conflict, of the fewest
    members that any has, and it is minimal: without one of them, the others are one fewer than it takes. Without the target
    anything goes. O(N log N), and O(N) for each member.
    """
    reason = problem.explain_infeasible()
    if reason is None:
        message = f"target = {problem.target:.6g} can be reached; any above {problem.least_target:.6g} can"
        return Explanation(problem=problem.kind, verdict="feasible", message=message)
    memory = problem.replace(max_batch=np.iinfo(np.int32).max).batch_limit[:, 0]
    by_memory = memory < problem.max_batch
    largest = np.minimum(memory, problem.max_batch)
    terms = np.append(problem.noise_weight / largest, problem.drift(1, problem.min_interval))  # [N + 1], the drift last
    members = _largest_that_reach(terms, problem.target)
    devices = [i for i in members if i < problem.num_devices]
    limits = [
        Limit(
            name="target",
            value=problem.target,
            enough=float(reachable_target(*problem.least_terms())),
            message="what gradient noise and client drift have to leave something of",
        )
    ]
    for i in devices:
        batch, noise = _least_batch(problem, i), f"gradient noise of at least {terms[i]:.6g}"
        if by_memory[i]:
            name, value = f"memory_bytes[{i}]", problem.memory_bytes[i].item()
            enough = None if batch is None or batch > problem.max_batch[i] else _memory_for(problem, batch)
            message = f"has room for {largest[i]} samples at cut 1, {noise}"
        else:
            name, value, message = f"max_batch[{i}]", float(problem.max_batch[i]), noise
            enough = None if batch is None or batch > memory[i] else float(batch)
        limits.append(Limit(name=name, value=value, enough=enough, message=message))
    drifts = problem.num_devices in members
    if drifts:
        limits.append(
            Limit(
                name="min_interval",
                value=float(problem.min_interval),
                enough=_largest_interval(problem),
                message=f"client drift of at least {terms[-1]:.6g} at cut 1",
            )
        )
    conflict = Conflict(message=_sentence(problem, terms, devices, by_memory, drifts), limits=tuple(limits))
    return Explanation(problem=problem.kind, verdict="infeasible", message=reason, conflict=conflict)


def _largest_that_reach(terms: Floats, target: float) -> list[int]:
    """Return the indices, rising, of the largest terms that sum up to at least the target, as few as possible."""
    order = np.argsort(-terms, kind="stable")
    count = int(np.searchsorted(np.cumsum(terms[order]), target * (1 - 1e-12))) + 1
    return sorted(order[: min(count, np.count_nonzero(terms))].tolist())


def _least_batch(problem: SplitTraining, device: int) -> int | None:
    """Return the least batch size of a device that makes the target reachable, all else unchanged; None for none."""
    others = 1.0 / np.delete(problem.batch_limit[:, 0], device)
    left = problem.target - problem.drift(1, problem.min_interval) - problem.noise_weight * float(others.sum())
    if left <= 0:
        return None
    least = math.floor(problem.noise_weight / left) + 1
    return least if least <= np.iinfo(np.int32).max else None


def _memory_for(problem: SplitTraining, batch: int) -> float:
    """Return bytes that a device needs for a batch size at cut 1."""
    return rounded_up((batch * problem.kept_bits[0] + problem.optimizer_states * problem.client_bits[0]) / 8)


def _largest_interval(problem: SplitTraining) -> float | None:
    """Return the largest least interval at which the target can be reached; None where not even 1 is enough."""
    noise, _ = problem.least_terms()
    low, high = 0, problem.min_interval  # the largest one that is enough lies in [low, high)
    while high - low > 1:
        middle = (low + high) // 2
        if problem.target - problem.drift(1, middle) - noise > 0:
            low = middle
        else:
            high = middle
    return float(low) if low else None


def _sentence(
    problem: SplitTraining, terms: Floats, devices: list[int], by_memory: NDArray[np.bool_], drifts: bool
) -> str:
    parts = []
    for name, own in (
        ("memory_bytes", [i for i in devices if by_memory[i]]),
        ("max_batch", [i for i in devices if not by_memory[i]]),
    ):
        if own:
            noise = float(terms[own].sum())
            parts.append(f"{name} of {_listed(own)} leaves gradient noise of at least {noise:.6g}")
    if drifts:
        parts.append(f"min_interval = {problem.min_interval} leaves client drift of at least {terms[-1]:.6g}")
    return f"target = {problem.target:.6g}, but " + ", and ".join(parts)


def _listed(devices: list[int]) -> str:
    shown = ", ".join(map(str, devices[:NAMED]))
    more = f" and {len(devices) - NAMED} more" if len(devices) > NAMED else ""
    return f"device{'s' if len(devices) > 1 else ''} {shown}{more}"
