"""The exact solver against enumeration, a generic model, and its own bounds when it is stopped."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgeopt
from edgeopt import Callback, MaxIterations, TargetGap
from edgeopt.problems import SplitPlan, SplitTraining
from edgeopt.result import Result, Status
from edgeopt.solvers.split_training import exact
from edgeopt.solvers.split_training.exact import BranchAndBound
from edgeopt.stop import Limit
from tests.solvers.split_training.brute_force import any_factors, any_problem, brute_force

seeds = st.integers(0, 2**32 - 1)
some = settings(max_examples=40)


def proved(problem: SplitTraining) -> float:
    """Return the proved optimum."""
    result = edgeopt.solve(problem, "exact")
    assert (result.status, result.limit) == (Status.OPTIMAL, None), result.message
    assert result.bound == result.objective
    return result.objective


def medium(seed: int = 2, **changes: object) -> SplitTraining:
    """Return a problem that takes some thousand nodes."""
    return SplitTraining.random(num_devices=30, num_layers=20, seed=seed, interval=(1, 6)).replace(**changes)


def assert_bounded(result: Result[SplitPlan], optimum: float) -> None:
    """Check every record of a run: bounds below, objectives above the optimum, both getting better."""
    objectives = [record.objective for record in result.history if record.objective is not None]
    bounds = [record.bound for record in result.history if record.bound is not None]
    assert objectives == sorted(objectives, reverse=True)
    assert bounds == sorted(bounds)
    assert min(objectives) >= optimum * (1 - 1e-9)
    assert all(bound <= optimum * (1 + 1e-12) for bound in bounds)


# --- the optimum -----------------------------------------------------------------------------------------------


@given(seeds)
@some
def test_is_the_best_of_all_plans(seed):
    """With or without the descent before it, the search ends at the optimum found by trying every plan."""
    problem = any_problem(seed)
    optimum, _ = brute_force(problem)
    assert proved(problem) == pytest.approx(optimum, rel=1e-9)


@given(seeds)
@some
def test_is_the_best_of_all_plans_of_another_algorithm(seed):
    """The same where a round costs more of one thing and nothing of another."""
    problem = any_problem(seed)
    problem = problem.replace(factors=any_factors(seed))
    optimum, _ = brute_force(problem)
    assert proved(problem) == pytest.approx(optimum, rel=1e-9)
    found = edgeopt.solve(problem, "hasfl")
    assert found.objective == problem.objective(found.solution) >= optimum * (1 - 1e-9)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("seed", range(60))
def test_needs_no_start(seed, monkeypatch):
    """From the plan with the largest batches alone the search finds the optimum by itself."""
    monkeypatch.setattr(exact.Hasfl, "search", lambda *_: None)
    problem = any_problem(seed)
    assert proved(problem) == pytest.approx(brute_force(problem)[0], rel=1e-9)


def test_the_small_problems_reach_every_regime():
    """Among the optima above: memory, batch limits and every stage decide some; cuts and intervals differ in some."""
    reached = set()
    for seed in range(60):
        problem = any_problem(seed)
        _, plan = brute_force(problem)
        report, cut = problem.report(plan), plan.cut_layer - 1
        limit = problem.batch_limit[np.arange(problem.num_devices), cut]
        held = problem.client_bits[cut]
        reached |= {
            "uneven cuts" * (np.unique(cut).size > 1),
            "uneven batches" * (np.unique(plan.batch_size).size > 1),
            "whole model on devices" * bool((cut == problem.num_layers - 1).any()),
            "memory" * bool(((plan.batch_size == limit) & (limit < problem.max_batch)).any()),
            "batch below its limit" * bool((plan.batch_size < limit).any()),
            "interval above its least" * (plan.aggregation_interval > problem.min_interval),
            "interval below its most" * (plan.aggregation_interval < problem.max_interval),
            "drift" * (report.accuracy_share["client drift"] > 0.05),
            "edge server's share" * bool(report.upload_s > (held / problem.fed_uplink_bps).max() * 1.001),
            "edge server's share" * bool(report.download_s > (held / problem.fed_downlink_bps).max() * 1.001),
            "aggregation" * (report.aggregation_s / plan.aggregation_interval > 0.2 * report.round_s),
            "server" * (report.server_s > 0.2 * report.round_s),
        }
    assert len(reached - {""}) == 11, reached


@pytest.mark.parametrize("seed", range(8))
def test_agrees_with_the_generic_model(seed):
    """Mixed-integer programmes written from the formulas alone have the same optimum, beyond what enumeration reaches."""
    problem = any_problem(seed, devices=5, layers=4, max_batch=6)
    problem = problem.replace(factors=any_factors(seed)) if seed % 2 else problem
    generic = edgeopt.solve(problem, "generic")
    assert generic.status is Status.OPTIMAL
    assert generic.objective == pytest.approx(proved(problem), rel=1e-6)


@pytest.mark.slow
def test_agrees_with_the_generic_model_on_a_random_network():
    """The same on measured scales: FLOP/s, bit/s and bytes of a network."""
    problem = SplitTraining.random(num_devices=6, num_layers=6, max_batch=16, seed=1)
    assert edgeopt.solve(problem, "generic").objective == pytest.approx(proved(problem), rel=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_never_above_the_descent(seed):
    """The proved optimum is at most what `hasfl` finds."""
    problem = medium(seed)
    assert proved(problem) <= edgeopt.solve(problem, "hasfl").objective * (1 + 1e-9)


def test_equal_devices_are_treated_alike():
    """Twenty equal devices: many plans cost the same, and the proof still ends."""
    problem = SplitTraining.random(num_devices=20, num_layers=12, heterogeneity=0.0, seed=4)
    result = edgeopt.solve(problem, "exact")
    assert result.status is Status.OPTIMAL
    assert np.ptp(result.solution.batch_size) <= 1


# --- properties ------------------------------------------------------------------------------------------------


@given(seeds, st.sampled_from(["device_flops", "uplink_bps", "fed_downlink_bps", "memory_bytes", "max_batch"]))
@some
def test_more_of_anything_never_hurts(seed, field):
    """The optimum does not rise when devices get faster, better connected, or more memory."""
    problem = any_problem(seed, devices=4, layers=4, max_batch=8)
    richer = problem.replace(**{field: 2 * getattr(problem, field)})
    assert proved(richer) <= proved(problem) * (1 + 1e-9)


@given(seeds)
@some
def test_names_do_not_matter(seed):
    """Renumbering the devices leaves the optimum as it is."""
    problem = any_problem(seed, devices=5, layers=4, max_batch=8)
    order = np.random.default_rng(seed).permutation(problem.num_devices)
    names = ("device_flops", "uplink_bps", "downlink_bps", "fed_uplink_bps", "fed_downlink_bps", "memory_bytes")
    renamed = problem.replace(
        max_batch=problem.max_batch[order], **{name: getattr(problem, name)[order] for name in names}
    )
    assert proved(renamed) == pytest.approx(proved(problem), rel=1e-9)


@given(seeds, st.sampled_from([1e-9, 1e6]))
@some
def test_units_do_not_matter(seed, factor):
    """All speeds and rates times a factor divide the optimum by it, far from one second too."""
    problem = any_problem(seed, devices=4, layers=4, max_batch=8)
    names = (
        "device_flops", "uplink_bps", "downlink_bps", "fed_uplink_bps", "fed_downlink_bps", "server_flops",
        "server_fed_uplink_bps", "server_fed_downlink_bps",
    )  # fmt: skip
    scaled = problem.replace(**{name: factor * getattr(problem, name) for name in names})
    assert factor * proved(scaled) == pytest.approx(proved(problem), rel=1e-8)


# --- limits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("iterations", [0, 1, 3, 10, 30])
def test_bound_is_valid_when_stopped(iterations):
    """Stopped after any number of iterations, the bound is below the optimum and the plan above it."""
    problem = medium()
    result = edgeopt.solve(problem, "exact", stop=MaxIterations(iterations))
    assert (result.status, result.limit) == (Status.FEASIBLE, Limit.ITERATION)
    assert_bounded(result, proved(problem))


def test_bounds_get_better_to_the_end():
    """Left to finish, the run proves its gaps one after another, each bound below the optimum."""
    problem = medium()
    result = edgeopt.solve(problem, "exact")
    assert_bounded(result, result.objective)
    bounds = {record.bound for record in result.history if record.bound is not None}
    assert len(bounds) == len(exact.GAPS)


def test_no_time_at_all():
    """Without any time there is still a feasible plan, and no made-up bound."""
    result = edgeopt.solve(medium(), "exact", time_limit=0.0)
    assert (result.status, result.limit, result.bound) == (Status.FEASIBLE, Limit.TIME, -np.inf)


def test_stops_at_a_target_gap():
    """A target gap ends the search as soon as it is proved."""
    result = edgeopt.solve(medium(), "exact", stop=TargetGap(0.15))
    assert (result.status, result.limit) == (Status.FEASIBLE, Limit.GAP)
    assert result.gap <= 0.15


def test_interrupt_keeps_what_is_known():
    """Ctrl-C after some bounds: plan and bound remain, both valid."""

    class Interrupt(Callback):
        def on_iteration(self, progress):
            if np.isfinite(progress.bound):
                raise KeyboardInterrupt

    result = edgeopt.solve(medium(), "exact", callback=Interrupt())
    assert (result.status, result.limit) == (Status.FEASIBLE, Limit.INTERRUPT)
    assert_bounded(result, proved(medium()))


@pytest.mark.parametrize("reaction", [KeyboardInterrupt, None])
def test_stops_within_the_descent(reaction, monkeypatch):
    """Ctrl-C or a callback while the start is computed end the whole run at once, with the best plan so far."""

    class Stop(Callback):
        def on_best(self, progress):
            self.best = progress.objective

        def on_iteration(self, progress):
            if progress.iteration < 3:
                return True
            if reaction is not None:
                raise reaction
            return False

    monkeypatch.setattr(BranchAndBound, "_prove", None)  # is not reached
    stop = Stop()
    result = edgeopt.solve(medium(), "exact", callback=stop)
    assert result.status is Status.FEASIBLE
    assert result.limit is (Limit.CALLBACK if reaction is None else Limit.INTERRUPT)
    assert result.objective == stop.best
    assert max(record.iteration for record in result.history) <= 3


def test_limits_hold_within_the_descent(monkeypatch):
    """Iterations of the descent count, and each better plan is told of: one iteration allows no more than one."""
    monkeypatch.setattr(BranchAndBound, "_prove", None)
    result = edgeopt.solve(medium(), "exact", stop=MaxIterations(1))
    assert (result.status, result.limit) == (Status.FEASIBLE, Limit.ITERATION)
    monkeypatch.undo()
    objectives = {record.objective for record in edgeopt.solve(medium(), "exact").history}
    assert len(objectives) > 3


def test_starts_from_what_it_is_given():
    """A warm start is kept: nothing found in no time is worse, and the optimum stays the optimum."""
    problem = medium()
    best = edgeopt.solve(problem, "exact")
    again = edgeopt.solve(problem, "exact", initial_solution=best.solution, time_limit=0.0)
    assert again.objective == best.objective
    assert edgeopt.solve(problem, "exact", initial_solution=best.solution).status is Status.OPTIMAL


# --- no plan at all --------------------------------------------------------------------------------------------


def test_unreachable_target_is_infeasible():
    """A target below the least is proved infeasible, with the term to blame; just above it there is an optimum."""
    problem = any_problem(5)
    result = edgeopt.solve(problem.replace(target=0.99 * problem.least_target), "exact")
    assert result.status is Status.INFEASIBLE
    assert "is to blame" in result.message
    near = problem.replace(target=1.0001 * problem.least_target)
    assert proved(near) == pytest.approx(brute_force(near)[0], rel=1e-9)


@pytest.mark.parametrize("above", [1e-15, 1e-12, 1e-6])
def test_says_when_rounding_keeps_the_gap_open(above):
    """So close to the least target that Den is mostly rounding: nothing is claimed, and the message says why."""
    problem = SplitTraining.random(num_devices=4, num_layers=6, seed=1, interval=(1, 6))
    result = edgeopt.solve(problem.replace(target=(1 + above) * problem.least_target), "exact")
    assert (result.status, result.limit) == (Status.FEASIBLE, None)
    assert 0 <= result.bound <= result.objective
    assert "rounding" in result.message


def test_without_noise_any_batch_will_do():
    """Without gradient noise the least batch sizes are best."""
    problem = SplitTraining.random(num_devices=10, num_layers=8, seed=3)
    quiet = problem.replace(gradient_variance=0.0 * problem.gradient_variance)
    result = edgeopt.solve(quiet, "exact")
    assert result.status is Status.OPTIMAL
    assert (result.solution.batch_size == 1).all()
