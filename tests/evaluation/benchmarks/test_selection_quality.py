"""The study of client selection: what is trained and what is played, intervals, forecasts, and the benchmark's rows."""

import json
from pathlib import Path

import numpy as np
import pytest

import edgeopt
from edgeopt.evaluation.benchmarks import selection_quality
from edgeopt.evaluation.benchmarks.held_out_selection import (
    METRICS,
    difference,
    evaluate,
    gapped_forecasts,
    metrics,
    played_forecasts,
)
from edgeopt.evaluation.statistics import interval, intervals, log_loss
from edgeopt.problems import ClientSelection
from edgeopt.problems.client_selection.scenario import held_out_seeds
from edgeopt.solvers.client_selection import RandomPicks, RlCrp, RlNoFairness


@pytest.fixture(scope="module")
def problem() -> ClientSelection:
    return ClientSelection.random(num_servers=2, num_clients=8, picks=2, rounds=10, seed=1)


# --- rows -----------------------------------------------------------------------------------------------------------


def test_all_solvers_meet_the_same_episodes():
    """Held-out seeds depend on the seed alone, more episodes begin with fewer, and no two seeds share one."""
    assert held_out_seeds(3, 20)[:5] == held_out_seeds(3, 5)
    drawn = [other for seed in range(10) for other in held_out_seeds(seed, 20)]
    assert len(set(drawn)) == 200


def test_rows_are_means_over_held_out_episodes(problem: ClientSelection):
    """A baseline's row has the means of what the problem reports on each held-out episode, and no training."""
    row = evaluate(problem, RandomPicks(), 4, episodes=3)
    reports = []
    for seed in held_out_seeds(4, 3):
        other = problem.replace(seed=seed)
        reports.append(other.report(edgeopt.solve(other, "random", seed=4).solution))
    assert {name: row[name] for name in METRICS} == metrics(reports)
    assert row["conflict_rate"] == pytest.approx(np.mean([report.conflict_rate for report in reports]))
    assert (row["solver"], row["seed"], row["train_s"]) == ("random", 4, None)


def test_learners_are_trained_on_the_problem_and_played_elsewhere(problem: ClientSelection):
    """The row is that of the policy trained under the seed; the problem's own seed does not matter."""
    pytest.importorskip("torch")
    from edgeopt.solvers.client_selection.rl import play_policy

    solver = RlCrp(iterations=2, episodes=2)
    row = evaluate(problem, solver, 5, episodes=2)
    policy = solver.train(problem, seed=5)
    others = [problem.replace(seed=seed) for seed in held_out_seeds(5, 2)]
    assert {name: row[name] for name in METRICS} == metrics([p.report(play_policy(p, policy)) for p in others])
    assert row["train_s"] > 0
    again = evaluate(problem.replace(seed=77), solver, 5, episodes=2)
    assert {name: row[name] for name in METRICS} == {name: again[name] for name in METRICS}


def test_fairness_counts_in_the_judgement_of_who_was_trained_without(problem: ClientSelection):
    """`rl-no-fairness` is trained without the term, and its reward is that of the problem."""
    pytest.importorskip("torch")
    solver = RlNoFairness(iterations=1, episodes=2)
    fair, none = (
        evaluate(problem, solver, 0, episodes=2),
        evaluate(problem.replace(fairness_weight=0.0), solver, 0, episodes=2),
    )
    assert fair["conflict_rate"] == none["conflict_rate"]
    assert fair["mean_reward"] > none["mean_reward"]


# --- intervals ----------------------------------------------------------------------------------------------------------


def test_groups_and_differences():
    """Rows are grouped by the columns asked for; differences pair the seeds that both solvers have."""

    def row(solver: str, seed: int, value: float) -> dict[str, object]:
        return {"solver": solver, "seed": seed, "case": "x", **dict.fromkeys(METRICS, value)}

    rows = [row("a", 0, 1.0), row("a", 1, 3.0), row("b", 1, 2.5), row("b", 0, 1.5), row("b", 2, 9.0)]
    groups = intervals(rows, METRICS, ("case", "solver"))
    assert [(g["case"], g["solver"], g["seeds"], g["jain_index"].mean) for g in groups] == [
        ("x", "a", 2, 2.0),
        ("x", "b", 3, pytest.approx(13 / 3)),
    ]
    assert difference(rows, "a", "b", "jain_index") == interval([-0.5, 0.5])


# --- forecasts ------------------------------------------------------------------------------------------------------------


def test_forecasts_of_the_two_regime_process():
    """The fitted model is nearly as good as the process itself; both beat the base rate."""
    loss = {name: log_loss(*found) for name, found in gapped_forecasts(60, 200).items()}
    assert loss["oracle"] - 0.001 < loss["fitted"] < loss["oracle"] + 0.01
    assert loss["fitted"] < loss["base rate"] - 0.04


def test_forecasts_help_where_there_is_memory():
    """In the environment the fitted model beats counting and the base rate; without memory the base rate is not beaten by much."""
    problem = ClientSelection.random(num_servers=3, num_clients=30, picks=3, seed=2)
    loss = {name: log_loss(*found) for name, found in played_forecasts(problem, episodes=8).items()}
    assert loss["fitted"] < min(loss["base rate"], loss["counted"]) - 0.01
    memoryless = problem.replace(regime_transition=[[2 / 3, 1 / 3], [2 / 3, 1 / 3]])
    without = {name: log_loss(*found) for name, found in played_forecasts(memoryless, episodes=8).items()}
    assert without["base rate"] - without["fitted"] < 0.5 * (loss["base rate"] - loss["fitted"])
    assert log_loss(np.array([0.0, 0.5]), np.array([True, True])) == np.inf


# --- the benchmark ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_benchmark_runs_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A quick run is valid and keeps its rows; a second makes none anew and reports the same."""
    pytest.importorskip("torch")
    words = ["--quick", "--json", "--rows", str(tmp_path / "rows.jsonl")]
    assert selection_quality.main(words) == 0
    first = capsys.readouterr()
    report = json.loads(first.out)
    assert report["valid"]
    assert [row["solver"] for row in report["default"]][:3] == ["rl-crp", "rl-crp-plain", "rl-no-crp"]
    assert {goal["unit"] for goal in report["goals"]} == {"s", ""}
    kept = (tmp_path / "rows.jsonl").read_text()
    assert len(kept.splitlines()) == len({json.loads(text)["key"] for text in kept.splitlines()})
    assert selection_quality.main(words) == 0
    second = capsys.readouterr()
    assert "rl-crp, 0" in first.err
    assert "rl-crp, 0" not in second.err
    again = json.loads(second.out)
    assert {name: again[name] for name in ("default", "differences", "training")} == {
        name: report[name] for name in ("default", "differences", "training")
    }
    assert (tmp_path / "rows.jsonl").read_text() == kept
    (tmp_path / "rows.jsonl").write_text("no rows")
    assert selection_quality.main(words) == 2
    assert "expected the rows of this benchmark" in capsys.readouterr().err
