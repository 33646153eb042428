"""`DownloadPlan`: the decision of model download; `DownloadTimeline`: when each of its layers arrives and runs."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from edgeopt.display import one_line
from edgeopt.fields import Fields
from edgeopt.validate import float_array, int_array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DownloadPlan:
    """Which user gets which model, over how much bandwidth, run at which frequencies.

    Parameters
    ----------
    model : int32 [K], the model of each user, -1 if the user is refused.
    bandwidth_hz : float64 [K], Hz of each user; nothing but 0 makes sense for a refused one.
    frequency_hz : float64, Hz for each layer of the admitted users' models, users in order.

    Examples
    --------
    >>> DownloadPlan(model=[0, -1], bandwidth_hz=[5e6, 0.0], frequency_hz=[1e9, 1e9]).num_admitted
    1
    """

    model: NDArray[np.int32]
    bandwidth_hz: NDArray[np.float64]
    frequency_hz: NDArray[np.float64]

    __repr__ = one_line

    def __post_init__(self) -> None:
        model = int_array("model", self.model, (None,), low=-1)
        bandwidth = float_array("bandwidth_hz", self.bandwidth_hz, (model.size,), nonnegative=True, unit="Hz")
        frequency = float_array("frequency_hz", self.frequency_hz, (None,), positive=True, unit="Hz")
        for name, value in (("model", model), ("bandwidth_hz", bandwidth), ("frequency_hz", frequency)):
            object.__setattr__(self, name, value)

    @classmethod
    def refuse_all(cls, num_users: int) -> Self:
        """Return the plan that admits nobody."""
        nobody = np.full(num_users, -1, np.int32)
        return cls(model=nobody, bandwidth_hz=np.zeros(num_users), frequency_hz=np.zeros(0))

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        """Return the plan that `to_json` wrote."""
        given = Fields(document, "solution: ")
        names = ("model", "bandwidth_hz", "frequency_hz")
        values: dict[str, Any] = {name: given.entries(name, "a list of numbers") for name in names}
        return cls(**values)

    @property
    def admitted(self) -> NDArray[np.bool_]:
        """Bool [K], whether each user is admitted."""
        return np.asarray(self.model >= 0)

    @property
    def num_admitted(self) -> int:
        """Admitted users."""
        return int(self.admitted.sum())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DownloadPlan):
            return NotImplemented
        return (
            np.array_equal(self.model, other.model)
            and np.array_equal(self.bandwidth_hz, other.bandwidth_hz)
            and np.array_equal(self.frequency_hz, other.frequency_hz)
        )

    __hash__ = None  # type: ignore[assignment]

    def to_json(self) -> dict[str, Any]:
        """Return the arrays as lists."""
        return {
            "model": self.model.tolist(),
            "bandwidth_hz": self.bandwidth_hz.tolist(),
            "frequency_hz": self.frequency_hz.tolist(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadTimeline:
    """When every layer of a plan arrives and runs. Refused users have no layers.

    Parameters
    ----------
    indptr : int64 [K + 1], the layers of user k are ``indptr[k]:indptr[k + 1]`` of the arrays below.
    download_start_s, download_finish_s : float64, seconds from the request to the first and last bit of each layer.
    start_s, finish_s : float64, seconds from the request to the start and end of each layer's inference.
    completion_s : float64 [K], end of the last layer, 0 for refused users.
    energy_j : float64 [K], energy of each user's device.
    """

    indptr: NDArray[np.int64]
    download_start_s: NDArray[np.float64]
    download_finish_s: NDArray[np.float64]
    start_s: NDArray[np.float64]
    finish_s: NDArray[np.float64]
    completion_s: NDArray[np.float64]
    energy_j: NDArray[np.float64]

    __repr__ = one_line
