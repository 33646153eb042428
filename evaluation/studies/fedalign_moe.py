"""FedAlign-MoE: whether clients do well with routers of their own and experts that are aligned, and what caches make of it.

``edgeopt study fedalign-moe --jobs 2 --out out/fedalign-moe``

Ten clients fine-tune a pre-trained classifier of eight experts, two per sample (`fine_tuning`). ``accuracy`` is that of
the common model, whose router is the mean of the clients'; ``local_accuracy`` the mean over the models that clients end
with, each on labels like its own. Beside FedAlign-MoE: FedAvg, FedProx, HFedMoE with one expert per mini-batch, training
alone, and ``before``, the pre-trained model as it is. Ablations: routers not held near a common routing (``free-routers``), averaged routers
(``one-router``), clients alike in the common routing (``even-reference``), the term without its weights (``even-term``), experts averaged by index
(``index``), without directions (``no-directions``), with a fixed threshold (``fixed-threshold``); and all that is averaged
weighted by samples (``by-samples``).

Every run ends with the experts placed on the clients' edge servers, from how each client's model routes samples like its
own: ``latency_ms`` is what other samples wait for experts. Training alone has as many experts as clients, so it has none.
"""

import dataclasses
import math
from dataclasses import dataclass

from edgeopt.evaluation.compare.rows import Row
from edgeopt.evaluation.studies.claims import Claim, Difference, Level, Ratio, Source
from edgeopt.evaluation.studies.fine_tuning import (
    TEXT,
    LocalOnly,
    cached_latency,
    fine_tuning_task,
    models_in_use,
    of_clients,
)
from edgeopt.evaluation.studies.learning import LearningSetting, pictures, summary, tables, trained
from edgeopt.evaluation.studies.study import Found, Picture, Study, StudyCell
from edgeopt.training import Algorithm, FedAlignMoe, FedAvg, FedProx, HFedMoe, History, Sgd

TASKS = ("digits-0.1", "digits-0.5", "mnist-1d-0.1")
SYSTEM = "fedalign-moe"
BASELINES = ("fedavg", "fedprox", "hfedmoe", "local-only", "before")
ABLATIONS = (
    "free-routers", "one-router", "even-reference", "even-term", "index", "no-directions", "fixed-threshold", "by-samples",
)  # fmt: skip
MEASURED = ("semantic_consistency", "routing_divergence")


@dataclass(frozen=True, slots=True)
class Setting(LearningSetting):
    """What all runs have in common.

    Parameters
    ----------
    lr : of SGD.
    threshold : of ``fixed-threshold``.
    """

    rounds: int = 40
    steps: int = 8
    every: int = 5
    lr: float = 0.1
    threshold: float = 0.5


def algorithm(variant: str, setting: Setting) -> Algorithm:
    """Return the algorithm of a variant."""
    optimizer = Sgd(setting.lr)
    system = FedAlignMoe(optimizer=optimizer)
    variants: dict[str, Algorithm] = {
        SYSTEM: system,
        "fedavg": FedAvg(optimizer),
        "fedprox": FedProx(optimizer=optimizer),
        "hfedmoe": HFedMoe(optimizer=optimizer),
        "local-only": LocalOnly(optimizer),
        "free-routers": dataclasses.replace(system, regularise=0.0),
        "one-router": dataclasses.replace(system, gates="averaged"),
        "even-reference": dataclasses.replace(system, consistent=False),
        "even-term": dataclasses.replace(system, adaptive=False),
        "index": dataclasses.replace(system, experts="index"),
        "no-directions": dataclasses.replace(system, directions=False),
        "fixed-threshold": dataclasses.replace(system, threshold=setting.threshold),
        "by-samples": dataclasses.replace(system, weighting="samples"),
    }
    return variants[variant]


def run(cell: StudyCell[Setting]) -> Row:
    """Train a variant, judge the models that clients end with, and cache the experts."""
    setting, seed = cell.setting, cell.seed
    task = fine_tuning_task(cell, setting.clients)
    if cell.variant == "before":
        before = {client: task.initial_weights() for client in range(setting.clients)}
        scores = [task.evaluate(own, client=client).accuracy for client, own in before.items()]
        local = {"local_accuracy": sum(scores) / len(scores), "local_worst": min(scores)}
        whole = {"accuracy": task.evaluate(before[0]).accuracy, "megabytes": 0.0, "seconds": 0.0, "curve": []}
        return whole | local | cached_latency(task, before)

    def at_end(history: History) -> Row:
        found = of_clients(task)(history)
        for name in MEASURED:
            if name in history.rows[0]:
                first, last = (history.rows[at][name] for at in (0, -1))
                found |= {f"{name}_last": last, f"{name}_rise": last - first}
        if cell.variant != "local-only":
            found |= cached_latency(task, models_in_use(task, history))
        return {name: value for name, value in found.items() if not math.isnan(value)}

    return trained(
        task, algorithm(cell.variant, setting), setting, seed,
        planner=setting.plan(experts=1 if cell.variant == "hfedmoe" else 0), at_end=at_end,
    )  # fmt: skip


def all_tables(found: Found[Setting]) -> dict[str, list[Row]]:
    """Return means over seeds: how good models are and what they cost, how clients agree, what caches make of it; every run."""
    scores = summary(found, ("accuracy", "local_accuracy", "local_worst"))
    agree = ("semantic_consistency_rise", "semantic_consistency_last", "routing_divergence_last")
    cached = ("latency_ms", "own_server", "cloud", "routing_distance")
    parts = {
        name: [
            {key: row[key] for key in ("task", "variant", *columns)}
            for row in summary(found, columns)
            if any(row[key] != "-" for key in columns)
        ]
        for name, columns in (("agreement", agree), ("caching", cached))
    }
    return {"summary": scores, **parts, "runs": tables(found)["runs"]}


def all_pictures(found: Found[Setting]) -> dict[str, Picture]:
    """Return accuracies of the common and of the clients' own models against rounds and costs."""
    trained_ = dataclasses.replace(found, rows=[row for row in found.rows if row["variant"] != "before"])
    return pictures(trained_) | pictures(trained_, ("round",), "personal_accuracy")


def _differ(
    text: str, second: str, metric: str, task: str = "digits-0.1", source: Source = "paper", above: float = 0.0
) -> Claim:
    test = Difference(metric=metric, first=SYSTEM, second=second, above=above, task=task)
    return Claim(text=text, source=source, test=test)


LOCAL = "local_accuracy"
CLAIMS = (
    _differ("Clients' models of fedalign-moe are at least 5 points above FedAvg's on labels like their own, on digits-0.1", "fedavg", LOCAL, source="ours", above=0.05),
    _differ("So they are on mnist-1d-0.1", "fedavg", LOCAL, "mnist-1d-0.1", "ours", above=0.05),
    _differ("The common model of fedalign-moe is above that of FedAvg on digits-0.1", "fedavg", "accuracy"),
    _differ("So it is on digits-0.5", "fedavg", "accuracy", "digits-0.5"),
    _differ("Clients' models are above those of training alone on digits-0.1", "local-only", LOCAL, source="ours"),
    _differ("Routers held near a common routing give better models for clients than free ones, on digits-0.1", "free-routers", LOCAL),
    _differ("Routers of clients' own give better models for clients than one averaged router, on digits-0.1", "one-router", LOCAL),
    _differ("Aligned experts give better models for clients than averages by index, on digits-0.1", "index", LOCAL),
    _differ("Directions of updates are worth looking at: better models for clients on digits-0.1", "no-directions", LOCAL),
    _differ("A threshold that adapts is better for clients than a fixed one, on digits-0.1", "fixed-threshold", LOCAL),
    Claim(
        text="Clients' hidden states of an expert become more alike over the rounds, on digits-0.1",
        source="paper",
        test=Level(metric="semantic_consistency_rise", variant=SYSTEM, above=0.0, task="digits-0.1"),
    ),
    Claim(
        text="They end more alike than where experts are averaged by index, on digits-0.1",
        source="paper",
        test=Difference(metric="semantic_consistency_last", first=SYSTEM, second="index", above=0.0, task="digits-0.1"),
    ),
    Claim(
        text="Clients end nearer to the common routing than with free routers, on digits-0.1",
        source="paper",
        test=Difference(metric="routing_divergence_last", first=SYSTEM, second="free-routers", below=0.0, task="digits-0.1"),
    ),
    Claim(
        text="Routers of clients' own are good for caches: samples wait less for experts than with FedAvg, on all tasks",
        source="ours",
        test=Ratio(metric="latency_ms", first=SYSTEM, second="fedavg", below=1.0),
    ),
    Claim(
        text="Fine-tuning is good for caches: with fedalign-moe samples wait less for experts than before",
        source="ours",
        test=Ratio(metric="latency_ms", first=SYSTEM, second="before", below=1.0),
    ),
    Claim(
        text="Holding routers near a common routing costs caches: samples wait longer than with free routers",
        source="ours",
        test=Ratio(metric="latency_ms", first=SYSTEM, second="free-routers", above=1.0),
    ),
)  # fmt: skip

STUDY = Study(
    name="fedalign-moe",
    title="Routers of clients' own and aligned experts: models for clients, the common model, and caches",
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
    pictures=all_pictures,
)
