"""FedProx: FedAvg whose clients are held near the server's model (Li et al., arXiv:1812.06127)."""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from edgeopt.schedule import RoundPlan
from edgeopt.training.algorithm import Models, Outcome
from edgeopt.training.algorithms.common import Weighting, check_batch_size, check_weighting, tensors_of
from edgeopt.training.algorithms.fedavg import averaged, train_messages
from edgeopt.training.messages import Message, Phase, Replies, State, reply
from edgeopt.training.optimizers import Optimizer, Sgd
from edgeopt.training.rules.local import train_locally
from edgeopt.training.task import Batch, Task
from edgeopt.validate import float_array


@dataclass(frozen=True, slots=True)
class FedProx:
    """FedAvg with ``mu / 2 ||w - received w||^2`` added to every client's loss; ``mu = 0`` is FedAvg.

    Parameters
    ----------
    mu : weight of the proximal term, >= 0.
    optimizer, batch_size, weighting : as in `edgeopt.training.FedAvg`.
    """

    name: ClassVar[str] = "fedprox"

    mu: float = 0.01
    optimizer: Optimizer = field(default_factory=Sgd)
    batch_size: int = 16
    weighting: Weighting = "samples"

    def __post_init__(self) -> None:
        float_array("mu", self.mu, (), nonnegative=True)
        check_batch_size(self.batch_size)
        check_weighting(self.weighting)

    def start(self, task: Task) -> State:
        """Return the initial weights."""
        return {"weights": dict(task.initial_weights())}

    def round(self, task: Task, state: State, plan: RoundPlan, number: int) -> Generator[Phase, Replies, Outcome]:
        """Send the model, average what comes back."""
        messages = train_messages(task, tensors_of(state, "weights"), plan, number, self.batch_size)
        replies = yield Phase("train", messages)
        return averaged(task, state, plan, replies, self.weighting)

    def client(self, task: Task, message: Message, state: State, batch: Batch | None) -> tuple[Message, State]:
        """Train the received model, held near to it."""
        assert batch is not None
        start = self.optimizer.start(task.trained(message["weights"]))
        weights, _, loss = train_locally(task, message["weights"], batch, self.optimizer, start, proximal=self.mu)
        return reply(weights=weights, scalars={"loss": loss}), state

    def models(self, task: Task, state: State, clients: Mapping[int, State]) -> Models:
        """Return the server's model."""
        return {None: tensors_of(state, "weights")}
