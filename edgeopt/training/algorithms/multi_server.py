"""FedAvg at several servers at once, each with a model and clients of its own: what conflict-aware selection trains.

The servers are those of *Conflict-Aware Client Selection for Multi-Server Federated Learning* (arXiv 2602.02458). They
do not exchange models: that is our reading, no such step is known to us.
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from edgeopt.errors import InvalidProblemError
from edgeopt.schedule import RoundPlan
from edgeopt.training.algorithm import Models, Outcome
from edgeopt.training.algorithms.common import (
    Weighting,
    check_batch_size,
    check_weighting,
    client_weight,
    tensors_of,
)
from edgeopt.training.algorithms.fedavg import train_messages
from edgeopt.training.messages import Message, Phase, Replies, State, reply
from edgeopt.training.optimizers import Optimizer, Sgd
from edgeopt.training.rules.average import weighted_average
from edgeopt.training.rules.local import train_locally
from edgeopt.training.task import Batch, Task
from edgeopt.validate import int_array


@dataclass(frozen=True, slots=True)
class MultiServerFedAvg:
    """One FedAvg per server: its model goes to the clients that the plan gives it, and becomes the mean of what arrives.

    Servers start from the same weights and share clients, nothing else. A client that two servers have picked trains
    both models, each on the same mini-batches; whether the updates arrive is up to the timing, as
    `edgeopt.training.SelectionTiming` decides it. A server to which nothing arrives keeps its model. The mean of the
    servers' scores is what counts.

    Parameters
    ----------
    num_servers : servers S; the plan numbers them from 0.
    optimizer, batch_size, weighting : as in `edgeopt.training.FedAvg`.
    """

    name: ClassVar[str] = "multi-server-fedavg"

    num_servers: int = 1
    optimizer: Optimizer = field(default_factory=Sgd)
    batch_size: int = 16
    weighting: Weighting = "samples"

    def __post_init__(self) -> None:
        int_array("num_servers", self.num_servers, (), low=1)
        check_batch_size(self.batch_size)
        check_weighting(self.weighting)

    def start(self, task: Task) -> State:
        """Return the initial weights of each server, by its number."""
        return {str(server): dict(task.initial_weights()) for server in range(self.num_servers)}

    def round(self, task: Task, state: State, plan: RoundPlan, number: int) -> Generator[Phase, Replies, Outcome]:
        """Have every server send its model, all at once; average what comes back to each."""
        if (unknown := np.flatnonzero(plan.server >= self.num_servers)).size:
            raise InvalidProblemError(
                f"round {number}: server[{unknown[0]}] = {plan.server[unknown[0]]}: "
                f"expected 0 to {self.num_servers - 1}, num_servers = {self.num_servers}"
            )
        entries = {server: np.flatnonzero(plan.server == server) for server in np.unique(plan.server).tolist()}
        messages: dict[int, Message] = {}
        for server, own in entries.items():
            sent = train_messages(task, tensors_of(state, str(server)), plan.take(own), number, self.batch_size)
            messages |= {int(own[position]): message for position, message in sent.items()}
        replies = yield Phase("train", dict(sorted(messages.items())))
        state = dict(state)
        for server, own in entries.items():
            if arrived := [int(entry) for entry in own if int(entry) in replies]:
                shares = [client_weight(task, plan[entry].client, self.weighting) for entry in arrived]
                models = [replies[entry]["weights"] for entry in arrived]
                state[str(server)] = dict(weighted_average(models, shares))
        return Outcome(state, {entry: answer["scalars"]["loss"] for entry, answer in replies.items()})

    def client(self, task: Task, message: Message, state: State, batch: Batch | None) -> tuple[Message, State]:
        """Train the received model."""
        assert batch is not None
        start = self.optimizer.start(task.trained(message["weights"]))
        weights, _, loss = train_locally(task, message["weights"], batch, self.optimizer, start)
        return reply(weights=weights, scalars={"loss": loss}), state

    def models(self, task: Task, state: State, clients: Mapping[int, State]) -> Models:
        """Return the model of each server."""
        return {f"server {server}": tensors_of(state, str(server)) for server in range(self.num_servers)}
