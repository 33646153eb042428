"""HSplitLoRA: adapters of unequal rank on unequal devices, folded without noise, beside averages of padded ones.

``edgeopt study hsplit-lora --out out/hsplit-lora``

A perceptron that was pre-trained on digits lying on their side, or on signals running backwards, is adapted to upright ones
by ten clients; a small decoder that was pre-trained on text read backwards, to text. Everything but the adapters is
frozen. Clients have ranks from 1 to 8. HSplitLoRA also cuts the model: each client has as many layers as fit into its memory,
which is what it takes to hold the whole model, a part, or the first layer alone. Variants called ``whole`` leave the
whole model with the clients, as the baselines do, so that at equal ranks they differ in nothing but what is trained and
how it is averaged; ``uniform`` ones give all layers the same importance. ``fedavg-lora`` has the least rank everywhere.

The task ``smollm2`` is a real language model; see `edgeopt.evaluation.studies.hsplit_lora_llm`.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from edgeopt.data import ArrayData, by_column
from edgeopt.evaluation.compare.rows import Row
from edgeopt.evaluation.studies import hsplit_lora_llm
from edgeopt.evaluation.studies.claims import Always, Claim, Difference, Ratio
from edgeopt.evaluation.studies.learning import LearningSetting, learning_task, pictures, summary, tables, trained
from edgeopt.evaluation.studies.pretraining import other_domain, pretrained, text_and_other_domain
from edgeopt.evaluation.studies.study import Found, Study, StudyCell
from edgeopt.models import add_lora, gpt2, mlp
from edgeopt.tensors import load_tensors, save_tensors
from edgeopt.training import (
    Adam,
    Algorithm,
    FedAvg,
    HetLora,
    HSplitLora,
    Optimizer,
    Task,
    ZeroPadLora,
    client_peak_bytes,
)
from edgeopt.training.algorithms.hsplit_lora import Importance

TASKS = ("digits-0.1", "digits-0.5", "mnist-1d-0.1", "mnist-1d-0.5", "text")
LLM = "smollm2"
RANKS = (1, 1, 1, 2, 2, 2, 4, 4, 8, 8)


@dataclass(frozen=True, slots=True)
class Setting(LearningSetting):
    """What all runs have in common.

    Parameters
    ----------
    rounds, steps, every : as in `LearningSetting`.
    text_rounds : rounds of the text decoder, which takes longer.
    step_size : of Adam at the clients.
    context, width : of the text decoder.
    pretraining : mini-batches of 64 samples.
    llm, llm_clients, llm_rounds, llm_steps, llm_batch, llm_context, llm_windows : of the task ``smollm2``: model, clients, rounds, steps and samples of
        each; tokens of a window, and windows to train on.
    """

    rounds: int = 40
    steps: int = 10
    every: int = 2
    text_rounds: int = 12
    step_size: float = 0.01
    context: int = 32
    width: int = 32
    pretraining: int = 600
    llm: str = hsplit_lora_llm.PACKAGE
    llm_clients: int = 5
    llm_rounds: int = 6
    llm_steps: int = 4
    llm_batch: int = 4
    llm_context: int = 64
    llm_windows: int = 400


def base_task(name: str, setting: Setting, seed: int) -> tuple[Task, ArrayData]:
    """Return the task without adapters, its model untrained, and the data of pre-training."""
    if name != "text":
        task = learning_task(name, setting.clients, seed, model=partial(mlp, hidden=(64, 64)))
        return task, other_domain(name.rsplit("-", 1)[0], seed)
    data, backwards = text_and_other_domain(setting.context, seed, "hsplit-lora")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = gpt2(
            vocabulary=256, context=setting.context, width=setting.width, depth=2, heads=4, tied=False, fused=False
        )  # fmt: skip
    assert data.train.group is not None
    partition = by_column(data.train.group % setting.clients)
    return Task(model=model, train=data.train, partition=partition, test=data.test, seed=seed), backwards


def adapted_task(cell: StudyCell[Setting], rank: int) -> Task:
    """Return the task with the pre-trained model, everything frozen but its adapters."""
    task, before = base_task(cell.task, cell.setting, cell.seed)

    def make(path: Path) -> None:
        weights = pretrained(task, before, steps=cell.setting.pretraining).state_dict()
        save_tensors(path, {"kind": "pre-trained"}, {name: value.numpy() for name, value in weights.items()})

    _, arrays = load_tensors(cell.keep(f"pretrained-{cell.task}-{cell.seed}.safetensors", make), "pre-trained")
    model = copy.deepcopy(task.model)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    return task.replace(model=add_lora(model, "*", rank=rank, seed=cell.seed))


def memory_of(task: Task, setting: Setting, optimizer: Optimizer) -> tuple[float, ...]:
    """Return the memory of each client in bytes: for a third of the layers, for two, and for all, in turn."""
    cuts = [math.ceil(share * task.num_layers) for share in (1 / 3, 2 / 3, 1)]
    needed = [client_peak_bytes(task, setting.batch, optimizer, cut=cut) for cut in cuts]
    return tuple(needed[client % len(cuts)] for client in range(setting.clients))


def run(cell: StudyCell[Setting]) -> Row:
    """Adapt the pre-trained model by one of the algorithms."""
    setting, variant = cell.setting, cell.variant
    every_rank = hsplit_lora_llm.RANKS if cell.task == LLM else RANKS
    rank = min(every_rank) if variant == LEAST else max(every_rank)
    if cell.task == LLM:
        setting = replace(
            setting, clients=setting.llm_clients, rounds=setting.llm_rounds, steps=setting.llm_steps, batch=setting.llm_batch,
            every=1, step_size=hsplit_lora_llm.LEARNING_RATE,
        )  # fmt: skip
        task = hsplit_lora_llm.llm_task(
            setting.llm, setting.clients, cell.seed, rank=rank, context=setting.llm_context, windows=setting.llm_windows
        )  # fmt: skip
    else:
        task = adapted_task(cell, rank)
    optimizer = Adam(setting.step_size)
    ranks = [every_rank[client % len(every_rank)] for client in range(setting.clients)]
    columns: dict[str, Any] = {"rank": rank if variant == LEAST else ranks, "cut_layer": task.num_layers}
    algorithm: Algorithm
    if variant in PLAIN:
        algorithm = PLAIN[variant](optimizer)
    else:
        importance: Importance = "uniform" if "uniform" in variant else "rngwp"
        split = not variant.startswith("whole")
        memory: tuple[float, ...] = ()
        if split and cell.task == LLM:
            shares = [hsplit_lora_llm.CUTS[client % len(hsplit_lora_llm.CUTS)] for client in range(setting.clients)]
            columns["cut_layer"] = [math.ceil(share * task.num_layers) for share in shares]
        elif split:
            columns["cut_layer"], memory = 0, memory_of(task, setting, optimizer)
        algorithm = HSplitLora(
            optimizer, importance=importance, memory_bytes=memory, horizon=setting.rounds, report_errors=True
        )  # fmt: skip
    before = task.evaluate(task.initial_weights())
    setting = replace(setting, rounds=setting.text_rounds) if cell.task == "text" else setting
    timing = hsplit_lora_llm.llm_radio(setting.clients, cell.seed) if cell.task == LLM else None
    found = trained(task, algorithm, setting, cell.seed, planner=setting.plan(**columns), timing=timing)
    return {"before": before.accuracy, "loss_before": before.loss, **found}


def all_tables(found: Found[Setting]) -> dict[str, list[Row]]:
    """Return means over seeds, with the loss, which tells more of text than accuracy does; and every run."""
    return {"summary": summary(found, ("accuracy", "test_loss")), "runs": tables(found)["runs"]}


LEAST = "fedavg-lora"
PLAIN: dict[str, Callable[[Optimizer], Algorithm]] = {"het-lora": HetLora, "zero-pad-lora": ZeroPadLora, LEAST: FedAvg}
FOLDING = ("hsplit-lora", "split-uniform", "whole", "whole-uniform")

CLAIMS = (
    *(
        Claim(
            text=f"On {task}, with the whole model at the clients and equal ranks, folding with ranks by importance is at "
            "least 5 points more accurate than HetLoRA",
            source="ours",
            test=Difference(metric="accuracy", first="whole", second="het-lora", above=0.05, task=task),
        )
        for task in ("digits-0.1", "digits-0.5")
    ),
    Claim(
        text="On all tasks together, with the whole model at the clients and equal ranks, folding is more accurate than HetLoRA",
        source="ours",
        test=Difference(metric="accuracy", first="whole", second="het-lora", above=0.0),
    ),
    Claim(
        text="HSplitLoRA, with the layers that do not fit at the server, is more accurate than HetLoRA",
        source="reported",
        test=Difference(metric="accuracy", first="hsplit-lora", second="het-lora", above=0.0),
    ),
    Claim(
        text="Folding is the exact mean: it differs by less than 1e-6 of the weights, in single precision",
        source="ours",
        test=Always(metric="fold_error", variants=FOLDING, below=1e-6),
    ),
    Claim(
        text="Importance itself adds little: ranks by it change the accuracy of folding by less than 3 points",
        source="ours",
        test=Difference(metric="accuracy", first="whole", second="whole-uniform", above=-0.03, below=0.03),
    ),
    Claim(
        text="HetLoRA's weights by norm are better than the plain mean of padded adapters",
        source="reported",
        test=Difference(metric="accuracy", first="het-lora", second="zero-pad-lora", above=0.0),
    ),
    Claim(
        text="Unequal ranks under HetLoRA are better than the least rank everywhere under FedAvg",
        source="reported",
        test=Difference(metric="accuracy", first="het-lora", second=LEAST, above=0.0),
    ),
    Claim(
        text="On models as small as these, folding sends more than twice as much as averages of adapters",
        source="ours",
        test=Ratio(metric="megabytes", first="whole", second="het-lora", above=2.0),
    ),
)

STUDY = Study(
    name="hsplit-lora",
    title="HSplitLoRA: adapters of unequal rank, split by memory and folded without noise, beside padded averages",
    system="hsplit-lora",
    baselines=("het-lora", "zero-pad-lora", LEAST),
    ablations=("split-uniform", "whole", "whole-uniform"),
    tasks=TASKS,
    on_demand=(LLM,),
    full=Setting(),
    quick=Setting(
        clients=4,
        rounds=2,
        steps=2,
        every=1,
        text_rounds=2,
        pretraining=5,
        width=8,
        context=16,
        llm=hsplit_lora_llm.TINY,
        llm_windows=40,
        llm_rounds=1,
        llm_context=8,
    ),
    quick_tasks=("digits-0.5", "text"),
    measure=run,
    claims=CLAIMS,
    tables=all_tables,
    pictures=pictures,
)
