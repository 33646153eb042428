"""Exchange search: anneal over the nearly optimal columns of a Lagrangian relaxation, in units of what they lose."""

import itertools

import numpy as np
from numpy.typing import NDArray

from edgeopt.problems import Placement
from edgeopt.solve import Run
from edgeopt.solvers.expert_caching.facility import Facility
from edgeopt.solvers.expert_caching.pricing import NearColumns, Prices
from edgeopt.solvers.expert_caching.successive import respond
from edgeopt.solvers.kernels.subsets import cached_to_masks, exchange, masks_to_cached

MAX_GROUPS = 6  # size groups; more distinct sizes than this share a group
COLUMNS_PER_SERVER = 55  # alternatives beside each expert's best column
MAX_PROPOSALS = 200_000  # of one annealing run
CHUNK = 20_000  # proposals between two looks at the clock
HOT, COLD = 0.2, 0.01  # temperatures, and
TOUCH = 0.25  # what touching another server is expected to cost, all in units of the largest loss kept
PAIRED = 0.3  # share of changes that another server makes the other way round
SCAN = 20  # experts looked at to find a cheap part of an exchange


def exchange_round(
    run: Run[Placement],
    facility: Facility,
    columns: NearColumns,
    prices: Prices,
    rng: np.random.Generator,
    spread: float = 1.0,
    share: float = 1.0,
) -> None:
    """Anneal once from a rounding of a dual point in random server order; offer what is found.

    Parameters
    ----------
    run : the run to report to; one iteration is `CHUNK` proposals.
    facility, columns, prices : the problem, the columns within the gap, and the dual point they are near to.
    rng : draws the order of the servers and the proposals.
    spread : how far from the best column an expert may stray, relative to the usual.
    share : of the usual proposals.
    """
    cached = prices.choice.copy()
    respond(run, facility, cached, rng.permutation(facility.num_servers))
    run.offer(Placement(cached))
    if run.stopped():
        return
    units, group = facility.units, size_groups(facility.units)
    for start in (cached, run.solution.cached if run.solution is not None else cached):
        masks = cached_to_masks(np.array(start))
        first, mask, loss, allowed = _nearest(facility, columns, prices, spread, keep=masks)
        expert = np.repeat(np.arange(first.size - 1), np.diff(first))
        current = first[:-1].copy()
        found = np.flatnonzero(mask == masks[expert])
        current[expert[found]] = found
        slack = facility.capacity_units - masks_to_cached(mask[current], facility.num_servers) @ units
        # an expert of the rounding whose subset was dropped as hopeless starts from its first column, which may not
        # fit; every column of the incumbent is still there
        if (slack >= 0).all():
            break
    if (slack < 0).any() or allowed <= 0.0:
        return
    unit_price = prices.price * (facility.size[0] / units[0])
    energy = float(loss[current].sum() + unit_price @ slack)
    best, lowest = current.copy(), energy
    bucket_first, bucket = buckets(mask, first, group, facility.num_servers)
    if not bucket.size:
        return
    delta = deltas(units, group)
    proposals = int(share * min(MAX_PROPOSALS, 100 * mask.size))
    cooling = (COLD / HOT) ** (1 / proposals)
    for done in range(0, proposals, CHUNK):
        energy, lowest = exchange(
            rng, mask, loss, first, current, bucket_first, bucket, units, group, unit_price, slack, *delta,
            allowed * HOT * cooling**done, cooling, allowed * TOUCH, PAIRED, SCAN, min(CHUNK, proposals - done), energy, lowest,
            best,
        )  # fmt: skip
        if not run.step():
            break
    run.offer(Placement(masks_to_cached(mask[best], facility.num_servers)))


def _nearest(
    facility: Facility, columns: NearColumns, prices: Prices, spread: float, keep: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], float]:
    """Return (first, mask, loss) of the columns that lose least, and the largest loss among them.

    Each expert keeps its best column and, if it is listed, the one with mask ``keep[e]``.
    """
    loss = columns.losses(facility.size, prices)
    most = facility.num_experts + int(COLUMNS_PER_SERVER * facility.num_servers * spread)
    allowed = float(np.partition(loss, most)[most]) if most < loss.size else float(loss.max())
    expert = columns.expert
    chosen = (loss <= allowed) | (columns.mask == keep[expert])
    first = np.concatenate([[0], np.cumsum(np.bincount(expert[chosen], minlength=facility.num_experts))])
    return first, columns.mask[chosen], np.maximum(loss[chosen], 0.0), allowed


def size_groups(units: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return [E]: the group of each expert's size, one per distinct size, or quantiles if there are many."""
    distinct, group = np.unique(units, return_inverse=True)
    if distinct.size <= MAX_GROUPS:
        return group.astype(np.int64)
    edges = np.quantile(units, np.linspace(0, 1, MAX_GROUPS + 1)[1:-1])
    used = np.searchsorted(edges, units, side="right")  # equal quantiles leave groups empty
    return np.unique(used, return_inverse=True)[1].astype(np.int64)


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


def deltas(
    units: NDArray[np.int64], group: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the changes a server may make to its counts per size group, in CSR form: (first, group, up).

    Half of them are swaps within a group; the rest are small integer combinations that nearly keep the storage used.
    """
    num_groups = int(group.max()) + 1
    mean = np.array([units[group == g].mean() for g in range(num_groups)])
    reach, most = (5, 9) if num_groups <= 4 else (2, 5)
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
