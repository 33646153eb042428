"""Exchange search: anneal over the nearly optimal columns of a Lagrangian relaxation, in units of what they lose."""

import itertools

import numpy as np
from numpy.typing import NDArray

from edgeopt.problems import Placement
from edgeopt.solve import Run
from edgeopt.solvers.expert_caching.facility import Facility
from edgeopt.solvers.expert_caching.pricing import NearColumns, Prices
from edgeopt.solvers.expert_caching.successive import respond
from edgeopt.solvers.kernels.subsets import cached_to_masks, exchange, mask_price, masks_to_cached

MAX_GROUPS = 6  # size groups; more distinct sizes than this share a group
COLUMNS_PER_SERVER = 55
CHUNK = 20_000  # proposals between two looks at the clock


class Exchange:
    """One annealing run from a rounded dual point."""

    def __init__(
        self,
        facility: Facility,
        columns: NearColumns,
        prices: Prices,
        rng: np.random.Generator,
        scale: float = 1.0,
    ) -> None:
        self.facility, self.columns, self.prices, self.rng = facility, columns, prices, rng
        self.scale = scale

    def anneal(self, run: Run[Placement], proposals: int = 200_000) -> None:
        facility, prices = self.facility, self.prices
        size, units, capacity = facility.size, facility.units, facility.capacity_units
        # start: round the dual point, servers in random order
        cached = prices.choice.copy()
        respond(run, facility, cached, self.rng.permutation(facility.num_servers))
        run.offer(Placement(cached))
        if run.stopped():
            return
        start = cached_to_masks(cached)
        first, mask, value = self.columns.first, self.columns.mask, self.columns.value
        net = np.array([mask_price(m, prices.price) for m in mask])
        expert = self.columns.expert
        loss = prices.value[expert] - (value - size[expert] * net)
        rank = np.sort(loss)
        extra = min(rank.size - 1, facility.num_experts + int(COLUMNS_PER_SERVER * facility.num_servers * self.scale))
        allowed = rank[extra]
        keep = (loss <= allowed) | (mask == start[expert])
        first = np.concatenate([[0], np.cumsum(np.bincount(expert[keep], minlength=facility.num_experts))])
        mask, loss, expert = mask[keep], loss[keep], expert[keep]
        current = first[:-1].copy()
        for c in np.flatnonzero(mask == start[expert]):
            current[expert[c]] = c
        slack = capacity - masks_to_cached(mask[current], facility.num_servers) @ units
        if (slack < 0).any():
            print('BAD START'); return
        group = size_groups(units)
        bucket_first, bucket = buckets(mask, first, group, facility.num_servers)
        delta = deltas(units, group)
        unit_price = prices.price * (size[0] / units[0])
        energy = float(loss[current].sum() + unit_price @ slack)
        best, lowest = current.copy(), energy
        hot, cold = allowed / 5, allowed / 50
        cooling = (cold / hot) ** (1 / proposals)
        for done in range(0, proposals, CHUNK):
            energy, lowest = exchange(
                self.rng, mask, loss, first, current, bucket_first, bucket, units, group, unit_price, slack,
                *delta, hot * cooling**done, cooling, allowed / 4, 20, CHUNK, energy, lowest, best,
            )  # fmt: skip
            if not run.step():
                break
        cached = masks_to_cached(mask[best], facility.num_servers)
        run.offer(Placement(cached))


def size_groups(units: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return [E]: the group of each expert's size, one per distinct size, or quantiles if there are many."""
    distinct, group = np.unique(units, return_inverse=True)
    if distinct.size <= MAX_GROUPS:
        return group.astype(np.int64)
    edges = np.quantile(units, np.linspace(0, 1, MAX_GROUPS + 1)[1:-1])
    return np.searchsorted(edges, units, side="right").astype(np.int64)


def buckets(
    mask: NDArray[np.int64], first: NDArray[np.int64], group: NDArray[np.int64], num_servers: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return CSR lists of the experts of each (server, group) that have columns both with and without the server."""
    some = np.bitwise_or.reduceat(mask, first[:-1])
    every = np.bitwise_and.reduceat(mask, first[:-1])
    num_groups = int(group.max()) + 1
    lists = [
        np.flatnonzero(((some ^ every) >> n & 1).astype(bool) & (group == g))
        for n in range(num_servers)
        for g in range(num_groups)
    ]
    return np.concatenate([[0], np.cumsum([len(item) for item in lists])]), np.concatenate(lists)


def deltas(units: NDArray[np.int64], group: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
    """Return the changes a server may make to its counts per size group, in CSR form: (first, group, up).

    Half of them are swaps within a group; the rest are small integer combinations that nearly keep the storage used.
    """
    num_groups = int(group.max()) + 1
    mean = np.array([units[group == g].mean() for g in range(num_groups)])
    reach, most = (4, 7) if num_groups <= 4 else (2, 5)
    near = max(1.0, min(3.0, mean.min() / 4))
    moves = [
        vector
        for vector in itertools.product(range(-reach, reach + 1), repeat=num_groups)
        if any(vector) and sum(map(abs, vector)) <= most and abs(float(np.dot(vector, mean))) <= near
    ]
    parts = [[(g, int(x > 0)) for g, x in enumerate(vector) for _ in range(abs(x))] for vector in moves]
    swaps = [[(g, 1), (g, 0)] for g in range(num_groups)]
    parts += swaps * max(1, len(moves) // (2 * num_groups))
    first = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
    flat = np.array([entry for part in parts for entry in part], np.int64)
    return first, np.ascontiguousarray(flat[:, 0]), np.ascontiguousarray(flat[:, 1])
