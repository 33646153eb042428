"""FedAvg: clients train the whole model for some steps, the server averages (McMahan et al., arXiv:1602.05629)."""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

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
from edgeopt.training.messages import Batches, Message, Phase, Replies, State, Tensors, reply
from edgeopt.training.optimizers import Optimizer, Sgd
from edgeopt.training.rules.average import weighted_average
from edgeopt.training.rules.local import train_locally
from edgeopt.training.task import Batch, Task


@dataclass(frozen=True, slots=True)
class FedAvg:
    """Average of models that the clients of a round have trained on their own data.

    Parameters
    ----------
    optimizer : of the clients; it starts anew in every round.
    batch_size : samples per local step where the plan leaves it open.
    weighting : whether a client counts by its ``samples`` or all ``uniform``.
    """

    name: ClassVar[str] = "fedavg"

    optimizer: Optimizer = field(default_factory=Sgd)
    batch_size: int = 16
    weighting: Weighting = "samples"

    def __post_init__(self) -> None:
        check_batch_size(self.batch_size)
        check_weighting(self.weighting)

    def start(self, task: Task) -> State:
        """Return the initial weights."""
        return {"weights": dict(task.initial_weights())}

    def round(self, task: Task, state: State, plan: RoundPlan, number: int) -> Generator[Phase, Replies, Outcome]:
        """Send the model, average what comes back."""
        replies = yield Phase(
            "train", train_messages(task, tensors_of(state, "weights"), plan, number, self.batch_size)
        )
        return averaged(task, state, plan, replies, self.weighting)

    def client(self, task: Task, message: Message, state: State, batch: Batch | None) -> tuple[Message, State]:
        """Train the received model."""
        assert batch is not None
        start = self.optimizer.start(task.trained(message["weights"]))
        weights, _, loss = train_locally(task, message["weights"], batch, self.optimizer, start)
        return reply(weights=weights, scalars={"loss": loss}), state

    def models(self, task: Task, state: State, clients: Mapping[int, State]) -> Models:
        """Return the server's model."""
        return {None: tensors_of(state, "weights")}


def train_messages(task: Task, weights: Tensors, plan: RoundPlan, number: int, batch_size: int) -> dict[int, Message]:
    """Return the messages that have every entry of the plan train the same model."""
    if not plan.aggregate:
        raise InvalidProblemError(
            f"round {number}: a plan without aggregation: expected aggregation in every round; local_steps makes rounds longer"
        )
    flops = task.flops(1)
    messages = {}
    for entry, client in enumerate(plan):
        size = client.batch_size or batch_size
        batches = Batches(number, 0, task.steps(client, size), size)
        samples = batches.count * task.samples(client.client, size)
        messages[entry] = Message("train", {"weights": weights}, {}, batches, samples * flops)
    return messages


def averaged(task: Task, state: State, plan: RoundPlan, replies: Replies, weighting: Weighting) -> Outcome:
    """Return the outcome of a round whose replies are trained models; without any, the state stays."""
    if replies:
        shares = [client_weight(task, int(plan.client[entry]), weighting) for entry in replies]
        state = {**state, "weights": dict(weighted_average([r["weights"] for r in replies.values()], shares))}
    return Outcome(state, {entry: r["scalars"]["loss"] for entry, r in replies.items()})
