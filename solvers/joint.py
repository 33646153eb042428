"""Several decisions that compete for the resources of one network: how much of each goes to whom, bounded from both sides."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeopt.display import one_line
from edgeopt.errors import EdgeOptError, SolverError, quoted
from edgeopt.interrupts import interrupted, interrupts_noted
from edgeopt.result import Result, relative_gap
from edgeopt.validate import integer, real

Floats = NDArray[np.float64]
Shares = Mapping[str, float]

MAX_STATES = 1 << 22
"""Entries of the master's table: the blocks of all resources, multiplied."""
ENOUGH = 0.99
"""Share of its best value that a decision is content with where decisions are made one after another."""
ROUNDING = 1e-9  # relative, by which values may fall along a share


@dataclass(frozen=True, slots=True, kw_only=True)
class Valued:
    """What a decision is worth at some shares: between `low`, which a solution attains, and `high`, which none exceeds.

    Parameters
    ----------
    low, high : 0 <= low <= high.
    slope : by resource, how much `base` rises per share of it, for every share of it: a line that the value is never above. Shares of
        resources that are not named must not be larger than here.
    base : the height of the lines here; at least `high`, as a line must hold elsewhere too. Default: `high`.
    result : the solve behind it.
    """

    low: float
    high: float
    slope: Shares = field(default_factory=dict)
    base: float | None = None
    result: Result[Any] | None = field(default=None, repr=False)


class Value(Protocol):
    """What a decision is worth by its shares, each in (0, 1]: it never falls along any of them."""

    def __call__(self, shares: Shares) -> Valued:
        """Return the value at some shares."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One of the decisions.

    Parameters
    ----------
    name : of the decision.
    resources : names of those it takes. Without any of one of them, it is worth nothing.
    value : what it is worth by its shares.
    weight : what its value counts.
    """

    name: str
    resources: tuple[str, ...]
    value: Value
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One round of the master: how many values it knew, and the bounds then."""

    evaluations: int
    value: float
    bound: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JointResult:
    """Who gets how much.

    Parameters
    ----------
    blocks : by contender and resource, how many blocks.
    worth : by contender, what its solution is worth, before its weight.
    value : the weighted sum, which these solutions attain.
    bound : what no shares of whole blocks exceed, whatever the solvers.
    evaluations : values that were worked out.
    rounds : of the master.
    results : by contender, the solve behind its value; None where it gets nothing.
    interrupted : whether Ctrl-C ended it.
    """

    blocks: dict[str, dict[str, int]]
    worth: dict[str, float]
    value: float
    bound: float
    evaluations: int
    rounds: tuple[Round, ...] = ()
    results: dict[str, Result[Any] | None] = field(default_factory=dict, repr=False)
    interrupted: bool = False

    __repr__ = one_line

    @property
    def gap(self) -> float:
        """Relative gap between value and bound."""
        return relative_gap(self.value, self.bound)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "blocks": self.blocks,
            "worth": self.worth,
            "value": self.value,
            "bound": self.bound if math.isfinite(self.bound) else None,
            "gap": self.gap if math.isfinite(self.gap) else None,
            "evaluations": self.evaluations,
            "rounds": [[one.evaluations, one.value, one.bound] for one in self.rounds],
            "interrupted": self.interrupted,
        }

    def summary(self) -> str:
        """Return a few lines for people."""
        lines = [
            f"value {self.value:.6g}, bound {self.bound:.6g}, gap {100 * self.gap:.3g} %, {self.evaluations} evaluations"
        ]
        for name, blocks in self.blocks.items():
            given = ", ".join(f"{count} of {resource}" for resource, count in blocks.items())
            lines.append(f"  {name}: {given}; worth {self.worth[name]:.4g}")
        return "\n".join(lines)


class JointPlan:
    r"""Share out resources in whole blocks to decisions that compete for them. Ours.

    .. math:: \max_n \sum_k w_k V_k(n_k) \quad \text{with} \quad \sum_k n_{kr} \le B_r

    where :math:`n_{kr}` is how many of the B blocks of resource r decision k gets, and V its value, of which its own solver finds
    a solution from below and proves a bound from above. More of a resource is never worth less, so what is known at some
    shares is a bound from above at all smaller ones, and attained at all larger ones; where a bound moves along a line with a
    share, as a Lagrangian dual does, it holds along all of it. The master is solved exactly over the bounds from above and over the
    values from below, by dynamic programming over what is left of the resources: the one bounds the joint optimum, the other is
    attained. What the first picks and is not yet known is evaluated, in halves of each resource first, then in quarters, and so on,
    until the gap is closed; then all that is left is the solvers' own. Every table is finite, so that this ends.

    Parameters
    ----------
    contenders : the decisions.
    blocks : by resource, in how many blocks it is given out.

    Raises
    ------
    EdgeOptError
        Without contenders, with two of one name, with unknown resources, or with too many blocks.

    Examples
    --------
    Two decisions whose values are the square roots of their shares, one counting twice: it gets four fifths.

    >>> root = lambda shares: Valued(low=shares["band"] ** 0.5, high=shares["band"] ** 0.5)
    >>> plan = JointPlan([Contender(name="a", resources=("band",), value=root),
    ...                   Contender(name="b", resources=("band",), value=root, weight=2.0)], {"band": 10})
    >>> plan.solve().blocks
    {'a': {'band': 2}, 'b': {'band': 8}}
    """

    def __init__(self, contenders: Sequence[Contender], blocks: Mapping[str, int]) -> None:
        self.contenders = tuple(contenders)
        self.blocks = {name: integer(f"blocks[{name}]", count, low=1) for name, count in blocks.items()}
        if not self.contenders:
            raise EdgeOptError("contenders: expected at least one")
        names = [one.name for one in self.contenders]
        if len(set(names)) < len(names):
            raise EdgeOptError(f"contenders: expected a name for each, got {', '.join(names)}")
        for one in self.contenders:
            real(f"weight of {one.name}", one.weight, nonnegative=True)
            if unknown := [name for name in one.resources if name not in self.blocks]:
                raise EdgeOptError(f"{one.name}: {quoted(unknown[0])} is none of {', '.join(self.blocks)}")
            if not one.resources:
                raise EdgeOptError(f"{one.name}: expected a resource that it takes")
        if math.prod(count + 1 for count in self.blocks.values()) > MAX_STATES:
            raise EdgeOptError(f"blocks: expected at most {MAX_STATES} shares of all resources together")
        self._known: list[dict[tuple[int, ...], Valued]] = [{} for _ in self.contenders]
        self._high = [np.where(self._served(k), np.inf, 0.0) for k in range(len(self.contenders))]
        self._low = [np.zeros(high.shape) for high in self._high]

    # --- values ------------------------------------------------------------------------------------------------------

    @property
    def evaluations(self) -> int:
        """Values worked out so far; they are kept from solve to solve."""
        return sum(map(len, self._known))

    def evaluate(self, contender: int, blocks: tuple[int, ...]) -> Valued:
        """Return what a contender is worth with so many blocks of each of its resources, worked out once.

        Raises
        ------
        SolverError
            If the value contradicts itself, or what is known of larger or smaller shares.
        """
        if 0 in blocks:
            return Valued(low=0.0, high=0.0)
        known = self._known[contender]
        if blocks not in known:
            one = self.contenders[contender]
            value = one.value({name: n / self.blocks[name] for name, n in zip(one.resources, blocks, strict=True)})
            if not 0 <= value.low <= value.high * (1 + ROUNDING):
                raise SolverError(
                    f"{one.name} at {blocks}: low = {value.low}, high = {value.high}: expected 0 <= low <= high"
                )
            known[blocks] = value
            self._learn(contender, blocks, value)
        return known[blocks]

    def _learn(self, contender: int, blocks: tuple[int, ...], value: Valued) -> None:
        """Put a value into the tables: below and along its lines, and above."""
        one, high, low = self.contenders[contender], self._high[contender], self._low[contender]
        grids = np.meshgrid(*(np.arange(size) for size in high.shape), indexing="ij", sparse=True)
        within, line = np.ones(high.shape, bool), np.full(high.shape, value.high if value.base is None else value.base)
        for name, grid, here in zip(one.resources, grids, blocks, strict=True):
            if name in value.slope:
                line = line + value.slope[name] * (grid - here) / self.blocks[name]
            else:
                within &= grid <= here
        below = tuple(slice(0, n + 1) for n in blocks)
        high[below] = np.minimum(high[below], value.high)
        np.minimum(
            high, np.where(within & self._served(contender), np.maximum(line, 0.0), np.inf), out=high, where=within
        )
        above = tuple(slice(n, None) for n in blocks)
        low[above] = np.maximum(low[above], value.low)
        if (low > high * (1 + 1e-6) + 1e-12).any():
            at = np.unravel_index(int((low - high).argmax()), low.shape)
            raise SolverError(
                f"{one.name} at {tuple(map(int, at))} blocks: {low[at]:.9g} is attained and {high[at]:.9g} is a bound: "
                "expected values that never fall along a share"
            )

    def _served(self, contender: int) -> NDArray[np.bool_]:
        """Return bool over blocks: whether a contender has some of each of its resources."""
        sizes = [self.blocks[name] + 1 for name in self.contenders[contender].resources]
        served = np.zeros(sizes, bool)
        served[(slice(1, None),) * len(sizes)] = True
        return served

    # --- master ------------------------------------------------------------------------------------------------------

    def solve(self, *, gap: float = 0.0, time_limit: float = math.inf, most: int | None = None) -> JointResult:
        """Share out until the gap is closed.

        Parameters
        ----------
        gap : relative gap that is small enough.
        time_limit : seconds; what has been found by then is returned. A value that is being worked out is not interrupted.
        most : evaluations in all, at most.
        """
        started, rounds = time.perf_counter(), []
        with interrupts_noted() as noted:
            for k, one in enumerate(self.contenders):
                self.evaluate(k, tuple(self.blocks[name] for name in one.resources))
            halvings, finest = 1, dict.fromkeys(self.blocks, 1)
            while True:
                strides = {name: max(1, count >> halvings) for name, count in self.blocks.items()}
                bound, wanted = self._best(self._high, finest)
                value, given = self._best(self._low, finest)
                rounds.append(Round(evaluations=self.evaluations, value=value, bound=bound))
                late = time.perf_counter() - started >= time_limit or interrupted()
                full = most is not None and self.evaluations >= most
                if late or full or relative_gap(value, bound) <= gap:
                    break
                if strides != finest:  # shares in coarse steps first: soon good ones, and bounds at all finer ones
                    _, wanted = self._best(self._high, strides)
                if fresh := [(k, n) for k, n in enumerate(wanted) if 0 not in n and n not in self._known[k]]:
                    for k, n in fresh:
                        self.evaluate(k, n)
                elif strides == finest:
                    break
                else:
                    halvings += 1
            return self._result(given, bound, tuple(rounds), interrupted=bool(noted.pressed))

    def at(self, blocks: Mapping[str, Mapping[str, int]]) -> JointResult:
        """Return what given shares are worth, with the bound at these shares alone."""
        given = [tuple(blocks[one.name].get(name, 0) for name in one.resources) for one in self.contenders]
        for name, count in self.blocks.items():
            used = sum(
                n[one.resources.index(name)]
                for one, n in zip(self.contenders, given, strict=True)
                if name in one.resources
            )
            if used > count:
                raise EdgeOptError(f"blocks: {used} of {name} are given out, there are {count}")
        values = [self.evaluate(k, n) for k, n in enumerate(given)]
        bound = sum(one.weight * value.high for one, value in zip(self.contenders, values, strict=True) if one.weight)
        return self._result(given, bound, ())

    def equal_shares(self) -> JointResult:
        """Return what it is worth to give each contender as much as the others of each resource that it takes, in whole blocks."""
        takers = {name: sum(name in one.resources for one in self.contenders) for name in self.blocks}
        return self.at(
            {one.name: {name: self.blocks[name] // takers[name] for name in one.resources} for one in self.contenders}
        )

    def one_after_another(self, order: Sequence[str] | None = None) -> JointResult:
        """Return what it is worth to decide one after another, each with what those before it have left.

        Each takes the fewest blocks with which it has `ENOUGH` of what all that is left would bring it.

        Parameters
        ----------
        order : names; by default as the contenders are given.
        """
        names = [one.name for one in self.contenders]
        left, given = dict(self.blocks), {}
        for name in names if order is None else order:
            k = names.index(name)
            one = self.contenders[k]
            most = tuple(left[resource] for resource in one.resources)
            enough = ENOUGH * self.evaluate(k, most).low
            found = most
            for at in range(len(most)):  # give back of one resource after the other
                while found[at] > 1:
                    fewer = (*found[:at], found[at] - 1, *found[at + 1 :])
                    if self.evaluate(k, fewer).low < enough:
                        break
                    found = fewer
            given[name] = dict(zip(one.resources, found, strict=True))
            for resource, n in given[name].items():
                left[resource] -= n
        return self.at(given)

    def _best(self, tables: Sequence[Floats], strides: Mapping[str, int]) -> tuple[float, list[tuple[int, ...]]]:
        """Return the largest weighted sum over multiples of so many blocks, and who gets how many blocks.

        Contenders come by rising size of their tables, and the last one gets what the others leave: its table, which is
        most of the work, is looked at once instead of once for each state.
        """
        names = list(self.blocks)
        shape = tuple(count // strides[name] + 1 for name, count in self.blocks.items())
        worths = []
        for one, table in zip(self.contenders, tables, strict=True):
            coarse = table[tuple(slice(None, None, strides[name]) for name in one.resources)]
            worths.append(one.weight * coarse if one.weight else np.zeros(coarse.shape))  # bounds may be infinite
        *others, last = sorted(range(len(worths)), key=lambda k: worths[k].size)
        best, picks = np.zeros(shape), {}
        for k in others:
            fresh, pick = np.full(shape, -np.inf), np.zeros(shape, np.int64)
            for flat, n in enumerate(np.ndindex(worths[k].shape)):
                taken = self._by_resource(k, n)
                to = tuple(slice(t, None) for t in taken)
                value = best[tuple(slice(0, size - t) for size, t in zip(shape, taken, strict=True))] + worths[k][n]
                better = value > fresh[to]
                fresh[to] = np.where(better, value, fresh[to])
                pick[to] = np.where(better, flat, pick[to])
            best, picks[k] = fresh, pick
        resources = self.contenders[last].resources
        left = best[tuple(slice(None, None, -1) if name in resources else -1 for name in names)]
        in_order = [name for name in names if name in resources]
        total = left.transpose([in_order.index(name) for name in resources]) + worths[last]
        n = tuple(map(int, np.unravel_index(int(total.argmax()), total.shape)))
        chosen, state = {last: n}, tuple(size - 1 for size in shape)
        for k, before in zip(reversed(others), [last, *reversed(others)], strict=False):
            state = tuple(all_ - t for all_, t in zip(state, self._by_resource(before, chosen[before]), strict=True))
            chosen[k] = tuple(map(int, np.unravel_index(int(picks[k][state]), worths[k].shape)))
        given = [
            tuple(count * strides[name] for count, name in zip(chosen[k], one.resources, strict=True))
            for k, one in enumerate(self.contenders)
        ]
        return float(total.max()), given

    def _by_resource(self, contender: int, counts: tuple[int, ...]) -> tuple[int, ...]:
        """Return the counts of a contender, of its resources, as counts of all resources."""
        own = dict(zip(self.contenders[contender].resources, counts, strict=True))
        return tuple(own.get(name, 0) for name in self.blocks)

    def _result(
        self, given: Sequence[tuple[int, ...]], bound: float, rounds: tuple[Round, ...], *, interrupted: bool = False
    ) -> JointResult:
        """Return the result of shares: of each contender the best solution that is known for them or less."""
        worth, results = {}, {}
        for k, (one, n) in enumerate(zip(self.contenders, given, strict=True)):
            fits = [value for m, value in self._known[k].items() if all(a <= b for a, b in zip(m, n, strict=True))]
            best = max(fits, key=lambda value: value.low, default=Valued(low=0.0, high=0.0))
            worth[one.name], results[one.name] = best.low, best.result
        value = math.fsum(one.weight * worth[one.name] for one in self.contenders)
        return JointResult(
            blocks={
                one.name: dict(zip(one.resources, n, strict=True))
                for one, n in zip(self.contenders, given, strict=True)
            },
            worth=worth,
            value=value,
            bound=max(bound, value),
            evaluations=self.evaluations,
            rounds=rounds,
            results=results,
            interrupted=interrupted,
        )
