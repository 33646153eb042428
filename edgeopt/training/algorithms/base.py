"""What a learning algorithm is: pure functions of explicit state, on the server's side and on the client's."""

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch

from edgeopt.display import one_line
from edgeopt.schedule import RoundPlan
from edgeopt.training.messages import Message, Phase, Replies, State, Tensors
from edgeopt.training.task import Batch, Task


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What a round left behind.

    Parameters
    ----------
    state : of the server, after the round.
    loss : mean training loss by entry of the plan, scalars; of those entries only whose update arrived.
    """

    state: State
    loss: Mapping[int, torch.Tensor]

    __repr__ = one_line


class Algorithm(Protocol):
    """A learning algorithm: a frozen dataclass of its hyper-parameters with these methods.

    Nothing is kept in the object. Clients see messages only, so where they run is not the algorithm's business.
    """

    name: ClassVar[str]

    def start(self, task: Task) -> State:
        """Return the server's state before the first round."""
        ...

    def round(self, task: Task, state: State, plan: RoundPlan, number: int) -> Generator[Phase, Replies, Outcome]:
        """Play one round: yield phases, get the replies to each of them, return the outcome.

        Entries whose client failed are missing in the replies; an algorithm goes on without them. An empty plan is
        valid: the state stays.
        """
        ...

    def client(self, task: Task, message: Message, state: State, batch: Batch | None) -> tuple[Message, State]:
        """Do a client's work for one message.

        Pure: it reads the model's layers and losses of the task, but no data except `batch`, and changes nothing in
        place. No decision may depend on the value of a tensor, so that many clients can run as one batch.

        Parameters
        ----------
        message : from the server.
        state : what the client remembers from earlier rounds; empty at first.
        batch : the mini-batches that ``message.batches`` asks for.

        Returns
        -------
        The reply, made by `edgeopt.training.messages.reply`, and the client's new state.
        """
        ...

    def models(self, task: Task, state: State, clients: Mapping[int, State]) -> list[Tensors]:
        """Return the models that are judged after a round; their mean score counts.

        Parameters
        ----------
        clients : the states of the clients that have any, by id.
        """
        ...
