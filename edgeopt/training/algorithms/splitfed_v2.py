"""SplitFed V2: split learning with one model at the server and averaged clients (C. Thapa et al., arXiv:2004.12088)."""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from edgeopt.schedule import RoundPlan
from edgeopt.training.algorithm import Models, Outcome
from edgeopt.training.messages import Message, Phase, Replies, State, Tensors
from edgeopt.training.optimizers import Optimizer, Sgd
from edgeopt.training.rules.common import (
    Weighting,
    check_batch_size,
    check_weighting,
    client_weight,
    tensors_of,
)
from edgeopt.training.split.exchange import assign, check_cut_layer, play_steps, split_client
from edgeopt.training.split.placement import Placement, average_layers, mean_of_clients, move_layers, num_bytes
from edgeopt.training.split.server import SharedModel
from edgeopt.training.task import Batch, Task


@dataclass(frozen=True, slots=True)
class SplitFedV2:
    """SplitFed V2: clients in parallel, while the server takes one step after another with their activations.

    In each local step the server works through the clients in the order of the plan. In rounds of aggregation the assigned
    of the clients are averaged. With different cuts, a layer may be at some clients and, for the others, at the server:
    the server's version then counts for each of those others.

    Layers that a client lacks are sent to it in a phase ``sync``. Layers that a client gives up are not sent: the server
    has its own version of them. The optimiser's state is never sent: it starts at zero for layers that come to a client,
    and stays where it is in an aggregation.

    A client that fails is out for the rest of the round, and its part enters no average; what the server has learnt from
    its activations stays. When it comes back, it gets the server's version; so does one that was not in the last
    aggregation. The training loss leaves out the balance loss of mixture-of-experts layers that are at clients.

    Parameters
    ----------
    optimizer : of clients and server.
    batch_size, cut_layer : where the plan leaves them open.
    weighting : whether a client counts by its ``samples`` or all ``uniform``.
    """

    name: ClassVar[str] = "splitfed-v2"

    optimizer: Optimizer = field(default_factory=Sgd)
    batch_size: int = 16
    cut_layer: int = 1
    weighting: Weighting = "samples"

    def __post_init__(self) -> None:
        check_batch_size(self.batch_size)
        check_cut_layer(self.cut_layer)
        check_weighting(self.weighting)

    def start(self, task: Task) -> State:
        """Return the initial weights."""
        weights = task.initial_weights()
        return {
            "weights": dict(weights),
            "optimizer": self.optimizer.start(task.trained(weights)),
            "placement": Placement.start(task).to_state(),
            "deepest": torch.tensor(0),  # cut since the last aggregation
        }

    def round(self, task: Task, state: State, plan: RoundPlan, number: int) -> Generator[Phase, Replies, Outcome]:
        """Train for the planned steps, aggregate if planned."""
        assigned = assign(task, plan, number, self.cut_layer, self.batch_size, self.optimizer)
        if not assigned:
            return Outcome(state, {})
        placement, (weights, optimizer, deepest) = Placement.of(state), _read(state)
        deepest = max(deepest, *(assignment.cut for assignment in assigned.values()))
        ready = yield from move_layers(task, assigned, placement, lambda client: weights, fetch=False)
        server = SharedModel(task, self.optimizer, assigned, weights, optimizer)
        losses = yield from play_steps(task, {entry: assigned[entry] for entry in ready}, number, server.work)
        averaged = None
        if plan.aggregate and losses:
            copies = {entry: task.part(server.weights, assigned[entry].cut, deepest) for entry in losses}
            averaged = yield from average_layers(
                task,
                {entry: assigned[entry] for entry in losses},
                copies,
                lambda entry: client_weight(task, assigned[entry].client, self.weighting),
                lambda entries: max(num_bytes(copies[entry]) for entry in entries),  # one version, from the least cut
            )
            losses = {} if averaged is None else {entry: losses[entry] for entry in averaged.entries}
        if averaged is not None:
            placement.averaged(averaged.holders)
            weights, deepest = {**server.weights, **averaged.weights}, 0
        else:
            for entry, assignment in assigned.items():
                if entry in losses:
                    placement.trained(assignment)
                else:
                    placement.forget(assignment.client)
            placement.server_trained(min(assignment.cut for assignment in assigned.values()))
            weights = server.weights
        found: State = {
            "weights": dict(weights),
            "optimizer": server.state,
            "placement": placement.to_state(),
            "deepest": torch.tensor(deepest),
        }
        return Outcome(found, losses)

    def client(self, task: Task, message: Message, state: State, batch: Batch | None) -> tuple[Message, State]:
        """Work with the layers up to the cut."""
        return split_client(task, self.optimizer, message, state, batch)

    def models(self, task: Task, state: State, clients: Mapping[int, State]) -> Models:
        """Return the average model; between aggregations a virtual one, as in `edgeopt.training.SplitFed`."""
        weights, _, deepest = _read(state)
        mean = mean_of_clients(
            task, weights, Placement.of(state), deepest, clients,
            lambda client: {}, lambda client: client_weight(task, client, self.weighting),
        )  # fmt: skip
        return {None: mean}


def _read(state: State) -> tuple[Tensors, State, int]:
    optimizer, deepest = state["optimizer"], state["deepest"]
    assert isinstance(optimizer, dict)
    assert isinstance(deepest, torch.Tensor)
    return tensors_of(state, "weights"), optimizer, int(deepest)
