"""The linking dual: prices on single copies, so that every server keeps its whole knapsack; closer than priced storages."""

import numpy as np
from numpy.typing import NDArray

from edgeopt.problems import Placement
from edgeopt.solve import Run
from edgeopt.solvers.expert_caching.facility import Facility
from edgeopt.solvers.expert_caching.pricing import NearColumns, Prices
from edgeopt.solvers.kernels.linking import cheapest_columns, fill_servers, switching_costs

MOMENTUM = 0.7
AIM = 0.3  # share of what is left that a step aims above the best
PATIENCE, SHORTER = 30, 0.7  # steps without a better bound until steps are shortened so much


class Linking:
    r"""What placements better than the incumbent fall short of a dual point's bound at least, by Lagrangian decomposition.

    A placement chooses one column (subset of servers) S_e per expert and thereby for each server n the set
    :math:`X_n = \{e : n \in S_e\}` of its experts. It falls short of the bound of prices :math:`\lambda` by

    .. math:: \sum_e l_e(S_e) + \sum_n \lambda_n (Q_n - s(X_n))

    with l the columns' losses. Choose the columns and the sets apart, with a price :math:`\delta_{en}` on each copy in which they differ:

    .. math:: D(\delta) = \sum_e \min_S \Bigl[l_e(S) + \sum_{n \in S} \delta_{en}\Bigr]
        + \sum_n \min_{X: s(X) \le Q_n} \Bigl[\lambda_n (Q_n - s(X)) - \sum_{e \in X} \delta_{en}\Bigr]

    No placement falls short by less than D, whatever :math:`\delta`: its own columns and sets are among those minimised
    over, the storages hold, and the prices cancel. With :math:`\delta = 0` D is at least 0, which is the bound of the prices alone. What
    they cannot see, and D can: single experts do not fill a storage to the last unit, and those that would lose something.

    Only columns within the gap are chosen from, so it is a bound on placements better than the incumbent (as in `Finish`).
    For the same reason a column is out if it costs more than what is left: D, and its own reduced loss, and for every server what the
    knapsack loses when the expert has to be in or out, as the column says. These belong to different minima, so they add up.

    Source: Guignard and Kim 1987 (decomposition); its use here and the elimination ours. One step costs about as much
    as reading every column once.

    Parameters
    ----------
    facility : the problem, in whole units (`Facility.exact_units`).
    prices : a dual point.
    columns : every column that placements better than the incumbent may use.

    Attributes
    ----------
    columns : the columns left.
    short : float, the largest D found.
    """

    def __init__(self, facility: Facility, prices: Prices, columns: NearColumns) -> None:
        self.facility, self.prices, self.columns = facility, prices, columns
        self.short, self._scale = -np.inf, 1.0
        self._delta = np.zeros((facility.num_experts, facility.num_servers))
        self._prepare()

    def _prepare(self) -> None:
        """List the pairs (expert, server) on which the columns left of the expert disagree, by server and then by size."""
        facility, columns = self.facility, self.columns
        num_servers, expert = facility.num_servers, columns.expert
        loss = columns.losses(facility.size, self.prices)
        self._loss = np.maximum(loss, 0.0)
        self._held = ((columns.mask[:, None] >> np.arange(num_servers)) & 1).astype(bool)
        always = np.logical_and.reduceat(self._held, columns.first[:-1])
        free = np.logical_or.reduceat(self._held, columns.first[:-1]) & ~always
        self._room = np.maximum(facility.capacity_units - facility.units @ always, 0)  # the incumbent's experts fit
        self._sizes, group = np.unique(facility.units, return_inverse=True)
        pair_expert, pair_server = np.nonzero(free)
        bucket = pair_server * self._sizes.size + group[pair_expert]
        by_bucket = np.argsort(bucket, kind="stable")
        self._pair = pair_expert[by_bucket], pair_server[by_bucket]
        in_bucket = np.bincount(bucket, minlength=num_servers * self._sizes.size)
        self._pair_first = np.concatenate([[0], np.cumsum(in_bucket)])
        self._order = np.arange(bucket.size)
        self._number = np.full(free.shape, -1)
        self._number[self._pair] = np.arange(bucket.size)
        column, server = np.nonzero(self._held & free[expert])
        self._link = self._number[expert[column], server]
        self._link_first = np.concatenate([[0], np.cumsum(np.bincount(column, minlength=expert.size))])
        self._store_price = facility.size[self._pair[0]] * self.prices.price[self._pair[1]]

    def evaluate(self, delta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
        """Return D at some prices of the pairs [P], a supergradient [P], and each expert's least loss and prices [E]."""
        columns = self.columns
        least, choice = cheapest_columns(columns.first, self._loss, self._link_first, self._link, delta)
        value, stored = fill_servers(delta + self._store_price, self._sizes, self._room, self._pair_first, self._order)
        short = float(least.sum() + self.prices.price @ self._room - value.sum())
        return short, self._held[choice[self._pair[0]], self._pair[1]].astype(float) - stored, least

    def descend(self, run: Run[Placement], steps: int) -> None:
        """Take so many deflected supergradient steps of Polyak's length, and report the bound; one iteration each."""
        delta = best = self._delta[self._pair]
        direction, stale = np.zeros(delta.size), 0
        for _ in range(steps):
            short, slope, _least = self.evaluate(delta)
            if short > self.short:
                self.short, best, stale = short, delta, 0
            else:
                stale += 1
            value = run.objective or 0.0
            run.tighten(max(self.prices.bound - self.short, value))
            left = self.prices.bound - value - self.short
            if not run.step() or left <= 0:
                break
            if stale == PATIENCE:
                self._scale, stale, delta, direction = self._scale * SHORTER, 0, best, 0 * direction
                continue
            direction = slope + MOMENTUM * direction
            if not (norm := float(direction @ direction)):
                break
            delta = delta + self._scale * (self.short - short + AIM * left) / norm * direction
        self._delta[self._pair] = best

    def reduced(self) -> NDArray[np.float64]:
        """Return for each column [C] what a placement that uses it falls short by at least."""
        delta, expert = self._delta[self._pair], self.columns.expert
        short, _, least = self.evaluate(delta)
        total = np.concatenate([[0.0], np.cumsum(delta[self._link])])
        paid = self._loss + total[self._link_first[1:]] - total[self._link_first[:-1]]
        out, into = switching_costs(delta + self._store_price, self._sizes, self._room, self._pair_first, self._order)
        out, into = np.append(out, 0.0), np.append(into, 0.0)  # number -1: all columns of the expert agree
        number = self._number[expert]
        switched = np.where(self._held, into[number], out[number]).sum(axis=1)
        found: NDArray[np.float64] = short + paid - least[expert] + switched
        return found

    def restrict(self, allowed: float) -> None:
        """Forget the columns with which a placement falls short by more than `allowed`, the incumbent's shortfall."""
        left = self.columns.kept(self.reduced() <= allowed)
        if np.diff(left.first).all():  # the incumbent's columns stay, but for rounding
            self.columns = left
            self._prepare()

    def close(self, run: Run[Placement], steps: int) -> None:
        """Take so many steps, and forget columns before, half way and after."""
        for now in (0, steps // 2, steps - steps // 2):
            self.descend(run, now)
            allowed = (self.prices.bound - (run.objective or 0.0)) * (1 + 1e-6)
            self.restrict(max(allowed, 1e-9 * abs(self.prices.bound)))
            if run.stopped():
                break
