"""The study that trains under client selection, at a small size."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
from edgeopt.evaluation.studies import StudyCell, client_selection, run_study
from edgeopt.evaluation.studies.client_selection import COSTS, LEARNERS, STUDY, Setting, learned, run, summary
from edgeopt.problems import SelectionPlan
from edgeopt.problems.client_selection.scenario import held_out_seeds
from edgeopt.solvers.client_selection import RlCrp
from tests.one_thread import one_thread  # noqa: F401 - a fixture of all tests here

SMALL = {"rounds": 4, "servers": 2, "clients": 8, "picks": 2, "iterations": 1, "episodes": 1, "target": 0.0}
TINY: Any = Setting(**SMALL)


def cell(variant: str, seed: int, folder: Path, setting: Setting = TINY) -> StudyCell[Setting]:
    """Return one run of the study."""
    return StudyCell(
        study="client-selection", setting=setting, task="digits", variant=variant, seed=seed, folder=folder, measure=run
    )


def test_every_variant_trains_and_is_reported(tmp_path: Path):
    """There is a row per variant, a line of each in the summary, and pictures can be drawn from the rows alone."""
    found = run_study(STUDY, quick=True, changes=SMALL, out=tmp_path, executor="serial", display=False)
    assert found.variants() == list(STUDY.variants)
    assert [row["solver"] for row in STUDY.tables(found)["summary"]] == list(STUDY.variants)
    (matching,) = found.of(variant="matching")
    assert (matching["conflict_rate"], matching["delivery_rate"]) == (0, 1)
    (row,) = found.of(variant="rl-crp")
    assert (row["curve"][-1]["accuracy"], row["curve"][-1]["megabytes"]) == (row["accuracy"], row["megabytes"])
    pictures = STUDY.pictures(found)
    assert set(pictures) == {"seconds", "server-seconds", "megabytes", "fairness"}
    ax = pictures["megabytes"].draw()
    assert [line.get_label() for line in ax.get_lines()] == list(STUDY.variants)
    assert ax.get_xlabel() == COSTS["megabytes"]
    fair = pictures["fairness"].draw()
    labels = [line.get_label() for line in fair.get_lines()]
    assert labels == [f"{one['variant']}: {one['jain_index']:.2f}" for one in found.rows]


def test_policies_are_trained_once_and_used_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each learner is trained as often as asked, and a seed plays the training of its number, modulo their count."""
    trained = []
    train = RlCrp.train
    monkeypatch.setattr(
        RlCrp, "train", lambda solver, *given, seed: trained.append(seed) or train(solver, *given, seed=seed)
    )
    two: Any = Setting(**SMALL, trainings=2)
    used = [learned(cell("rl-crp", seed, tmp_path, two)) for seed in range(3)]
    assert trained == [0, 1]
    assert used[2].facts == used[0].facts != used[1].facts
    assert all(learned(cell(name, 0, tmp_path, two)) is None for name in STUDY.variants if name not in LEARNERS)


def test_a_policy_of_another_problem_is_not_taken(tmp_path: Path):
    """A kept policy counts only for the settings that it was made with."""
    longer: Any = Setting(**SMALL | {"rounds": 5})
    made, other = (learned(cell("rl-crp", 0, tmp_path, setting)) for setting in (TINY, longer))
    assert made.facts["problem"] == TINY.problem(TINY.task(0)).fingerprint()
    assert other.facts["problem"] == longer.problem(longer.task(0)).fingerprint() != made.facts["problem"]


@pytest.mark.parametrize("name", ["random", "fastest", "reservation-4", "blind-matching", "matching"])
def test_costs_are_those_of_the_report(name: str, tmp_path: Path):
    """What clients have sent, in vain or not, and what servers waited is what the problem reports for the same picks."""
    row = run(cell(name, 0, tmp_path))
    problem = TINY.problem(TINY.task(0)).replace(seed=held_out_seeds(0, 1)[0])
    report = problem.report(SelectionPlan.from_lists(row["picks"]))
    assert row["megabytes"] == pytest.approx(report.bytes_sent / 1e6)
    assert row["server_seconds"] == pytest.approx(report.total_s.mean())
    assert row["seconds"] == pytest.approx(report.round_s.max(axis=1).sum())
    assert row["conflict_rate"] == report.conflict_rate
    assert row["target_round"] == row["curve"][0]["round"] == 2  # any accuracy reaches a target of 0


def test_policies_are_used_in_other_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """No run has the chance of the problem that policies learn on, nor that of another seed."""
    known = TINY.problem(TINY.task(0))
    seeds = []
    timing = client_selection.SelectionTiming
    monkeypatch.setattr(
        client_selection, "SelectionTiming", lambda *, problem: seeds.append(problem.seed) or timing(problem=problem)
    )
    for seed in range(2):
        run(cell("fastest", seed, tmp_path))
    assert len({known.seed, *seeds}) == 3
    assert known.fingerprint() == TINY.problem(TINY.task(1)).fingerprint()  # sizes of batches do not depend on the seed


def test_means_are_of_the_runs_that_reach_the_target():
    """Runs that never reach the accuracy are counted, and left out of the means of its costs."""
    names = (*COSTS, *(f"target_{cost}" for cost in COSTS), "jain_index", "mean_staleness")
    other = dict.fromkeys((*names, "energy_j", "conflict_rate", "collision_rate", "delivery_rate"), 1.0)
    rows = [
        {"variant": "a", "accuracy": a, "target_round": t, **other} for a, t in ((0.5, None), (0.7, 10.0), (0.9, 20.0))
    ]
    (row,) = summary(rows, 0.6)
    assert row["runs that reach 60 %"] == "2 of 3"
    assert row["rounds to it"].startswith("15 ±")
    assert row["final accuracy, %"].startswith("70 ±")
    assert summary(rows[:1], 0.6)[0]["rounds to it"] == "-"
