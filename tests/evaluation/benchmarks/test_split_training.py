"""The split-training benchmark runs; nothing here asserts a time."""

import json

import pytest
from rich.console import Console

from edgeopt.evaluation.benchmarks import split_training
from edgeopt.problems import SplitTraining
from tests.evaluation.benchmarks.test_benchmarks import assert_well_formed


def test_random_problems_are_repeatable_and_feasible():
    """The problems of the gap are the same each time, of many sizes, and can be solved."""
    problems = [split_training.random_problem(seed) for seed in range(6)]
    assert problems[3] == split_training.random_problem(3)
    assert len({problem.num_devices for problem in problems}) > 3
    assert all(problem.explain_infeasible() is None for problem in problems)
    assert {problem.max_interval for problem in problems} == {8, 20}


def test_a_worse_objective_has_no_ratio(monkeypatch: pytest.MonkeyPatch):
    """A time is compared only where the objective is the same."""
    monkeypatch.setattr(split_training, "SOLVERS", ("fixed-plan", "exact"))
    monkeypatch.setattr(split_training.common, "warm", lambda *_, **__: 0.0)
    timed = split_training.common.timed_solve

    def solve(problem: SplitTraining, solver: str, **options: object):
        if solver in ("exact", "generic"):
            return timed(problem, solver, **options)
        stopped = timed(problem, "exact", time_limit=0.0)
        assert stopped.result is not None
        return stopped

    monkeypatch.setattr(split_training.common, "timed_solve", solve)
    row = split_training.generic_row(60.0, devices=3, layers=4, max_batch=4, seed=1)
    assert row["equal"]
    assert row["fixed-plan_ratio"] is None
    assert row["exact_ratio"] > 0


@pytest.mark.slow
def test_split_training_runs(capsys: pytest.CaptureFixture[str]):
    """The quick run measures every part, and its numbers agree with one another."""
    assert split_training.main(["--quick", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert_well_formed(report, "split_training")
    assert [row["solver"] for row in report["rows"]] == ["hasfl", "exact", "hasfl", "exact", "hasfl"]
    gap = report["gap"]
    assert gap["proved"] == gap["problems"] == 3
    assert -1e-9 <= gap["mean"] <= gap["worst"]
    assert all(row["equal"] for row in report["generic"])
    with (console := Console(width=170)).capture() as shown:
        split_training.show(report, console)
    assert "beside the generic model" in shown.get()
