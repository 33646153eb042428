"""`SelectionPlan`: the decision of client selection."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeopt.display import one_line
from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.fields import check_table
from edgeopt.foreign import as_array
from edgeopt.validate import int_array


@dataclass(frozen=True, slots=True, eq=False)
class SelectionPlan:
    """Which clients each server picks in each round.

    Parameters
    ----------
    picks : int32 [T, S, M], client ids; -1 fills up the rows of servers that pick fewer than M. Each row is kept in
        rising order with the -1 at its end, so that equal choices are equal plans.

    Examples
    --------
    >>> SelectionPlan([[[4, 1], [2, -1]]]).to_json()
    {'picks': [[[1, 4], [2]]]}
    """

    picks: NDArray[np.int32]

    __repr__ = one_line

    def __post_init__(self) -> None:
        given: ArrayLike = self.picks
        picks = np.array(int_array("picks", given, (None, None, None), low=-1))
        last = np.iinfo(np.int32).max
        picks[picks < 0] = last
        picks.sort(axis=2)
        picks[picks == last] = -1
        picks.flags.writeable = False
        object.__setattr__(self, "picks", picks)

    @classmethod
    def from_mask(cls, picked: ArrayLike) -> "SelectionPlan":
        """Build a plan from bool [T, S, C]: whether server s picks client c in round t.

        Examples
        --------
        >>> SelectionPlan.from_mask([[[True, False, True], [False, True, False]]]).picks.tolist()
        [[[0, 2], [1, -1]]]
        """
        mask = as_array("picked", picked)
        if mask.ndim != 3 or mask.dtype != np.bool_:
            raise InvalidProblemError(
                f"picked: expected booleans [rounds, servers, clients], got {mask.dtype} {list(mask.shape)}"
            )
        most = int(mask.sum(axis=2).max(initial=0))
        order = np.argsort(~mask, axis=2, kind="stable")[:, :, :most]
        return cls(np.where(np.take_along_axis(mask, order, axis=2), order, -1))

    @classmethod
    def from_lists(cls, clients: list[list[list[int]]]) -> "SelectionPlan":
        """Build a plan from the client ids that each server picks in each round, as `to_json` writes them."""
        for t, row in enumerate(clients):
            for s, chosen in enumerate(row if isinstance(row, list | tuple) else [row]):
                if not isinstance(chosen, list | tuple) or not all(isinstance(c, int | np.integer) for c in chosen):
                    raise InvalidProblemError(
                        f"picks: expected a list of client ids per round and server, [{t}, {s}] is {quoted(chosen)}"
                    )
        servers = {len(row) for row in clients}
        most = max((len(chosen) for row in clients for chosen in row), default=0)
        if len(servers) > 1:
            raise InvalidProblemError(
                f"picks: expected one list per server in every round, got {quoted(sorted(servers))[1:-1]} lists"
            )
        check_table("rounds x servers x picks", len(clients), max(servers, default=0), most)
        padded = [[[*chosen, *[-1] * (most - len(chosen))] for chosen in row] for row in clients]
        picks = np.array(padded, dtype=None if most else np.int32).reshape(len(clients), max(servers, default=0), most)
        return cls(picks)

    @property
    def num_rounds(self) -> int:
        """Rounds, T."""
        return int(self.picks.shape[0])

    def mask(self, num_clients: int) -> NDArray[np.bool_]:
        """Return bool [T, S, C]: whether server s picks client c in round t."""
        picked = np.zeros((*self.picks.shape[:2], num_clients), bool)
        t, s, k = np.nonzero(self.picks >= 0)
        picked[t, s, self.picks[t, s, k]] = True
        return picked

    def __eq__(self, other: object) -> bool:
        return np.array_equal(self.picks, other.picks) if isinstance(other, SelectionPlan) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def to_json(self) -> dict[str, Any]:
        """Return the ids of the clients that each server picks in each round."""
        return {"picks": [[[c for c in row if c >= 0] for row in of_round] for of_round in self.picks.tolist()]}
