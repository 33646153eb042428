"""The benchmark of model download runs and returns well-formed rows; nothing here asserts a time."""

import json
from typing import Any

import pytest

from edgeopt.evaluation.benchmarks import __main__ as everything
from edgeopt.evaluation.benchmarks import common
from edgeopt.evaluation.benchmarks import model_download as benchmark
from edgeopt.result import Exact
from edgeopt.solve import solve
from edgeopt.solvers import get_solver, solvers_of

GOAL_KEYS = {"goal", "target", "reached", "unit", "at_least", "met", "note"}


@pytest.mark.slow
def test_the_whole_benchmark_runs(capsys: pytest.CaptureFixture[str]):
    """Quick: every row is valid, every goal is there, the tables can be printed."""
    assert benchmark.main(["--quick", "--json", "--milp-seconds", "0.5"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert report["benchmark"] == "model_download"
    assert report["valid"]
    assert [row["title"] for row in report["rows"]] == [title for title, _, _ in benchmark.SCALE]
    assert all(0 < row["whole"]["min_s"] <= row["whole"]["median_s"] for row in report["rows"])
    assert {row["title"] for row in report["generic"]} == {title for title, _, _ in benchmark.AGAINST}
    assert len(report["goals"]) == len(benchmark.SCALE) + len(benchmark.AGAINST) + 1
    assert all(set(row) == GOAL_KEYS for row in report["goals"])
    benchmark.show(report, common.console())
    assert "random instances" in capsys.readouterr().out


def test_sizes_double_until_the_generic_programme_is_not_done():
    """Rows with a proof have the objective of `slide` and a ratio; the one without is the last."""
    rows = benchmark.against_generic("few", 2, {"energy": None}, limit=0.4, repeats=1)
    assert [row["users"] for row in rows] == [2 * 2**k for k in range(len(rows))]
    assert [row["done"] for row in rows] == [True] * (len(rows) - 1) + [False]
    assert all(row["equal"] and row["ratio"] > 0 for row in rows[:-1])
    assert all(row["valid"] for row in rows)


def test_baselines_are_counted():
    """On one instance of each variant, `slide` is worth at least what every baseline is, and is never beaten."""
    report = benchmark.against_baselines(len(benchmark.VARIANTS))
    names = {solver.name for solver in solvers_of(benchmark.KIND)} - {benchmark.SOLVER, *benchmark.CHECKS}
    assert set(report["beaten"]) == names
    assert set(report["beaten"].values()) == {0}
    assert all(value <= report["value"][benchmark.SOLVER] for value in report["value"].values())
    assert report["valid"]


def test_a_baseline_that_is_better_would_be_counted(monkeypatch: pytest.MonkeyPatch):
    """With the roles changed, the count is not zero."""
    monkeypatch.setattr(benchmark, "SOLVER", "random")
    report = benchmark.against_baselines(6)
    assert report["beaten"]["slide"] > 0


@pytest.mark.parametrize("options", benchmark.VARIANTS, ids=str)
def test_instances_are_no_trivial_ones(options: dict[str, Any]):
    """Some users are admitted and some are not, in every variant; the band is in proportion."""
    problem = benchmark.instance(30, 3, options)
    result = solve(problem, benchmark.SOLVER)
    assert problem.bandwidth_hz == 30 * benchmark.HZ_PER_USER
    assert 3 < result.solution.num_admitted < 27
    exact = isinstance(get_solver(benchmark.KIND, benchmark.SOLVER).guarantee_for(problem), Exact)
    assert exact == (not problem.is_energy_limited or problem.frequency_levels is None)


def test_it_is_among_all_benchmarks():
    """It runs with all others."""
    assert "model_download" in everything.NAMES
