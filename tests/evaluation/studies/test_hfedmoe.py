"""The study of HFedMoE, at a small size."""

import dataclasses
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
from edgeopt.evaluation.studies import StudyCell, load_study, run_study
from edgeopt.evaluation.studies.fine_tuning import LocalOnly, fine_tuning_task, samples_of
from edgeopt.evaluation.studies.hfedmoe import ABLATIONS, MEMORY, STUDY, SYSTEM, UNLIMITED, Setting, algorithm, planner
from edgeopt.training import FedAvg, LocalRunner, Sgd
from tests.one_thread import one_thread  # noqa: F401 - a fixture of all tests here
from tests.training.algorithms.mixtures import mixture_task
from tests.training.small_tasks import assert_near, small_plan
from tests.training.split_tasks import run


def test_quick_run():
    """Every variant has a row with what the claims ask for; tables and pictures are made from the rows."""
    changes = {"rounds": 2, "every": 1, "steps": 2}
    found = run_study(STUDY, quick=True, changes=changes, executor="serial", display=False)
    assert found.complete
    rows = {row["variant"]: row for row in found.rows}
    assert rows.keys() == set(STUDY.variants)
    for variant, row in rows.items():
        assert (row["peak_kilobytes"] < rows["fedavg"]["peak_kilobytes"]) == (variant not in UNLIMITED)
        assert 0 <= row["local_worst"] <= row["local_accuracy"] <= 1
    assert rows[SYSTEM]["megabytes_up"] < rows["memory"]["megabytes_up"] < rows["fedavg"]["megabytes_up"]
    assert [row["variant"] for row in STUDY.tables(found)["summary"]] == list(STUDY.variants)
    assert set(STUDY.pictures(found)) == {f"digits-0.1-accuracy-{cost}" for cost in ("round", "megabytes", "seconds")}
    for claim in STUDY.claims:
        assert claim.decide(found.evidence).verdict == "not shown"


def test_budgets():
    """One expert, none, or what fits: from one to nearly all."""
    task, setting = mixture_task((9, 7, 8)), Setting(clients=3, batch=4)
    for variant in STUDY.variants:
        experts = planner(variant, setting, task).plan(0, None).experts.tolist()
        if variant in MEMORY:
            assert experts[0] == 1
            assert sorted(experts) == experts
            assert experts[-1] == 3  # of four: 80 % of the room between one and four
        else:
            assert experts == [0 if variant in UNLIMITED else 1] * 3
    assert set(ABLATIONS) <= set(STUDY.variants)
    assert algorithm(SYSTEM, setting) == algorithm("no-limit", setting) == algorithm("memory", setting)


@pytest.mark.parametrize("batched", [True, False])
def test_training_alone_is_fedavg_of_one_client(batched: bool):
    """Each client ends with what it would have if it were the only one; it gets the model once and sends its loss."""
    of, plan = mixture_task((9, 7, 8)), small_plan(batch_size=4, local_steps=2)
    history = run(of, LocalOnly(Sgd(0.2)), plan, rounds=2, runner=LocalRunner(batched=batched))
    for client in range(3):
        alone = run(of, FedAvg(Sgd(0.2)), plan.take([client]), rounds=2)
        assert_near(history.personal[client], alone.models[0], 1e-9)
    row = history.rows[-1]
    assert row["bytes_up"] == row["scalars_up"]
    assert row["weights_down"] == 3 * sum(value.nbytes for value in of.initial_weights().values())


def test_samples_have_the_labels_of_the_client():
    """Others are drawn for another purpose."""
    of = mixture_task((9, 7, 8))
    first, again, other = (samples_of(of, 1, 50, name) for name in ("a", "a", "b"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (50, 1, 4, 4)
    own = set(of.train.labels[of.partition.indices[1]].tolist())
    there = {
        tuple(row.flatten().tolist()): int(label) for row, label in zip(of.test.inputs, of.test.targets, strict=True)
    }
    assert {there[tuple(row.flatten().tolist())] for row in first} <= own


@pytest.mark.slow
@pytest.mark.parametrize(("study", "variant"), [("hfedmoe", "memory"), ("fedalign-moe", "fedalign-moe")])
def test_text_on_demand(study: str, variant: str, tmp_path: Path):
    """A decoder that was pre-trained on text read backwards: experts and routers learn, and caches are asked token by token."""
    of = load_study(study)
    assert "text" in of.on_demand
    setting = dataclasses.replace(of.quick, clients=3, rounds=1, every=1, steps=1, batch=2)
    cell = StudyCell(
        study=study, setting=setting, task="text", variant=variant, seed=0, folder=tmp_path, measure=of.measure
    )
    task = fine_tuning_task(cell, 3)
    assert all("_experts.body." in name for name in task.parameters)
    assert len(task.parameters) == 2 * 5  # of two blocks: router, up, down and their biases
    row = of.measure(cell)
    assert 0 <= row["local_worst"] <= row["accuracy"] <= 1
    assert ("latency_ms" in row) == (study == "fedalign-moe")
