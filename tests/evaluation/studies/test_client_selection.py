"""The experiment that trains under client selection, at a small size."""

import csv
import json
import math

import pytest

pytest.importorskip("torch")
from edgeopt.evaluation.compare.executors import SerialExecutor
from edgeopt.evaluation.studies import client_selection as experiment
from edgeopt.evaluation.studies.client_selection import Setting
from edgeopt.solvers.client_selection import RlCrp, TrainedPolicy

TINY = Setting(rounds=4, servers=2, clients=8, picks=2, iterations=1, episodes=1, target=0.0)


@pytest.mark.slow
def test_a_small_experiment_and_its_second_run(capsys, tmp_path, monkeypatch):
    """Every solver trains and is reported; a second run takes the learned policies from the folder and says the same."""
    command = ["--quick", "--seeds", "1", "--json", "--out", str(tmp_path)]
    experiment.main(command)
    first = capsys.readouterr().out
    runs = {row["solver"]: row for row in json.loads(first)["multi-server-runs"]}
    assert tuple(runs) == experiment.SOLVERS
    assert runs["matching"]["conflict_rate"] == 0
    assert runs["matching"]["delivery_rate"] == 1
    names = {path.name for path in tmp_path.iterdir()}
    assert {"multi-server.csv", "multi-server-runs.csv", "multi-server-curves.csv", "policies"} <= names
    assert {f"multi-server-{part}.png" for part in ("seconds", "server-seconds", "megabytes", "fairness")} <= names
    with (tmp_path / "multi-server-curves.csv").open() as file:
        curves = [row for row in csv.DictReader(file) if row["solver"] == "rl-crp"]
    assert float(curves[-1]["accuracy"]) == runs["rl-crp"]["accuracy"]
    assert float(curves[-1]["megabytes"]) == runs["rl-crp"]["megabytes"]

    monkeypatch.setattr(RlCrp, "train", lambda *args, **options: pytest.fail("trained again"))
    experiment.main(command)
    assert capsys.readouterr().out == first


def test_policies_are_trained_once_and_used_in_turn(monkeypatch):
    """Each learner is trained as often as asked, and a seed plays the training of its number, modulo their count."""
    used, trained = [], []
    monkeypatch.setattr(experiment, "learn", lambda setting, name, number, folder: trained.append(number) or number)
    monkeypatch.setattr(experiment, "run", lambda setting, name, seed, policy: used.append((name, seed, policy)))
    list(experiment.experiment(TINY, 3, 2, None, SerialExecutor()))
    assert trained == [0, 1, 0, 1]
    assert [policy for name, _, policy in used if name == "rl-crp"] == [0, 1, 0]
    assert all(policy is None for name, _, policy in used if name not in experiment.LEARNERS)


def test_a_policy_of_another_problem_is_not_taken(tmp_path):
    """A kept policy counts only for the problem and the length of training that it was made with."""
    made = experiment.learn(TINY, "rl-crp", 0, tmp_path)
    path = tmp_path / "policies" / "rl-crp-fail-0.safetensors"
    assert TrainedPolicy.load(path).facts == made.facts
    longer = Setting(rounds=5, servers=2, clients=8, picks=2, iterations=1, episodes=1)
    assert experiment.learn(longer, "rl-crp", 0, tmp_path).facts["problem"] != made.facts["problem"]
    assert TrainedPolicy.load(path).facts["problem"] != made.facts["problem"]


@pytest.mark.parametrize("name", ["random", "fastest", "matching"])
def test_costs_are_those_of_the_report(name):
    """What clients have sent, in vain or not, and what servers waited is what the problem reports for the same picks."""
    done = experiment.run(TINY, name, 0, None)
    report = done.problem.report(done.plan)
    assert done.row["megabytes"] == pytest.approx(report.bytes_sent / 1e6)
    assert done.row["server_seconds"] == pytest.approx(report.total_s.mean())
    assert done.row["seconds"] == pytest.approx(report.round_s.max(axis=1).sum())
    assert done.row["conflict_rate"] == report.conflict_rate
    assert done.row["target_round"] == done.curve[0]["round"] == 2  # any accuracy reaches a target of 0


def test_policies_are_used_in_other_episodes():
    """No run has the chance of the problem that policies learn on, nor that of another seed."""
    known = TINY.problem(TINY.task(0))
    seeds = [experiment.run(TINY, "fastest", seed, None).problem.seed for seed in range(2)]
    assert len({known.seed, *seeds}) == 3
    assert known.fingerprint() == TINY.problem(TINY.task(1)).fingerprint()  # sizes of batches do not depend on the seed


def test_means_are_of_the_runs_that_reach_the_target():
    """Runs that never reach the accuracy are counted, and left out of the means of its costs."""
    names = (*experiment.COSTS, *(f"target_{cost}" for cost in experiment.COSTS), "jain_index", "mean_staleness")
    other = dict.fromkeys((*names, "energy_j", "conflict_rate", "collision_rate", "delivery_rate"), 1.0)
    rows = [
        {"solver": "a", "accuracy": a, "target_round": t, **other}
        for a, t in ((0.5, math.nan), (0.7, 10.0), (0.9, 20.0))
    ]
    (row,) = experiment.summary(rows, 0.6)
    assert row["runs that reach 60 %"] == "2 of 3"
    assert row["rounds to it"].startswith("15 ±")
    assert row["final accuracy, %"].startswith("70 ±")
    assert experiment.summary(rows[:1], 0.6)[0]["rounds to it"] == "-"


def test_curves_are_drawn_against_each_cost():
    """The picture has a line per solver, over the cost asked for, as wide as the runs reach."""
    rows = [
        {"solver": solver, "seed": seed, "seconds": 1.0, "megabytes": float(r), "accuracy": 0.1 * r}
        for solver in ("a", "b") for seed in range(3) for r in range(1, 4)
    ]  # fmt: skip
    ax = experiment.draw(rows, "megabytes")
    assert [line.get_label() for line in ax.get_lines()] == ["a", "b"]
    assert ax.get_lines()[0].get_xdata().max() == 3.0
    assert ax.get_xlabel() == experiment.COSTS["megabytes"]
