"""FlexP-SFL: what it is worth to hold the server's copies of personal models together, and how.

``edgeopt study flexp-sfl --out out/flexp-sfl``

Ten clients with cuts at one to three of four layers train on about a third of a data set: data are scarce, so others are
worth something. Every algorithm is judged for each client, by its own model or by the common one. On ``digits-renamed``
every client has five of each digit, and its own names for the ten classes: what one learns in its last layer is wrong for
the others.
"""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from edgeopt.data import Partition, dirichlet, iid
from edgeopt.evaluation.compare.rows import Row
from edgeopt.evaluation.studies.claims import Claim, Difference, Ratio
from edgeopt.evaluation.studies.learning import (
    MIN_SAMPLES,
    LearningSetting,
    learning_task,
    pictures,
    tables,
    trained,
)
from edgeopt.evaluation.studies.study import Found, Picture, Study, StudyCell
from edgeopt.models import mlp
from edgeopt.rng import stream
from edgeopt.schedule import RoundPlan
from edgeopt.training import (
    Algorithm,
    Batch,
    FedAvg,
    FlexpSfl,
    Message,
    Models,
    Outcome,
    ParallelSplit,
    Phase,
    Replies,
    Sgd,
    SplitFed,
    State,
    Task,
    Tensors,
    VanillaSplit,
)

RENAMED = "digits-renamed"
TASKS = ("digits-0.1", "digits-0.5", "digits-iid", "mnist-1d-0.1", "mnist-1d-0.5", RENAMED)
CUTS = (1, 1, 1, 1, 2, 2, 2, 3, 3, 3)
HEAD = 1  # layers of the head in the U shape
HIDDEN = {"digits": (32, 32, 32), "mnist-1d": (64, 64, 64)}
SHARE = 0.35  # of the training samples that clients have
EACH = 5  # samples of each digit of a client on digits-renamed
PROXY = 64  # samples that no client has


@dataclass(frozen=True, slots=True)
class Setting(LearningSetting):
    """What all runs have in common; cuts are `CUTS`.

    Parameters
    ----------
    lr, momentum : of clients and server.
    """

    lr: float = 0.05
    momentum: float = 0.9


@dataclass(frozen=True, slots=True)
class Given:
    """What is learnt: a task, samples without labels that nobody trains on, and how clients call the classes.

    Parameters
    ----------
    names : int64 [N, K], what client i calls class k; None where all call them alike.
    """

    task: Task
    proxy: torch.Tensor
    names: torch.Tensor | None


def given(name: str, setting: Setting, seed: int) -> Given:
    """Return a task by its name, with the part of the data that clients have."""
    source, spread = name.rsplit("-", 1)
    whole = learning_task(f"{source}-iid", setting.clients, seed, model=partial(mlp, hidden=HIDDEN[source]))
    data, count = whole.train, len(whole.train)
    if name == RENAMED:
        parts = _dealt(data.labels, setting.clients, seed)
        names = torch.stack(
            [torch.from_numpy(stream(seed, "names", i).permutation(data.num_classes)) for i in range(setting.clients)]
        )
        targets = data.targets.clone()
        for own, called in zip(parts, names, strict=True):
            targets[own] = called[targets[own]]
        data = replace(data, targets=targets)
    else:
        rows, names = np.sort(stream(seed, "part").permutation(count)[: round(SHARE * count)]), None
        labels = data.labels[rows]
        spread_over = (
            iid(labels, setting.clients, seed=seed)
            if spread == "iid"
            else dirichlet(labels, setting.clients, float(spread), seed=seed, min_samples=MIN_SAMPLES)
        )
        parts = [rows[own] for own in spread_over.indices]
    free = np.setdiff1d(np.arange(count), np.concatenate(parts))
    proxy = data.inputs[torch.from_numpy(stream(seed, "proxy").permutation(free)[:PROXY])]
    return Given(whole.replace(train=data, partition=Partition(tuple(parts), num_samples=count)), proxy, names)


def _dealt(labels: NDArray[np.int64], clients: int, seed: int) -> list[NDArray[np.int64]]:
    """Return for each client so many samples of every class."""
    rows = [stream(seed, "dealt", k).permutation(np.flatnonzero(labels == k)) for k in np.unique(labels)]
    return [np.sort(np.concatenate([own[EACH * i : EACH * (i + 1)] for own in rows])) for i in range(clients)]


@dataclass(frozen=True, slots=True)
class ForEach:
    """An algorithm whose models are judged for each client, with the client's names of the classes.

    A client without a model of its own is judged by the common one.
    """

    name: ClassVar[str] = "for-each"

    inner: Algorithm
    names: torch.Tensor | None = None

    def start(self, task: Task) -> State:
        """Return the other algorithm's state."""
        return self.inner.start(task)

    def round(self, task: Task, state: State, plan: RoundPlan, number: int) -> Generator[Phase, Replies, Outcome]:
        """Play the other algorithm's round."""
        return self.inner.round(task, state, plan, number)

    def client(self, task: Task, message: Message, state: State, batch: Batch | None) -> tuple[Message, State]:
        """Do the other algorithm's work."""
        return self.inner.client(task, message, state, batch)

    def models(self, task: Task, state: State, clients: Mapping[int, State]) -> Models:
        """Return a model for each client."""
        found = self.inner.models(task, state, clients)
        return {client: found[client] if client in found else found[None] for client in range(task.num_clients)}

    def predict(
        self,
        task: Task,
        weights: Tensors,
        inputs: torch.Tensor,
        key: int | str | None,
        state: State,
        clients: Mapping[int, State],
    ) -> torch.Tensor:
        """Return the scores of the classes as the test samples have them."""
        outputs = task.predict(weights, inputs)
        return outputs if self.names is None or not isinstance(key, int) else outputs[:, self.names[key]]


Make = Callable[[Sgd, torch.Tensor], Algorithm]

SYSTEM = "flexp-sfl"
MAKE: dict[str, Make] = {
    SYSTEM: lambda optimizer, proxy: FlexpSfl(optimizer, mu=0.5),
    "isolated": lambda optimizer, proxy: FlexpSfl(optimizer, alignment="none"),
    "hard": lambda optimizer, proxy: FlexpSfl(optimizer, alignment="hard"),
    "splitfed-v1": lambda optimizer, proxy: SplitFed(optimizer),
    "psl": lambda optimizer, proxy: ParallelSplit(optimizer),
    "vanilla-split": lambda optimizer, proxy: VanillaSplit(optimizer),
    "fedavg": lambda optimizer, proxy: FedAvg(Sgd(optimizer.lr / (1 - optimizer.momentum))),  # it forgets momentum
    "anchor-0.1": lambda optimizer, proxy: FlexpSfl(optimizer, mu=0.1),
    "anchor-2": lambda optimizer, proxy: FlexpSfl(optimizer, mu=2.0),
    "flexible": lambda optimizer, proxy: FlexpSfl(optimizer, mu=0.5, q=1.0),
    "kl-0.1": lambda optimizer, proxy: FlexpSfl(optimizer, alignment="kl", mu=0.1, proxy=proxy),
    "kl-0.5": lambda optimizer, proxy: FlexpSfl(optimizer, alignment="kl", mu=0.5, proxy=proxy),
    "u-shape": lambda optimizer, proxy: FlexpSfl(optimizer, mu=0.5, head_layers=HEAD),
}
BASELINES = ("isolated", "hard", "splitfed-v1", "psl", "vanilla-split", "fedavg")


def cuts(setting: Setting, *, most: int = max(CUTS)) -> NDArray[np.int32]:
    """Return the cut of each client."""
    every = np.array(CUTS, np.int32)[np.arange(setting.clients) * len(CUTS) // setting.clients]
    return np.minimum(every, most).astype(np.int32)


def run(cell: StudyCell[Setting]) -> Row:
    """Train a variant."""
    setting, seed = cell.setting, cell.seed
    of = given(cell.task, setting, seed)
    algorithm = MAKE[cell.variant](Sgd(setting.lr, setting.momentum), of.proxy)
    most = of.task.num_layers - HEAD - 1 if cell.variant == "u-shape" else max(CUTS)
    planner = setting.plan(cut_layer=cuts(setting, most=most))
    return trained(of.task, ForEach(algorithm, of.names), setting, seed, planner=planner)


def drawn(found: Found[Setting]) -> dict[str, Picture]:
    """Return accuracies for each client against rounds and bytes, and on all data against rounds."""
    return pictures(found, ("round", "megabytes"), "personal_accuracy") | pictures(found, ("round",))


def _better(first: str, second: str, task: str, metric: str = "personal_accuracy", by: float = 0.0) -> Difference:
    return Difference(metric=metric, first=first, second=second, above=by, task=task)


CLAIMS = (
    *(
        Claim(
            text=f"With alpha 0.1, the anchor with mu = {mu} is worth 2 points of personal accuracy over training alone",
            source="ours",
            test=_better(variant, "isolated", "digits-0.1", by=0.02),
        )
        for mu, variant in ((0.1, "anchor-0.1"), (0.5, SYSTEM))
    ),
    Claim(
        text="With alpha 0.1, the anchor is worth 1 point on the data of all over training alone",
        source="ours",
        test=_better(SYSTEM, "isolated", "digits-0.1", "accuracy", by=0.01),
    ),
    Claim(
        text="With alpha 0.1, personal models have a higher personal accuracy than SplitFed's one model",
        source="ours",
        test=_better(SYSTEM, "splitfed-v1", "digits-0.1"),
    ),
    Claim(
        text="With alpha 0.5, SplitFed's one model has a higher personal accuracy than personal models",
        source="ours",
        test=_better("splitfed-v1", SYSTEM, "digits-0.5"),
    ),
    Claim(
        text="Alignment by KL makes personal models better on the data of all than training alone, with alpha 0.1",
        source="reported",
        test=_better("kl-0.1", "isolated", "digits-0.1", "accuracy"),
    ),
    Claim(
        text="Alignment by KL makes personal models better on the data of all than training alone, on MNIST-1D with alpha 0.1",
        source="reported",
        test=_better("kl-0.1", "isolated", "mnist-1d-0.1", "accuracy"),
    ),
    *(
        Claim(
            text=f"A soft anchor has a higher personal accuracy than hard sharing, on {task}",
            source="ours",
            test=_better(SYSTEM, "hard", task),
        )
        for task in ("digits-0.1", RENAMED)
    ),
    Claim(
        text="Where clients name classes in their own way, a flexible strength has a higher personal accuracy than an equal one",
        source="ours",
        test=_better("flexible", SYSTEM, RENAMED),
    ),
    Claim(
        text="Where clients name classes in their own way, personal models have a higher personal accuracy than SplitFed's",
        source="ours",
        test=_better(SYSTEM, "splitfed-v1", RENAMED, by=0.2),
    ),
    Claim(
        text="As no weights move, fewer bytes cross than in SplitFed",
        source="ours",
        test=Ratio(metric="megabytes", first=SYSTEM, second="splitfed-v1", below=1.0),
    ),
)

STUDY: Study[Any] = Study(
    name="flexp-sfl",
    title="FlexP-SFL: personal models whose layers at the server are held together",
    system=SYSTEM,
    baselines=BASELINES,
    ablations=tuple(name for name in MAKE if name not in (SYSTEM, *BASELINES)),
    tasks=TASKS,
    full=Setting(rounds=30, steps=5, every=3),
    quick=Setting(clients=4, rounds=2, every=1),
    quick_tasks=("digits-0.1", RENAMED),
    measure=run,
    claims=CLAIMS,
    tables=tables,
    pictures=drawn,
)
