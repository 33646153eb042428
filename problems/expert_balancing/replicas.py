"""`Replicas`: the decision of expert balancing."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.display import one_line
from edgeopt.errors import InvalidProblemError
from edgeopt.validate import int_array


@dataclass(frozen=True, slots=True, eq=False)
class Replicas:
    """Which expert is in which slot of which device, in every layer.

    Parameters
    ----------
    experts : int32 [L, D, S], the expert in slot s of device d, -1 for an empty slot. Where in a device it is makes no
        difference.

    Raises
    ------
    InvalidProblemError
        Naming index, value and what was expected.

    Examples
    --------
    >>> Replicas([[[0, 1], [0, -1]]]).counts(num_experts=2)
    array([[[1, 1],
            [1, 0]]])
    """

    experts: NDArray[np.signedinteger[Any]]

    __repr__ = one_line

    def __post_init__(self) -> None:
        experts = int_array("experts", self.experts, (None, None, None), low=-1)
        if experts.size == 0:
            raise InvalidProblemError(f"experts: expected at least one slot, got shape {list(experts.shape)}")
        object.__setattr__(self, "experts", experts)

    def counts(self, num_experts: int) -> NDArray[np.int64]:
        """Return int64 [L, D, E]: how many replicas of each expert each device has."""
        layers, devices, _ = self.experts.shape
        found = np.zeros((layers, devices, num_experts), np.int64)
        layer, device, slot = np.nonzero(self.experts >= 0)
        np.add.at(found, (layer, device, self.experts[layer, device, slot]), 1)
        return found

    def __eq__(self, other: object) -> bool:
        return np.array_equal(self.experts, other.experts) if isinstance(other, Replicas) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def to_json(self) -> dict[str, Any]:
        """Return the expert of every slot as plain values, -1 for an empty one."""
        return {"experts": self.experts.tolist()}
