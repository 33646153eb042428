"""The planner that solves again while the model trains: when it does, with what, and what happens if it cannot."""

import logging
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest

from edgeopt import Heuristic, NoSolutionError, Problem, Result, Run, SolveOptions
from edgeopt.convergence import ConvergenceEstimate, Estimate
from edgeopt.errors import EdgeOptError, InvalidProblemError
from edgeopt.problems import SplitPlan, SplitTraining
from edgeopt.schedule import RATES, Feedback, StatefulPlanner
from edgeopt.solvers.split_training.planner import HasflPlanner


@dataclass(frozen=True)
class BestUniform:
    """The best plan with one batch size and one cut for all devices, by trying all; remembers what it was asked."""

    asked: list[SplitTraining] = field(default_factory=list)
    started: list[SplitPlan | None] = field(default_factory=list)

    name: ClassVar[str] = "best-uniform"
    guarantee: ClassVar[Heuristic] = Heuristic("test")

    def guarantee_for(self, problem: SplitTraining) -> Heuristic:
        return self.guarantee

    def supports(self, problem: Problem) -> str | None:
        return None

    def solve(self, problem: SplitTraining, options: SolveOptions) -> Result[Any]:
        self.asked.append(problem)
        self.started.append(options.initial_solution)
        with Run[SplitPlan](self, problem, options) as run:
            for batch in range(1, int(problem.max_batch.max()) + 1):
                for cut in range(1, problem.num_layers + 1):
                    plan = SplitPlan(
                        batch_size=np.full(problem.num_devices, batch),
                        cut_layer=np.full(problem.num_devices, cut),
                        aggregation_interval=problem.max_interval,
                    )
                    if problem.is_feasible(plan):
                        run.offer(plan)
        return run.result(infeasible=run.solution is None)


def small(interval: int = 1, seed: int = 1) -> SplitTraining:
    return SplitTraining.random(num_devices=3, num_layers=4, max_batch=12, interval=interval, seed=seed)


def measured(planner: HasflPlanner, round: int, **values: Any) -> Feedback:
    assert planner.split_plan is not None
    return Feedback(round=round, plan=planner.split_plan.round_plan(aggregate=True), seconds=1.0, **values)


def exactly(value: Any) -> Estimate:
    array = np.asarray(value, np.float64)
    return Estimate(array, array, array)


# --- from a plan to rounds ----------------------------------------------------------------------------------------


def test_a_plan_is_a_schedule():
    """A split plan's planner repeats its batch sizes and cuts, and aggregates once every interval."""
    plan = SplitPlan(batch_size=[4, 8], cut_layer=[1, 3], aggregation_interval=2)
    rounds = [plan.planner().plan(round) for round in range(4)]
    assert [r.aggregate for r in rounds] == [False, True, False, True]
    for r in rounds:
        assert r.client.tolist() == [0, 1]
        assert r.server.tolist() == [0, 0]
        assert r.batch_size.tolist() == [4, 8]
        assert r.cut_layer.tolist() == [1, 3]
        assert r.local_steps.tolist() == [1, 1]


def test_without_news_nothing_changes():
    """Without measurements, or with those that were known already, the planner solves once and repeats itself."""
    solver, problem = BestUniform(), small(interval=3)
    planner = HasflPlanner(problem, solver, every=1, rate_change=1e-9)
    plans = [planner.plan(0)]
    for round in range(1, 9):
        news = {name: getattr(problem, name) for name in RATES} if round % 2 else {}
        plans.append(planner.plan(round, measured(planner, round - 1, **news)))
    assert len(solver.asked) == 1
    assert planner.split_plan is not None
    static = planner.split_plan.planner()
    assert plans == [static.plan(round) for round in range(9)]


# --- when it solves again -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("interval", "solves"), [(1, [0, 4, 8]), (3, [0, 6]), (4, [0, 4, 8])])
def test_every_k_rounds_after_an_aggregation(interval: int, solves: list[int]):
    """Slow drift is answered every 4 rounds, or at the first aggregation after: cuts never move between two."""
    solver, problem = BestUniform(), small(interval)
    planner = HasflPlanner(problem, solver, every=4, rate_change=np.inf)
    solved = []
    for round in range(10):
        feedback = measured(planner, round - 1, uplink_bps=problem.uplink_bps * (1 + round / 100)) if round else None
        before = len(solver.asked)
        planner.plan(round, feedback)
        if len(solver.asked) > before:
            solved.append(round)
    assert solved == solves
    np.testing.assert_allclose(solver.asked[1].uplink_bps, problem.uplink_bps * (1 + solves[1] / 100))


@pytest.mark.parametrize(("factor", "again"), [(1.19, False), (1.21, True), (1 / 1.19, False), (1 / 1.21, True)])
@pytest.mark.parametrize("name", RATES)
def test_a_jump_is_answered_at_once(name: str, factor: float, again: bool):
    """One device's rate or speed that changes by more than the threshold, up or down, is worth a solve at once."""
    solver, problem = BestUniform(), small()
    planner = HasflPlanner(problem, solver, every=1000, rate_change=0.2)
    planner.plan(0)
    rates = np.array(getattr(problem, name))
    rates[2] *= factor
    planner.plan(1, measured(planner, 0, **{name: rates}))
    assert len(solver.asked) == 1 + again


def test_small_steps_add_up():
    """Many small changes are measured against the last solve, not against the last round."""
    solver, problem = BestUniform(), small()
    planner = HasflPlanner(problem, solver, every=1000, rate_change=0.2)
    planner.plan(0)
    for round in range(1, 6):
        planner.plan(round, measured(planner, round - 1, downlink_bps=problem.downlink_bps * 1.05**round))
    assert len(solver.asked) == 2  # 1.05^4 = 1.216


# --- with what ----------------------------------------------------------------------------------------------------


def test_measurements_enter_the_problem():
    """Rates go to the clients they are of, gaps leave them as they were; constants replace the problem's."""
    problem = small()
    planner = HasflPlanner(problem, BestUniform(), every=1)
    plan = planner.plan(0)
    part = plan.take([2, 0])
    constants = ConvergenceEstimate(
        gradient_variance=exactly([1, 2, 3, 4]), gradient_second_moment=exactly([5, 6, 7, 8]),
        smoothness=exactly(0.03), confidence=0.95,
    )  # fmt: skip
    planner.plan(1, Feedback(round=0, plan=part, seconds=1.0, uplink_bps=[7e6, np.nan], constants=constants))
    np.testing.assert_array_equal(planner.problem.uplink_bps, [*problem.uplink_bps[:2], 7e6])
    np.testing.assert_array_equal(planner.problem.device_flops, problem.device_flops)
    assert planner.problem.smoothness == 0.03
    np.testing.assert_array_equal(planner.problem.gradient_variance, [1, 2, 3, 4])
    np.testing.assert_array_equal(planner.problem.gradient_second_moment, [5, 6, 7, 8])
    assert planner.problem.replace(**{n: getattr(problem, n) for n in ("uplink_bps", *CONSTANTS)}) == problem


CONSTANTS = ("smoothness", "gradient_variance", "gradient_second_moment")


@pytest.mark.parametrize("smoothness", [None, exactly(0.0)])
def test_no_smoothness_leaves_the_old(smoothness: Estimate | None):
    """A smoothness that was not estimated, or drowned in noise, is no reason to plan with zero."""
    problem = small()
    planner = HasflPlanner(problem, BestUniform())
    planner.plan(0)
    constants = ConvergenceEstimate(
        gradient_variance=exactly(np.ones(4)), gradient_second_moment=exactly(np.ones(4)), smoothness=smoothness,
        confidence=0.95,
    )  # fmt: skip
    planner.plan(1, measured(planner, 0, constants=constants))
    assert planner.problem.smoothness == problem.smoothness


def test_replanning_is_never_worse_than_keeping():
    """The last plan starts the next solve: under the new numbers the new plan is at least as good, here better."""
    problem, solver = small(), BestUniform()
    planner = HasflPlanner(problem, solver)
    planner.plan(0)
    old = planner.split_plan
    assert old is not None
    slow = problem.uplink_bps / 50
    planner.plan(1, measured(planner, 0, uplink_bps=slow))
    assert solver.started[1] == old
    now = problem.replace(uplink_bps=slow)
    assert now.objective(planner.split_plan) < now.objective(old)  # type: ignore[arg-type]


# --- when it cannot -----------------------------------------------------------------------------------------------


def noisy(factor: float, problem: SplitTraining) -> ConvergenceEstimate:
    return ConvergenceEstimate(
        gradient_variance=exactly(factor * problem.gradient_variance),
        gradient_second_moment=exactly(problem.gradient_second_moment), smoothness=None, confidence=0.95,
    )  # fmt: skip


def test_infeasible_keeps_the_last_plan(caplog: pytest.LogCaptureFixture):
    """Noise that makes the target unreachable: the last plan stays and the reason is told; then things improve."""
    problem, solver = small(), BestUniform()
    planner = HasflPlanner(problem, solver, every=1)
    first = planner.plan(0)
    with caplog.at_level(logging.WARNING, "edgeopt"):
        second = planner.plan(1, measured(planner, 0, constants=noisy(1000.0, problem)))
    assert second == first
    assert len(solver.asked) == 2
    assert planner.message.startswith("round 1: the last plan stays: target = ")
    assert "gradient noise" in planner.message
    assert caplog.messages == [planner.message]
    planner.plan(2, measured(planner, 1, constants=noisy(1.1, problem)))
    assert len(solver.asked) == 3
    assert planner.message == ""


def test_no_first_plan_is_an_error():
    """Without any plan to keep there is nothing to train with."""
    planner = HasflPlanner(small().replace(target=1e-9), BestUniform())
    with pytest.raises(NoSolutionError, match="best-uniform found no solution"):
        planner.plan(0)


def test_mistakes_are_named():
    """Unknown clients and senseless parameters are errors."""
    planner = HasflPlanner(small(), BestUniform())
    plan = planner.plan(0)
    stranger = Feedback(round=0, plan=plan.replace(client=[0, 3, 1]), seconds=1.0)
    with pytest.raises(InvalidProblemError, match=r"client\[1\] = 3: the problem has devices 0 to 2"):
        planner.plan(1, stranger)
    with pytest.raises(EdgeOptError, match="every = 0"):
        HasflPlanner(small(), every=0)
    with pytest.raises(EdgeOptError, match="rate_change = nan"):
        HasflPlanner(small(), rate_change=np.nan)


# --- checkpoints --------------------------------------------------------------------------------------------------


def drifting(problem: SplitTraining, planner: HasflPlanner, round: int) -> Feedback | None:
    rng = np.random.default_rng(round)
    return (
        measured(planner, round - 1, uplink_bps=problem.uplink_bps * rng.choice([0.02, 0.1, 1.0, 20.0]))
        if round
        else None
    )


@pytest.mark.parametrize("stop", [0, 1, 5, 8])
def test_resumed_run_is_one_long_run(stop: int):
    """A planner restored from its state gives the plans that it would have given without the break."""
    problem = small(interval=3)
    whole, first = (HasflPlanner(problem, BestUniform(), every=5, rate_change=0.3) for _ in range(2))
    expected = [whole.plan(round, drifting(problem, whole, round)) for round in range(12)]
    found = [first.plan(round, drifting(problem, first, round)) for round in range(stop)]
    second = HasflPlanner(problem, BestUniform(), every=5, rate_change=0.3)
    assert isinstance(second, StatefulPlanner)
    second.restore(first.state())
    found += [second.plan(round, drifting(problem, second, round)) for round in range(stop, 12)]
    assert found == expected
    assert len({tuple(plan.batch_size) + tuple(plan.cut_layer) for plan in expected}) > 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"uplink_bps": None}, "uplink_bps: array is missing"),
        ({"solved.uplink_bps": None}, "solved.uplink_bps: array is missing"),
        ({"cut_layer": None}, "cut_layer: array is missing"),
        ({"uplink_bps": np.ones(2)}, r"uplink_bps: expected shape \[3\]"),
        ({"cut_layer": np.array([1, 1, 9])}, r"cut_layer\[2\] = 9"),
        ({"batch_size": np.array([0, 1, 1])}, r"batch_size\[0\] = 0"),
        ({"solved.uplink_bps": np.ones(2)}, r"solved.uplink_bps: expected shape \[3\]"),
        ({"counters": np.array([1])}, r"counters: expected shape \[3\]"),
    ],
)
def test_damaged_state(damage: dict[str, Any], message: str):
    """A state of another problem, or with parts missing, is refused and changes nothing."""
    planner = HasflPlanner(small(), BestUniform())
    plan = planner.plan(0)
    state = {name: value for name, value in (planner.state() | damage).items() if value is not None}
    with pytest.raises(EdgeOptError, match=message):
        planner.restore(state)
    assert planner.plan(1) == plan


def test_default_solver():
    """By default plans are those of `hasfl`."""
    planner = HasflPlanner(small())
    plan = planner.plan(0)
    assert planner.split_plan is not None
    assert planner.problem.is_feasible(planner.split_plan)
    assert plan == planner.split_plan.round_plan(aggregate=plan.aggregate)
