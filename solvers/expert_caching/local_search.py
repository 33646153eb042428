"""Local search on the true objective of ``max`` and ``mix``: swaps, moves and exchanges with an incremental state."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.jit import kernel
from edgeopt.problems import Placement
from edgeopt.rng import stream
from edgeopt.solve import Run
from edgeopt.solvers.expert_caching.groups import Cover, Groups
from edgeopt.solvers.kernels.groups import Inverted, Rows, State, change, change_value

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

CHUNK = 5_000_000  # work units between two looks at the clock: rows and sets visited, some tens of milliseconds
EXCHANGES, MOVES, DROPS = 0.3, 0.05, 0.03  # shares of the proposals; the rest are swaps at one server
PROPOSAL = 15  # work units of a proposal besides the rows it visits
MAX_PROPOSALS = 2000  # per (server, expert) pair and annealing: small problems are done long before `work`
WARMER = (1.0, 5.0)  # factors of the first temperature, round by round
HOT, COLD = 0.1, 0.003  # temperatures in medians of what dropping a cached expert loses


class Schedule(NamedTuple):
    """How far to go, and how warm: ``hot * (cold / hot) ** (start + slope * work done)`` is the temperature."""

    work: int
    hot: float
    cold: float
    start: float
    slope: float


class Shelves(NamedTuple):
    """What servers hold, changed in place.

    Parameters
    ----------
    left : int64 [N], free storage units.
    units, group : int64 [E], those of the experts.
    order, position : int64 [N, E], each server's experts, the cached ones first, and where each is.
    held : int64 [N], how many are cached.
    """

    left: Ints
    units: Ints
    group: Ints
    order: Ints
    position: Ints
    held: Ints


@kernel
def anneal(
    rng: np.random.Generator, schedule: Schedule, state: State, rows: Rows, inverted: Inverted, shelves: Shelves,
    value: float, top: float, best: Bools,
) -> tuple[float, float]:  # fmt: skip
    """Anneal until `work` rows and sets have been visited; return the value now and the best one, stored in `best`.

    A proposal changes one or two experts. Its value is exact when they are of different groups; within a group the
    first change is made, the second one priced exactly, and the first undone if the two are refused. At one server
    the sum of two single changes is never too low, so few proposals get that far.
    """
    cached = state.cached
    left, units, group, order, position, count = shelves
    work, hot, cold, start, slope = schedule
    num_servers, num_experts = cached.shape
    smallest = units.min()
    done = 0
    temperature = hot
    proposals = 0
    while done < work:
        if proposals % 256 == 0:
            temperature = hot * (cold / hot) ** min(1.0, start + slope * done)
        proposals += 1
        done += PROPOSAL
        n = int(rng.integers(0, num_servers))
        e, e_leave, e_enter = -1, -1, -1
        free = num_experts - count[n]
        if left[n] >= smallest and free > 0 and rng.random() < 0.5:  # add
            f, f_leave, f_enter = order[n, count[n] + rng.integers(0, free)], -1, n
            if units[f] > left[n]:
                continue
        else:
            if count[n] == 0:
                continue
            kind = rng.random()
            f, f_leave, f_enter = order[n, rng.integers(0, count[n])], n, -1
            if kind < EXCHANGES + MOVES:
                other = int(rng.integers(0, num_servers))
                if cached[other, f]:
                    continue
                f_enter = other
                if kind < EXCHANGES:  # against an expert of the other server
                    if count[other] == 0:
                        continue
                    e, e_leave, e_enter = order[other, rng.integers(0, count[other])], other, n
                    if cached[n, e] or units[f] - units[e] > left[other] or units[e] - units[f] > left[n]:
                        continue
                elif units[f] > left[other]:
                    continue
            elif kind <= 1.0 - DROPS:  # swap at one server
                if free == 0:
                    continue
                e, e_enter = order[n, count[n] + rng.integers(0, free)], n
                if units[e] - units[f] > left[n]:
                    continue
        need = temperature * np.log(1.0 - rng.random())
        done += _num_rows(f, rows)
        delta = change_value(f, f_leave, f_enter, state, rows)
        both = delta
        if e >= 0:
            done += _num_rows(e, rows)
            both += change_value(e, e_leave, e_enter, state, rows)
        if both < need:
            continue
        done += change(f, f_leave, f_enter, state, rows, inverted)
        if e >= 0:
            if group[e] == group[f]:
                both = delta + change_value(e, e_leave, e_enter, state, rows)
                if both < need:
                    done += change(f, f_enter, f_leave, state, rows, inverted)
                    continue
            done += change(e, e_leave, e_enter, state, rows, inverted)
        for x, leave, enter in ((f, f_leave, f_enter), (e, e_leave, e_enter)):
            if leave >= 0:
                left[leave] += units[x]
                count[leave] -= 1
                _exchange_places(order, position, leave, x, count[leave])
            if enter >= 0:
                left[enter] -= units[x]
                _exchange_places(order, position, enter, x, count[enter])
                count[enter] += 1
        value += both
        if value > top + 1e-12 * abs(top):
            top = value
            best[:] = cached
    return value, top


@kernel
def _num_rows(e: int, rows: Rows) -> int:
    """Return how many rows an expert's model has."""
    return int(rows.row_first[rows.model[e] + 1] - rows.row_first[rows.model[e]])


@kernel
def _exchange_places(order: Ints, position: Ints, n: int, expert: int, at: int) -> None:
    other = order[n, at]
    order[n, position[n, expert]], order[n, at] = other, expert
    position[n, other], position[n, expert] = position[n, expert], at


def improve(
    run: Run[Placement], groups: Groups, cached: Bools, *, work: float = 4e9, rounds: int = 4, hot: float = HOT,
    cold: float = COLD,
) -> Bools:  # fmt: skip
    """Return a placement at least as good as the given one, found by local search on the true objective.

    Each round anneals from the best placement so far under the run's seed: swaps at one server, moves and exchanges
    between two, adds and drops; then `descend` ends it in a local optimum. Better placements are offered to the run,
    whose limits stop the search. One iteration is about 5 million rows and sets visited. With equal seeds and no
    limit the result is the same: the search is cut by work, not by the clock.

    Parameters
    ----------
    run : the run to report to.
    groups : the problem's groups, without a surrogate.
    cached : bool [N, E], a placement that fits.
    work : rows and members of sets to visit, over all rounds; a second is about 1e8 of them.
    rounds : how often to anneal at most, from warmer and cooler starts. A round ends after 2,000 proposals per pair
        of server and expert, so small problems see all rounds, and large ones spend all work on the first.
    hot, cold : temperatures in medians of what dropping a cached expert loses.
    """
    best = descend(run, groups, np.array(cached, order="C"))
    rng = stream(run.seed, "local-search")
    rows = int(np.diff(groups.row_first).max())
    most = MAX_PROPOSALS * best.size * (PROPOSAL + 2 * rows)
    left = int(work)
    for k in range(rounds):
        now = min(left, most)
        if run.stopped() or now <= 0:
            break
        left -= now
        found = _anneal(run, groups, best, rng, now, hot * WARMER[k % len(WARMER)], cold)
        if found is not None:
            best = descend(run, groups, found)
    return best


def _anneal(
    run: Run[Placement], groups: Groups, cached: Bools, rng: np.random.Generator, work: int, hot: float, cold: float
) -> Bools | None:
    """Return the best placement of one annealing, None if it is no better than the start."""
    cover = Cover(groups, cached)
    cover.refresh()
    losses = cover.loss[cover.loss > 0]
    if losses.size == 0 or not work:
        return None
    scale = float(np.median(losses))
    order = np.argsort(~cover.cached, axis=1, kind="stable").astype(np.int64)
    shelves = Shelves(
        left=groups.capacity_units - cover.cached @ groups.units,
        units=groups.units,
        group=groups.group,
        order=order,
        position=np.argsort(order, axis=1, kind="stable").astype(np.int64),
        held=cover.cached.sum(axis=1).astype(np.int64),
    )
    value = start = top = float(run.problem.objective(Placement(cached)))
    best = cover.cached.copy()
    for done in range(0, work, CHUNK):
        schedule = Schedule(min(CHUNK, work - done), hot * scale, cold * scale, done / work, 1 / work)
        value, top = anneal(rng, schedule, cover.state, groups.rows, groups.inverted, shelves, value, top, best)
        if top > start * (1 + 1e-9) and top > (run.objective or 0.0) * (1 + 1e-9):
            run.offer(Placement(best))
        if not run.step():
            break
    return best if top > start * (1 + 1e-12) else None


def descend(run: Run[Placement], groups: Groups, cached: Bools) -> Bools:
    """Improve a placement by its best addition or swap at one server until there is none, in place; offer and return it.

    Swaps across groups are exact; within a group the upper bound is tried first and then priced exactly.
    """
    cover = Cover(groups, cached)
    cover.refresh()
    left = groups.capacity_units - cover.cached @ groups.units
    value = float(run.problem.objective(Placement(cached)))
    tolerance = 1e-12 * abs(value)
    changed = True
    while changed and not run.stopped():
        changed = False
        for n in range(cover.cached.shape[0]):
            while (found := _best_change(cover, n, int(left[n]), tolerance)) is not None:
                out, into = found
                for expert, add in ((out, False), (into, True)):
                    if expert >= 0:
                        cover.move(expert, *((-1, n) if add else (n, -1)))
                        left[n] += -groups.units[expert] if add else groups.units[expert]
                for g in {int(groups.group[x]) for x in (out, into) if x >= 0}:
                    cover.refresh(g)
                changed = True
    cached[:] = cover.cached
    run.offer(Placement(cached))
    return cached


def _best_change(cover: Cover, n: int, left: int, tolerance: float) -> tuple[int, int] | None:
    """Return (leaving or -1, entering expert) of a change at server n that gains, or None."""
    units, group = cover.groups.units, cover.groups.group
    gain, loss, held = cover.gain[:, n], cover.loss[:, n], np.flatnonzero(cover.cached[n])
    free = np.where(units <= left, gain, 0.0)
    if free.size and free.max() > tolerance:
        return -1, int(free.argmax())
    enter = np.flatnonzero(gain > tolerance)
    if not (held.size and enter.size):
        return None
    net = gain[enter][None, :] - loss[held][:, None]
    net[units[enter][None, :] - units[held][:, None] > left] = -np.inf
    for flat in np.argsort(-net, axis=None)[:64]:
        f, e = np.unravel_index(flat, net.shape)
        if net[f, e] <= tolerance:
            return None
        out, into = int(held[f]), int(enter[e])
        if group[out] != group[into]:
            return out, into
        cover.move(out, leave=n)
        exact = cover.value_of(into, enter=n) - loss[out]
        cover.move(out, enter=n)
        if exact > tolerance:
            return out, into
    return None
