"""Why groups of experts find no room on groups of devices, as limits that cannot hold together."""

import numpy as np
from numpy.typing import NDArray

from edgeopt.explain import Conflict, Explanation, Limit, Verdict
from edgeopt.problems import ExpertBalancing

Ints = NDArray[np.int64]

MAX_STEPS = 100_000
"""Placements of a group that one decision tries before it is left open."""


def explain(problem: ExpertBalancing) -> Explanation:
    """Return groups of experts that cannot each be on one group of devices, as few as are found, and the slots there are.

    Without groups nothing can be infeasible: a problem with fewer slots than experts is refused. With them, layers have the
    same sizes, and the question is whether the groups of experts can be packed into the groups of devices. The conflict is found by
    leaving out one group of experts after another, small ones first, while the others still cannot be packed; it has the slots
    of all groups of devices, as any of them would take everything if it were large enough. A decision is a search with
    memory over the groups by falling size; beyond `MAX_STEPS` it is left open.
    """
    if not problem.is_grouped:
        message = "never infeasible: without groups, experts only need as many slots as there are of them"
        return Explanation(problem=problem.kind, verdict="feasible", message=message)
    size = np.bincount(problem.expert_group).astype(np.int64)
    room = np.bincount(problem.device_group, problem.slots).astype(np.int64)
    groups = np.flatnonzero(size > 0)
    fits = packs(size[groups], room)
    if fits is None:
        message = f"whether {groups.size} groups of experts fit on groups of devices was not decided"
        return _explanation(problem, "unknown", message)
    if fits:
        return _explanation(problem, "feasible", "every group of experts finds a group of devices with room for it")
    left, undecided = groups[np.argsort(size[groups], kind="stable")].tolist(), False
    for group in list(left):
        others = [other for other in left if other != group]
        without = packs(size[others], room)
        undecided |= without is None
        if without is False:
            left = others
    left.sort()
    sizes = ", ".join(f"{size[group]}" for group in left)
    rooms = np.flatnonzero(np.bincount(problem.device_group) > 0).tolist()
    message = (
        f"groups {', '.join(map(str, left))} have {sizes} experts, which cannot each be on one of the groups of devices with "
        f"{', '.join(str(room[node]) for node in rooms)} slots"
    )
    if undecided:
        message += "; whether fewer of them could was not decided"
    limits = [
        Limit(
            name=f"expert_group {group}",
            value=float(size[group]),
            enough=None,
            message=f"its {size[group]} experts are on one group of devices",
        )
        for group in left
    ]
    for node in rooms:
        enough = _least_room(size[groups], room, node)
        text = f"{room[node]} slots for one replica of each expert there"
        limits.append(Limit(name=f"slots of device group {node}", value=float(room[node]), enough=enough, message=text))
    conflict = Conflict(message=message, limits=tuple(limits))
    return _explanation(problem, "infeasible", message, conflict)


def packs(size: Ints, room: Ints) -> bool | None:
    """Return whether groups of these sizes fit into these rooms, each into one; None where that was not decided.

    Examples
    --------
    >>> packs(np.array([3, 3, 3]), np.array([5, 5])), packs(np.array([3, 2, 3, 2]), np.array([5, 5]))
    (False, True)
    """
    order = np.sort(size)[::-1].tolist()
    after = np.append(np.cumsum(order[::-1])[::-1], 0).tolist()  # what is left to place from each group on
    dead: set[tuple[int, tuple[int, ...]]] = set()
    steps = 0

    def place(at: int, left: tuple[int, ...]) -> bool:
        """Try the rooms for group `at`, the tightest first; rooms that have as much left as one before are the same."""
        nonlocal steps
        if at == len(order):
            return True
        usable = tuple(room for room in left if room >= order[-1])  # sorted
        if sum(usable) < after[at] or (at, usable) in dead:
            return False
        steps += 1
        if steps > MAX_STEPS:
            raise _OpenError
        for i, there in enumerate(usable):
            if there < order[at] or (i and usable[i - 1] == there):
                continue
            if place(at + 1, tuple(sorted((*usable[:i], there - order[at], *usable[i + 1 :])))):
                return True
        dead.add((at, usable))
        return False

    try:
        return place(0, tuple(sorted(room.tolist())))
    except (_OpenError, RecursionError):
        return None


class _OpenError(Exception):
    """The search has taken too many steps."""


def _least_room(size: Ints, room: Ints, node: int) -> float | None:
    """Return the least slots of one group of devices with which all fit; None where that was not decided."""
    low, high = int(room[node]), int(room[node] + size.sum())  # not enough, enough
    while high - low > 1:
        middle = (low + high) // 2
        changed = room.copy()
        changed[node] = middle
        if (fits := packs(size, changed)) is None:
            return None
        low, high = (low, middle) if fits else (middle, high)
    return float(high)


def _explanation(
    problem: ExpertBalancing, verdict: Verdict, message: str, conflict: Conflict | None = None
) -> Explanation:
    return Explanation(problem=problem.kind, verdict=verdict, message=message, conflict=conflict)
