"""The Lagrangian subproblem: with a price on every server's storage, each expert picks its own subset of servers."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgeopt.solvers.expert_caching.common import Stopped
from edgeopt.solvers.expert_caching.facility import Facility
from edgeopt.solvers.kernels.knapsack import fractional_knapsack
from edgeopt.solvers.kernels.location import ascent_bounds, improve_subsets, values_given_others
from edgeopt.solvers.kernels.subsets import (
    best_columns,
    best_subsets,
    column_losses,
    keep_columns,
    masks_to_cached,
    near_columns,
    subset_prices,
    subset_values,
)

MAX_TABLE = 1 << 26  # entries of a table of subsets: half a gigabyte
MOVES = 3  # changes of an expert's subset per dual step
SHARP_STEPS = 36  # steps on the thresholds of an expert when its bound is sharpened, in the mean
CHUNK = 1 << 24  # experts x users x servers between two looks at the clock: some tens of milliseconds


@dataclass(frozen=True, slots=True, eq=False)
class Prices:
    """A point of the dual.

    Parameters
    ----------
    price : float64 [N], price per storage unit.
    bound : the bound that these prices prove: sum of `value` plus the price of all storage.
    value : float64 [E], an upper bound on the value less price of each expert's best subset; its exact value if the
        pricing is exact.
    choice : bool [N, E], the best subset found for each expert; storage may be exceeded.
    """

    price: NDArray[np.float64]
    bound: float
    value: NDArray[np.float64]
    choice: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class NearColumns:
    """Columns (expert, subset of servers) close to the best at some prices, in CSR form per expert.

    Parameters
    ----------
    first : int64 [E + 1].
    mask : int64 [C], server n is bit n.
    value : float64 [C], seconds saved.
    """

    first: NDArray[np.int64]
    mask: NDArray[np.int64]
    value: NDArray[np.float64]

    @property
    def expert(self) -> NDArray[np.int64]:
        """int64 [C], the expert of each column."""
        return np.repeat(np.arange(self.first.size - 1), np.diff(self.first))

    def losses(self, size: NDArray[np.float64], at: Prices) -> NDArray[np.float64]:
        """Return float64 [C]: by how much each column falls short of its expert's best at these prices."""
        return column_losses(self.first, self.mask, self.value, size, subset_prices(at.price), at.value)

    def kept(self, keep: NDArray[np.bool_]) -> "NearColumns":
        """Return the columns chosen by a mask [C]."""
        count = np.bincount(self.expert[keep], minlength=self.first.size - 1)
        return NearColumns(np.concatenate([[0], np.cumsum(count)]), self.mask[keep], self.value[keep])


class Pricing(Protocol):
    """One way to solve the subproblem.

    ``round_every`` is how many dual steps are worth one rounding in time.
    """

    round_every: int

    def evaluate(self, price: NDArray[np.float64]) -> Prices:
        """Return the dual point at some prices [N]."""
        ...

    def restrict(self, at: Prices, allowed: float) -> None:
        """Forget what no placement can use whose value is within `allowed` of the bound."""
        ...

    def near(self, at: Prices, allowed: float) -> NearColumns | None:
        """Return every column whose loss at these prices is at most `allowed`, or None if they cannot be listed."""
        ...


def pricing_for(facility: Facility, stopped: Callable[[], bool] = lambda: False) -> Pricing:
    """Return the exact pricing if its table is small enough, else the one by dual ascent, which looks whether it is stopped."""
    if facility.num_servers < 32 and facility.num_experts * 2**facility.num_servers <= MAX_TABLE:
        return SubsetPricing(facility)
    return AscentPricing(facility, stopped)


def start_prices(facility: Facility, cached: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return prices [N] to start from: each server's price of storage given what the others hold in a placement."""
    held = np.ascontiguousarray(cached.T)
    values = values_given_others(facility.weight, facility.gain, facility.gain_by_server(), facility.model, held)
    return np.array(
        [
            fractional_knapsack(values[:, n], facility.size, float(facility.capacity[n]))[1]
            for n in range(facility.num_servers)
        ]
    )


class SubsetPricing:
    """All 2^N subsets of servers, tabulated once: exact, for up to about 15 servers.

    The table [E, 2^N] takes O(E (U N^2 + N 2^N)). `restrict` drops the columns that no better placement can use, so that
    later evaluations touch a few thousand entries instead of millions.
    """

    round_every = 20

    def __init__(self, facility: Facility) -> None:
        self.facility = facility
        self._table = subset_values(facility.weight, facility.gain, facility.model)
        self._columns: NearColumns | None = None

    def evaluate(self, price: NDArray[np.float64]) -> Prices:
        """Return the dual point at some prices [N]."""
        size = self.facility.size
        if self._columns is None:
            value, mask = best_subsets(self._table, size, subset_prices(price))
        else:
            columns = self._columns
            value, best = best_columns(columns.first, columns.mask, columns.value, size, subset_prices(price))
            mask = columns.mask[best]
        bound = float(value.sum() + price @ self.facility.capacity)
        return Prices(price, bound, value, masks_to_cached(mask, self.facility.num_servers))

    def restrict(self, at: Prices, allowed: float) -> None:
        """Forget the columns whose loss at these prices exceeds `allowed`, the gap between bound and incumbent.

        A placement falls short of the bound by at least the loss of each of its columns, so one that beats the
        incumbent uses none of those.
        """
        columns = self.near(at, allowed)
        if columns.mask.size <= self._table.size // 8:  # reading a column costs more than reading a table entry
            self._columns = columns

    def near(self, at: Prices, allowed: float) -> NearColumns:
        """Return every column whose loss at these prices is at most `allowed`."""
        size, prices = self.facility.size, subset_prices(at.price)
        if (columns := self._columns) is None:
            return NearColumns(*near_columns(self._table, size, prices, at.value, allowed))
        return NearColumns(*keep_columns(columns.first, columns.mask, columns.value, size, prices, at.value, allowed))


class AscentPricing:
    """Any number of servers: subsets by local search from the last ones, values bounded by dual ascent.

    The bound is valid whatever the subsets are; good subsets make it tight. O(E U N) time and no table.
    """

    round_every = 8

    def __init__(self, facility: Facility, stopped: Callable[[], bool] = lambda: False) -> None:
        self.facility = facility
        self._stopped = stopped
        self._by_server = facility.gain_by_server()
        self._order = np.argsort(-facility.gain, axis=2, kind="stable")
        self._held = np.zeros((facility.num_experts, facility.num_servers), bool)

    def start_from(self, cached: NDArray[np.bool_]) -> None:
        """Search from the subsets of a placement [N, E]."""
        self._held = cached.T.copy()

    def evaluate(self, price: NDArray[np.float64]) -> Prices:
        """Return the dual point at some prices [N]; raise `Stopped` if a limit is reached meanwhile."""
        facility, held = self.facility, self._held
        value = np.empty(facility.num_experts)
        for some in self._chunks():
            if self._stopped():
                raise Stopped
            improve_subsets(
                facility.weight[some], facility.gain, self._by_server, facility.model[some], facility.size[some], price,
                held[some], MOVES,
            )  # fmt: skip
            value[some] = self._ascent(some, price, held[some], 0)
        bound = float(value.sum() + price @ facility.capacity)
        return Prices(price, bound, value, held.T.copy())

    def sharpen(self, at: Prices, tell: Callable[[float], object]) -> None:
        """Tell the bound at a point's prices as each expert's bound is improved, the most valuable first, until a limit is reached.

        Steps are as many as the root of an expert's value: in half of the experts lies four fifths of what there is to gain.
        """
        value, by_value = at.value.copy(), np.argsort(-at.value, kind="stable")
        root = np.sqrt(np.maximum(at.value, 0.0))
        steps = SHARP_STEPS * root / (root.mean() or 1.0)
        outside = float(at.price @ self.facility.capacity)
        for chunk in self._chunks():
            if self._stopped():
                break
            some = by_value[chunk]
            sharp = self._ascent(some, at.price, at.choice[:, some].T.copy(), int(np.ceil(steps[some].mean())))
            value[some] = np.minimum(value[some], sharp)
            tell(float(value.sum()) + outside)

    def _ascent(
        self, some: slice | NDArray[np.int64], price: NDArray[np.float64], held: NDArray[np.bool_], steps: int
    ) -> NDArray[np.float64]:
        """Return the bounds of some experts from their subsets."""
        facility = self.facility
        return ascent_bounds(
            facility.weight[some], facility.gain, self._by_server, self._order, facility.model[some], facility.size[some],
            price, held, steps,
        )  # fmt: skip

    def _chunks(self) -> Iterator[slice]:
        """Yield slices of experts, each some tens of milliseconds of work."""
        chunk = max(1, CHUNK // (self.facility.weight.shape[1] * self.facility.num_servers))
        for start in range(0, self.facility.num_experts, chunk):
            yield slice(start, start + chunk)

    def restrict(self, at: Prices, allowed: float) -> None:
        """Do nothing: there is no table to shrink."""

    def near(self, at: Prices, allowed: float) -> NearColumns | None:
        """Return None: the columns are not listed."""
        return None
