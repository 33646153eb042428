"""The Lagrangian subproblem: with a price on every server's storage, each expert picks its own subset of servers."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeopt.solvers.expert_caching.facility import Facility
from edgeopt.solvers.kernels.facility import best_without
from edgeopt.solvers.kernels.knapsack import fractional_knapsack
from edgeopt.solvers.kernels.subsets import (
    best_columns,
    best_subsets,
    keep_columns,
    masks_to_cached,
    near_columns,
    subset_gains,
    subset_prices,
)


@dataclass(frozen=True, slots=True, eq=False)
class Prices:
    """A point of the dual.

    Parameters
    ----------
    price : float64 [N], price per storage unit.
    bound : the bound that these prices prove.
    value : float64 [E], the largest value less price of each expert.
    choice : int64 [E], the subset of servers that gives it, as a bit mask.
    """

    price: NDArray[np.float64]
    bound: float
    value: NDArray[np.float64]
    choice: NDArray[np.int64]


def start_prices(facility: Facility, cached: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return prices [N] to start from: each server's price of storage given what the others hold in a placement."""
    return np.array([
        fractional_knapsack(
            best_without(cached, n, facility.gain, facility.model, facility.weight)[0],
            facility.size,
            float(facility.capacity[n]),
        )[1]
        for n in range(facility.num_servers)
    ])


class SubsetPricing:
    """All 2^N subsets of servers, tabulated once: exact for up to about 14 servers.

    The table [E, 2^N] is one matrix product. `restrict` drops the columns that no better placement can use, so that
    later evaluations touch a few thousand entries instead of millions.
    """

    def __init__(self, facility: Facility) -> None:
        self.facility = facility
        self.table = np.empty((facility.num_experts, 1 << facility.num_servers))
        for m in range(facility.gain.shape[0]):
            of_model = facility.model == m
            self.table[of_model] = facility.weight[of_model] @ subset_gains(facility.gain[m])
        self._columns: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]] | None = None

    def evaluate(self, price: NDArray[np.float64]) -> Prices:
        """Return the dual point at some prices [N]."""
        size = self.facility.size
        if self._columns is None:
            value, choice = best_subsets(self.table, size, subset_prices(price))
        else:
            value, column = best_columns(*self._columns, size, price)
            choice = self._columns[1][column]
        return Prices(price, float(value.sum() + price @ self.facility.capacity), value, choice)

    def used(self, choice: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the storage [N] that one subset per expert takes."""
        return masks_to_cached(choice, self.facility.num_servers) @ self.facility.size

    def restrict(self, at: Prices, allowed: float) -> None:
        """Forget the columns whose loss at these prices exceeds `allowed`, the gap between bound and incumbent.

        A placement falls short of the bound by at least the loss of each of its columns, so one that beats the
        incumbent uses none of those.
        """
        columns = self.near(at, allowed)
        if columns[1].size <= self.table.size // 8:  # a column costs more than a table entry
            self._columns = columns

    def near(self, at: Prices, allowed: float) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Return (first, mask, value) of the columns whose loss at these prices is at most `allowed`."""
        size = self.facility.size
        if self._columns is None:
            return near_columns(self.table, size, subset_prices(at.price), at.value, allowed)
        return keep_columns(*self._columns, size, at.price, at.value, allowed)
