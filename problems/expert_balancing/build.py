"""Building expert-balancing problems from recorded routing, or at random."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeopt.errors import InvalidProblemError
from edgeopt.fields import check_table
from edgeopt.rng import stream
from edgeopt.validate import LEAST, int_array, integer, real

if TYPE_CHECKING:
    from edgeopt.problems.expert_caching import RoutingTrace

Ints = NDArray[np.int64]

LARGEST_EXPONENT = 600.0
"""Of loads as they are drawn: a layer's sum of them is a number."""


def trace_fields(
    trace: "RoutingTrace", *, num_devices: int, slots: ArrayLike | None = None, users: ArrayLike | None = None
) -> dict[str, Any]:
    """Take the tokens that each expert got in a recorded trace as its load.

    Parameters
    ----------
    trace : recorded routing; such a recording of one window is `problem.replace(load=...)` of the next.
    num_devices : devices D that the experts of a layer are spread over.
    slots : int32 [D], or one for all; see the class. Default: room for an eighth more replicas than there are experts.
    users : int32 [U], the users of the trace that count, for example those of one window. Default: all.

    Examples
    --------
    >>> from edgeopt.problems import ExpertBalancing, bundled_trace
    >>> problem = ExpertBalancing.from_trace(bundled_trace("mixtral8"), num_devices=4)
    >>> problem.num_layers, problem.num_experts, problem.slots
    (8, 8, array([3, 3, 3, 3], dtype=int32))
    """
    devices = integer("num_devices", num_devices, low=1)
    counted = np.ones(trace.num_users, bool)
    if users is not None:
        counted[:] = False
        counted[int_array("users", users, (None,), low=0, high=trace.num_users - 1)] = True
    check_table("layers x experts", trace.num_layers, trace.num_experts)
    load = np.zeros((trace.num_layers, trace.num_experts))
    rows = np.flatnonzero(counted[trace.set_user])
    for experts in trace.set_experts[rows].T:
        np.add.at(load, (trace.set_layer[rows], experts), trace.set_count[rows])
    return {"load": load, "slots": _slots(slots, np.zeros(devices, int), np.zeros(trace.num_experts, int))}


def random_fields(
    *,
    num_devices: int = 8,
    num_experts: int = 64,
    num_layers: int = 1,
    slots: ArrayLike | None = None,
    num_groups: int = 1,
    skew: float = 1.0,
    tokens: float = 1e5,
    move_cost: float = 0.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Draw loads whose logarithms are normal, as recorded ones nearly are.

    Parameters
    ----------
    num_devices, num_experts, num_layers : sizes D, E, L.
    slots : int32 [D], or one for all. Default: room for an eighth more replicas than there are experts, and for each group.
    num_groups : groups of devices, and as many of experts, in order; their sizes differ by one at most.
    skew : standard deviation of the logarithm of the loads. What is too small a number beside the largest is 0.
    tokens : load of all experts of a layer together.
    move_cost : see the class. Above 0, the present placement is the experts of each group in order, as they are served at
        first.
    seed : same seed, same problem.
    """
    devices = integer("num_devices", num_devices, low=1)
    experts = integer("num_experts", num_experts, low=1)
    layers, groups = integer("num_layers", num_layers, low=1), integer("num_groups", num_groups, low=1)
    check_table("layers x experts", layers, experts)
    for name, count in (("num_devices", devices), ("num_experts", experts)):
        if groups > count:
            raise InvalidProblemError(f"num_groups = {groups}: expected at most {name} = {count}")
    device_group = np.arange(devices) * groups // devices
    expert_group = np.arange(experts) * groups // experts
    rng = stream(seed, "expert balancing")
    size = real("skew", skew, nonnegative=True) * rng.standard_normal((layers, experts))
    load = np.exp(size - np.maximum(0.0, size.max(axis=1, keepdims=True) - LARGEST_EXPONENT))
    load = load / load.sum(axis=1, keepdims=True) * real("tokens", tokens, positive=True)
    fields: dict[str, Any] = {
        "load": np.where(load < LEAST, 0.0, load),
        "slots": _slots(slots, device_group, expert_group),
        "move_cost": move_cost,
    }
    if groups > 1:
        fields["device_group"], fields["expert_group"] = device_group, expert_group
    if real("move_cost", move_cost, nonnegative=True) > 0:
        place = _in_order(fields["slots"], device_group, expert_group)
        fields["present"] = np.broadcast_to(place, (layers, *place.shape))
    return fields


def _slots(slots: ArrayLike | None, device_group: Ints, expert_group: Ints) -> NDArray[np.int32]:
    """Return int32 [D]: slots as given, or as the default has them."""
    if slots is None:
        devices, experts = device_group.size, expert_group.size
        room = -(-(experts + max(1, experts // 8)) // devices)
        slots = max(room, int((-(-np.bincount(expert_group) // np.bincount(device_group))).max()))
    return int_array("slots", slots, device_group.shape, low=0)


def _in_order(slots: NDArray[np.int32], device_group: Ints, expert_group: Ints) -> Ints:
    """Return int64 [D, S]: experts of a group in order, and from the first again, until all slots of its devices are taken."""
    place = np.arange(slots.max())[None, :] < slots[:, None]
    found = np.full(place.shape, -1)
    for group in range(int(expert_group.max()) + 1):
        here = place & (device_group == group)[:, None]
        found[here] = np.resize(np.flatnonzero(expert_group == group), here.sum())
    return found
