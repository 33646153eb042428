"""HFedMoE: whether clients that can train few experts per mini-batch do well to train those that matter most to it.

``edgeopt study hfedmoe --jobs 2 --out out/hfedmoe``

Ten clients fine-tune a pre-trained classifier of eight experts, two per sample (`fine_tuning`). The system trains one
expert per mini-batch, picked by information. Beside it: FedAvg, FedProx and training alone, which train all; one random
expert, aggregated as the system does (``random``) and as FedAvg does (``fedavg-random``). Ablations: no limit, other ways to
pick (``importance``, ``frequency``), averages as in FedAvg (``plain``); and devices of unequal memory, whose budgets follow
from it, with experts picked by information (``memory``) and at random (``memory-random``).
"""

from dataclasses import dataclass

import numpy as np

from edgeopt.evaluation.compare.rows import Row
from edgeopt.evaluation.studies.claims import Claim, Difference, Ratio, Source
from edgeopt.evaluation.studies.fine_tuning import TEXT, LocalOnly, fine_tuning_task, of_clients
from edgeopt.evaluation.studies.learning import LearningSetting, pictures, summary, tables, trained
from edgeopt.evaluation.studies.study import Found, Study, StudyCell
from edgeopt.schedule import Planner
from edgeopt.training import Algorithm, ExpertBudget, FedAvg, FedProx, HFedMoe, Sgd, Task, client_peak_bytes
from edgeopt.training.rules.experts import learners

TASKS = ("digits-0.1", "digits-0.5", "mnist-1d-0.1")
SYSTEM = "hfedmoe"
BASELINES = ("fedavg", "fedprox", "local-only", "random", "fedavg-random")
ABLATIONS = ("no-limit", "importance", "frequency", "plain", "memory", "memory-random")
MEMORY = ("memory", "memory-random")
UNLIMITED = ("fedavg", "fedprox", "local-only", "no-limit")


@dataclass(frozen=True, slots=True)
class Setting(LearningSetting):
    """What all runs have in common.

    Parameters
    ----------
    lr : of SGD.
    experts : that a client trains per mini-batch, where it has a budget.
    """

    rounds: int = 40
    steps: int = 8
    every: int = 5
    lr: float = 0.1
    experts: int = 1


def algorithm(variant: str, setting: Setting) -> Algorithm:
    """Return the algorithm of a variant."""
    optimizer = Sgd(setting.lr)
    variants: dict[str, Algorithm] = {
        "fedavg": FedAvg(optimizer),
        "fedprox": FedProx(optimizer=optimizer),
        "local-only": LocalOnly(optimizer),
        "random": HFedMoe("random", optimizer=optimizer),
        "fedavg-random": HFedMoe("random", aggregation="plain", optimizer=optimizer),
        "importance": HFedMoe("importance", optimizer=optimizer),
        "frequency": HFedMoe("frequency", optimizer=optimizer),
        "plain": HFedMoe(aggregation="plain", optimizer=optimizer),
        "memory-random": HFedMoe("random", optimizer=optimizer),
    }
    return variants.get(variant, HFedMoe(optimizer=optimizer))


def planner(variant: str, setting: Setting, task: Task) -> Planner:
    """Return who trains how many experts: a fixed number, none, or as many as fit into the memory of a device.

    Devices have room for between one learning expert and nearly all of them.
    """
    if variant not in MEMORY:
        return setting.plan(experts=0 if variant in UNLIMITED else setting.experts)
    optimizer = Sgd(setting.lr)
    least, most = (
        client_peak_bytes(task, setting.batch, optimizer, learns=learners(task, count, "layer")) for count in (1, 0)
    )
    room = least + (most - least) * np.linspace(0.0, 0.8, setting.clients)
    return ExpertBudget(setting.plan(), task, room, optimizer, setting.batch)


def run(cell: StudyCell[Setting]) -> Row:
    """Train a variant."""
    setting, seed = cell.setting, cell.seed
    task = fine_tuning_task(cell, setting.clients)
    return trained(
        task, algorithm(cell.variant, setting), setting, seed, planner=planner(cell.variant, setting, task),
        at_end=of_clients(task),
    )  # fmt: skip


def all_tables(found: Found[Setting]) -> dict[str, list[Row]]:
    """Return means over seeds, with what a client needs and sends; and every run."""
    columns = ("accuracy", "local_accuracy", "peak_kilobytes", "megabytes_up", "expert_share", "routing_consistency")
    return {"summary": summary(found, columns), "runs": tables(found)["runs"]}


def _differ(
    text: str, second: str, task: str, source: Source = "ours", above: float = 0.0, first: str = SYSTEM
) -> Claim:
    test = Difference(metric="accuracy", first=first, second=second, above=above, task=task)
    return Claim(text=text, source=source, test=test)


CLAIMS = (
    *(
        _differ(f"With one expert per mini-batch, hfedmoe is at least 8 points above a random one on {task}", "random", task, above=0.08)
        for task in TASKS
    ),
    *(
        _differ(f"With one expert per mini-batch, hfedmoe is at most 3 points below no limit on {task}", "no-limit", task, above=-0.03)
        for task in TASKS
    ),
    _differ("hfedmoe with one expert per mini-batch is above FedAvg, which trains all, on digits-0.1", "fedavg", "digits-0.1", "reported"),
    _differ("Information picks better than importance alone on digits-0.1", "importance", "digits-0.1", "reported"),
    _differ("Information picks better than frequency on digits-0.1", "frequency", "digits-0.1"),
    _differ("Averages over those who trained an expert, and weighted routers, are better than plain ones on digits-0.1", "plain", "digits-0.1", "reported"),
    _differ("On devices of unequal memory, information picks better than chance on digits-0.1", "memory-random", "digits-0.1", first="memory"),
    Claim(
        text="A client needs less than half of the memory of FedAvg",
        source="ours",
        test=Ratio(metric="peak_kilobytes", first=SYSTEM, second="fedavg", below=0.5),
    ),
    Claim(
        text="Clients send less than a third of what those of FedAvg do",
        source="ours",
        test=Ratio(metric="megabytes_up", first=SYSTEM, second="fedavg", below=1 / 3),
    ),
)  # fmt: skip

STUDY = Study(
    name="hfedmoe",
    title="Few experts per mini-batch at clients of little memory: whether it matters which",
    system=SYSTEM,
    baselines=BASELINES,
    ablations=ABLATIONS,
    tasks=TASKS,
    on_demand=(TEXT,),
    seeds=5,
    full=Setting(),
    quick=Setting(rounds=4, every=2, steps=4),
    quick_tasks=("digits-0.1",),
    measure=run,
    claims=CLAIMS,
    tables=all_tables,
    pictures=pictures,
)
