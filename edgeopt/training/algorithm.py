"""What a learning algorithm is: pure functions of explicit state, on the server's side and on the client's."""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

import torch

from edgeopt.display import one_line
from edgeopt.schedule import RoundPlan
from edgeopt.training.messages import Message, Phase, Replies, State, Tensors
from edgeopt.training.task import Batch, Task

Models = Mapping[int | str | None, Tensors]
"""Weights of models: by id those that clients have of their own, under None the common one; where several servers have
one each, by texts such as ``server 0``."""


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What a round left behind.

    Parameters
    ----------
    state : of the server, after the round.
    loss : mean training loss by entry of the plan, scalars; of those entries only whose update arrived.
    measured : numbers of this round by name, for its row, for TensorBoard and for the planner; nan where there is none.
    """

    state: State
    loss: Mapping[int, torch.Tensor]
    measured: Mapping[str, float | torch.Tensor] = field(default_factory=dict)

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

    def models(self, task: Task, state: State, clients: Mapping[int, State]) -> Models:
        """Return the models that are judged after a round, see `Models`.

        Parameters
        ----------
        clients : the states of the clients that have any, by id.
        """
        ...


@runtime_checkable
class SplitAlgorithm(Algorithm, Protocol):
    """An algorithm of split learning: its clients send what their layers up to a cut return."""

    @property
    def cut_layer(self) -> int:
        """The cut where the plan leaves it open: clients have layers 1 to it."""
        ...


@runtime_checkable
class PredictingAlgorithm(Algorithm, Protocol):
    """An algorithm whose models, when they are used, are more than their weights: a code at the cut, a steered output."""

    def predict(
        self,
        task: Task,
        weights: Tensors,
        inputs: torch.Tensor,
        key: int | str | None,
        state: State,
        clients: Mapping[int, State],
    ) -> torch.Tensor:
        """Return the outputs [samples, ...] of one of the models for held-out inputs, in place of `Task.predict`.

        Parameters
        ----------
        weights : of the model that `models` gave under `key`.
        state, clients : as `models` was given them.
        """
        ...
