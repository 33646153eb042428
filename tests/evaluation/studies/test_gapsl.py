"""The study of GAPSL, at a small size."""

import dataclasses
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
from edgeopt.evaluation.studies import StudyCell, run_study
from edgeopt.evaluation.studies.gapsl import ABLATIONS, STUDY, WATCHED, Setting, algorithm, planted, run, watched
from edgeopt.evaluation.studies.learning import learning_task, trained
from edgeopt.training import Gapsl
from tests.one_thread import one_thread  # noqa: F401 - a fixture of all tests here

SMALL = Setting(clients=4, rounds=4, every=2, batch=4)


def test_quick_run():
    """Every variant has a row with what the claims ask for; tables and pictures are made from the rows."""
    changes = {"rounds": 4, "every": 2}
    found = run_study(STUDY, quick=True, changes=changes, executor="serial", display=False)
    assert found.complete
    for row in found.rows:
        own = row["variant"] in ("gapsl", *ABLATIONS)
        assert ("leaders_free" in row) == (row["variant"] in WATCHED)
        assert ("kept_clients" in row) == own
        assert ("mean_accuracy" in row) == (own or row["variant"] == "psl")
        assert [point["round"] for point in row["curve"]] == [2, 4]
    tables = STUDY.tables(found)
    assert [row["variant"] for row in tables["summary"]] == list(STUDY.variants)
    assert [row["variant"] for row in tables["choices"]] == ["gapsl", *ABLATIONS]
    assert set(STUDY.pictures(found)) == {f"digits-0.1-accuracy-{cost}" for cost in ("round", "megabytes", "seconds")}
    for claim in STUDY.claims:
        assert claim.decide(found.evidence).verdict == "not shown"


def test_variants_differ_from_the_system_in_one_thing():
    """What an ablation changes is one field; all algorithms take steps of the same size and count clients alike."""
    system = algorithm("gapsl", SMALL)
    for variant in STUDY.variants:
        own = algorithm(variant, SMALL)
        assert own.optimizer.lr / (1 - own.optimizer.momentum) == pytest.approx(SMALL.lr / (1 - SMALL.momentum))
        assert getattr(own, "weighting", "uniform") == "uniform"
        if variant in ABLATIONS:
            fields = [field.name for field in dataclasses.fields(Gapsl)]
            assert sum(getattr(own, name) != getattr(system, name) for name in fields) == 1
    assert system.horizon == SMALL.rounds


def test_planted_clients_have_shifted_labels():
    """Those of the first clients are the next class, the others' and the held-out ones as they were."""
    task = learning_task("digits-iid", 4, seed=0)
    other = planted(task, 2)
    for client, own in enumerate(task.partition.indices):
        before, after = (of.train.labels[own] for of in (task, other))
        assert (after == (before + (client < 2)) % 10).all()
    assert torch.equal(task.test.targets, other.test.targets)


def test_watched_is_the_same_algorithm():
    """It learns the same, and says in which share of the steps none of the first clients leads."""
    task, system = learning_task("digits-iid", 4, seed=0), algorithm("gapsl", SMALL)
    looked_at = watched(system, SMALL)
    plain = dataclasses.replace(system, min_share=SMALL.planted_share, max_share=SMALL.planted_share)
    row, other = (trained(task, one, SMALL, 0) for one in (looked_at, plain))
    assert row.pop("leaders_free") in {count / 4 for count in range(5)}
    assert row == other
    assert looked_at.first == SMALL.planted
    everyone = dataclasses.replace(looked_at, first=4)
    assert trained(task, everyone, SMALL, 0)["leaders_free"] == 0
    assert trained(task, dataclasses.replace(looked_at, first=0), SMALL, 0)["leaders_free"] == 1


def test_clients_are_planted_on_the_digits_only(tmp_path: Path):
    """A run on other data says nothing of leaders."""
    for task in ("digits-iid", "mnist-1d-iid"):
        cell = StudyCell(
            study="gapsl", setting=dataclasses.replace(SMALL, rounds=2), task=task, variant="gapsl", seed=0,
            folder=tmp_path, measure=run,
        )  # fmt: skip
        assert ("leaders_free" in run(cell)) == (task == "digits-iid")
