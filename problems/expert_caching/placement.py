"""`Placement`: the decision of expert caching."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeopt.display import one_line
from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.foreign import as_array
from edgeopt.validate import int_array


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """Which server caches which expert.

    Parameters
    ----------
    cached : bool [N, E], ``cached[n, e]`` is True if server n holds expert e.

    Examples
    --------
    >>> Placement([[True, False], [True, True]]).num_copies
    3
    """

    cached: NDArray[np.bool_]

    __repr__ = one_line

    def __post_init__(self) -> None:
        given: ArrayLike = self.cached
        cached = np.array(as_array("cached", given))
        if cached.ndim != 2 or cached.dtype != np.bool_:
            raise InvalidProblemError(
                f"cached: expected a boolean array [servers, experts], got {cached.dtype} {list(cached.shape)}"
            )
        cached.flags.writeable = False
        object.__setattr__(self, "cached", cached)

    @classmethod
    def from_lists(cls, experts_of_server: list[list[int]], num_experts: int) -> "Placement":
        """Build a placement from the expert ids that each server holds, as `to_json` writes them."""
        cached = np.zeros((len(experts_of_server), num_experts), bool)
        given: Sequence[object] = experts_of_server
        for server, experts in enumerate(given):
            if not isinstance(experts, list | tuple | np.ndarray):
                raise InvalidProblemError(f"server {server}: {quoted(experts)}: expected a list of expert ids")
            ids = int_array(f"experts of server {server}", experts, (None,), dtype=np.int64)
            if (bad := np.flatnonzero((ids < 0) | (ids >= num_experts))).size:
                raise InvalidProblemError(
                    f"server {server}: expert {ids[bad[0]]}: expected an id from 0 to {num_experts - 1}"
                )
            cached[server, ids] = True
        return cls(cached)

    @property
    def num_copies(self) -> int:
        """Cached experts over all servers."""
        return int(self.cached.sum())

    def __eq__(self, other: object) -> bool:
        return np.array_equal(self.cached, other.cached) if isinstance(other, Placement) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def to_json(self) -> dict[str, Any]:
        """Return the ids of the experts that each server holds."""
        return {"cached": [np.flatnonzero(row).tolist() for row in self.cached]}
