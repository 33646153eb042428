"""Lagrangian relaxation: bounds at any prices, proofs, exchange, branch and bound, limits and interrupts."""

import itertools
import math
import queue
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgeopt
from edgeopt.errors import EdgeOptError
from edgeopt.problems import ExpertCaching, Placement
from edgeopt.progress import Callback
from edgeopt.result import Result, Status
from edgeopt.solve import Run, SolveOptions
from edgeopt.solvers.background import Mailbox
from edgeopt.solvers.expert_caching import exchange, finish, lagrangian, pricing
from edgeopt.solvers.expert_caching.dual import minimise_dual, sampled_prices
from edgeopt.solvers.expert_caching.facility import Facility
from edgeopt.solvers.expert_caching.finish import Finish
from edgeopt.solvers.expert_caching.lagrangian import Lagrangian
from edgeopt.solvers.expert_caching.milp import Milp
from edgeopt.solvers.expert_caching.pricing import AscentPricing, SubsetPricing, pricing_for, start_prices
from edgeopt.solvers.kernels.subsets import cached_to_masks
from edgeopt.stop import Limit, MaxIterations, Progress, TargetGap
from tests.clock import install
from tests.solvers.expert_caching.instances import brute_force, random_problem
from tests.solvers.expert_caching.relaxation import lp_bound

few = settings(max_examples=12)
seeds = st.integers(0, 2**32 - 1)
SMALL = {"num_servers": 2, "num_users": 4, "experts": (4, 3)}
SIZES = st.sampled_from([(1.0,), (1.0, 2.0), (0.7, math.pi)])


def small(seed: int, sizes: tuple[float, ...] = (1.0, 2.0)) -> ExpertCaching:
    """Return a random problem small enough to enumerate."""
    return random_problem(np.random.default_rng(seed), sizes=sizes, device=0.1, storage=0.4, **SMALL)


def medium(seed: int = 1, **options: object) -> ExpertCaching:
    """Return a random problem with several iterations of every kind in it."""
    return ExpertCaching.random(
        **({"num_servers": 5, "num_users": 20, "num_models": 2, "num_layers": 1, "seed": seed} | options)  # type: ignore[arg-type]
    )


def check(result: Result, problem: ExpertCaching, optimum: float | None = None) -> None:
    """Check feasibility, and objective <= optimum <= bound."""
    assert result.status in (Status.OPTIMAL, Status.FEASIBLE), result.message
    assert result.feasible
    assert result.objective <= result.bound
    if optimum is not None:
        assert result.objective <= optimum + 1e-9
        assert result.bound >= optimum - 1e-9
        if result.status is Status.OPTIMAL:
            assert result.objective == pytest.approx(optimum, rel=1e-8)


# --- prices and bounds -------------------------------------------------------------------------------------------


@few
@given(seeds, SIZES, st.sampled_from([0.0, 0.03, 0.3]))
def test_every_price_proves_a_bound(seed: int, sizes: tuple[float, ...], dear: float) -> None:
    """At any prices both pricings bound the optimum, in bytes and in units, and dual ascent is never the lower one."""
    problem = small(seed, sizes)
    optimum, _ = brute_force(problem)
    rng = np.random.default_rng(seed)
    for facility in (Facility.of(problem), Facility.of(problem).in_units()):
        exact, ascent = SubsetPricing(facility), AscentPricing(facility)
        for _ in range(4):
            price = dear * rng.random(problem.num_servers) * (rng.random(problem.num_servers) < 0.8)
            at, other = exact.evaluate(price), ascent.evaluate(price)
            assert at.bound >= optimum - 1e-12
            assert other.bound >= at.bound - 1e-12
            assert (other.value >= at.value - 1e-12).all()
            assert at.choice.shape == (problem.num_servers, problem.num_experts)


@few
@given(seeds)
def test_value_of_the_choice(seed: int) -> None:
    """With the table each expert's choice is worth its value: the bound less the shortfall of a placement is its objective.

    The shortfall of any placement is the sum of its columns' losses plus the price of its free storage.
    """
    problem = small(seed)
    facility = Facility.of(problem)
    rng = np.random.default_rng(seed)
    prices = SubsetPricing(facility).evaluate(0.1 * rng.random(problem.num_servers))
    columns = SubsetPricing(facility).near(prices, math.inf)
    assert columns.mask.size == problem.num_experts << problem.num_servers
    for cached in (prices.choice, rng.random(prices.choice.shape) < 0.5):
        held = columns.mask == cached_to_masks(cached)[columns.expert]
        loss = Finish.of(facility, prices, columns).loss[held]
        assert loss.size == problem.num_experts
        short = loss.sum() + prices.price @ (facility.capacity - cached @ facility.size)
        assert prices.bound - short == pytest.approx(problem.objective(Placement(cached)), abs=1e-12)
        if cached is prices.choice:
            assert loss == pytest.approx(0.0, abs=1e-12)


@few
@given(seeds, st.floats(0.0, 1.0))
def test_restricting_loses_nothing_better(seed: int, share: float) -> None:
    """After `restrict` by the gap to an incumbent the bound still covers every placement better than it."""
    problem = small(seed)
    optimum, _ = brute_force(problem)
    facility = Facility.of(problem)
    table = SubsetPricing(facility)
    rng = np.random.default_rng(seed)
    best = minimise_dual(facility, table, start_prices(facility, np.zeros((2, 7), bool)), 30, lambda *_: 0.0)
    incumbent = share * optimum  # any value below the optimum may be the incumbent's
    table._columns = table.near(best, best.bound - incumbent)  # what restrict does when few are left
    assert table._columns.mask.size <= problem.num_experts << problem.num_servers
    for dear in (0.0, 0.02, 0.2):
        later = table.evaluate(best.price + dear * rng.random(problem.num_servers))
        assert later.bound >= optimum - 1e-12


def test_restrict_keeps_only_what_fits_the_gap() -> None:
    """A tight gap leaves few columns of the table, and the best point is evaluated as before."""
    problem = ExpertCaching.random(num_servers=8, num_users=20, num_layers=1, seed=2)
    facility = Facility.of(problem).in_units()
    table = SubsetPricing(facility)
    start = np.zeros((8, problem.num_experts), bool)
    best = minimise_dual(facility, table, start_prices(facility, start), 60, lambda *_: 0.0)
    table.restrict(best, 1e-4 * best.bound)
    assert table._columns is not None
    assert table._columns.mask.size < problem.num_experts << 5
    assert table.evaluate(best.price).bound == pytest.approx(best.bound, rel=1e-12)


def test_dual_reaches_the_linear_bound() -> None:
    """The best dual bound is the value of the linear relaxation: dual = primal, within the steps' accuracy."""
    problem = medium()
    facility = Facility.of(problem).in_units()
    start = np.zeros((problem.num_servers, problem.num_experts), bool)
    best = minimise_dual(facility, SubsetPricing(facility), start_prices(facility, start), 2000, lambda *_: 0.0)
    linear = lp_bound(problem)
    assert linear * (1 - 1e-7) <= best.bound <= linear * 1.002


def test_dual_stops_when_told() -> None:
    """None from the caller ends the descent at the point it has; no steps give the point it started from."""
    facility = Facility.of(small(1))
    price = np.full(2, 0.01)
    for steps, answer in ((100, None), (0, 0.0)):
        best = minimise_dual(facility, SubsetPricing(facility), price, steps, lambda *_, answer=answer: answer)
        assert np.array_equal(best.price, price)


# --- optima ------------------------------------------------------------------------------------------------------


@few
@given(seeds, st.sampled_from([(1.0,), (1.0, 2.0)]))
def test_small_instances_are_proved(seed: int, sizes: tuple[float, ...]) -> None:
    """Small instances of whole sizes end with status optimal at the enumerated optimum."""
    problem = small(seed, sizes)
    optimum, _ = brute_force(problem)
    result = edgeopt.solve(problem, Lagrangian())
    check(result, problem, optimum)
    assert result.status is Status.OPTIMAL


def test_proved_optimum_is_that_of_the_milp() -> None:
    """On a larger instance the proved optimum is the one that HiGHS proves on the whole programme."""
    problem = medium(seed=4, storage=0.2)
    result = edgeopt.solve(problem, Lagrangian(finish_seconds=600.0))  # as much as a busy machine may take
    assert result.status is Status.OPTIMAL
    assert result.objective == pytest.approx(edgeopt.solve(problem, Milp()).objective, rel=1e-7)


@few
@given(seeds, SIZES)
def test_without_the_table(seed: int, sizes: tuple[float, ...]) -> None:
    """With dual ascent instead of the table: feasible, at least half of the optimum, and a valid bound."""
    problem = small(seed, sizes)
    optimum, _ = brute_force(problem)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pricing, "MAX_TABLE", 0)
        assert isinstance(pricing_for(Facility.of(problem)), AscentPricing)
        result = edgeopt.solve(problem, Lagrangian(max_steps=60))
    check(result, problem, optimum)
    if sizes[0] == 1.0:  # it ends with best responses, the guarantee of `successive`
        assert result.objective >= 0.5 * optimum - 1e-12


@few
@given(seeds)
def test_real_sizes(seed: int) -> None:
    """Sizes without a common unit: feasible in bytes and a valid bound."""
    problem = small(seed, (math.pi, math.e))
    check(edgeopt.solve(problem, Lagrangian(rounds=2)), problem, brute_force(problem)[0])


@pytest.mark.parametrize("latency", ["max", "mix"])
def test_sets_that_are_not_modular(latency: str) -> None:
    """For ``max`` and ``mix`` the local search's result is feasible and the bound holds, with and without the table."""
    rng = np.random.default_rng(1)
    for table in (pricing.MAX_TABLE, 0):
        problem = random_problem(rng, num_users=4, experts=(6,), top_k=2, latency=latency, device=0.2)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pricing, "MAX_TABLE", table)
            check(edgeopt.solve(problem, Lagrangian(max_steps=40)), problem, brute_force(problem)[0])


def test_more_than_62_servers() -> None:
    """More servers than a mask has bits: no table, no overflow, and the bound is near."""
    problem = ExpertCaching.random(num_servers=70, num_users=40, num_layers=1, experts_per_layer=16, seed=1)
    result = edgeopt.solve(problem, Lagrangian(max_steps=40))
    check(result, problem)
    assert result.gap < 0.1


def test_prices_of_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prices from a third of many experts give a better bound than those of the start; few experts need no sample."""
    problem = ExpertCaching.random(num_servers=18, num_users=20, num_layers=2, experts_per_layer=60, seed=3)
    facility = Facility.of(problem).in_units()
    cached = np.zeros((18, problem.num_experts), bool)
    start = start_prices(facility, cached)
    assert sampled_prices(facility, start, cached, lambda: False, lambda: 0.0) is start
    monkeypatch.setattr("edgeopt.solvers.expert_caching.dual.SAMPLE", problem.num_experts // 3)
    price = sampled_prices(facility, start, cached, lambda: False, lambda: 0.0)
    bounds = []
    for at in (start, price):
        ascent = AscentPricing(facility)
        bounds.append([ascent.evaluate(at).bound for _ in range(4)][-1])
    assert bounds[1] < bounds[0]
    monkeypatch.setattr(pricing, "MAX_TABLE", 0)  # as of more servers
    result = edgeopt.solve(problem, Lagrangian(max_steps=20))
    check(result, problem)
    assert result.gap < 0.02


@few
@given(seeds, SIZES)
def test_bounds_are_sharpened_one_expert_after_the_other(seed: int, sizes: tuple[float, ...]) -> None:
    """Every bound told on the way holds, none is above the one before, and nothing is told at a limit."""
    problem = small(seed, sizes)
    optimum, _ = brute_force(problem)
    price = 0.03 * np.random.default_rng(seed).random(problem.num_servers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pricing, "CHUNK", 1)
        ascent = AscentPricing(Facility.of(problem).in_units())
        at, told = ascent.evaluate(price), []
        ascent.sharpen(at, told.append)
        assert len(told) == problem.num_experts
        assert all(a >= b - 1e-12 for a, b in itertools.pairwise([at.bound, *told]))
        assert told[-1] >= optimum - 1e-12
        stopped = AscentPricing(ascent.facility, lambda: True)
        stopped.sharpen(at, told.append)
        assert len(told) == problem.num_experts


@pytest.mark.parametrize("no_table_first", [False, True])
def test_degenerate_shapes(no_table_first: bool) -> None:
    """One server, one expert or one user: the optimum, by hand, whichever pricing."""
    with pytest.MonkeyPatch.context() as patch:
        if no_table_first:
            patch.setattr(pricing, "MAX_TABLE", 0)
        for gain, weight, capacity, optimum in (
            ([[2.0]], [[3.0, 1.0]], [1.0], 6.0),  # the better expert
            ([[2.0, 1.0], [0.0, 1.0]], [[1.0], [1.0]], [1.0, 1.0], 3.0),  # one expert at both servers
            ([[2.0, 1.0]], [[1.0, 1.0]], [1.0, 1.0], 3.0),  # one user
        ):
            problem = ExpertCaching.from_facility(gain, weight, np.ones(len(weight[0])), capacity)
            result = edgeopt.solve(problem, Lagrangian())
            assert result.objective == pytest.approx(optimum)
            assert result.bound >= optimum - 1e-12


def test_more_than_a_thousand_servers() -> None:
    """As many servers as one likes."""
    problem = ExpertCaching.from_facility(np.ones((1, 1100)), np.ones((1, 2)), np.ones(2), np.ones(1100))
    assert edgeopt.solve(problem, Lagrangian(max_steps=2)).objective == pytest.approx(2.0)


def test_points_of_dual_ascent_keep_their_choice() -> None:
    """A dual point's choice stays as it was when later prices are evaluated, also for a single expert."""
    facility = Facility.of(ExpertCaching.from_facility(np.ones((1, 3)), np.ones((1, 1)), np.ones(1), np.ones(3)))
    ascent = AscentPricing(facility)
    cheap = ascent.evaluate(np.full(3, 0.1))
    before = cheap.choice.copy()
    ascent.evaluate(np.full(3, 10.0))
    assert np.array_equal(cheap.choice, before)


# --- exchange and finish -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[1], [2, 4], [3, 5, 8, 13], list(range(1, 30))])
def test_changes_of_counts(sizes: list[int]) -> None:
    """Size groups cover all experts; each change fits the arrays of the kernel, and swaps are among them."""
    units = np.repeat(sizes, 3).astype(np.int64)
    group = exchange.size_groups(units)
    assert 0 <= group.min() <= group.max() < exchange.MAX_GROUPS
    assert (np.diff(group) >= 0).all(), "larger sizes, later groups"
    first, of_group, up = exchange.deltas(units, group)
    assert 0 < np.diff(first).max() <= 12
    assert set(of_group) == set(group)
    parts = [list(zip(of_group[a:b], up[a:b], strict=True)) for a, b in itertools.pairwise(first)]
    assert all([(g, 1), (g, 0)] in parts for g in set(group))


def test_changes_of_counts_when_most_sizes_are_equal() -> None:
    """Seven and more distinct sizes, most experts of one size: no group is empty."""
    units = np.array([5] * 40 + [1, 2, 3, 4, 6, 7, 8, 9])
    group = exchange.size_groups(units)
    assert (np.bincount(group) > 0).all()


def relaxed(problem: ExpertCaching) -> tuple[Facility, pricing.Prices, SubsetPricing]:
    """Return the facility, a good dual point, and the table."""
    facility = Facility.of(problem).in_units()
    table = SubsetPricing(facility)
    start = start_prices(facility, np.zeros((problem.num_servers, problem.num_experts), bool))
    return facility, minimise_dual(facility, table, start, 200, lambda *_: 0.0), table


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_finish_finds_the_optimum(seed: int, exact: bool) -> None:
    """From a poor incumbent branch and bound over the columns within the gap finds the enumerated optimum; with whole counts alone too.

    Only with whole columns it proves anything.
    """
    problem = small(seed)
    facility, prices, table = relaxed(problem)
    with Run[Placement](Lagrangian(), problem, SolveOptions()) as run:
        run.offer(Placement(np.zeros((problem.num_servers, problem.num_experts), bool)))
        run.tighten(prices.bound)
        last = Finish.of(facility, prices, table.near(prices, prices.bound))
        allowed = prices.bound if exact else 1e-6 * prices.bound  # its tolerance is relative to that
        assert last.solve(run, allowed, math.inf, exact=exact) == (exact, "")
    optimum, _ = brute_force(problem)
    assert run.objective == pytest.approx(optimum, rel=1e-8)
    assert run.bound >= optimum * (1 - 1e-9)
    assert exact or run.bound == prices.bound


def test_finish_with_many_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """With more sizes than are counted together each expert is its own group, and the optimum is the same."""
    problem = small(7)
    monkeypatch.setattr("edgeopt.solvers.expert_caching.finish.MAX_SIZES", 1)
    result = edgeopt.solve(problem, Lagrangian())
    assert result.status is Status.OPTIMAL
    assert result.objective == pytest.approx(brute_force(problem)[0], rel=1e-8)


def test_finish_keeps_to_its_seconds() -> None:
    """Branch and bound on a hard instance ends without a proof when its seconds are over, with a valid bound."""
    problem = ExpertCaching.random(num_servers=8, num_users=60, num_models=3, num_layers=4, seed=5)
    facility, prices, table = relaxed(problem)
    with Run[Placement](Lagrangian(), problem, SolveOptions()) as run:
        run.offer(Placement(np.zeros((problem.num_servers, problem.num_experts), bool)))
        run.tighten(prices.bound)
        last = Finish.of(facility, prices, table.near(prices, 0.02 * prices.bound))
        assert last.solve(run, 0.02 * prices.bound, 0.2) == (False, "")  # a proof takes far longer
    assert run.bound <= prices.bound


@given(seeds, st.booleans())
@few
def test_solutions_of_the_back_end_are_repaired(seed: int, exact: bool) -> None:
    """Whatever shares it returns, what is offered is a placement within all storages; a proof takes none that is not whole."""
    rng = np.random.default_rng(seed)
    problem = small(seed % 5)
    facility, prices, table = relaxed(problem)
    with Run[Placement](Lagrangian(), problem, SolveOptions()) as run:
        run.offer(Placement(np.zeros((problem.num_servers, problem.num_experts), bool)))
        last, mailbox = Finish.of(facility, prices, table.near(prices, prices.bound)), Mailbox()
        reporter = finish._Reporter(run, last, 1.0, 0.0, exact).at(mailbox)
        reporter.solution(np.append(rng.random(last.columns.mask.size) / 4, np.zeros(50)))
        if exact:
            with pytest.raises(queue.Empty):
                mailbox.take(0.0)
        else:
            action = mailbox.take(0.0)
            assert action is not None
            action()
            assert run.objective > 0
            assert problem.is_feasible(run.solution)


def test_without_finish() -> None:
    """``finish_seconds=0`` leaves branch and bound out: same validity, and near the optimum by exchange alone."""
    problem = medium(seed=3)
    exact, result = (edgeopt.solve(problem, Lagrangian(finish_seconds=s, rounds=10)) for s in (math.inf, 0.0))
    check(result, problem, exact.objective)
    assert result.objective >= 0.99 * exact.objective


# --- limits, interrupts, seeds -----------------------------------------------------------------------------------


class InterruptAt(Callback):
    """Raises Ctrl-C at an iteration."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def on_iteration(self, progress: Progress) -> None:
        """Count and raise."""
        if progress.iteration == self.iteration:
            raise KeyboardInterrupt


@pytest.mark.parametrize("latency", ["sum", "max"])
@pytest.mark.parametrize("iteration", [1, 2, 17, 24, 60, 150, 300, 500])
def test_interrupt_at_any_iteration(iteration: int, latency: str) -> None:
    """Ctrl-C in greedy, dual, rounding, exchange or branch and bound: the incumbent, feasible, under a valid bound."""
    problem = random_problem(
        np.random.default_rng(2), num_servers=3, num_users=6, experts=(3, 3), sizes=(1.0, 2.0), storage=0.3,
        top_k=2 if latency == "max" else 1, latency=latency,
    )  # fmt: skip
    result = edgeopt.solve(problem, Lagrangian(finish_seconds=0), callback=InterruptAt(iteration))
    check(result, problem, brute_force(problem)[0])
    assert result.limit in (Limit.INTERRUPT, None)
    if iteration <= 2:
        assert result.limit is Limit.INTERRUPT


class InterruptWhen(Callback):
    """Raises Ctrl-C at the first iteration after `calls` calls of a watched function have begun."""

    def __init__(self, watched: Callable[..., object], calls: int) -> None:
        self.watched, self.calls = watched, calls

    def __call__(self, *arguments: object) -> object:
        """Count and pass on a call."""
        self.calls -= 1
        return self.watched(*arguments)

    def on_iteration(self, progress: Progress) -> None:
        """Raise in time."""
        if self.calls <= 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("calls", [1, 3])
@pytest.mark.parametrize("phase", ["exchange_round", "minimise_dual", "_round_down", "run_highs"])
def test_interrupt_in_every_phase(monkeypatch: pytest.MonkeyPatch, phase: str, calls: int) -> None:
    """Ctrl-C inside a phase, the exchange search and branch and bound included, keeps a valid bound and the incumbent."""
    problem = ExpertCaching.random(num_servers=6, num_users=30, num_models=3, num_layers=2, seed=5, storage=0.2)
    place = finish if phase == "run_highs" else lagrangian
    callback = InterruptWhen(getattr(place, phase), calls if phase in ("exchange_round", "_round_down") else 1)
    monkeypatch.setattr(place, phase, callback)
    if phase == "run_highs":
        monkeypatch.setattr(lagrangian, "FINISH_FIRST", 10**9)
    options = Lagrangian(finish_seconds=2 if phase == "run_highs" else 0)
    result = edgeopt.solve(problem, options, callback=callback)
    check(result, problem)
    assert result.limit is Limit.INTERRUPT
    assert result.bound >= edgeopt.solve(problem, "successive").objective


@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.5])
@pytest.mark.parametrize("latency", ["sum", "max"])
def test_time_limit(seconds: float, latency: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A time limit is kept to, up to one step, and reported; here a look at the clock takes a hundredth of a second."""
    problem = medium(num_servers=8, num_users=30, num_layers=3, latency=latency, top_k=2, storage=0.3)
    install(monkeypatch, tick_s=0.01)
    result = edgeopt.solve(problem, Lagrangian(), time_limit=seconds)
    check(result, problem)
    assert result.limit is Limit.TIME
    assert result.seconds.total < seconds + 0.1


@pytest.mark.parametrize("iterations", [0, 1, 10, 100])
def test_iteration_limit(iterations: int) -> None:
    """The incumbent of a run of few iterations is feasible, and later ones are no worse."""
    problem = medium()
    result = edgeopt.solve(problem, Lagrangian(), stop=MaxIterations(iterations))
    check(result, problem)
    assert result.limit is Limit.ITERATION or result.status is Status.OPTIMAL
    assert result.limit is Limit.ITERATION or iterations == 100
    assert result.objective >= edgeopt.solve(problem, Lagrangian(), stop=MaxIterations(iterations // 2)).objective


def test_target_gap() -> None:
    """The run ends with limit `gap` once bound and incumbent are within the target, earlier than without it."""
    problem = medium()
    result = edgeopt.solve(problem, Lagrangian(), stop=TargetGap(0.02))
    check(result, problem)
    assert result.limit is Limit.GAP
    assert result.gap <= 0.02
    assert edgeopt.solve(problem, Lagrangian()).gap < result.gap


@pytest.mark.parametrize("servers", [5, 30])
def test_same_seed_same_run(servers: int) -> None:
    """The same seed gives the same placement and bound, with the exchange search and with dual ascent."""
    problem = medium(num_servers=servers, seed=6)
    solver = Lagrangian(finish_seconds=0, rounds=3, max_steps=60)
    first, second = (edgeopt.solve(problem, solver, seed=11) for _ in range(2))
    assert first.solution == second.solution
    assert first.bound == second.bound


def test_warm_start() -> None:
    """Given the optimum, the result is the optimum: nothing is lost, also with no steps at all."""
    problem = small(9)
    optimum, best = brute_force(problem)
    for solver in (Lagrangian(), Lagrangian(max_steps=0, rounds=0, finish_seconds=0)):
        result = edgeopt.solve(problem, solver, initial_solution=best)
        check(result, problem, optimum)
        assert result.objective == pytest.approx(optimum, rel=1e-12)


@pytest.mark.parametrize("field", ["max_steps", "rounds", "finish_seconds", "finish_columns", "search_work"])
def test_refuses_negative_parameters(field: str) -> None:
    """A negative or undefined parameter is an error that names it."""
    for value in (-1, math.nan):
        with pytest.raises(EdgeOptError, match=field):
            Lagrangian(**{field: value})
