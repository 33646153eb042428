"""The study that trains under the plans of split training, at a small size."""

import dataclasses
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from edgeopt.data import digits
from edgeopt.evaluation.studies import Found, run_study, split_training
from edgeopt.evaluation.studies.split_training import PLANNERS, SOLVERS, STUDY, Setting, problem_of, run_one, summary
from edgeopt.evaluation.studies.split_training_setup import (
    SETUPS,
    Constants,
    measured_constants,
    squared_gradient,
    standardised,
)
from edgeopt.problems import SplitPlan
from tests.one_thread import one_thread  # noqa: F401 - a fixture of all tests here

SMALL = dataclasses.replace(SETUPS["digits"], channels=(2, 4), rounds=3, evaluate_every=1)
KNOWN = Constants(
    smoothness=5.0, gradient_variance=np.full(3, 2.0), gradient_second_moment=np.full(3, 3.0), initial_gap=2.3,
    target=1.0, local_norm=3.0, pilot_rounds=1, accuracy=0.8,
)  # fmt: skip


@pytest.fixture(scope="module")
def task():
    return SMALL.task(4, seed=0)


def test_every_variant_runs_and_tables_and_pictures_are_made(monkeypatch: pytest.MonkeyPatch):
    """One row per variant, a line for each planner in the summary, decisions of each device; pictures from the rows."""
    monkeypatch.setitem(split_training.SETUPS, "digits", SMALL)
    found = run_study(STUDY, quick=True, changes={"rounds": 2}, executor="serial", display=False)
    assert found.variants() == list(STUDY.variants)
    assert all(row["rounds"] <= 2 for row in found.rows)
    assert all(row["seconds"] > 0 for row in found.rows if row["variant"] in PLANNERS)
    tables = STUDY.tables(found)
    assert [row["planner"] for row in tables["summary"]] == [name for name in STUDY.variants if name in PLANNERS]
    assert [row["times hasfl"] for row in tables["summary"] if row["planner"] == "hasfl"] == [1.0]
    assert [row["batch"] for row in tables["batches"]] == [1, 2, 4, 8, 16, 32]
    assert len(tables["decisions-digits"]) == 4
    pictures = STUDY.pictures(found)
    assert set(pictures) == {"digits", "decisions-digits"}
    assert {line.get_label() for line in pictures["digits"].draw().get_lines()} == set(PLANNERS)
    assert "layers; batch sizes" in pictures["decisions-digits"].draw().get_title(loc="left")


@pytest.mark.parametrize("name", ["fixed", "random-cut", "hasfl"])
def test_virtual_time_is_that_of_the_problem(task, name):
    """The seconds of a run are the rounds times what the problem's latency model says of one."""
    problem = problem_of(SMALL, task, KNOWN, seed=0)
    run = run_one(SMALL, task, problem, name, 0, Setting(every=1))
    report = problem.report(run.plan)
    assert run.plan.aggregation_interval == 1
    row = run.row()
    assert row["seconds"] == pytest.approx(row["rounds"] * (report.round_s + report.aggregation_s), rel=1e-9)


def test_hasfl_is_best_by_the_bound(task):
    """No other planner's plan has a smaller objective, best-equal's none than that of adaptsfl."""
    problem = problem_of(SMALL, task, KNOWN, seed=1)
    value = {
        name: run_one(dataclasses.replace(SMALL, rounds=1), task, problem, name, 0, Setting(every=1))
        for name in SOLVERS
    }
    theta = {name: run.row()["bound_s"] for name, run in value.items()}
    assert min(theta, key=theta.get) == "hasfl"
    assert theta["best-equal"] <= theta["adaptsfl"]


def test_squared_gradient_weighs_devices_alike(task):
    """It equals what plain backpropagation of the devices' mean loss gives."""
    task_model = task.model
    task_model.zero_grad()
    losses = []
    for own in task.partition.indices:
        outputs = task_model(task.train.inputs[own.copy()])
        losses.append(torch.nn.functional.cross_entropy(outputs, task.train.targets[own.copy()]))
    torch.stack(losses).mean().backward()
    expected = sum(float((p.grad**2).sum()) for p in task_model.parameters())
    task_model.zero_grad(set_to_none=True)
    assert squared_gradient(task, task.initial_weights()) == pytest.approx(expected, rel=1e-4)


def test_constants_are_means_over_the_pilot_run(task):
    """Second moment and variance differ by the devices' own squared norm, which is at least that of the mean gradient."""
    found = measured_constants(dataclasses.replace(SMALL, rounds=6), task)
    assert found.pilot_rounds == 6
    assert found.local_norm == pytest.approx((found.gradient_second_moment - found.gradient_variance).sum())
    assert found.smoothness > 0
    assert found.target > 0


def test_bound_of_equal_batches_is_that_of_the_problem(task):
    """Rounds by the closed form equal those that the problem reports for the same batch size everywhere."""
    problem = problem_of(SMALL, task, KNOWN, seed=0)
    plan = SplitPlan(batch_size=[4] * 4, cut_layer=[1] * 4, aggregation_interval=1)
    assert KNOWN.rounds(SMALL, 4, 4) == pytest.approx(problem.report(plan).rounds)
    assert KNOWN.rounds(SMALL, 4, 1e-3) == np.inf


def test_pictures_are_standardised_one_by_one():
    """Each colour channel of each picture has mean 0 and variance 1."""
    inputs = standardised(digits().test).inputs
    assert torch.allclose(inputs.mean(dim=(2, 3)), torch.zeros(len(inputs), 1), atol=1e-5)
    assert torch.allclose(inputs.std(dim=(2, 3)), torch.ones(len(inputs), 1), atol=1e-4)


def test_constants_are_kept_to_the_last_bit():
    """What is read back from JSON is what was measured."""
    known = dataclasses.replace(KNOWN, gradient_variance=np.array([1 / 3, 2e-7, 1e9]))
    again = Constants.from_json(json.loads(json.dumps(known.to_json())))
    assert again.to_json() == known.to_json()
    assert again.gradient_variance.tolist() == known.gradient_variance.tolist()


def test_summary_compares_seed_by_seed():
    """Ratios to hasfl are taken within a seed, then the median over seeds."""
    rows = []
    for seed, (hasfl, other) in enumerate([(1.0, 2.0), (10.0, 30.0), (4.0, 16.0)]):
        for planner, seconds in (("fixed", other), ("hasfl", hasfl)):
            rows.append(
                {"task": "digits", "variant": planner, "seed": seed, "reached": True, "seconds": seconds, "rounds": 1,
                 "megabytes": 1.0, "joules": 1.0, "bound_s": seconds, "mean_batch": 1.0, "mean_cut": 1.0}
            )  # fmt: skip
    found = Found(
        study=STUDY, setting=Setting(), tasks=("digits",), seeds=(0, 1, 2), quick=False, rows=rows, failures=[],
        machine={}, versions={}, interrupted=False,
    )  # fmt: skip
    lines = {row["planner"]: row for row in summary(found)}
    assert lines["fixed"]["times hasfl"] == 3.0
    assert lines["fixed"]["seconds"] == 16.0
