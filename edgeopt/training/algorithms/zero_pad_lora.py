"""Adapters of unequal rank, padded with zeros and averaged: the simplest way, and the baseline of the others."""

import dataclasses
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from edgeopt.schedule import RoundPlan
from edgeopt.training.algorithm import Outcome
from edgeopt.training.algorithms.fedavg import AveragedModel
from edgeopt.training.messages import Message, Phase, Replies, State, Tensors, reply
from edgeopt.training.optimizers import Adam, Optimizer
from edgeopt.training.rules.average import Shares, weighted_average
from edgeopt.training.rules.common import Weighting, client_weight, tensors_of
from edgeopt.training.rules.local import minimise
from edgeopt.training.rules.lora import (
    Adapter,
    adapters_of,
    lower_peak_bytes,
    row_masks,
    spared_work,
    truncated,
    uniform_ranks,
)
from edgeopt.training.rules.whole_model import losses_of, train_messages
from edgeopt.training.task import Batch, Task
from edgeopt.validate import integer


class PaddedAverage(AveragedModel):
    """What `ZeroPadLora` and `HetLora` do: truncate for each client, train, pad with zeros, average.

    A client of rank r gets the first r rows of A and columns of B of every adapter, and trains and returns those. It has no
    fields, so that each of them orders its own: `optimizer`, `batch_size`, `weighting`, `rank`.
    """

    __slots__ = ()

    rank: int

    def __post_init__(self) -> None:
        integer("rank", self.rank, low=0)
        AveragedModel.__post_init__(self)

    def shares(self, adapters: Sequence[Adapter], models: Sequence[Tensors], shares: Sequence[float]) -> Shares:
        """Return how much each model counts, given how much it does by the samples of its client: that much."""
        return shares

    def round(self, task: Task, state: State, plan: RoundPlan, number: int) -> Generator[Phase, Replies, Outcome]:
        """Send as much of the adapters as each client trains, average what comes back; if nothing does, the state stays."""
        adapters, weights = adapters_of(task), tensors_of(state, "weights")
        ranks = [uniform_ranks(adapters, client.rank or self.rank) for client in plan]
        masks = [row_masks(adapters, own) for own in ranks]
        samples = [task.samples(client.client, client.batch_size or self.batch_size) for client in plan]
        messages = train_messages(
            task,
            lambda entry: {"weights": truncated(weights, masks[entry])},
            plan,
            number,
            self.batch_size,
            flops=lambda entry: task.flops(1) - sum(spared_work(task, adapters, ranks[entry])),
            peak_bytes=lambda entry: lower_peak_bytes(task, samples[entry], self.optimizer, adapters, ranks[entry]),
        )
        messages = {entry: dataclasses.replace(m, rows=masks[entry]) for entry, m in messages.items()}
        replies = yield Phase("train", messages)
        if replies:
            state = {**state, "weights": dict(self._averaged(task, adapters, plan, replies))}
        return Outcome(state, losses_of(replies))

    def client(self, task: Task, message: Message, state: State, batch: Batch | None) -> tuple[Message, State]:
        """Train what was received; rows that were not stay zero."""
        assert batch is not None
        trained = minimise(task, task.batch_loss, message["weights"], batch, self.optimizer)
        return reply(weights=trained.weights, scalars={"loss": trained.loss}, rows=message.rows), state

    def _averaged(
        self, task: Task, adapters: Sequence[Adapter], plan: RoundPlan, replies: Mapping[int, Message]
    ) -> Tensors:
        clients = [int(plan.client[entry]) for entry in replies]
        models = [answer["weights"] for answer in replies.values()]
        shares = self.shares(adapters, models, [client_weight(task, client, self.weighting) for client in clients])
        return weighted_average(models, shares, whose=[f"client {client}" for client in clients])


@dataclass(frozen=True, slots=True)
class ZeroPadLora(PaddedAverage):
    """FedAvg over adapters of unequal rank: A and B are padded with zeros and averaged, each for itself.

    The mean of A times the mean of B is not the mean of the products; and rows that few clients have are diluted by the
    zeros of the others. Without adapters in the model it is FedAvg.

    Parameters
    ----------
    optimizer : of the clients; it starts anew in every round.
    batch_size : samples per local step where the plan leaves it open.
    weighting : whether a client counts by its ``samples`` or all ``uniform``.
    rank : of a client's adapters where the plan leaves it open; 0 is that of the model.
    """

    name: ClassVar[str] = "zero-pad-lora"

    optimizer: Optimizer = field(default_factory=lambda: Adam(0.01))
    batch_size: int = 16
    weighting: Weighting = "samples"
    rank: int = 0
