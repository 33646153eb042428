"""GAPSL: whether it helps to learn in parallel split learning from clients whose gradients agree only.

``edgeopt study gapsl --out out/gapsl``

Ten clients train a perceptron that is cut after its first layer, one mini-batch in each round. Beside GAPSL, the split and
federated algorithms, and GAPSL without one of its parts: ``all-lead`` (the leader is the mean over all clients),
``random-leader``, ``leader-only`` (the server moves by the leading gradient, nobody is aligned), ``random-clients`` (as
many are kept, at random), ``fixed-threshold`` (an angle from the range that the paper tried), ``all-learn`` (who is left
out still gets the gradient of its own loss). Where clients keep their own first layers, ``accuracy`` is that of the
average of their models; ``mean_accuracy`` is the mean over their models, and ``personal_accuracy`` that on labels like
their own. On the digits, GAPSL and ``random-leader`` train once more with clients whose labels are shifted and a
fixed share of clients leading: ``leaders_free`` is the share of rounds in which none of those leads.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from edgeopt.evaluation.compare.rows import Row
from edgeopt.evaluation.studies.claims import Claim, Difference, Level, Ratio, Source
from edgeopt.evaluation.studies.learning import (
    TASKS,
    LearningSetting,
    learning_task,
    pictures,
    summary,
    tables,
    trained,
)
from edgeopt.evaluation.studies.study import Found, Study, StudyCell
from edgeopt.training import (
    Algorithm,
    FedAvg,
    Gapsl,
    History,
    ParallelSplit,
    Sgd,
    SplitFed,
    SplitFedV2,
    Task,
    VanillaSplit,
)
from edgeopt.training.algorithms.gapsl import Picked

BASELINES = ("psl", "splitfed-v1", "splitfed-v2", "vanilla-split", "fedavg")
ABLATIONS = ("all-lead", "random-leader", "leader-only", "random-clients", "fixed-threshold", "all-learn")
WATCHED = ("gapsl", "random-leader")
"""Variants that are also trained with planted clients."""


@dataclass(frozen=True, slots=True)
class Setting(LearningSetting):
    """What all runs have in common.

    Parameters
    ----------
    lr, momentum : of SGD, of clients and server.
    eta : of GAPSL; the paper gives no value.
    threshold : of ``fixed-threshold``, in rad.
    planted : clients with shifted labels, the first ones.
    planted_share : of the clients that lead where some are planted.
    """

    rounds: int = 250
    every: int = 25
    lr: float = 0.05
    momentum: float = 0.9
    eta: float = 0.5
    threshold: float = 0.54
    planted: int = 2
    planted_share: float = 0.4


@dataclass(frozen=True, slots=True)
class Watched(Gapsl):
    """GAPSL that also says whether none of the first clients leads.

    Parameters
    ----------
    first : how many of them.
    """

    first: int = 0

    def measure(self, clients: Sequence[int], picked: Picked) -> dict[str, float]:
        """Return the usual numbers of a step, and that one."""
        free = not (picked.leads & (np.asarray(clients) < self.first)).any()
        return {**Gapsl.measure(self, clients, picked), "leaders_free": float(free)}


def algorithm(variant: str, setting: Setting) -> Algorithm:
    """Return the algorithm of a variant; all weigh clients alike.

    FedAvg forgets its momentum after every round, which is one step here: it has the step size that the others' steps add
    up to in the long run.
    """
    optimizer = Sgd(setting.lr, setting.momentum)
    system = Gapsl(optimizer, judge="averaged", horizon=setting.rounds, eta=setting.eta)
    variants: dict[str, Algorithm] = {
        "gapsl": system,
        "psl": ParallelSplit(optimizer, weighting="uniform", judge="averaged"),
        "splitfed-v1": SplitFed(optimizer, weighting="uniform"),
        "splitfed-v2": SplitFedV2(optimizer, weighting="uniform"),
        "vanilla-split": VanillaSplit(optimizer),
        "fedavg": FedAvg(Sgd(setting.lr / (1 - setting.momentum)), weighting="uniform"),
        "all-lead": dataclasses.replace(system, leader="all"),
        "random-leader": dataclasses.replace(system, leader="random"),
        "leader-only": dataclasses.replace(system, keep="leaders"),
        "random-clients": dataclasses.replace(system, keep="random"),
        "fixed-threshold": dataclasses.replace(system, threshold=setting.threshold),
        "all-learn": dataclasses.replace(system, all_clients_learn=True),
    }
    return variants[variant]


def watched(system: Gapsl, setting: Setting) -> Watched:
    """Return the same algorithm, looked at; a fixed share of the clients leads."""
    own = {field.name: getattr(system, field.name) for field in dataclasses.fields(system)}
    share = setting.planted_share
    return Watched(**own | {"min_share": share, "max_share": share, "first": setting.planted})


def planted(task: Task, clients: int) -> Task:
    """Return a task in which the labels of the first clients are shifted to the next class."""
    targets = task.train.targets.clone()
    for own in task.partition.indices[:clients]:
        rows = torch.from_numpy(own.copy())
        targets[rows] = (targets[rows] + 1) % task.train.num_classes
    return task.replace(train=dataclasses.replace(task.train, targets=targets))


def run(cell: StudyCell[Setting]) -> Row:
    """Train a variant; on the digits some of them again, with planted clients."""
    setting, seed = cell.setting, cell.seed
    task, chosen = learning_task(cell.task, setting.clients, seed), algorithm(cell.variant, setting)

    def mean_accuracy(history: History) -> Row:
        scores = [task.evaluate(weights).accuracy for weights in history.personal.values()]
        return {"mean_accuracy": float(np.mean(scores))} if scores else {}

    found = trained(task, chosen, setting, seed, at_end=mean_accuracy)
    if isinstance(chosen, Gapsl) and cell.variant in WATCHED and cell.task.startswith("digits"):
        again = trained(planted(task, setting.planted), watched(chosen, setting), setting, seed)
        found["leaders_free"] = again["leaders_free"]
    return found


def all_tables(found: Found[Setting]) -> dict[str, list[Row]]:
    """Return means over seeds: how good models are, what it costs, whom GAPSL and its variants choose; and every run."""
    chosen = ("leader_share", "kept_clients", "angle_spread", "leaders_free")
    choices = [
        {name: row[name] for name in ("task", "variant", *chosen)}
        for row in summary(found, chosen)
        if row["variant"] in ("gapsl", *ABLATIONS)
    ]
    scores = summary(found, ("accuracy", "mean_accuracy", "personal_accuracy"))
    return {"summary": scores, "choices": choices, "runs": tables(found)["runs"]}


def _above(text: str, second: str, task: str, source: Source = "paper", above: float = 0.0) -> Claim:
    test = Difference(metric="accuracy", first="gapsl", second=second, above=above, task=task)
    return Claim(text=text, source=source, test=test)


CLAIMS = (
    _above("GAPSL is above parallel split learning on digits with alpha 0.1", "psl", "digits-0.1"),
    _above("GAPSL is above parallel split learning on MNIST-1D with alpha 0.1", "psl", "mnist-1d-0.1"),
    _above(
        "On digits with alpha 0.5, GAPSL is at most 2 points below parallel split learning",
        "psl",
        "digits-0.5",
        "ours",
        -0.02,
    ),
    _above("GAPSL is above SplitFed on digits with alpha 0.1", "splitfed-v1", "digits-0.1"),
    _above("GAPSL is above SplitFed on MNIST-1D with alpha 0.1", "splitfed-v1", "mnist-1d-0.1"),
    _above("GAPSL is above SplitFed on evenly spread digits", "splitfed-v1", "digits-iid"),
    _above(
        "Who is kept matters: on digits with alpha 0.1, GAPSL is above as many random clients",
        "random-clients",
        "digits-0.1",
    ),
    _above("On digits with alpha 0.1, near leaders are better than random ones", "random-leader", "digits-0.1"),
    _above(
        "On digits with alpha 0.1, near leaders are better than the mean over all clients", "all-lead", "digits-0.1"
    ),
    _above(
        "On digits with alpha 0.1, alignment is better than the leading gradient alone", "leader-only", "digits-0.1"
    ),
    Claim(
        text="On digits with alpha 0.1, learning from few clients is what helps: random ones are above parallel split learning",
        source="ours",
        test=Difference(metric="accuracy", first="random-clients", second="psl", above=0.0, task="digits-0.1"),
    ),
    Claim(
        text="On digits with alpha 0.1, the mean over the clients' own models is the same with GAPSL within 2 points",
        source="ours",
        test=Difference(
            metric="mean_accuracy", first="gapsl", second="psl", above=-0.02, below=0.02, task="digits-0.1"
        ),
    ),
    Claim(
        text="Evenly spread digits: in at least half of the rounds, no planted client leads",
        source="ours",
        test=Level(metric="leaders_free", variant="gapsl", above=0.5, task="digits-iid"),
    ),
    Claim(
        text="Evenly spread digits: planted clients lead less often than by chance",
        source="ours",
        test=Difference(metric="leaders_free", first="gapsl", second="random-leader", above=0.0, task="digits-iid"),
    ),
    Claim(
        text="Digits with alpha 0.1: planted clients lead less often than by chance",
        source="ours",
        test=Difference(metric="leaders_free", first="gapsl", second="random-leader", above=0.0, task="digits-0.1"),
    ),
    Claim(
        text="GAPSL sends fewer bytes than parallel split learning, on all tasks",
        source="ours",
        test=Ratio(metric="megabytes", first="gapsl", second="psl", below=1.0),
    ),
)

STUDY = Study(
    name="gapsl",
    title="GAPSL: parallel split learning from clients whose gradients agree, beside split and federated learning",
    system="gapsl",
    baselines=BASELINES,
    ablations=ABLATIONS,
    tasks=TASKS,
    full=Setting(),
    quick=Setting(clients=4, rounds=6, every=3, batch=8),
    quick_tasks=("digits-0.1",),
    measure=run,
    claims=CLAIMS,
    tables=all_tables,
    pictures=pictures,
)  # fmt: skip
