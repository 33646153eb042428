"""FedAvg at several servers at once, each with a model and clients of its own: what conflict-aware selection trains.

The servers are those of *Conflict-Aware Client Selection for Multi-Server Federated Learning* (arXiv 2602.02458). They
do not exchange models: that is our reading, no such step is known to us.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from edgeopt.errors import InvalidProblemError
from edgeopt.schedule import RoundPlan
from edgeopt.training.algorithm import Models, Outcome
from edgeopt.training.algorithms.fedavg import AveragedModel
from edgeopt.training.messages import Phase, Replies, State, Tensors
from edgeopt.training.optimizers import Optimizer, Sgd
from edgeopt.training.rules.common import Weighting, tensors_of
from edgeopt.training.rules.whole_model import AverageOnArrival, losses_of, train_messages
from edgeopt.training.task import Task
from edgeopt.validate import int_array


@dataclass(frozen=True, slots=True)
class MultiServerFedAvg(AveragedModel):
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
        AveragedModel.__post_init__(self)

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
        weights = {str(server): tensors_of(state, str(server)) for server in np.unique(plan.server)}
        messages = train_messages(
            task,
            lambda entry: {"weights": weights[str(plan.server[entry])]},
            plan,
            number,
            self.batch_size,
            optimizer=self.optimizer,
        )
        averages = {
            server: AverageOnArrival(task, plan, np.flatnonzero(plan.server == server).tolist(), self.weighting)
            for server in np.unique(plan.server).tolist()
        }

        def take(entries: Sequence[int], arrived: Tensors) -> None:
            for server in np.unique(of := plan.server[list(entries)]).tolist():
                own = np.flatnonzero(of == server).tolist()
                some = arrived if len(own) == len(entries) else {name: value[own] for name, value in arrived.items()}
                averages[server].take([entries[position] for position in own], some)

        replies = yield Phase("train", messages, take={"weights": take})
        served = np.unique(plan.server[list(replies)]).tolist()
        return Outcome(
            {**state, **{str(server): dict(averages[server].mean()) for server in served}}, losses_of(replies)
        )

    def models(self, task: Task, state: State, clients: Mapping[int, State]) -> Models:
        """Return the model of each server."""
        return {f"server {server}": tensors_of(state, str(server)) for server in range(self.num_servers)}
