"""The bound of a box, what shrinking it drops, and the work arrays of the search over stage times."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.problems import SplitPlan, SplitTraining
from edgeopt.solvers.kernels import split_bound as kernels
from edgeopt.solvers.kernels import split_tables
from edgeopt.solvers.split_training.common import Costs
from edgeopt.solvers.split_training.exact import _tables
from tests.solvers.split_training.brute_force import any_problem

seeds = st.integers(0, 2**32 - 1)
some = settings(max_examples=100)
SLACK = 1e-9


def random_plan(problem: SplitTraining, rng: np.random.Generator) -> SplitPlan:
    """Return a plan within memory, batch limits and intervals."""
    devices = np.arange(problem.num_devices)
    cut = np.array([rng.choice(np.flatnonzero(problem.batch_limit[i] >= 1)) for i in devices])
    batch = rng.integers(1, problem.batch_limit[devices, cut] + 1)
    interval = rng.integers(problem.min_interval, problem.max_interval + 1)
    return SplitPlan(batch_size=batch, cut_layer=cut + 1, aggregation_interval=interval)


def stage_times(problem: SplitTraining, plan: SplitPlan) -> np.ndarray:
    """Return the four stage times of a plan."""
    devices, cut = np.arange(problem.num_devices), plan.cut_layer - 1
    bits = problem.client_bits[cut]
    return np.array(
        [
            (plan.batch_size * problem.forward_s[devices, cut]).max(),
            (plan.batch_size * problem.backward_s[devices, cut]).max(),
            (bits / problem.fed_uplink_bps).max(),
            (bits / problem.fed_downlink_bps).max(),
        ]
    )


def excess(problem: SplitTraining, plan: SplitPlan, rate: float) -> float:
    """Return time - rate Den of a plan, by the problem's own report."""
    report = problem.report(plan)
    den = problem.target * report.accuracy_share["initial gap"]
    return report.round_s + report.aggregation_s / plan.aggregation_interval - rate * den


def random_node(problem: SplitTraining, plan: SplitPlan, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return box and span of a random node that the plan belongs to."""
    times = stage_times(problem, plan)
    box = np.concatenate([times * rng.choice([0.0, 0.7, 1.0], 4), times * rng.choice([1.0, 1.3, 1e9], 4)])
    box[4:] *= 1 + 1e-12
    interval, deepest = plan.aggregation_interval, plan.deepest_cut - 1
    span = [
        rng.integers(problem.min_interval, interval + 1), rng.integers(interval, problem.max_interval + 1),
        rng.integers(0, deepest + 1), rng.integers(deepest, problem.num_layers),
    ]  # fmt: skip
    return box, np.array(span)


@given(seeds)
@some
def test_bound_is_below_every_plan_of_the_node(seed):
    """The bound is below the value of a plan in the box; if the plan is better, shrinking keeps it, all its cuts too."""
    rng = np.random.default_rng(seed)
    problem = any_problem(seed, devices=5, layers=5, max_batch=8)
    plan = random_plan(problem, rng)
    tables = _tables(problem, Costs.of(problem))
    box, span = random_node(problem, plan, rng)
    work, stack = split_tables.new_work(tables), split_tables.new_stack(tables)
    options = stack.options[: stack.finish[0]]
    options = options[(options & split_tables.MASK) <= span[3]]
    base = problem.objective(plan) / problem.time_scale
    rate = (base if np.isfinite(base) else 1.0) * rng.choice([0.5, 1.0, 2.0])
    noise = rate * tables.noise
    free = kernels.free_batch(noise, tables.server)
    stages = rng.integers(0, 2, problem.num_devices) == np.arange(2)[:, None]
    stakes = stages * rng.random(stages.shape) * (rng.random((2, 1)) < 0.7)
    work.stake[:] = stakes / np.maximum(stakes.sum(axis=1, keepdims=True), 1.0)
    kernels.staked_batch(tables, noise, work)
    options = options[: kernels.fitting(tables, options, box, free, noise, work)]
    bound, mu = kernels.relax(tables, options, box, span, rate, work)
    value = excess(problem, plan, rate)
    slack = SLACK * (abs(value) + rate * problem.target)
    assert bound <= value + slack
    if bound < 0 and value < -slack:
        options = options[: kernels.tighten(tables, options, box, span, noise, mu, bound, work)]
        chosen = np.arange(problem.num_devices) << split_tables.SHIFT | (plan.cut_layer - 1)
        assert np.isin(chosen, options).all()
        times = stage_times(problem, plan)
        assert (box[:4] <= times * (1 + SLACK)).all()
        assert (times <= box[4:] * (1 + SLACK)).all()
        assert span[2] <= plan.deepest_cut - 1 <= span[3]


@given(seeds)
@some
def test_whole_batch_sizes_are_best_among_neighbours(seed):
    """The free batch size is a whole number no worse than any other."""
    rng = np.random.default_rng(seed)
    noise, server = rng.exponential(10.0), np.append(rng.exponential(1.0, 4), 0.0)
    batch = np.arange(1.0, 2000.0)
    for b, s in zip(kernels.free_batch(noise, server), server, strict=True):
        if s == 0.0:
            assert b == np.inf
        elif b < batch[-1]:
            assert b * s + noise / b == pytest.approx((batch * s + noise / batch).min(), rel=1e-12)


@given(seeds)
@some
def test_best_interval_is_the_best_of_all(seed):
    """Bisection over the interval finds what trying every one finds."""
    rng = np.random.default_rng(seed)
    problem = any_problem(seed, devices=4, layers=4, max_batch=8)
    problem = problem.replace(max_interval=problem.min_interval + int(rng.integers(0, 60)))
    plan = random_plan(problem, rng)
    report, tables = problem.report(plan), _tables(problem, Costs.of(problem))
    noise = problem.noise_weight * float((1 / plan.batch_size).sum())
    ratio, interval = kernels.best_interval(
        *tables.intervals, report.round_s, report.aggregation_s, problem.target, noise,
        problem.drift_weight[plan.deepest_cut - 1],
    )  # fmt: skip
    values = [
        problem.objective(SplitPlan(batch_size=plan.batch_size, cut_layer=plan.cut_layer, aggregation_interval=i))
        for i in range(problem.min_interval, problem.max_interval + 1)
    ]
    assert problem.time_scale * ratio == pytest.approx(min(values), rel=1e-9)
    if np.isfinite(ratio):
        assert values[interval - problem.min_interval] == pytest.approx(min(values), rel=1e-9)


def test_full_arrays_are_doubled_and_the_search_goes_on():
    """A stack that is too small pauses the search; with more room it ends where a large one ends."""
    problem = SplitTraining.random(num_devices=12, num_layers=10, interval=(1, 4), seed=5)
    tables = _tables(problem, Costs.of(problem))
    found = []
    for shrink in (False, True):
        stack, work = split_tables.new_stack(tables), split_tables.new_work(tables)
        if shrink:
            few = stack.finish[0]
            stack = split_tables.Stack(
                *(array[:1] for array in stack[:4]), options=stack.options[:few], size=stack.size
            )
        cut, batch = np.zeros(12, np.int64), problem.batch_limit[:, 0].astype(np.int64)
        plan = SplitPlan(batch_size=batch, cut_layer=cut + 1, aggregation_interval=1)
        best = np.array([problem.objective(plan) / problem.time_scale, 1.0])
        states = []
        while not states or states[-1] != kernels.DONE:
            states.append(kernels.search(tables, stack, work, cut, batch, best, 1e-6, 50))
            if states[-1] == kernels.FULL:
                stack = split_tables.doubled(stack)
        assert kernels.FULL in states or not shrink
        plan = SplitPlan(batch_size=batch, cut_layer=cut + 1, aggregation_interval=int(best[1]))
        assert problem.objective(plan) == pytest.approx(best[0] * problem.time_scale, rel=1e-12)
        found.append(best[0])
    assert found[0] == found[1]


@given(seeds)
@some
def test_stakes_are_shares_of_one(seed):
    """Stakes are non-negative, sum to one or zero per stage, and no device pays at both."""
    rng = np.random.default_rng(seed)
    problem = any_problem(seed, devices=6, layers=5, max_batch=16)
    plan, tables = random_plan(problem, rng), _tables(problem, Costs.of(problem))
    noise = rng.exponential(10.0)
    free, work = kernels.free_batch(noise, tables.server), split_tables.new_work(tables)
    batch, cut = plan.batch_size.astype(np.int64), plan.cut_layer.astype(np.int64) - 1
    kernels.set_stakes(tables, cut, batch, noise, free, work.stake)
    assert (work.stake >= 0).all()
    assert (work.stake.min(axis=0) == 0).all()
    sums = work.stake.sum(axis=1)
    assert ((sums == 0) | ((sums <= 1) & (sums > 1 - 1e-9))).all()
