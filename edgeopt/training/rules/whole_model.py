"""What algorithms share that send a model to clients and take what comes back: messages, averages, losses."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from edgeopt.errors import InvalidProblemError
from edgeopt.schedule import RoundPlan
from edgeopt.training.costs.memory import client_peak_bytes
from edgeopt.training.messages import Batches, Category, Message, Replies, Tensors, Value
from edgeopt.training.optimizers import Optimizer
from edgeopt.training.rules.average import RunningAverage, weighted_average
from edgeopt.training.rules.common import Weighting, client_weight
from edgeopt.training.task import Task

Content = Mapping[Category, Tensors]


def train_messages(
    task: Task,
    content: Content | Callable[[int], Content],
    plan: RoundPlan,
    number: int,
    batch_size: int,
    *,
    optimizer: Optimizer | None = None,
    values: Callable[[int], Mapping[str, Value]] | None = None,
    flops: Callable[[int], float] | None = None,
    peak_bytes: Callable[[int], float] | None = None,
) -> dict[int, Message]:
    """Return messages ``train`` that have every entry of the plan work through its mini-batches.

    Parameters
    ----------
    content : what is sent, such as ``{"weights": weights}``: to everybody, or by entry.
    batch_size : where the plan leaves it open.
    optimizer : of the clients; its state counts as memory. Default: one without a state.
    values : plain values of the message, by entry. Default: none.
    flops : work per sample, by entry. Default: a forward and a backward pass through the whole model.
    peak_bytes : memory of the client, by entry. Default: what training the whole model takes.
    """
    if not plan.aggregate:
        raise InvalidProblemError(
            f"round {number}: a plan without aggregation: expected aggregation in every round; local_steps makes rounds longer"
        )
    whole = task.flops(1)
    peak = functools.cache(lambda samples: client_peak_bytes(task, samples, optimizer))
    messages = {}
    for entry, client in enumerate(plan):
        size = client.batch_size or batch_size
        batches = Batches(number, 0, task.steps(client, size), size, whole=client.local_epochs == 0)
        samples = task.samples(client.client, size)
        worked = task.num_samples(client.client, batches)
        messages[entry] = Message(
            "train",
            content(entry) if callable(content) else content,
            {} if values is None else values(entry),
            batches,
            worked * (whole if flops is None else flops(entry)),
            peak_bytes=peak(samples) if peak_bytes is None else peak_bytes(entry),
        )
    return messages


def average_of_replies(task: Task, plan: RoundPlan, replies: Replies, weighting: Weighting) -> Tensors:
    """Return the average of the weights in some replies, at least one."""
    clients = [int(plan.client[entry]) for entry in replies]
    shares = [client_weight(task, client, weighting) for client in clients]
    models = [answer["weights"] for answer in replies.values()]
    return weighted_average(models, shares, whose=[f"client {client}" for client in clients])


class AverageOnArrival:
    """The average of the weights in the replies to a phase, as they arrive: ``Phase(..., take={"weights": average.take})``.

    Parameters
    ----------
    entries : of the plan, that are asked to reply.
    """

    def __init__(self, task: Task, plan: RoundPlan, entries: Iterable[int], weighting: Weighting) -> None:
        self._clients = {entry: int(plan.client[entry]) for entry in entries}
        self._weights = {entry: client_weight(task, client, weighting) for entry, client in self._clients.items()}
        self._average = RunningAverage()

    def take(self, entries: Sequence[int], weights: Tensors) -> None:
        """Add the weights [S, ...] of S entries."""
        whose = [f"client {self._clients[entry]}" for entry in entries]
        self._average.add(weights, [self._weights[entry] for entry in entries], whose=whose)

    def mean(self) -> Tensors:
        """Return the average of the weights that have arrived, of one entry at least."""
        return self._average.mean()


def losses_of(replies: Replies) -> dict[int, torch.Tensor]:
    """Return the scalar ``loss`` of each reply."""
    return {entry: answer["scalars"]["loss"] for entry, answer in replies.items()}
