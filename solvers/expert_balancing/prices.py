"""What one more slot is worth to expert balancing, on each device."""

import numpy as np

from edgeopt.prices import Price
from edgeopt.problems import ExpertBalancing, Replicas
from edgeopt.solvers.expert_balancing.common import layer_value


def prices(problem: ExpertBalancing, placement: Replicas) -> list[Price]:
    """Return estimates: what the best single replica in one more slot takes off the objective, layer by layer.

    A slot is one in every layer. The other replicas stay where they are, so that the gain is there; a placement that is
    made anew may gain more. O(L D E) for each device.
    """
    counts, present = placement.counts(problem.num_experts), problem.present_counts()
    gains = np.zeros(problem.num_devices)
    for layer, load in enumerate(problem.load):
        replicas = counts[layer].sum(axis=0)
        now, more = load / replicas, load / (replicas + 1)
        loads = counts[layer] @ now
        before = layer_value(problem, layer, counts[layer], present[layer])
        relieved = loads[None, :] - counts[layer].T * (now - more)[:, None]  # [E, D]
        for device in range(problem.num_devices):
            after = relieved.copy()
            after[:, device] += more
            largest = np.where(_may_have(problem, counts[layer], device), after.max(axis=1), np.inf)
            moved = counts[layer].copy()
            moved[device, int(largest.argmin())] += 1
            if np.isfinite(largest.min()):
                gains[device] += max(0.0, before - layer_value(problem, layer, moved, present[layer]))
    return [
        Price(
            name=f"slots[{device}]",
            unit="",
            value=float(problem.slots[device]),
            worth=gain,
            claim="estimate",
            step=1.0,
            gain=gain,
        )
        for device, gain in enumerate(gains.tolist())
        if gain > 0
    ]


def _may_have(problem: ExpertBalancing, counts: np.ndarray, device: int) -> np.ndarray:
    """Return bool [E]: experts whose group is on the device's group of devices."""
    if not problem.is_grouped:
        return np.ones(problem.num_experts, bool)
    return np.asarray((counts[problem.device_group == problem.device_group[device]] > 0).any(axis=0))
