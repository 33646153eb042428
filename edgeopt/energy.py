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

    O(sum over groups of V K^2 Q) time with V different priorities whose K largest sum up to Q, and O(V K Q) memory.

    Examples
    --------
    Clients 0 and 1 share a site with 5 J to spare: the second is worth more.

    >>> best_picks([1, 2, 1], [3, 4, 9], most=2, group=[0, 0, 1], limit=[5, 10])
    array([1, 2])
    """
    value = int_array("priority", priority, (None,), low=0)
    price = float_array("cost", cost, value.shape, nonnegative=True, finite=False)
    number = min(integer("most", most, low=0), value.size)
    own = int_array("group", group, value.shape, low=0)
    groups = int(own.max(initial=0)) + 1
    limits = float_array("limit", limit, (groups,), nonnegative=True, finite=False)
    weights = float_array("weight", weight, (groups,), nonnegative=True)
    order = np.lexsort((price, own))
    order = order[(value[order] > 0) & np.isfinite(price[order])]
    best = np.zeros(number + 1, np.int64)  # by the number of clients picked so far: priority, and weighed cost
    paid = np.zeros(number + 1)
    best[1:] = -1  # impossible
    steps: list[tuple[_Group, NDArray[np.int64]]] = []
    for members in np.split(order, np.flatnonzero(np.diff(own[order])) + 1):
        if not members.size:
            continue
        g = int(own[members[0]])
        part = _Group.of(members, value[members], price[members], number, float(limits[g]))
        k = part.value.size - 1
        taken = np.zeros(number + 1, np.int64)
        new_best, new_paid = np.full(number + 1, -1, np.int64), np.full(number + 1, np.inf)
        for j in range(k + 1):
            if part.value[j] < 0:
                continue
            there = best[: number + 1 - j] >= 0
            total = np.where(there, best[: number + 1 - j] + part.value[j], -1)
            bill = paid[: number + 1 - j] + weights[g] * part.cost[j]
            better = (total > new_best[j:]) | ((total == new_best[j:]) & there & (bill < new_paid[j:]))
            new_best[j:][better], new_paid[j:][better], taken[j:][better] = total[better], bill[better], j
        best, paid = new_best, new_paid
        steps.append((part, taken))
    left = int(np.lexsort((paid, -best))[0])
    chosen: list[NDArray[np.int64]] = []
    for part, taken in reversed(steps):
        chosen.append(part.members(int(taken[left])))
        left -= int(taken[left])
    return np.sort(np.concatenate([np.zeros(0, np.int64), *chosen]))


@dataclass(frozen=True, slots=True)
class _Group:
    """What a group can do with k of its clients.

    Parameters
    ----------
    value : int64 [k + 1], most priority within the limit, -1 if there is none.
    cost : float64 [k + 1], least cost of it.
    levels : priorities, and the members of each, cheapest first.
    choices : for each level [k + 1, q + 1], how many of its members are taken.
    """

    value: NDArray[np.int64]
    cost: Floats
    levels: Sequence[tuple[int, NDArray[np.int64]]]
    choices: Sequence[NDArray[np.int32]]

    @classmethod
    def of(cls, ids: NDArray[np.int64], value: NDArray[np.int32], price: Floats, most: int, limit: float) -> "_Group":
        """Return the tables of a group whose members come cheapest first."""
        number = min(most, ids.size)
        top = int(np.sort(value)[ids.size - number :].sum())
        check_table("clients x priorities", number + 1, top + 1)
        limit *= 1 + FIT
        table = np.full((number + 1, top + 1), np.inf)
        table[0, 0] = 0.0
        levels, choices = [], []
        for level in np.unique(value).tolist():
            at = np.flatnonzero(value == level)[:number]
            sums = np.concatenate([[0.0], np.cumsum(price[at])])
            new, choice = table.copy(), np.zeros(table.shape, np.int32)
            for j in range(1, at.size + 1):
                if sums[j] > limit or level * j > top:
                    break
                offer = table[: number + 1 - j, : top + 1 - level * j] + sums[j]
                region, chosen = new[j:, level * j :], choice[j:, level * j :]
                better = offer < region
                region[better], chosen[better] = offer[better], j
            table = new
            levels.append((level, ids[at]))
            choices.append(choice)
        fits = np.isfinite(table) & (table <= limit)
        best = np.where(fits.any(axis=1), top - fits[:, ::-1].argmax(axis=1), -1)
        cost = np.where(best >= 0, table[np.arange(number + 1), best], np.inf)
        return cls(best, cost, levels, choices)

    def members(self, count: int) -> NDArray[np.int64]:
        """Return the members of the best choice of so many."""
        value, found = int(self.value[count]), []
        for (level, ids), choice in zip(reversed(self.levels), reversed(self.choices), strict=True):
            taken = int(choice[count, value])
            found.append(ids[:taken])
            count, value = count - taken, value - level * taken
        return np.concatenate(found)


@dataclass(slots=True, kw_only=True)
class EnergyPlanner:
    """Pick clients by energy: within their batteries, the spare power of their sites, or the grams of CO2 of a round.

    In each round `best_picks` gives those who have trained least the most, at the least carbon, as things are when the round
    begins: nothing of a series is looked at beyond. What a round takes a client is taken to be the most that it has taken
    so far. So limits hold for certain where rounds take what was expected; a battery is at most overdrawn by what a client's
    last round took more than any before. A round in which nobody can be picked has no entries: `EdgeTiming.idle_s` says how
    long it lasts. Ours, after FedZero (Wiesner et al., 2024).

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
    levels : priorities from 1 to this: one less for each round more than others have had.
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
        count = self.energy_j.size
        self.battery_j = float_array("battery_j", self.battery_j, (count,), nonnegative=True, finite=False, unit="J")
        self.site = int_array("site", self.site, (count,), low=0)
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
        priority = np.maximum(1, self.levels - (self._trained - self._trained.min()))
        if np.isfinite(self.most_g):
            chosen = best_picks(priority, cost * grams[self.site], self.picks, limit=self.most_g)
        else:
            limit = np.inf if self.power is None else self.power.at(self._now_s) * self.round_s
            chosen = best_picks(priority, cost, self.picks, group=self.site, limit=limit, weight=grams)
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
