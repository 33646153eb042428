"""What studies of learning algorithms share: tasks, runs as rows, tables and pictures."""

import dataclasses

import numpy as np
import pytest

from edgeopt.evaluation.studies import Found, Study
from edgeopt.evaluation.studies.learning import (
    COSTS,
    LAST,
    TASKS,
    LearningSetting,
    learning_task,
    pictures,
    radio,
    tables,
    trained,
)
from edgeopt.training import ParallelSplit, SplitFed, train

SETTING = LearningSetting(clients=4, rounds=8, every=2)


@pytest.mark.parametrize("name", TASKS)
def test_tasks(name: str):
    """Every task has data, spread as its name says, and a model that can be cut; the same for the same seed."""
    task, again = (learning_task(name, 10, seed=3) for _ in range(2))
    assert task.num_clients == 10
    assert task.num_layers == 3
    assert task.partition == again.partition
    first, second = task.initial_weights(), again.initial_weights()
    assert all((value == second[weight]).all() for weight, value in first.items())


@pytest.mark.parametrize("data", ["digits", "mnist-1d"])
def test_labels_are_spread_as_the_name_says(data: str):
    """The largest share of a label at a client is large for alpha 0.1, smaller for 0.5, and least if spread evenly."""
    shares = []
    for spread in ("0.1", "0.5", "iid"):
        task = learning_task(f"{data}-{spread}", 10, seed=3)
        counts = task.partition.label_counts(task.train.labels, 10)
        shares.append((counts.max(axis=1) / counts.sum(axis=1)).mean())
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < 0.2


def test_row_is_that_of_the_history():
    """Accuracy is the mean of the last evaluations; bytes and seconds are those of the last row."""
    task = learning_task("digits-0.5", 4, seed=1)
    row = trained(task, ParallelSplit(), SETTING, seed=1)
    history = train(task, ParallelSplit(), SETTING.plan(), radio(4, 1), rounds=8, evaluate_every=2)
    evaluated = [found for found in history.rows if not np.isnan(found["accuracy"])]
    for name in ("accuracy", "personal_accuracy"):
        assert row[name] == pytest.approx(np.mean([found[name] for found in evaluated[-LAST:]]))
    assert [point["round"] for point in row["curve"]] == [2, 4, 6, 8]
    assert row["megabytes"] == row["curve"][-1]["megabytes"]
    assert row["megabytes"] * 1e6 == evaluated[-1]["bytes_up"] + evaluated[-1]["bytes_down"]
    assert row["seconds"] == evaluated[-1]["seconds"]
    assert "personal_accuracy" not in trained(task, SplitFed(), SETTING, seed=1)


def test_tables_and_pictures():
    """Tables have a row per task and variant; a variant without a metric is left out of its picture."""
    task = learning_task("digits-iid", 4, seed=0)
    rows = []
    for variant, algorithm in (("psl", ParallelSplit()), ("splitfed", SplitFed())):
        for seed in (0, 1):
            found = trained(task, algorithm, SETTING, seed=seed)
            rows.append({"task": "digits-iid", "variant": variant, "seed": seed, **found})
    study = Study(
        name="toy", title="", system="psl", baselines=("splitfed",), tasks=TASKS, full=SETTING, quick=SETTING,
        measure=lambda cell: {}, claims=(), tables=tables, pictures=pictures,
    )  # fmt: skip
    done = Found(
        study=study, setting=SETTING, tasks=("digits-iid",), seeds=(0, 1), quick=False, rows=rows, failures=[], machine={},
        versions={}, interrupted=False,
    )  # fmt: skip
    named = tables(done)
    assert [(row["variant"], row["personal_accuracy"] == "-") for row in named["summary"]] == [
        ("psl", False), ("splitfed", True),
    ]  # fmt: skip
    assert "curve" not in named["runs"][0]
    assert list(pictures(done)) == [f"digits-iid-accuracy-{cost}" for cost in COSTS]
    ax = pictures(done, ("seconds",), "personal_accuracy")["digits-iid-personal-accuracy-seconds"].draw()
    assert len(ax.get_lines()) == 1
    assert ax.get_xlabel() == COSTS["seconds"]
    assert not pictures(
        dataclasses.replace(done, rows=[row for row in rows if row["variant"] == "splitfed"]), metric="no"
    )
