"""The benchmarks run and return well-formed rows; nothing here asserts a time."""

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt.evaluation import load_instance
from edgeopt.evaluation.benchmarks import __main__ as everything
from edgeopt.evaluation.benchmarks import caching, certificates, common, greedy, peers, scale, time_limits, top_k
from edgeopt.problems import Placement, bundled_trace
from edgeopt.result import Record, SolveHistory
from edgeopt.solve import solve
from edgeopt.solvers.expert_caching.facility import Facility

GOAL_KEYS = {"goal", "target", "reached", "unit", "at_least", "met", "note"}


def assert_well_formed(report: dict[str, Any], name: str):
    json.dumps(report, allow_nan=False)
    assert report["benchmark"] == name
    assert report["machine"]["cores"] >= 1
    assert report["machine"]["cpu"]
    assert report["versions"]["numpy"] == np.__version__
    assert report["valid"], report
    assert report["goals"]
    for row in report["goals"]:
        assert set(row) == GOAL_KEYS
        assert not (row["met"] and row["reached"] is None)


def in_own_process(name: str) -> dict[str, Any]:
    """Run a benchmark as people do."""
    command = [sys.executable, "-m", f"edgeopt.evaluation.benchmarks.{name}", "--quick", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    report: dict[str, Any] = json.loads(done.stdout)
    return report


# --- what they share -------------------------------------------------------------------------------------------


def history(*records: tuple[float, float, float | None]) -> SolveHistory:
    made = SolveHistory()
    for k, (seconds, objective, bound) in enumerate(records):
        made.append(Record(seconds, k, objective, bound))
    return made


def test_gap_against_time_is_read_off_the_history():
    """The gap certified at a time uses the bound known at that time; a reference bound replaces it."""
    run = history((0.1, 50.0, None), (0.2, 90.0, 120.0), (0.4, 100.0, 110.0), (0.8, 100.0, 101.0))
    assert common.first_time(run, 0.1) == 0.4
    assert common.first_time(run, 0.001) is None
    assert common.first_time(run, 0.01, bound=100.5) == 0.4
    assert common.gap_at(run, 0.15) == math.inf
    assert common.gap_at(run, 0.5) == pytest.approx(0.1)
    assert common.gap_at(run, 9.0) == pytest.approx(0.01)


def test_goals_are_met_from_the_right_side():
    assert common.goal("time", 1.0, 0.5, "s")["met"]
    assert not common.goal("time", 1.0, math.inf, "s")["met"]
    assert common.goal("ratio", 2.0, 3.0, "x", at_least=True)["met"]
    missed = common.goal("ratio", 2.0, 1.0, "x", at_least=True)
    assert common.factor(missed) == "2x short"
    assert common.factor(common.goal("time", 1.0, None, "s")) == "-"


def test_objectives_must_not_beat_bounds():
    assert common.consistent([1.0, 2.0, None], [2.0, None])
    assert not common.consistent([1.0, 2.1], [3.0, 2.0])


def test_a_clock_repeats_until_its_budget_is_spent():
    calls: list[int] = []
    assert len(common.clock(lambda: calls.append(1), 5).seconds) == len(calls) == 5
    assert len(common.clock(lambda: calls.append(1), 5, budget_s=0.0).seconds) == 1


def test_what_a_solver_raises_becomes_a_message():
    """Latency max is none of the continuous greedy's business."""
    timed = common.timed_solve(top_k.PARTS[0].problem("max"), "continuous-greedy")
    assert timed.result is None
    assert timed.to_json()["status"] == "error"
    assert "UnsupportedProblemError" in timed.message


# --- the references and the instances --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["facility-tiny", "facility-small", "facility-mid"])
@pytest.mark.parametrize("per_byte", [False, True])
def test_the_reference_greedy_places_what_the_solver_places(name: str, per_byte: bool):
    problem: Any = load_instance(name)
    solver = "density-greedy" if per_byte else "greedy"
    placement = Placement(greedy.numpy_greedy(Facility.of(problem), per_byte=per_byte))
    assert problem.is_feasible(placement)
    assert problem.objective(placement) == pytest.approx(solve(problem, solver).objective, rel=1e-9)


@pytest.mark.parametrize("budget", [1, 7, 60])
def test_one_budget_is_spent_alike(budget: int):
    problem: Any = load_instance("facility-tiny")
    facility = Facility.of(problem)
    ours = greedy.kernel_greedy(facility, budget)
    reference = greedy.numpy_greedy(facility, per_byte=False, picks=budget, one_budget=True)
    assert ours.sum() == reference.sum() == budget
    assert greedy.value_of(facility, ours) == pytest.approx(greedy.value_of(facility, reference), rel=1e-9)
    one_by_one = np.zeros_like(ours)  # by definition: try every pair
    for _ in range(min(budget, 3)):
        free = np.argwhere(~one_by_one)
        values = []
        for n, e in free:
            one_by_one[n, e] = True
            values.append(greedy.value_of(facility, one_by_one))
            one_by_one[n, e] = False
        one_by_one[tuple(free[int(np.argmax(values))])] = True
    few = greedy.kernel_greedy(facility, min(budget, 3))
    assert greedy.value_of(facility, few) == pytest.approx(greedy.value_of(facility, one_by_one), rel=1e-9)


def test_storage_instances_differ_from_the_library_in_storage_only():
    full: Any = load_instance("facility-small")
    other = caching.storage_instance("small", 0.3)
    assert (other.storage_bytes == math.floor(0.3 * full.expert_bytes.sum())).all()
    assert np.array_equal(other.gain_s, full.gain_s)
    assert np.array_equal(other.expert_bytes, full.expert_bytes)


def test_parts_of_traces_keep_their_tokens():
    whole = bundled_trace("fine64")
    part = top_k.restrict(whole, users=3, layers=2, experts=None)
    assert part.statistics()["layers"] == 2
    assert np.array_equal(part.tokens_per_user, whole.tokens_per_user[:3])
    few = top_k.restrict(whole, users=3, layers=1, experts=12)
    assert (few.num_experts, few.top_k) == (12, whole.top_k)
    assert (few.tokens_per_user < whole.tokens_per_user[:3]).all()
    with pytest.raises(ValueError, match="layers = 2"):
        top_k.restrict(whole, users=3, layers=2, experts=12)


# --- whole benchmarks ------------------------------------------------------------------------------------------


def test_greedy_runs(capsys: pytest.CaptureFixture[str]):
    assert greedy.main(["--quick", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert_well_formed(report, "greedy")
    assert [row["solver"] for row in report["rows"]] == ["greedy", "density-greedy"]
    for row in report["rows"]:
        assert 0 < row["kernel"]["min_s"] <= row["kernel"]["median_s"]
        assert row["equal"]
    assert greedy.main(["--quick"]) == 0
    assert "one budget" in capsys.readouterr().out


def test_certificates_run(capsys: pytest.CaptureFixture[str]):
    """Every bound is above the placement, the one with counts at most that without; the goal is about `lagrangian`."""
    assert certificates.main(["--quick", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert_well_formed(report, "certificates")
    (row,) = report["rows"]
    assert row["bounds"]["counts"]["bound"] <= row["bounds"]["distinct"]["bound"]
    assert min(bound["gap"] for bound in row["bounds"].values()) >= 0
    assert report["goals"][0]["reached"] == row["target_s"]
    certificates.show(report, common.console())
    assert "counts: gap" in " ".join(capsys.readouterr().out.split())


def test_time_limits_runs(capsys: pytest.CaptureFixture[str]):
    """A row per solver and limit, each with how late it was; the goal is about the latest."""
    few = ["--instances", "facility-tiny,download-small", "--solvers", "greedy,slide", "--limits", "5,0.5"]
    assert time_limits.main([*few, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert_well_formed(report, "time_limits")
    assert [(row["solver"], row["time_limit"]) for row in report["rows"]] == [
        (name, limit) for name in ("greedy", "slide") for limit in (5.0, 0.5)
    ]
    assert all(row["over_s"] == row["seconds"] - row["time_limit"] for row in report["rows"])
    assert [goal["reached"] for goal in report["goals"]] == [
        max(row["over_s"] for row in report["rows"] if row["time_limit"] == limit) for limit in (5.0, 0.5)
    ]
    time_limits.show(report | {"rows": [report["rows"][0] | {"over_s": 0.25}]}, common.console())
    assert "0.25 s" in capsys.readouterr().out


def test_peers_says_what_is_missing(capsys: pytest.CaptureFixture[str]):
    if greedy.has_submodlib():
        assert peers.main(["--quick", "--json"]) == 0
        assert_well_formed(json.loads(capsys.readouterr().out), "peers")
    else:
        assert peers.main(["--quick"]) == 2
        assert "submodlib-py" in capsys.readouterr().err


def test_a_run_of_caching_has_its_gaps():
    row = caching.time_to_gaps("tiny", caching.storage_instance("tiny", 0.3), seeds=[0, 1], repeats=1, limit=0.3)
    assert row["valid"]
    assert [target["target"] for target in row["targets"]] == list(caching.TARGETS)
    assert len(row["gap_at"]) == len(caching.WITHIN_S)
    assert len(row["runs"]) >= 4
    for run in row["runs"]:
        assert run["reached"] == (run["gap"] is not None and run["gap"] <= run["target"])


def test_the_comparison_with_highs_is_by_the_first_time_at_the_gap():
    row = {"solver": "milp", "limit_s": 60.0, "seconds": 61.0}
    run = history((1.0, 90.0, 120.0), (20.0, 100.0, 110.0))
    compared = caching.compare_milp(row, run, ours_s=0.5, bound=100.01)
    assert (compared["incumbent_s"], compared["incumbent_ratio"]) == (20.0, 40.0)
    assert (compared["certified_s"], compared["certified_ratio"]) == (None, 120.0)
    assert caching.milp_text(compared, "certified") == "not within 60 s (10.0000 %): at least 120x"
    assert caching.milp_text(compared, "incumbent") == "HiGHS 20 s, ours 0.5 s"
    assert caching.compare_milp(row, run, ours_s=math.inf, bound=100.01)["certified_ratio"] is None


@pytest.mark.slow
def test_scale_runs():
    report = in_own_process("scale")
    assert_well_formed(report, "scale")
    assert [row["solver"] for row in report["rows"]] == [*scale.GREEDY, scale.SOLVER]
    assert report["memory_gib"]["import"] <= report["memory_gib"]["build"] <= report["memory_gib"][scale.SOLVER]


@pytest.mark.slow
def test_experts_run():
    pytest.importorskip("torch")
    report = in_own_process("experts")
    assert_well_formed(report, "experts")
    assert [row["relative_error"] < 1e-4 for row in report["rows"]] == [True]


@pytest.mark.slow
def test_top_k_runs():
    report = in_own_process("top_k")
    assert_well_formed(report, "top_k")
    for row in report["rows"] + report["parts"]:
        assert {"greedy", "lagrangian"} <= {solver["solver"] for solver in row["solvers"]}
    for row in report["parts"]:
        if row["optimum"] is not None:
            assert row["gap_to_optimum"] >= -1e-6


@pytest.mark.slow
def test_caching_runs():
    report = in_own_process("caching")
    assert_well_formed(report, "caching")
    assert len(report["rows"]) == 4
    assert report["solvers"][-1]["solver"] == "milp"
    assert report["best_objective"] <= report["best_bound"] * (1 + 1e-9)


# --- all of them -----------------------------------------------------------------------------------------------


def kernels_report() -> dict[str, Any]:
    return {
        "knapsack": [{"divide & conquer ratio": ratio, "equal": True} for ratio in (30.0, 5.0)],
        "max_plus": [{"size": 1000, "numpy_ms": 2.0, "dense_ms": 0.5, "equal": True}],
        "growth": {"exponent_of_n_log_n": 1.02},
    }


def test_kernel_goals_are_read_off_the_report():
    goals = everything.kernel_goals(kernels_report())
    assert [row["reached"] for row in goals] == [5.0, 4.0, 1.02]
    assert all(row["met"] for row in goals)


def test_all_write_their_reports_and_a_failure_is_a_goal_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    rows = [greedy.one_budget_row("facility-tiny", 1, submodlib=False)]
    goals = [common.goal("time", 1.0, 0.5, "s")]

    def run(name: str, options: argparse.Namespace) -> dict[str, Any]:
        if name == "peers":
            return {"benchmark": name, "goals": [], "valid": False, "failed": "nothing there"}
        return {"benchmark": name, "one_budget": rows, "goals": goals, "valid": True}

    monkeypatch.setattr(everything, "run", run)
    assert everything.main(["--only", "greedy,peers", "--out", str(tmp_path / "all.json")]) == 0
    document = json.loads((tmp_path / "all.json").read_text())
    assert [report["benchmark"] for report in document["reports"]] == ["greedy", "peers"]
    assert [row["met"] for row in document["goals"]] == [True, False]
    printed = capsys.readouterr().out
    assert "2x better" in printed
    assert "nothing there" in printed


def test_an_unknown_benchmark_is_named(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        everything.main(["--only", "gready"])
    assert "gready" in capsys.readouterr().err


@pytest.mark.slow
def test_all_runs_each_in_a_process_of_its_own(tmp_path: Path):
    assert everything.main(["--quick", "--only", "greedy,peers", "--out", str(tmp_path / "all.json")]) == 0
    reports = json.loads((tmp_path / "all.json").read_text())["reports"]
    assert_well_formed(reports[0], "greedy")
    assert "failed" in reports[1] or reports[1]["valid"]
