"""`lagrangian`: price each server's storage, read off a bound and nearly optimal placements, close the gap between."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import EdgeOptError
from edgeopt.problem import Problem
from edgeopt.problems import ExpertCaching, Placement
from edgeopt.result import Guarantee, Heuristic, Result
from edgeopt.rng import stream
from edgeopt.solve import Run, SolveOptions
from edgeopt.solvers.expert_caching.common import QUICK, Stopped, empty_placement, supports_expert_caching
from edgeopt.solvers.expert_caching.distinct_bound import DistinctBound
from edgeopt.solvers.expert_caching.dual import FIRST_STEP, NEAR_STEP, minimise_dual, sampled_prices
from edgeopt.solvers.expert_caching.exchange import exchange_round
from edgeopt.solvers.expert_caching.facility import Facility
from edgeopt.solvers.expert_caching.finish import Finish
from edgeopt.solvers.expert_caching.greedy import filled_in_turns, greedy_placement
from edgeopt.solvers.expert_caching.groups import Groups
from edgeopt.solvers.expert_caching.linking import Linking
from edgeopt.solvers.expert_caching.max_bound import bound_max
from edgeopt.solvers.expert_caching.max_convolution import MaxConvolution
from edgeopt.solvers.expert_caching.pricing import (
    AscentPricing,
    NearColumns,
    Prices,
    Pricing,
    pricing_for,
    start_prices,
)
from edgeopt.solvers.expert_caching.successive import respond, sweep
from edgeopt.solvers.kernels.facility import best_of
from edgeopt.solvers.kernels.subsets import cached_to_masks

SPREAD = (1.0, 0.5, 2.0)  # how wide the exchange search looks, in turn
PATIENCE = 12  # exchange rounds without a better placement before it is given up
TRIALS, LEFT_OVER = 1, 0.6  # branch and bound is tried early if so many rounds leave more than this share of the gap
NEAREST = 4000  # columns that it then looks at
FIRST_ROUND = 0.25  # of the proposals of a round: a first good placement soon, so that bounds can work
LINK_STEPS, LINK_COLUMNS = 200, 60_000  # steps of the linking dual before the second round, and most columns for it
CLOSE_STEPS = 20  # of prices with the bound by counts
EARLY = (2, 4)  # steps from prices of a sample that are rounded too; bounds are sharpened at the last
PASSES = 3  # over the servers, of a rounding without a table of subsets: a pass is quicker than a step there
FINISH_FIRST = 1500  # columns up to which branch and bound comes before exchange


@dataclass(frozen=True, slots=True)
class Lagrangian:
    r"""Lagrangian relaxation of the storages, exchange search, and branch and bound on what is left.

    With a price on each server's storage the experts separate: each picks its best subset of servers, and

    .. math:: OPT \le L(\lambda) = \sum_e \max_S [v_e(S) - s_e \lambda(S)] + \sum_n \lambda_n Q_n

    for every price. The steps: (1) greedy by value per byte; (2) minimise L by Shor's r-algorithm, rounding on
    the way: each server in turn gets its exact best knapsack given the others; (3) forget every column (expert, subset)
    whose loss, L's term less its own, exceeds the gap, since no better placement can use it; (4) exchange search:
    a placement falls short of L by exactly the sum of its columns' losses plus the price of its free storage, which is
    what chains of exchanges between experts anneal; (5) between its rounds the linking dual (`Linking`), which prices single copies so that every server
    keeps its whole knapsack: it lowers the bound and forgets more columns; (6) branch and bound by HiGHS over the columns
    left, if they are few.

    Guarantee: none beforehand; the bound certifies each result, and small instances whose sizes are whole storage units are solved to
    proven optimality.
    Subsets are tabulated up to about 15 servers (O(E (U N^2 + N 2^N)) once, then O(columns) per step). Beyond, they come from local
    search and the bound from dual ascent (Erlenkotter 1978), O(E U N) per step, and steps 3 to 6 are replaced by
    best-response sweeps. For ``max`` and ``mix`` with K >= 2 the relaxation of the sum surrogate gives a start, the search of `MaxConvolution`
    works on the true objective, and the bound counts the distinct experts of each layer (`distinct_bound`) and how many each server holds
    (`count_bound`), beyond its sizes shares each set's saving out among its experts (`max_bound`).

    Sources: Geoffrion 1974 (relaxation), Dyer 1980 and others (fixing by reduced cost); combination and exchange
    search ours. One iteration is one step of a dual, one server's knapsack, 20,000 exchange proposals, or one report of HiGHS.

    Parameters
    ----------
    max_steps : dual steps.
    rounds : annealing runs of the exchange search.
    finish_seconds : time for branch and bound; 0 leaves it out, as do sizes that are not whole storage units. The only
        part that looks at the clock; deterministic runs count nodes instead.
    finish_columns : most columns to branch and bound over.
    search_work : rows and sets to visit in the local search for ``max`` and ``mix``.
    bound_steps : steps of the bound of ``max`` and ``mix`` by distinct experts, half of them before the local search.
    """

    max_steps: int = 400
    rounds: int = 30
    finish_seconds: float = 20.0
    finish_columns: int = 60_000
    search_work: float = 6e8
    bound_steps: int = 200

    name: ClassVar[str] = "lagrangian"
    guarantee: ClassVar[Guarantee] = Heuristic("certifies each result by its own bound")

    def __post_init__(self) -> None:
        for name in ("max_steps", "rounds", "finish_seconds", "finish_columns", "search_work", "bound_steps"):
            if not getattr(self, name) >= 0:
                raise EdgeOptError(f"{name} = {getattr(self, name)}: expected a number >= 0")

    def guarantee_for(self, problem: ExpertCaching) -> Guarantee:
        """Return that nothing is promised beforehand."""
        return self.guarantee

    def supports(self, problem: Problem) -> str | None:
        """Support every expert-caching problem."""
        return supports_expert_caching(problem)

    def solve(self, problem: ExpertCaching, options: SolveOptions) -> Result[Any]:
        """Solve by relaxation, rounding, exchange and branch and bound."""
        proved, message = False, ""
        with Run[Placement](self, problem, options) as run:
            run.offer(empty_placement(problem))
            with run.building():
                facility = Facility.of(problem).in_units()
            if facility.weight.size * facility.num_servers > QUICK:  # greedy takes seconds then
                run.offer(Placement(filled_in_turns(facility, facility.first_values())))
            start = greedy_placement(run, facility, per_byte=True)
            run.offer(Placement(start))
            if run.stopped():
                pass
            elif problem.is_modular_per_set:
                proved, message = self._close_gap(run, facility, start)
            else:
                self._search_true_objective(run, problem, facility, start)
        return run.result(optimal=proved, message=message)

    def _close_gap(self, run: Run[Placement], facility: Facility, start: NDArray[np.bool_]) -> tuple[bool, str]:
        """Bring bound and incumbent together; return whether the incumbent is proved optimal, and what HiGHS had to say."""
        with run.building():
            pricing, price = _prepare(facility, start, run.stopped)
        first, sampled, passes = price, False, PASSES if isinstance(pricing, AscentPricing) else 1

        def on_step(step: int, _: Prices, best: Prices) -> float | None:
            run.tighten(best.bound)
            if step % pricing.round_every == 0 or (sampled and step in EARLY):
                run.offer(Placement(_round_down(run, facility, best.choice, 1 if step == EARLY[0] else passes)))
                pricing.restrict(best, _gap(run, best))
            if sampled and step == EARLY[-1] and isinstance(pricing, AscentPricing):
                pricing.sharpen(best, run.tighten)
            return _value(run) if run.step() else None

        try:
            if isinstance(pricing, AscentPricing):
                price = sampled_prices(facility, price, start, run.stopped, lambda: _value(run) if run.step() else None)
            sampled = price is not first
            prices = minimise_dual(
                facility, pricing, price, self.max_steps, on_step, NEAR_STEP if sampled else FIRST_STEP
            )
        except Stopped:
            return False, ""
        run.tighten(prices.bound)
        if run.stopped():
            return False, ""
        cached = _round_down(run, facility, prices.choice)
        run.offer(Placement(cached))
        if isinstance(pricing, AscentPricing):
            pricing.sharpen(prices, run.tighten)
            sweep(run, facility, cached, max_sweeps=self.rounds)
            return False, ""
        return self._close_columns(run, facility, pricing, prices)

    def _close_columns(
        self, run: Run[Placement], facility: Facility, pricing: Pricing, prices: Prices
    ) -> tuple[bool, str]:
        """Exchange search, linking dual and branch and bound over the columns that are left; return as `_close_gap` does."""
        message, rng, links = "", stream(run.seed, self.name), None
        finished, stale, best = self.finish_seconds == 0, 0, _value(run)
        first_gap = _gap(run, prices)
        for k in range(self.rounds + 1):
            columns = pricing.near(prices, _gap(run, prices)) if links is None else links.columns
            if columns is None or run.stopped() or run.bound - _value(run) <= 1e-9 * abs(prices.bound):
                break  # listed no columns, or a limit, or nothing left to close
            if k and facility.exact_units and columns.mask.size <= LINK_COLUMNS:
                if links is None:
                    with run.building():
                        links = Linking(facility, prices, columns)
                links.close(run, LINK_STEPS if k == 1 else 2 * LINK_STEPS)
                columns = links.columns
                if run.stopped():
                    break
            last = k == self.rounds or stale == PATIENCE
            useless = k == TRIALS and _gap(run, prices) > LEFT_OVER * first_gap  # branch and bound may do better
            if not finished and (last or useless) and columns.mask.size > self.finish_columns:
                self._search_nearest(run, facility, prices, columns)
                columns = pricing.near(prices, _gap(run, prices)) or columns  # a smaller gap leaves fewer columns
            if not finished and columns.mask.size <= (self.finish_columns if last else FINISH_FIRST):
                finished = True
                finish = Finish.of(facility, prices, columns)
                if facility.exact_units:
                    proved, message = finish.solve(run, _gap(run, prices), self.finish_seconds)
                    if proved:
                        return True, ""
            if last:
                break
            exchange_round(run, facility, columns, prices, rng, SPREAD[k % len(SPREAD)], 1.0 if k else FIRST_ROUND)
            stale, best = (0, _value(run)) if _value(run) > best else (stale + 1, best)
        return False, message

    def _search_nearest(self, run: Run[Placement], facility: Facility, prices: Prices, columns: NearColumns) -> None:
        """Branch and bound over the nearest columns alone: for a better placement, not a proof.

        Beside them each expert may be dropped or stay as it is in the incumbent.
        """
        if not facility.exact_units or run.stopped():
            return
        assert run.solution is not None
        loss = Finish.of(facility, prices, columns).loss
        near = loss <= np.partition(loss, NEAREST)[NEAREST] if loss.size > NEAREST else np.ones(loss.size, bool)
        near |= (columns.mask == 0) | (columns.mask == cached_to_masks(run.solution.cached)[columns.expert])
        finish = Finish.of(facility, prices, columns.kept(near))
        finish.solve(run, _gap(run, prices), self.finish_seconds / 2, exact=False)

    def _search_true_objective(
        self, run: Run[Placement], problem: ExpertCaching, facility: Facility, start: NDArray[np.bool_]
    ) -> None:
        """For sets that are not modular: round the surrogate's dual, search the true objective, bound it."""
        with run.building():
            (pricing, price), groups = _prepare(facility, start, run.stopped), Groups(problem)
            bound = DistinctBound(groups) if self.bound_steps and DistinctBound.supports(groups) else None
        lower = float(np.einsum("eu,eu->", facility.weight, best_of(start, facility.gain, facility.model)))
        try:
            prices = minimise_dual(facility, pricing, price, self.max_steps, lambda *_: lower if run.step() else None)
        except Stopped:
            return
        run.offer(Placement(_round_down(run, facility, prices.choice)))
        search = MaxConvolution(surrogates=(), search_work=self.search_work)
        search.start(run, groups, run.options)
        if bound is not None and not run.stopped():
            bound.descend(run, self.bound_steps // 2)
            bound.close(run, CLOSE_STEPS)
        search.search(run, groups)
        if bound is not None:
            bound.descend(run, self.bound_steps - self.bound_steps // 2)
        elif not run.stopped():
            bound_max(run, groups, iterations=self.bound_steps)


def _prepare(
    facility: Facility, start: NDArray[np.bool_], stopped: Callable[[], bool]
) -> tuple[Pricing, NDArray[np.float64]]:
    """Return the pricing of a facility, and prices [N] to start from, both warm from a placement."""
    pricing = pricing_for(facility, stopped)
    if isinstance(pricing, AscentPricing):
        pricing.start_from(start)
    return pricing, start_prices(facility, start)


def _round_down(
    run: Run[Placement], facility: Facility, choice: NDArray[np.bool_], passes: int = 1
) -> NDArray[np.bool_]:
    """Return a placement [N, E] within all storages: each server's exact best response to a dual point's subsets, so many times."""
    cached = choice.copy()
    for _ in range(passes):
        if not respond(run, facility, cached, range(facility.num_servers)) or run.stopped():
            break
    return cached


def _value(run: Run[Placement]) -> float:
    return 0.0 if run.objective is None else run.objective


def _gap(run: Run[Placement], prices: Prices) -> float:
    """Return the gap between the bound of these prices and the incumbent, a hair wider so that rounding drops nothing."""
    return max((prices.bound - _value(run)) * (1 + 1e-6), 1e-9 * abs(prices.bound))
