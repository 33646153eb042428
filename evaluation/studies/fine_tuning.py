"""What studies of mixtures of experts have in common: a classifier that is fine-tuned, training alone, routing and caching.

The classifier of a task is trained centrally on the other domain (`pretraining`); then all but its experts and router is
frozen, and clients fine-tune these on the task. The task `TEXT`, on demand, is a decoder that reads bytes: pre-trained on
text read backwards, fine-tuned on text that clients hold by topics.
"""

import copy
import dataclasses
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors.torch import load_file, save

import edgeopt
from edgeopt import EdgeNetwork, RoundPlan, storage
from edgeopt.data import ArrayData, by_column
from edgeopt.evaluation.compare.rows import Row
from edgeopt.evaluation.studies.learning import learning_task
from edgeopt.evaluation.studies.pretraining import other_domain, pretrained, text_and_other_domain
from edgeopt.evaluation.studies.study import StudyCell
from edgeopt.inference.distributed import simulate_inference
from edgeopt.inference.routing import RoutingRecord, record_users
from edgeopt.models import moe_decoder, moe_mlp
from edgeopt.problems import ExpertCaching
from edgeopt.rng import stream
from edgeopt.solvers.expert_caching import Greedy
from edgeopt.training import (
    Batch,
    FedAvg,
    History,
    Message,
    Models,
    Outcome,
    Phase,
    Replies,
    State,
    Task,
    Tensors,
    minimise,
    reply,
    tensors_of,
    train_messages,
)
from edgeopt.training.rules.whole_model import losses_of

TEXT = "text"
CONTEXT, WIDTH = 32, 32  # of the decoder
STORAGE = 0.25  # of all experts, on each server
DEVICES = 4  # around each server
TOKENS = 200  # of each client, for counting and again for the simulation; a sample of a classifier is one


def fine_tuning_task(cell: StudyCell[Any], clients: int) -> Task:
    """Return the task of a cell with a pre-trained mixture of experts, whose experts and router are trained.

    The model is pre-trained once for all variants.
    """
    task, before = (
        _text_task(clients, cell.seed) if cell.task == TEXT else _classifier_task(cell.task, clients, cell.seed)
    )

    def make(path: Path) -> None:
        model = pretrained(task, before, steps=min(600, 15 * cell.setting.rounds))
        storage.write_atomic(path, lambda file: file.write(save(dict(model.state_dict()))))

    model = copy.deepcopy(task.model)
    model.load_state_dict(load_file(cell.keep(f"{cell.task}-{cell.seed}.safetensors", make)))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(name.startswith(f"{layer}.") for layer in task.experts))
    return task.replace(model=model, profile=task.profile)


def _classifier_task(name: str, clients: int, seed: int) -> tuple[Task, ArrayData]:
    return learning_task(name, clients, seed, model=moe_mlp), other_domain(name.rsplit("-", 1)[0], seed)


def _text_task(clients: int, seed: int) -> tuple[Task, ArrayData]:
    data, backwards = text_and_other_domain(CONTEXT, seed, "mixtures")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = moe_decoder(context=CONTEXT, width=WIDTH, hidden=2 * WIDTH)
    assert data.train.group is not None
    partition = by_column(data.train.group % clients)
    return Task(model=model, train=data.train, partition=partition, test=data.test, seed=seed), backwards


@dataclass(frozen=True, slots=True)
class LocalOnly(FedAvg):
    """Training alone: a client gets the model once, keeps it, and sends nothing but its loss."""

    name: ClassVar[str] = "local-only"

    def start(self, task: Task) -> State:
        """Return who has the model: nobody."""
        return {"has model": torch.zeros(task.num_clients, dtype=torch.bool)}

    def round(self, task: Task, state: State, plan: RoundPlan, number: int) -> Generator[Phase, Replies, Outcome]:
        """Have clients go on."""
        has = state["has model"]
        assert isinstance(has, torch.Tensor)
        known: list[bool] = has.tolist()
        first = task.initial_weights()
        messages = train_messages(
            task, lambda entry: {"weights": {} if known[plan.client[entry]] else first}, plan, number, self.batch_size,
            optimizer=self.optimizer,
        )  # fmt: skip
        replies = yield Phase("train", messages)
        has = has.clone()
        has[plan.client[list(replies)].tolist()] = True
        return Outcome({"has model": has}, losses_of(replies))

    def client(self, task: Task, message: Message, state: State, batch: Batch | None) -> tuple[Message, State]:
        """Train the own model."""
        assert batch is not None
        own = message["weights"] or tensors_of(state, "weights")
        trained = minimise(task, task.batch_loss, own, batch, self.optimizer)
        return reply(scalars={"loss": trained.loss}), {"weights": dict(trained.weights)}

    def models(self, task: Task, state: State, clients: Mapping[int, State]) -> Models:
        """Return the clients' models; there is no common one."""
        return {client: tensors_of(own, "weights") for client, own in clients.items()}


def models_in_use(task: Task, history: History) -> dict[int, Tensors]:
    """Return the model that each client ends with: its own, or the common one."""
    return {client: history.personal.get(client, history.models[0]) for client in range(task.num_clients)}


def of_clients(task: Task) -> Callable[[History], Row]:
    """Return what tells how good the models are that clients end with, each on labels like its own."""

    def told(history: History) -> Row:
        found = [task.evaluate(own, client=client).accuracy for client, own in models_in_use(task, history).items()]
        return {"local_accuracy": float(np.mean(found)), "local_worst": float(np.min(found))}

    return told


# --- routing, and experts that are cached ---------------------------------------------------------------------------


def samples_of(task: Task, client: int, count: int, name: str) -> torch.Tensor:
    """Return held-out samples drawn with the labels of a client, [count, ...]."""
    own, counts = np.unique(task.train.labels[task.partition.indices[client]], return_counts=True)
    there = np.isin(own, task.test.labels)
    own, counts = own[there], counts[there]
    rng = stream(task.seed, name, client)
    labels = rng.choice(own, count, p=counts / counts.sum())
    rows = [rng.choice(np.flatnonzero(task.test.labels == label)) for label in labels]
    return task.test.inputs[torch.tensor(rows)]


def recorded(task: Task, models: Mapping[int, Tensors], name: str) -> RoutingRecord:
    """Return which experts the model of each client takes for samples of its own."""
    count = TOKENS if task.test.targets.ndim == 1 else -(-TOKENS // task.test.targets.shape[1])
    records = [
        record_users(task.model, samples_of(task, client, count, name)[None], name="moe", weights=task.whole(own))
        for client, own in models.items()
    ]
    return dataclasses.replace(records[0], experts=np.concatenate([record.experts for record in records]))


def cached_latency(task: Task, models: Mapping[int, Tensors]) -> Row:
    """Place the experts on the clients' servers and return what other samples take, in ms, and how routing differs.

    Every client is a place with a server and devices; the solver knows how often each client has used which experts
    on some samples, and time is measured on others.
    """
    counted, unseen = (recorded(task, models, name) for name in ("counted", "unseen"))
    clients = len(models)
    network = EdgeNetwork.random(clients, DEVICES * clients, seed=task.seed)
    readers = network.access_server[:, None] % clients
    problem = ExpertCaching.from_traces(counted.to_trace(), network, storage=STORAGE, assignment=readers)
    threads = torch.get_num_threads()
    placement: Any = edgeopt.solve(problem, Greedy()).raise_for_status().solution
    torch.set_num_threads(threads)  # compiled kernels leave another number behind, and threads wait for each other
    run = simulate_inference(problem, placement, unseen)
    share = (unseen.experts[..., None] == np.arange(unseen.num_experts)).mean(axis=(1, 2, 3))  # (G, E)
    return {
        "latency_ms": 1e3 * run.mean_s,
        "own_server": run.hit_ratio["own server"] + run.hit_ratio["device"],
        "cloud": run.hit_ratio["cloud"],
        "routing_distance": float(0.5 * np.abs(share - share.mean(axis=0)).sum(axis=1).mean()),
    }
