"""`SplitPlan`: the decision of split training."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeopt.display import one_line
from edgeopt.errors import InvalidProblemError
from edgeopt.schedule import RoundPlan, StaticPlanner
from edgeopt.validate import int_array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SplitPlan:
    """How many samples each device trains on per round, and where its model is cut.

    Parameters
    ----------
    batch_size : int32 [N], samples per round of each device, >= 1.
    cut_layer : int32 [N], device i trains layers 1 to ``cut_layer[i]``, the edge server the others; >= 1.
    aggregation_interval : rounds between two aggregations of the devices' parts, >= 1.

    Raises
    ------
    InvalidProblemError
        Naming field, index, value and what was expected.

    Examples
    --------
    >>> SplitPlan(batch_size=[8, 16], cut_layer=[3, 1], aggregation_interval=4).deepest_cut
    3
    """

    batch_size: NDArray[np.int32]
    cut_layer: NDArray[np.int32]
    aggregation_interval: int = 1

    __repr__ = one_line

    def __post_init__(self) -> None:
        batch = int_array("batch_size", self.batch_size, (None,), low=1)
        if batch.size == 0:
            raise InvalidProblemError("batch_size: expected at least one device")
        given: ArrayLike = self.aggregation_interval
        object.__setattr__(self, "batch_size", batch)
        object.__setattr__(self, "cut_layer", int_array("cut_layer", self.cut_layer, (batch.size,), low=1))
        object.__setattr__(self, "aggregation_interval", int_array("aggregation_interval", given, (), low=1).item())

    @property
    def num_devices(self) -> int:
        """Devices, N."""
        return self.batch_size.size

    @property
    def deepest_cut(self) -> int:
        """The largest cut layer of all devices, Lc."""
        return int(self.cut_layer.max())

    def round_plan(self, *, aggregate: bool) -> RoundPlan:
        """Return the plan of one round: every device trains, as client of its own number, with server 0."""
        return RoundPlan(
            client=np.arange(self.num_devices, dtype=np.int32),
            batch_size=self.batch_size,
            cut_layer=self.cut_layer,
            aggregate=aggregate,
        )

    def planner(self) -> StaticPlanner:
        """Return the planner that repeats this plan, with aggregation in every `aggregation_interval`-th round."""
        return StaticPlanner(self.round_plan(aggregate=True), self.aggregation_interval)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SplitPlan):
            return NotImplemented
        return (
            self.aggregation_interval == other.aggregation_interval
            and np.array_equal(self.batch_size, other.batch_size)
            and np.array_equal(self.cut_layer, other.cut_layer)
        )

    __hash__ = None  # type: ignore[assignment]

    def to_json(self) -> dict[str, Any]:
        """Return batch sizes, cut layers and the interval as plain values."""
        return {
            "batch_size": self.batch_size.tolist(),
            "cut_layer": self.cut_layer.tolist(),
            "aggregation_interval": self.aggregation_interval,
        }
