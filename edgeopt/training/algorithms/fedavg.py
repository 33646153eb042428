"""FedAvg: clients train the whole model for some steps, the server averages (McMahan et al., arXiv:1602.05629)."""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from edgeopt.schedule import RoundPlan
from edgeopt.training.algorithm import Models, Outcome
from edgeopt.training.messages import Message, Phase, Replies, State, Tensors, reply
from edgeopt.training.optimizers import Optimizer, Sgd
from edgeopt.training.rules.common import Weighting, check_batch_size, check_weighting, tensors_of
from edgeopt.training.rules.local import LocalLoss, minimise
from edgeopt.training.rules.whole_model import AverageOnArrival, Content, losses_of, train_messages
from edgeopt.training.task import Batch, Task


class AveragedModel:
    """What FedAvg and its relatives do: send the model, train it on a `local_loss`, average what comes back.

    It has no fields, so that each of them orders its own: `optimizer`, `batch_size`, `weighting`, and more.
    """

    __slots__ = ()

    optimizer: Optimizer
    batch_size: int
    weighting: Weighting

    def __post_init__(self) -> None:
        check_batch_size(self.batch_size)
        check_weighting(self.weighting)

    def local_loss(self, task: Task, received: Tensors) -> LocalLoss:
        """Return what a client minimises, given the weights that it has received: the task's loss."""
        return task.batch_loss

    def start(self, task: Task) -> State:
        """Return the initial weights."""
        return {"weights": dict(task.initial_weights())}

    def round(self, task: Task, state: State, plan: RoundPlan, number: int) -> Generator[Phase, Replies, Outcome]:
        """Send the model, average what comes back; if nothing does, the state stays."""
        content: Content = {"weights": tensors_of(state, "weights")}
        messages = train_messages(task, content, plan, number, self.batch_size, optimizer=self.optimizer)
        average = AverageOnArrival(task, plan, messages, self.weighting)
        replies = yield Phase("train", messages, take={"weights": average.take})
        if replies:
            state = {**state, "weights": dict(average.mean())}
        return Outcome(state, losses_of(replies))

    def client(self, task: Task, message: Message, state: State, batch: Batch | None) -> tuple[Message, State]:
        """Train the received model."""
        assert batch is not None
        received = message["weights"]
        trained = minimise(task, self.local_loss(task, received), received, batch, self.optimizer)
        return reply(weights=trained.weights, scalars={"loss": trained.loss}), state

    def models(self, task: Task, state: State, clients: Mapping[int, State]) -> Models:
        """Return the server's model."""
        return {None: tensors_of(state, "weights")}


@dataclass(frozen=True, slots=True)
class FedAvg(AveragedModel):
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
