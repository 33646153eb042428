"""What solvers of expert balancing share: parts that can be placed alone, and placements put together from them."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.problem import Problem
from edgeopt.problems import ExpertBalancing, Replicas
from edgeopt.solvers.kernels.balancing import hand_out, pack

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NO_FIT = "no way was found to give every group of experts one group of devices"


def supports_expert_balancing(problem: Problem) -> str | None:
    """Support every expert-balancing problem."""
    return None if isinstance(problem, ExpertBalancing) else f"expected an expert-balancing problem, got {problem.kind}"


class Part(NamedTuple):
    """Experts of a layer and the devices that they are spread over: all, or those of one group.

    Parameters
    ----------
    experts, devices : int64, ids in the problem.
    load : float64 [len(experts)].
    slots : int64 [len(devices)].
    """

    experts: Ints
    devices: Ints
    load: Floats
    slots: Ints

    def packed(self) -> Ints:
        """Return int64 [devices, S], in the part's own numbers: replicas in all slots, handed out and packed greedily."""
        return pack(self.load, hand_out(self.load, int(self.slots.sum())), self.slots)

    def largest(self, placed: Ints) -> float:
        """Return the largest load of a device."""
        share = self.load / np.bincount(placed[placed >= 0], minlength=self.load.size)
        return float(np.where(placed >= 0, share[placed], 0.0).sum(axis=1).max())


def parts_of(problem: ExpertBalancing, layer: int, groups: Ints) -> list[Part]:
    """Return the parts of a layer whose experts [E] go to these groups of devices, those with most load per device first."""
    found = []
    for group in np.unique(groups).tolist():
        experts, devices = np.flatnonzero(groups == group), np.flatnonzero(problem.device_group == group)
        part = Part(experts, devices, problem.load[layer][experts], problem.slots[devices].astype(np.int64))
        found.append((part.load.sum() / np.count_nonzero(part.slots), -group, part))
    return [part for *_, part in sorted(found, key=lambda entry: entry[:2], reverse=True)]


def chosen_groups(problem: ExpertBalancing) -> Ints | None:
    """Return int64 [L, E]: the group of devices that each expert goes to; None where no way was found.

    In each layer the groups of experts, those with most load first, each go to the group of devices that then has least
    load per slot, of those with room for one replica of each. Where some find no room so, the largest go first, each to
    where least room is left.
    """
    if not problem.is_grouped:
        return np.full(problem.load.shape, problem.device_group[0], np.int64)
    size = np.bincount(problem.expert_group)
    room = np.bincount(problem.device_group, problem.slots).astype(np.int64)
    found = np.empty(problem.load.shape, np.int64)
    for layer, load in enumerate(problem.load):
        weight = np.bincount(problem.expert_group, load).astype(np.float64)
        chosen = _into_room(np.lexsort((-size, -weight)), size, room, weight)
        if chosen is None and (chosen := _into_room(np.argsort(-size, kind="stable"), size, room)) is None:
            return None
        found[layer] = chosen[problem.expert_group]
    return found


def groups_as_placed(problem: ExpertBalancing, placement: Replicas) -> Ints:
    """Return int64 [L, E]: the group of devices where a feasible placement has each expert."""
    found = np.empty(problem.load.shape, np.int64)
    layer, device, slot = np.nonzero(placement.experts >= 0)
    found[layer, placement.experts[layer, device, slot]] = problem.device_group[device]
    return found


def _into_room(order: Ints, size: Ints, room: Ints, weight: Floats | None = None) -> Ints | None:
    """Return the group of devices of each group of experts, None if one finds no room."""
    left, taken, chosen = room.copy(), np.zeros(room.size), np.zeros(size.size, np.int64)
    for group in order[size[order] > 0].tolist():
        fits = left >= size[group]
        if not fits.any():
            return None
        rank = left if weight is None else (taken + weight[group]) / np.maximum(room, 1)
        best = chosen[group] = np.where(fits, rank, np.inf).argmin()
        left[best] -= size[group]
        taken[best] += 0.0 if weight is None else weight[group]
    return chosen


def empty_slots(problem: ExpertBalancing) -> Ints:
    """Return int64 [L, D, S] of slots without an expert."""
    return np.full((problem.num_layers, problem.num_devices, int(problem.slots.max())), -1, np.int64)


def put(experts: Ints, part: Part, placed: Ints) -> None:
    """Put a part's placement, in its own numbers, into the slots [D, S] of its layer."""
    experts[part.devices] = -1
    experts[part.devices, : placed.shape[1]] = np.where(placed >= 0, part.experts[placed], -1)


def laid_out(counts: Ints, width: int) -> Ints:
    """Return int64 [D, width]: the experts of each device in its first slots, of counts [D, E]."""
    found = np.full((len(counts), width), -1, np.int64)
    for device, row in enumerate(counts):
        experts = np.repeat(np.arange(row.size), row)
        found[device, : experts.size] = experts
    return found


def layer_value(problem: ExpertBalancing, layer: int, counts: Ints, present: Ints) -> float:
    """Return what a layer adds to the objective with replicas [D, E]: its largest load, and the cost of moves from [D, E]."""
    load = (counts * (problem.load[layer] / np.maximum(counts.sum(axis=0), 1))).sum(axis=1).max()
    moves = np.maximum(counts - present, 0).sum() if problem.move_cost > 0 else 0
    return float(load + problem.move_cost * moves)


def all_packed(problem: ExpertBalancing) -> Replicas | None:
    """Return a placement with all slots taken, handed out and packed greedily; None where groups do not fit."""
    if (groups := chosen_groups(problem)) is None:
        return None
    experts = empty_slots(problem)
    for layer in range(problem.num_layers):
        for part in parts_of(problem, layer, groups[layer]):
            put(experts[layer], part, part.packed())
    return Replicas(experts)
