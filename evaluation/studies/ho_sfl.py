"""HO-SFL: what it costs in accuracy that clients run forward only, and what it saves.

``edgeopt study ho-sfl --out out/ho-sfl``

Ten clients, one mini-batch each in every round: perceptrons that are cut after their first layer on digits and MNIST-1D,
and a small decoder, cut after its first attention block, that predicts the next byte of English text. Beside HO-SFL with
five probes, the split and federated algorithms with exact gradients, pure zeroth-order split learning, and HO-SFL with
other probes. All have Adam with one step size, but FedAvg, whose clients start anew in every round. ``number_bytes`` is
what a client sends in a step for the aggregation. At the end of its training, the estimate of HO-SFL is held against the
exact gradient: ``cosine`` is their mean cosine with 256 probes on mini-batches of some clients, and ``cosine_off`` how
far that is from 1 / sqrt(1 + (d + 1) / P).
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch.func import grad

from edgeopt.data import byte_text, iid
from edgeopt.evaluation.compare.rows import Row
from edgeopt.evaluation.studies import learning
from edgeopt.evaluation.studies.claims import Always, Claim, Difference, Level, Ordering, Ratio, Source
from edgeopt.evaluation.studies.learning import LearningSetting, learning_task, pictures, summary, trained
from edgeopt.evaluation.studies.study import Found, Study, StudyCell
from edgeopt.models import gpt2
from edgeopt.training import (
    Adam,
    Algorithm,
    Batches,
    FedAvg,
    History,
    HoSfl,
    ParallelSplit,
    Sgd,
    SplitFed,
    SplitFedV2,
    Task,
    ZoSfl,
)
from edgeopt.training.messages import Tensors
from edgeopt.training.rules.probes import Probes, norm_of
from edgeopt.training.split.replay import trained_in_order
from edgeopt.training.split.server import server_gradients

TEXT = "text-iid"
TASKS = ("digits-0.1", "digits-0.5", "digits-iid", "mnist-1d-0.5", TEXT)
BASELINES = ("splitfed-v1", "splitfed-v2", "psl", "fedavg", "zo-sfl")
ABLATIONS = ("2-probes", "20-probes", "rademacher")
COSINE_PROBES, COSINE_CLIENTS = 256, 4
_CONTEXT, _TESTED = 32, 4  # bytes of a sample; one in so many samples that are held out is tested


@dataclass(frozen=True, slots=True)
class Setting(LearningSetting):
    """What all runs have in common.

    Parameters
    ----------
    probes, mu : of HO-SFL and ZO-SFL.
    lr : of Adam, of clients and server.
    fedavg_lr : of the SGD of FedAvg.
    text_rounds, text_batch, text_cut, text_lr : on text, in the place of the others.
    """

    rounds: int = 600
    every: int = 20
    probes: int = 5
    mu: float = 1e-3
    lr: float = 0.005
    fedavg_lr: float = 0.3
    text_rounds: int = 200
    text_batch: int = 8
    text_cut: int = 2
    text_lr: float = 0.01

    def on(self, task: str) -> "Setting":
        """Return the setting of a task."""
        if task != TEXT:
            return self
        return dataclasses.replace(
            self, rounds=self.text_rounds, batch=self.text_batch, cut=self.text_cut, lr=self.text_lr
        )


def algorithm(variant: str, setting: Setting) -> Algorithm:
    """Return the algorithm of a variant."""
    optimizer = Adam(setting.lr)
    system = HoSfl(optimizer, probes=setting.probes, mu=setting.mu)
    variants: dict[str, Algorithm] = {
        "ho-sfl": system,
        "splitfed-v1": SplitFed(optimizer),
        "splitfed-v2": SplitFedV2(optimizer),
        "psl": ParallelSplit(optimizer),
        "fedavg": FedAvg(Sgd(setting.fedavg_lr)),
        "zo-sfl": ZoSfl(optimizer, probes=setting.probes, mu=setting.mu),
        "2-probes": dataclasses.replace(system, probes=2),
        "20-probes": dataclasses.replace(system, probes=20),
        "rademacher": dataclasses.replace(system, distribution="rademacher"),
    }
    return variants[variant]


def text_task(clients: int, seed: int) -> Task:
    """Return windows of English text, spread evenly, and a decoder of two blocks of a few thousand weights."""
    data = byte_text(context=_CONTEXT)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = gpt2(vocabulary=256, context=_CONTEXT, width=16, depth=2, heads=4, tied=False, fused=False)
    test = data.test.take(np.arange(0, len(data.test), _TESTED))
    partition = iid(len(data.train), clients, seed=seed)
    return Task(model=model, train=data.train, partition=partition, test=test, seed=seed)


def run(cell: StudyCell[Setting]) -> Row:
    """Train a variant; look at the estimate of HO-SFL where it has ended."""
    setting, seed = cell.setting.on(cell.task), cell.seed
    task = text_task(setting.clients, seed) if cell.task == TEXT else learning_task(cell.task, setting.clients, seed)
    chosen = algorithm(cell.variant, setting)

    def at_end(history: History) -> Row:
        found: Row = {}
        if isinstance(chosen, HoSfl):
            found["number_bytes"] = history.rows[-1]["scalars_up"] / (setting.rounds * setting.steps * setting.clients)
        if cell.variant == STUDY.system:
            (weights,) = history.models
            found |= cosines(task, {name: weights[name] for name in task.weight_names}, setting)
        return found

    return trained(task, chosen, setting, seed, at_end=at_end)


def cosines(task: Task, weights: Tensors, setting: Setting) -> Row:
    """Return the mean cosine of estimates with exact gradients of the clients' layers, and how far it is from the law."""
    probes, found = Probes(COSINE_PROBES, setting.mu), []
    below = task.part(weights, 0, setting.cut)
    parameters = trained_in_order(task, below)
    for client in range(min(COSINE_CLIENTS, task.num_clients)):
        inputs, targets = (x[0] for x in task.batch(client, Batches(setting.rounds, 0, 1, setting.batch)))
        z = task.forward(below, inputs, 0, setting.cut, training=False).outputs
        upper = server_gradients(task, setting.cut, task.part(weights, setting.cut), (z, targets))

        def moved(  # by how much the loss is larger, to first order in what crosses the cut
            at: Tensors, inputs: torch.Tensor = inputs, z: torch.Tensor = z, by: torch.Tensor = upper.gradient
        ) -> torch.Tensor:
            return (by * (task.forward({**below, **at}, inputs, 0, setting.cut, training=False).outputs - z)).sum()

        exact = grad(moved)(parameters)
        directions = probes.directions(torch.tensor(client), parameters)
        with torch.no_grad():
            values = probes.around(moved, parameters, directions)
            estimate = probes.estimate(directions, dict.fromkeys(parameters, values))
        inner = sum(float((estimate[name] * exact[name]).sum()) for name in exact)
        found.append(inner / float(norm_of(estimate) * norm_of(exact)))
    size = sum(value.numel() for value in parameters.values())
    law = (1 + (size + 1) / COSINE_PROBES) ** -0.5
    return {"cosine": float(np.mean(found)), "cosine_law": law, "cosine_off": float(np.mean(found)) - law}


def tables(found: Found[Setting]) -> dict[str, list[Row]]:
    """Return means over seeds, the estimates of the system beside the law, and every run."""
    means = summary(found, ("accuracy", "peak_kilobytes", "number_bytes"))
    estimates = [
        {name: row[name] for name in ("task", "cosine", "cosine_law")}
        for row in summary(found, ("cosine", "cosine_law"))
        if row["variant"] == STUDY.system
    ]
    return {"summary": means, "estimates": estimates, "runs": learning.tables(found)["runs"]}


def _less(second: str, above: float, task: str | None) -> Difference:
    return Difference(metric="accuracy", first="ho-sfl", second=second, above=above, task=task)


_WORDS = {
    "digits-0.1": "digits with alpha 0.1",
    "digits-0.5": "digits with alpha 0.5",
    "digits-iid": "evenly spread digits",
    "mnist-1d-0.5": "MNIST-1D with alpha 0.5",
    TEXT: "text",
}
_SOURCES: dict[str, Source] = {"digits-iid": "paper", TEXT: "paper"}

CLAIMS = (
    *(
        Claim(
            text=f"On {words}, HO-SFL is at most 2 points below SplitFed, with exact gradients",
            source=_SOURCES.get(task, "ours"),
            test=_less("splitfed-v1", -0.02, task),
        )
        for task, words in _WORDS.items()
    ),
    Claim(
        text="Where labels are most uneven, on digits with alpha 0.1, HO-SFL is above SplitFed",
        source="paper",
        test=_less("splitfed-v1", 0.0, "digits-0.1"),
    ),
    *(
        Claim(
            text=f"On {words}, HO-SFL is at least 5 points above pure zeroth order",
            source="paper",
            test=_less("zo-sfl", 0.05, task),
        )
        for task, words in _WORDS.items()
    ),
    Claim(
        text="More probes are better: 20 above 5 above 2, over all tasks",
        source="ours",
        test=Ordering(metric="accuracy", variants=("20-probes", "ho-sfl", "2-probes")),
    ),
    Claim(
        text="Directions of -1 and 1 are as good as Gaussian ones within 1 point, over all tasks",
        source="ours",
        test=Difference(metric="accuracy", first="rademacher", second="ho-sfl", above=-0.01, below=0.01),
    ),
    Claim(
        text="The cosine of the estimate with the exact gradient is 1 / sqrt(1 + (d + 1) / P) within 0.03, over all tasks",
        source="ours",
        test=Level(metric="cosine_off", variant="ho-sfl", above=-0.03, below=0.03),
    ),
    *(
        Claim(
            text=f"A client sends {4 * probes} bytes in a step for the aggregation, whatever its layers",
            source="paper",
            test=Always(metric="number_bytes", variants=(variant,), above=4 * probes - 1e-9, below=4 * probes + 1e-9),
        )
        for variant, probes in (("ho-sfl", 5), ("2-probes", 2), ("20-probes", 20))
    ),
    Claim(
        text="Clients need less memory than with SplitFed at the same cut, on all tasks",
        source="paper",
        test=Ratio(metric="peak_kilobytes", first="ho-sfl", second="splitfed-v1", below=1.0),
    ),
    Claim(
        text="On text, clients need less than half of the memory that SplitFed takes at the same cut",
        source="ours",
        test=Ratio(metric="peak_kilobytes", first="ho-sfl", second="splitfed-v1", below=0.5, task=TEXT),
    ),
    Claim(
        text="HO-SFL moves fewer bytes than SplitFed that averages in every round, over all tasks",
        source="paper",
        test=Ratio(metric="megabytes", first="ho-sfl", second="splitfed-v1", below=1.0),
    ),
)

STUDY = Study(
    name="ho-sfl",
    title="HO-SFL: clients without a backward pass, beside exact gradients and pure zeroth order",
    system="ho-sfl",
    baselines=BASELINES,
    ablations=ABLATIONS,
    tasks=TASKS,
    full=Setting(),
    quick=Setting(clients=3, rounds=4, every=2, text_rounds=2),
    quick_tasks=("digits-0.5", TEXT),
    measure=run,
    claims=CLAIMS,
    tables=tables,
    pictures=pictures,
)
