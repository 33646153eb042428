"""Building expert-balancing problems from recorded routing, or at random."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from edgeopt.errors import InvalidProblemError
from edgeopt.fields import check_table
from edgeopt.rng import stream
from edgeopt.validate import int_array, integer, real

if TYPE_CHECKING:
    from edgeopt.problems.expert_caching import RoutingTrace


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
    return {"load": load, "slots": _slots(slots, devices, trace.num_experts)}


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
    slots : int32 [D], or one for all. Default: room for an eighth more replicas than there are experts.
    num_groups : groups of devices, and as many of experts, in order; both numbers must be multiples of it.
    skew : standard deviation of the logarithm of the loads.
    tokens : load of all experts of a layer together.
    move_cost : see the class. Above 0, the present placement is experts in order, as they are served at first.
    seed : same seed, same problem.
    """
    devices = integer("num_devices", num_devices, low=1)
    experts = integer("num_experts", num_experts, low=1)
    layers, groups = integer("num_layers", num_layers, low=1), integer("num_groups", num_groups, low=1)
    check_table("layers x experts", layers, experts)
    for name, count in (("num_devices", devices), ("num_experts", experts)):
        if count % groups:
            raise InvalidProblemError(f"{name} = {count}: expected a multiple of num_groups = {groups}")
    rng = stream(seed, "expert balancing")
    load = np.exp(real("skew", skew, nonnegative=True) * rng.standard_normal((layers, experts)))
    fields: dict[str, Any] = {
        "load": load / load.sum(axis=1, keepdims=True) * real("tokens", tokens, positive=True),
        "slots": _slots(slots, devices, experts),
        "move_cost": move_cost,
    }
    if groups > 1:
        fields["device_group"] = np.arange(devices) // (devices // groups)
        fields["expert_group"] = np.arange(experts) // (experts // groups)
    if real("move_cost", move_cost, nonnegative=True) > 0:
        fields["present"] = np.broadcast_to(
            _in_order(fields["slots"], experts), (layers, devices, fields["slots"].max())
        )
    return fields


def _slots(slots: ArrayLike | None, devices: int, experts: int) -> Any:
    given: ArrayLike = -(-(experts + max(1, experts // 8)) // devices) if slots is None else slots
    return int_array("slots", given, (devices,), low=0)


def _in_order(slots: Any, experts: int) -> Any:
    """Return int64 [D, S]: experts in order, and from the first again, until all slots are taken."""
    place = np.arange(slots.max())[None, :] < slots[:, None]
    found = np.full(place.shape, -1)
    found[place] = np.arange(place.sum()) % experts
    return found
