"""Vanilla split learning: clients one after another, the client part is handed on (Vepakomma et al., arXiv:1812.00564)."""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from edgeopt.schedule import RoundPlan
from edgeopt.training.algorithm import Models, Outcome
from edgeopt.training.messages import Message, Phase, Replies, State
from edgeopt.training.optimizers import Optimizer, Sgd
from edgeopt.training.rules.common import check_batch_size, tensors_of
from edgeopt.training.split.exchange import assign, check_cut_layer, play_steps, split_client
from edgeopt.training.split.server import SharedModel
from edgeopt.training.task import Batch, Task


@dataclass(frozen=True, slots=True)
class VanillaSplit:
    """Vanilla split learning: there is one model, and clients train it in turn, in the order of the plan.

    A turn starts with the layers up to the client's cut coming from the server (``hand over``) and ends with them going
    back (``hand back``), so that cuts may differ and move freely. Both are charged, always. The optimiser's state stays
    where it is: a client keeps that of its layers for its next turn. The plan's aggregation flag has no meaning here.

    If a client fails, its turn has not happened: the model is as before. The training loss leaves out the balance loss of
    mixture-of-experts layers that are at clients.

    Parameters
    ----------
    optimizer : of clients and server.
    batch_size, cut_layer : where the plan leaves them open.
    """

    name: ClassVar[str] = "vanilla-split"

    optimizer: Optimizer = field(default_factory=Sgd)
    batch_size: int = 16
    cut_layer: int = 1

    def __post_init__(self) -> None:
        check_batch_size(self.batch_size)
        check_cut_layer(self.cut_layer)

    def start(self, task: Task) -> State:
        """Return the initial weights."""
        weights = task.initial_weights()
        return {"weights": dict(weights), "optimizer": self.optimizer.start(task.trained(weights))}

    def round(self, task: Task, state: State, plan: RoundPlan, number: int) -> Generator[Phase, Replies, Outcome]:
        """Give each client its turn."""
        assigned = assign(task, plan, number, self.cut_layer, self.batch_size, self.optimizer)
        losses: dict[int, torch.Tensor] = {}
        for entry, assignment in assigned.items():
            weights, optimizer = tensors_of(state, "weights"), state["optimizer"]
            assert isinstance(optimizer, dict)
            server = SharedModel(task, self.optimizer, assigned, weights, optimizer)
            layers = task.part(weights, 0, assignment.cut)
            given = yield Phase("hand over", {entry: Message("place", {"weights": layers}, {"cut": assignment.cut})})
            if entry not in given:
                continue
            trained = yield from play_steps(task, {entry: assignment}, number, server.work)
            if entry not in trained:
                continue
            back = yield Phase("hand back", {entry: Message("fetch", {}, {"first": 0, "last": assignment.cut})})
            if entry not in back:
                continue
            state = {"weights": {**server.weights, **back[entry]["weights"]}, "optimizer": server.state}
            losses |= trained
        return Outcome(state, losses)

    def client(self, task: Task, message: Message, state: State, batch: Batch | None) -> tuple[Message, State]:
        """Work with the layers up to the cut."""
        return split_client(task, self.optimizer, message, state, batch)

    def models(self, task: Task, state: State, clients: Mapping[int, State]) -> Models:
        """Return the model as it was handed back last."""
        return {None: tensors_of(state, "weights")}
