"""Picking clients under limits of energy and carbon: an exact choice for one round, and the planner that makes it in each."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeopt.display import one_line
from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.fields import check_table
from edgeopt.quantities import Quantity
from edgeopt.schedule import Feedback, RoundPlan
from edgeopt.series import TimeSeries
from edgeopt.storage import Arrays
from edgeopt.validate import float_array, int_array, integer, real

Floats = NDArray[np.float64]

JOULES_PER_KWH = 3.6e6
FIT = 1e-12
"""Share of a limit by which rounding may exceed it."""
LARGEST_GROUP = (1 << 20) - 1
"""Of clients, or their largest site: arrays have an entry for each."""
FEW = 1 << 20
"""Sum of priorities up to which picks without a limit on their number cost little to try."""


def best_picks(
    priority: ArrayLike,
    cost: ArrayLike,
    most: int,
    *,
    group: ArrayLike = 0,
    limit: ArrayLike = np.inf,
    weight: ArrayLike = 1.0,
) -> NDArray[np.int64]:
    r"""Return whom to pick: the most priority, within a limit on the costs of each group; of such picks the cheapest.

    .. math:: \max_S \sum_{c \in S} p_c \quad \text{s.t.} \quad |S| \le K, \quad \sum_{c \in S, g_c = g} e_c \le E_g

    and among all maximal S the least :math:`\sum_{c \in S} w_{g_c} e_c`. Ours, after FedZero (Wiesner et al., 2024), which
    picks clients under the spare energy of power domains by a mixed-integer programme; here a client's work is fixed.

    Parameters
    ----------
    priority : int [C], >= 0. Who has priority 0 is not picked.
    cost : float64 [C], such as joules; who costs inf is not picked.
    most : K.
    group : int [C], such as the site whose power a client draws. Default: one for all.
    limit : float64 [G], what a group may cost in all. Default: no limit.
    weight : float64 [G], what a unit of cost weighs where picks are equally good, such as the carbon intensity of a site.

    Returns
    -------
    Int64, ids ascending.

    Notes
    -----
    The picks are optimal, which follows in three steps. In a group, of the clients of one priority the cheapest come first:
    to exchange a dearer one for a cheaper one keeps the sum of priorities and the number, and costs no more. So what a group
    can do with k clients of total priority q at the least cost follows by dynamic programming over the priorities, with all
    numbers j of the cheapest clients tried at each. Of a group that gives k clients only the largest q within its limit
    counts, at its least cost: limits of groups do not touch each other, and the aim is a sum over groups. So the best
    division of K clients among groups follows by dynamic programming over the groups, in the order first priority, then
    weighed cost, in which sums of better parts are better. Tests compare with all subsets.

    First k is left out. If no more than K are picked then, nothing better can be; else all is done again with k, where in a
    group without a limit that matters the first k are best, by priority and then by cost.

    No more clients of a group count than its cheapest that fit its limit together, F say, with k at most K. Of V different
    priorities whose F largest sum up to Q, counted from the least where there is k, O(sum over groups of V F^2 Q) time and
    O(V F Q) memory, without k O(V F Q) and O(V Q).

    Examples
    --------
    Clients 0 and 1 share a site with 5 J to spare: the second is worth more.

    >>> best_picks([1, 2, 1], [3, 4, 9], most=2, group=[0, 0, 1], limit=[5, 10])
    array([1, 2])
    """
    value = int_array("priority", priority, (None,), low=0)
    price = float_array("cost", cost, value.shape, nonnegative=True, finite=False)
    number = min(integer("most", most, low=0), value.size)
    own = int_array("group", group, value.shape, low=0, high=LARGEST_GROUP)
    groups = int(own.max(initial=0)) + 1
    limits = float_array("limit", limit, (groups,), nonnegative=True, finite=False) * (1 + FIT)
    weights = float_array("weight", weight, (groups,), nonnegative=True)
    order = np.lexsort((price, own))
    order = order[(value[order] > 0) & (price[order] <= limits[own[order]]) & np.isfinite(price[order])]
    divided = [ids for ids in np.split(order, np.flatnonzero(np.diff(own[order])) + 1) if ids.size]
    found = order[:0]
    for counts in (False, True) if value[order].sum(dtype=np.int64) <= FEW else (True,):
        parts = [
            (_Group.of(ids, value[ids], price[ids], number, float(limits[own[ids[0]]]), counts), weights[own[ids[0]]])
            for ids in divided
        ]
        found = _best_division(parts, number if counts else 0)
        if found.size <= number:
            break
    return np.sort(found)


def _best_division(parts: Sequence[tuple["_Group", float]], number: int) -> NDArray[np.int64]:
    """Return whom to pick when each group, with what a unit of its cost weighs, is given its part of so many clients."""
    best = np.zeros(number + 1, np.int64)  # by the number of clients picked so far: priority, and weighed cost
    paid = np.zeros(number + 1)
    best[1:] = -1  # impossible
    steps: list[tuple[_Group, NDArray[np.int64]]] = []
    for part, weight in parts:
        k = part.value.size - 1
        taken = np.zeros(number + 1, np.int64)
        new_best, new_paid = np.full(number + 1, -1, np.int64), np.full(number + 1, np.inf)
        for j in range(k + 1):
            if part.value[j] < 0:
                continue
            there = best[: number + 1 - j] >= 0
            total = np.where(there, best[: number + 1 - j] + part.value[j], -1)
            bill = paid[: number + 1 - j] + weight * part.cost[j]
            better = (total > new_best[j:]) | ((total == new_best[j:]) & there & (bill < new_paid[j:]))
            new_best[j:][better], new_paid[j:][better], taken[j:][better] = total[better], bill[better], j
        best, paid = new_best, new_paid
        steps.append((part, taken))
    left = int(np.lexsort((paid, -best))[0])
    chosen: list[NDArray[np.int64]] = []
    for part, taken in reversed(steps):
        chosen.append(part.members(int(taken[left])))
        left -= int(taken[left])
    return np.concatenate([np.zeros(0, np.int64), *chosen])


def _fitting(price: Floats, limit: float) -> int:
    """Return how many can be picked within a limit at most, of prices in ascending order."""
    return int(np.searchsorted(np.cumsum(price), limit * (1 + FIT), side="right"))  # a little more: sums are rounded


@dataclass(frozen=True, slots=True)
class _Group:
    """What a group can do with k of its clients, or with any number of them where k does not count.

    Parameters
    ----------
    value : int64 [k + 1], most priority within the limit, -1 if there is none.
    cost : float64 [k + 1], least cost of it.
    least : what each client has of priority that the columns of the tables leave out.
    levels : priorities above the least, and the members of each, cheapest first.
    choices : for each level [k + 1, q + 1], how many of its members are taken.
    ranked : instead of these, members of whom the first k are best.
    """

    value: NDArray[np.int64]
    cost: Floats
    least: int = 0
    levels: Sequence[tuple[int, NDArray[np.int64]]] = ()
    choices: Sequence[NDArray[np.int32]] = ()
    ranked: NDArray[np.int64] | None = None

    @classmethod
    def of(
        cls, ids: NDArray[np.int64], value: NDArray[np.int32], price: Floats, number: int, limit: float, counts: bool
    ) -> "_Group":
        """Return the tables of a group whose members come cheapest first, `number` of whom may be picked."""
        number = min(_fitting(price, limit), number if counts else ids.size)
        if counts and price[first := np.lexsort((price, -value))[:number]].sum() <= limit:
            sums = np.cumsum(np.append(0, value[first]), dtype=np.int64)
            return cls(sums, np.cumsum(np.append(0.0, price[first])), ranked=ids[first])
        least = int(value.min()) if counts else 0
        above, row = value.astype(np.int64) - least, int(counts)
        top = int(np.sort(above)[ids.size - number :].sum())
        check_table("clients x priorities", number * row + 1, top + 1)
        table = np.full((number * row + 1, top + 1), np.inf)
        table[0, 0] = 0.0
        levels, choices = [], []
        rows, columns = 1, 1  # of the table that can be reached so far
        for level in np.unique(above).tolist():
            at = np.flatnonzero(above == level)[:number]
            sums = np.concatenate([[0.0], np.cumsum(price[at])])
            sums = sums[: np.searchsorted(sums, limit, side="right")]
            before, choice = table[:rows, :columns].copy(), np.zeros(table.shape, np.int32)
            for j in range(1, sums.size):
                if level * j > top:
                    break
                region = table[j * row : j * row + rows, level * j : level * j + columns]
                chosen = choice[j * row : j * row + rows, level * j : level * j + columns]
                offer = before[: region.shape[0], : region.shape[1]] + sums[j]
                better = offer < region
                np.copyto(region, offer, where=better)
                np.copyto(chosen, j, where=better)
            rows = min(len(table), rows + (sums.size - 1) * row)
            columns = min(top + 1, columns + (sums.size - 1) * level)
            levels.append((level, ids[at]))
            choices.append(choice)
        fits = np.isfinite(table) & (table <= limit)
        best = np.where(fits.any(axis=1), top - fits[:, ::-1].argmax(axis=1), -1)
        cost = np.where(best >= 0, table[np.arange(len(table)), best], np.inf)
        return cls(np.where(best >= 0, best + least * np.arange(len(table)), -1), cost, least, levels, choices)

    def members(self, count: int) -> NDArray[np.int64]:
        """Return the members of the best choice of so many."""
        if self.ranked is not None:
            return self.ranked[:count]
        column, found = int(self.value[count]) - self.least * count, []
        for (level, ids), choice in zip(reversed(self.levels), reversed(self.choices), strict=True):
            taken = int(choice[count, column])
            found.append(ids[:taken])
            count, column = count - taken * (len(choice) > 1), column - level * taken
        return np.concatenate(found)


@dataclass(slots=True, kw_only=True)
class EnergyPlanner:
    """Pick clients by energy: within their batteries, the spare power of their sites, or the grams of CO2 of a round.

    In each round `best_picks` gives those who have trained least the most, at the least carbon, as things are when the round
    begins: nothing of a series is looked at beyond, and only those who can be picked then are compared. What a round takes a
    client is taken to be the most that it has taken so far. So limits hold for certain where rounds take what was expected;
    a battery is at most overdrawn by what a client's last round took more than any before. A round in which nobody can be
    picked has no entries: `EdgeTiming.idle_s` says how long it lasts. Ours, after FedZero (Wiesner et al., 2024).

    Parameters
    ----------
    picks : clients of a round at most.
    energy_j : float64 [C], what a round takes each client, as long as nothing was measured.
    battery_j : float64 [C], what each has for the whole run. Default: no limit.
    site : int [C], whose power and carbon a client has. Default: one for all.
    carbon : grams of CO2 per kWh, a column for each site, or one. Default: equal everywhere.
    power : spare watts, a column for each site: a round may take ``power x round_s`` joules there.
    round_s : seconds that `power` is counted over; needed with it.
    most_g : grams of CO2 of a round in all; needs `carbon`, and goes without `power`.
    available : when clients can be picked, a column for each.
    levels : priorities from 1 to this: one less for each round more than another has had who can be picked as well.
    batch_size, local_steps : of every entry, as in `RoundPlan`.

    Examples
    --------
    >>> planner = EnergyPlanner(picks=1, energy_j=[2.0, 3.0], battery_j=[4.0, 9.0])
    >>> plan = planner.plan(0, None)
    >>> plan.client
    array([0], dtype=int32)
    >>> told = Feedback(round=0, plan=plan, seconds=1, client_energy_j=[3.0])
    >>> planner.plan(1, told).client  # one joule is left to the other
    array([1], dtype=int32)
    """

    picks: int
    energy_j: Floats
    battery_j: Floats = field(default_factory=lambda: np.array(np.inf))
    site: NDArray[np.int32] = field(default_factory=lambda: np.array(0))
    carbon: TimeSeries | None = None
    power: TimeSeries | None = None
    round_s: float = 0.0
    most_g: float = np.inf
    available: TimeSeries | None = None
    levels: int = 8
    batch_size: int = 0
    local_steps: int = 1
    _spent_j: Floats = field(init=False, repr=False)
    _trained: NDArray[np.int64] = field(init=False, repr=False)
    _expected_j: Floats = field(init=False, repr=False)
    _now_s: float = field(init=False, default=0.0, repr=False)

    __repr__ = one_line

    def __post_init__(self) -> None:
        self.picks = integer("picks", self.picks, low=1)
        self.levels = integer("levels", self.levels, low=1)
        self.energy_j = float_array("energy_j", self.energy_j, (None,), positive=True, unit="J")
        if (count := self.energy_j.size) == 0:
            raise InvalidProblemError("energy_j: expected at least one client, got shape [0]")
        self.battery_j = float_array("battery_j", self.battery_j, (count,), nonnegative=True, finite=False, unit="J")
        self.site = int_array("site", self.site, (count,), low=0, high=LARGEST_GROUP)
        self.most_g = real("most_g", self.most_g, nonnegative=True, finite=False, unit="g")
        sites = int(self.site.max(initial=0)) + 1
        wanted: tuple[tuple[str, Quantity, tuple[int, ...]], ...] = (
            ("carbon", "carbon", (1, sites)),
            ("power", "power", (sites,)),
            ("available", "availability", (count,)),
        )
        for name, quantity, sizes in wanted:
            series = getattr(self, name)
            if series is None:
                continue
            if not isinstance(series, TimeSeries) or series.quantity != quantity:
                raise InvalidProblemError(
                    f"{name}: expected a TimeSeries of the quantity {quantity}, got {quoted(series)}"
                )
            if series.num_columns not in sizes:
                raise InvalidProblemError(f"{name}: {series.num_columns} columns, expected {sizes[-1]}")
        if self.power is not None:
            self.round_s = real("round_s", self.round_s, positive=True, unit="s")
        if np.isfinite(self.most_g) and (self.carbon is None or self.power is not None):
            raise InvalidProblemError(f"most_g = {self.most_g:g}: expected it with carbon and without power")
        self._spent_j, self._trained = np.zeros(count), np.zeros(count, np.int64)
        self._expected_j = np.array(self.energy_j)

    def plan(self, round: int, feedback: Feedback | None = None) -> RoundPlan:
        """Return the plan of a round."""
        if feedback is not None:
            self._note(feedback)
        grams = self._grams_per_joule()
        cost = np.where(self._spent_j + self._expected_j <= self.battery_j * (1 + FIT), self._expected_j, np.inf)
        if self.available is not None:
            cost[self.available.at(self._now_s) < 0.5] = np.inf
        group, weight, limit = self.site, grams, np.full(grams.size, np.inf)
        if np.isfinite(self.most_g):
            known = np.isfinite(cost)
            cost[known] *= grams[self.site[known]]
            group, weight, limit = np.zeros_like(self.site), np.ones(1), np.full(1, self.most_g)
        elif self.power is not None:
            limit = self.power.at(self._now_s) * self.round_s
        able = np.isfinite(cost) & (cost <= limit[group] * (1 + FIT))
        turns = self._trained - self._trained.min(where=able, initial=int(self._trained.max()))
        priority = np.where(able, np.maximum(1, self.levels - turns), 0)
        chosen = best_picks(priority, cost, self.picks, group=group, limit=limit, weight=weight)
        work: dict[str, Any] = {"batch_size": self.batch_size, "local_steps": self.local_steps}
        return RoundPlan(client=chosen.astype(np.int32), **work)

    def _grams_per_joule(self) -> Floats:
        """Return grams of CO2 of a joule at each site, as things are; 1 where nothing is known of carbon."""
        sites = int(self.site.max(initial=0)) + 1
        if self.carbon is None:
            return np.ones(sites)
        return np.broadcast_to(self.carbon.at(self._now_s) / JOULES_PER_KWH, (sites,))

    def _note(self, feedback: Feedback) -> None:
        self._now_s = feedback.now_s
        client, joules = feedback.plan.client, feedback.client_energy_j
        known = np.isfinite(joules)
        np.add.at(self._spent_j, client, np.where(known, joules, self._expected_j[client]))
        np.maximum.at(self._expected_j, client[known], joules[known])
        np.add.at(self._trained, client, 1)

    def state(self) -> Arrays:
        """Return what was measured."""
        return {
            "spent_j": self._spent_j.copy(), "trained": self._trained.copy(), "expected_j": self._expected_j.copy(),
            "now_s": np.array(self._now_s),
        }  # fmt: skip

    def restore(self, state: Arrays) -> None:
        """Go on from what `state` returned."""
        if missing := [name for name in ("spent_j", "trained", "expected_j", "now_s") if name not in state]:
            raise InvalidProblemError(f"state: {missing[0]}: array is missing")
        size = self.energy_j.shape
        self._spent_j = np.array(float_array("spent_j", state["spent_j"], size, nonnegative=True, unit="J"))
        self._expected_j = np.array(float_array("expected_j", state["expected_j"], size, positive=True, unit="J"))
        self._trained = np.array(int_array("trained", state["trained"], size, low=0, dtype=np.int64))
        self._now_s = real("now_s", state["now_s"], nonnegative=True, unit="s")
