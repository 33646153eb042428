"""`ExpertBalancing`: replicas of experts on devices, so that the largest load of each layer is least."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeopt import storage
from edgeopt.built import Built
from edgeopt.errors import InvalidFileError, InvalidProblemError
from edgeopt.fields import Fields, check_table
from edgeopt.npz import numbers
from edgeopt.problem import Problem, Sense, Violation
from edgeopt.problems.expert_balancing.build import random_fields, trace_fields
from edgeopt.problems.expert_balancing.replicas import Replicas
from edgeopt.problems.expert_balancing.report import BalanceReport
from edgeopt.validate import float_array, int_array

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LARGEST_GROUP = (1 << 20) - 1
"""Of experts or devices: groups are counted in arrays."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class ExpertBalancing(Problem):
    r"""Where to keep how many replicas of each expert, when the experts of a layer are spread over devices.

    A layer lasts as long as its device with the most load. What an expert gets is shared out evenly among its replicas, so
    that with :math:`x_{lde}` replicas of expert e on device d in layer l, :math:`r_{le} = \sum_d x_{lde}` in all,

    .. math:: \min_x \sum_l \max_d \sum_e x_{lde} \frac{w_{le}}{r_{le}} + c \sum_{l, d, e} (x_{lde} - x^0_{lde})^+
        \quad \text{with} \quad r_{le} \ge 1, \quad \sum_e x_{lde} \le S_d,

    and, where experts and devices have groups, all replicas of the experts of a group on the devices of one group. This is
    what systems solve that serve mixtures of experts with expert parallelism, again and again while they run (DeepSeek's
    EPLB, 2025); weighing the moves in the objective is ours. Layers do not depend on each other.

    Parameters
    ----------
    load : float64 [L, E], what each expert gets in a window: tokens, say.
    slots : int32 [D], replicas that each device has room for in a layer.
    expert_group : int32 [E], group of each expert. Default: one group.
    device_group : int32 [D], group of each device, such as its node. Default: one group.
    present : int32 [L, D, S], the placement there is, as in `Replicas`; None where nothing is placed yet.
    move_cost : c, what fetching one replica costs, in units of load.

    Raises
    ------
    InvalidProblemError
        Naming field, index, value and what was expected; also if there are fewer slots than experts.

    Examples
    --------
    >>> problem = ExpertBalancing(load=[[600, 560, 120, 120, 20, 10, 10, 10]], slots=[2] * 8)
    >>> one_each = Replicas([[[e, -1] for e in range(8)]])
    >>> problem.objective(one_each), problem.lower_bound
    (600.0, 181.25)
    """

    load: Floats
    slots: NDArray[np.int32]
    expert_group: NDArray[np.int32] = dataclasses.field(default_factory=lambda: np.array(0))
    device_group: NDArray[np.int32] = dataclasses.field(default_factory=lambda: np.array(0))
    present: NDArray[np.int32] | None = None
    move_cost: float = 0.0

    kind: ClassVar[str] = "expert-balancing"
    sense: ClassVar[Sense] = "min"

    def __post_init__(self) -> None:
        load = float_array("load", self.load, (None, None), nonnegative=True, ranged=True)
        slots = int_array("slots", self.slots, (None,), low=0)
        if load.size == 0 or slots.size == 0:
            raise InvalidProblemError(
                f"load, slots: expected at least one layer, one expert and one device, got shapes {list(load.shape)} "
                f"and {list(slots.shape)}"
            )
        layers, experts = load.shape
        if int(slots.sum()) < experts:
            raise InvalidProblemError(
                f"slots: {slots.sum()} in all, expected at least one for each of {experts} experts"
            )
        check_table("layers x devices x slots", layers, slots.size, int(slots.max()))
        check_table("layers x devices x experts", layers, slots.size, experts)
        fields: dict[str, Any] = {"load": load, "slots": slots}
        for name, count in (("expert_group", experts), ("device_group", slots.size)):
            given: ArrayLike = getattr(self, name)
            fields[name] = int_array(name, given, (count,), low=0, high=LARGEST_GROUP)
        fields["move_cost"] = float(float_array("move_cost", self.move_cost, (), nonnegative=True, ranged=True))
        for name, value in fields.items():
            object.__setattr__(self, name, value)
        self._check_groups()
        if self.present is not None:
            object.__setattr__(self, "present", self._checked_present())
        elif self.move_cost > 0:
            raise InvalidProblemError(f"move_cost = {self.move_cost}: expected a present placement to move from")

    # --- facts ---------------------------------------------------------------------------------------------------

    @property
    def num_layers(self) -> int:
        """Layers with experts, L."""
        return len(self.load)

    @property
    def num_experts(self) -> int:
        """Experts of a layer, E."""
        return int(self.load.shape[1])

    @property
    def num_devices(self) -> int:
        """Devices, D."""
        return self.slots.size

    @property
    def mean_load(self) -> Floats:
        """float64 [L], load of a device where all devices with slots have the same."""
        return np.asarray(self.load.sum(axis=1) / np.count_nonzero(self.slots))

    @property
    def lower_bound(self) -> float:
        r"""What no placement beats: the sum over layers of the larger of two bounds, moves being free.

        The mean load of a device is one. The other one is the least T with :math:`\sum_e \max(1, \lceil w_e / T \rceil)`
        at most the slots: below it, some replica alone has more load than T.
        """
        return math.fsum(self.layer_bounds())

    def layer_bounds(self) -> Floats:
        """Return float64 [L], the bound of each layer, see `lower_bound`."""
        return np.maximum(self.mean_load, [self._thinnest(load) for load in self.load])

    def _thinnest(self, load: Floats) -> float:
        """Return the least load of the largest replica; adding replicas one by one to the largest attains it."""
        most = int(self.slots.sum())
        low, high = float(load.max()) / most, float(load.max())
        while low < (middle := (low + high) / 2) < high:  # ends at neighbouring numbers
            if np.maximum(1.0, np.ceil(load / middle)).sum() <= most:
                high = middle
            else:
                low = middle
        return low

    # --- objective -----------------------------------------------------------------------------------------------

    def objective(self, solution: Replicas) -> float:
        """Return the sum of the layers' largest loads, and of what moves cost; inf if an expert has no replica."""
        report = self.report(solution)
        return math.fsum(report.largest) + self.move_cost * report.moves

    def report(self, solution: Replicas) -> BalanceReport:
        """Return loads, replicas and moves of a placement. The load of an expert without a replica is infinite."""
        counts = self._counts(solution)
        replicas = counts.sum(axis=1)  # [L, E]
        share = self.load / np.maximum(replicas, 1)
        device_load = np.einsum("lde,le->ld", counts, share)
        largest = np.where((replicas == 0).any(axis=1), np.inf, device_load.max(axis=1))
        balance = np.divide(self.mean_load, largest, out=np.ones(self.num_layers), where=largest > 0)
        return BalanceReport(
            device_load=device_load,
            replicas=replicas,
            largest=largest,
            balancedness=float(balance.mean()),
            moves=int(np.maximum(counts - self.present_counts(), 0).sum()) if self.present is not None else 0,
        )

    def violations(self, solution: Replicas) -> tuple[Violation, ...]:
        """Return experts without a replica, devices with too many, and groups that are spread out."""
        counts, found = self._counts(solution), []
        for layer, expert in np.argwhere(counts.sum(axis=1) == 0).tolist():
            message = f"layer {layer}: expert {expert} has no replica, expected at least one"
            found.append(Violation("replica", layer * self.num_experts + expert, 1.0, message))
        used = counts.sum(axis=2)
        for layer, device in np.argwhere(used > self.slots).tolist():
            message = (
                f"layer {layer}: device {device} has {used[layer, device]} replicas, its slots are {self.slots[device]}"
            )
            found.append(Violation("slots", device, float(used[layer, device] - self.slots[device]), message))
        if self.is_grouped:
            found += self._spread_groups(counts)
        return tuple(found)

    @property
    def is_grouped(self) -> bool:
        """Whether groups limit where experts may be."""
        return bool(self.device_group.min() < self.device_group.max())

    def present_counts(self) -> Ints:
        """Return int64 [L, D, E]: replicas at present; zeros where nothing is placed yet."""
        if self.present is None:
            return np.zeros((self.num_layers, self.num_devices, self.num_experts), np.int64)
        return Replicas(self.present).counts(self.num_experts)

    def _spread_groups(self, counts: Ints) -> list[Violation]:
        found = []
        for group in np.unique(self.expert_group).tolist():
            has = np.any(counts[:, :, self.expert_group == group] > 0, axis=2)  # [L, D]
            for layer in range(self.num_layers):
                if (nodes := np.unique(self.device_group[has[layer]])).size > 1:
                    message = (
                        f"layer {layer}: experts of group {group} are on devices of the groups "
                        f"{', '.join(map(str, nodes))}, expected one"
                    )
                    found.append(Violation("group", group, float(nodes.size - 1), message))
        return found

    def _counts(self, solution: Replicas) -> Ints:
        if not isinstance(solution, Replicas):
            raise InvalidProblemError(f"solution: expected Replicas, got {type(solution).__name__}")
        shape = solution.experts.shape
        if shape[:2] != (self.num_layers, self.num_devices):
            raise InvalidProblemError(
                f"experts: expected shape [{self.num_layers}, {self.num_devices}, any], got {list(shape)}"
            )
        if (most := int(solution.experts.max())) >= self.num_experts:
            raise InvalidProblemError(f"experts: found expert {most}, expected at most {self.num_experts - 1}")
        return solution.counts(self.num_experts)

    # --- checks --------------------------------------------------------------------------------------------------

    def _check_groups(self) -> None:
        if not self.is_grouped:
            return
        room = np.bincount(self.device_group, self.slots)
        size = np.bincount(self.expert_group)
        if size.max() > room.max():
            raise InvalidProblemError(
                f"expert_group: group {size.argmax()} has {size.max()} experts, expected at most {room.max():g}, the slots "
                f"of device group {room.argmax()}"
            )

    def _checked_present(self) -> NDArray[np.int32]:
        present: Any = int_array("present", self.present, (self.num_layers, self.num_devices, None), low=-1)
        if present.size and (most := int(present.max())) >= self.num_experts:
            raise InvalidProblemError(f"present: found expert {most}, expected at most {self.num_experts - 1}")
        if present.shape[2] == 0:
            raise InvalidProblemError("present: expected at least one slot")
        return np.asarray(present)

    # --- plumbing ------------------------------------------------------------------------------------------------

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed, validated anew: the loads of the next window, say."""
        return dataclasses.replace(self, **changes)

    def solution_from_json(self, document: dict[str, Any]) -> Replicas:
        """Return the placement that `Replicas.to_json` wrote."""
        solution = Replicas(Fields(document, "solution: ").entries("experts", "a list of lists"))  # type: ignore[arg-type]
        self._counts(solution)
        return solution

    def tiny_like(self) -> Self:
        """Return a tiny problem of the same kind: what solvers warm up on."""
        return type(self).random(num_devices=2, num_experts=4, move_cost=self.move_cost)

    def describe(self) -> dict[str, str | int | float]:
        """Return sizes, room and how uneven the loads are as one flat dictionary."""
        mean = np.maximum(self.load.mean(axis=1), np.finfo(float).tiny)
        return {
            "kind": self.kind,
            "layers": self.num_layers,
            "experts": self.num_experts,
            "devices": self.num_devices,
            "slots": int(self.slots.sum()),
            "groups of devices": int(np.unique(self.device_group).size),
            "load per layer": float(self.load.sum(axis=1).mean()),
            "largest expert against mean": float((self.load.max(axis=1) / mean).max()),
            "placed at present": "yes" if self.present is not None else "no",
            "cost of a move": self.move_cost,
            "lower bound": self.lower_bound,
        }

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ExpertBalancing):
            return NotImplemented
        (values, arrays), (others, other_arrays) = self.to_data(), other.to_data()
        same = arrays.keys() == other_arrays.keys()
        return values == others and same and all(np.array_equal(a, other_arrays[name]) for name, a in arrays.items())

    __hash__ = None  # type: ignore[assignment]

    def to_data(self) -> tuple[dict[str, Any], storage.Arrays]:
        """Return plain values and named arrays."""
        arrays: storage.Arrays = {name: getattr(self, name) for name in _LAYOUT if name != "present"}
        return {"move_cost": self.move_cost}, arrays if self.present is None else arrays | {"present": self.present}

    @classmethod
    def from_data(cls, values: dict[str, Any], arrays: storage.Arrays) -> Self:
        """Build the problem from what `to_data` returned."""
        if missing := [name for name in _LAYOUT if name not in arrays and name != "present"]:
            raise InvalidFileError(f"{missing[0]}: array is missing")
        return cls(**arrays, move_cost=Fields(values).number("move_cost"))

    @classmethod
    def layout(cls, values: dict[str, Any]) -> storage.Layout:
        """Return which arrays a file may hold."""
        return _LAYOUT

    from_trace = Built(trace_fields)
    random = Built(random_fields)


_LAYOUT: storage.Layout = {
    "load": numbers(2),
    "slots": numbers(0, 1),
    "expert_group": numbers(0, 1),
    "device_group": numbers(0, 1),
    "present": numbers(3),
}
