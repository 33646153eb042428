"""SplitFed V1: split learning whose server keeps a copy of its layers per client, with cuts and batch sizes per client.

C. Thapa et al., SplitFed: When Federated Learning Meets Split Learning, arXiv:2004.12088 (SplitFedV1); per-client cuts and
batch sizes, and aggregation in every I-th round, as in HASFL (Z. Lin et al., arXiv:2506.08426).
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from edgeopt.schedule import RoundPlan
from edgeopt.training.algorithm import Models, Outcome
from edgeopt.training.messages import Message, Phase, Replies, State, Tensors
from edgeopt.training.optimizers import Optimizer, Sgd
from edgeopt.training.rules.average import weighted_average
from edgeopt.training.rules.common import (
    Weighting,
    check_batch_size,
    check_weighting,
    client_weight,
    tensors_of,
)
from edgeopt.training.rules.optimizer_state import average_states, leaves_in, overlay
from edgeopt.training.split.exchange import (
    Answer,
    Assignment,
    Smashed,
    assign,
    check_cut_layer,
    play_steps,
    split_client,
)
from edgeopt.training.split.placement import (
    Averaged,
    Placement,
    average_layers,
    mean_of_clients,
    move_layers,
    num_bytes,
)
from edgeopt.training.split.server import map_cuts, server_step
from edgeopt.training.task import Batch, Task

Server = dict[int, tuple[Tensors, State]]  # by entry: weights and optimiser of the layers above its cut


@dataclass(frozen=True, slots=True)
class SplitFed:
    """SplitFed V1, the training that `edgeopt.problems.SplitTraining` models.

    Every client has its own copy of the whole model: layers 1 to its cut are with it, those above at the server, which
    works with the activations of all clients in parallel. After each round, the layers above the deepest cut of the
    interval are averaged; they are common. The layers below are averaged in rounds of aggregation only, at a fed server:
    the clients send their assigned, the edge server its copies of the layers between each cut and the deepest one.

    A cut may move in any round. Layers that a client lacks are sent to it, layers that it has trained since the last
    aggregation and gives up are sent to the server, in a phase ``sync`` on the link to the edge server; right after an
    aggregation only the former can be. The optimiser's state is never sent. It starts at zero for layers that come to a
    client and stays with the client when its weights are averaged. At the server, it is averaged like the weights that it
    belongs to; a layer that comes to the server starts with that average, and with zero if the server had none.

    A client that fails is out for the rest of the round, and nothing of it enters an average. When it comes back, it
    gets the last average and starts from there; so does one that was not in the last aggregation.

    The training loss of a round leaves out the balance loss of mixture-of-experts layers that are at clients.

    Parameters
    ----------
    optimizer : of clients and server.
    batch_size, cut_layer : where the plan leaves them open.
    weighting : whether a client counts by its ``samples`` or all ``uniform``, as in the bound of HASFL.
    """

    name: ClassVar[str] = "splitfed-v1"

    optimizer: Optimizer = field(default_factory=Sgd)
    batch_size: int = 16
    cut_layer: int = 1
    weighting: Weighting = "samples"

    def __post_init__(self) -> None:
        check_batch_size(self.batch_size)
        check_cut_layer(self.cut_layer)
        check_weighting(self.weighting)

    def start(self, task: Task) -> State:
        """Return the initial weights; no client has any of its own."""
        weights = task.initial_weights()
        return {
            "weights": dict(weights),
            "optimizer": self.optimizer.start(task.trained(weights)),
            "placement": Placement.start(task).to_state(),
            "deepest": torch.tensor(0),  # cut since the last aggregation
            "copies": {},  # by client: server's copies of layers between its cut and the deepest
        }

    def round(self, task: Task, state: State, plan: RoundPlan, number: int) -> Generator[Phase, Replies, Outcome]:
        """Train for the planned steps, aggregate if planned."""
        assigned = assign(task, plan, number, self.cut_layer, self.batch_size, self.optimizer)
        if not assigned:
            return Outcome(state, {})
        placement, deepest = (
            Placement.of(state),
            max(_deepest(state), *(assignment.cut for assignment in assigned.values())),
        )
        weights = tensors_of(state, "weights")
        sent_up = yield from move_layers(
            task, assigned, placement, lambda client: {**weights, **_copy(state, client)[0]}, fetch=True
        )
        server = {entry: self._above(task, state, assigned[entry], came) for entry, came in sent_up.items()}

        def work(smashed: Mapping[int, Smashed]) -> dict[int, Answer]:
            items = {entry: (*server[entry], sent) for entry, sent in smashed.items()}
            found = map_cuts(task, assigned, items, lambda cut, item: server_step(task, self.optimizer, cut, *item))
            server.update({entry: (weights, opt) for entry, (weights, opt, _) in found.items()})
            return {entry: answer for entry, (_, _, answer) in found.items()}

        losses = yield from play_steps(task, {entry: assigned[entry] for entry in sent_up}, number, work)
        copies = {entry: task.part(server[entry][0], 0, deepest) for entry in losses}
        averaged = None
        if plan.aggregate and losses:
            averaged = yield from average_layers(
                task,
                {entry: assigned[entry] for entry in losses},
                copies,
                lambda entry: client_weight(task, assigned[entry].client, self.weighting),
                lambda entries: sum(num_bytes(copies[entry]) for entry in entries),
            )
            losses = {} if averaged is None else {entry: losses[entry] for entry in averaged.entries}
        server = {entry: server[entry] for entry in losses}
        state = self._common(task, state, assigned, server, deepest)
        if averaged is None:
            return Outcome(_kept(task, state, assigned, server, placement, deepest), losses)
        return Outcome(self._averaged(task, state, assigned, server, placement, deepest, averaged), losses)

    def client(self, task: Task, message: Message, state: State, batch: Batch | None) -> tuple[Message, State]:
        """Work with the layers up to the cut."""
        return split_client(task, self.optimizer, message, state, batch)

    def models(self, task: Task, state: State, clients: Mapping[int, State]) -> Models:
        """Return the average model.

        Between aggregations it is a virtual one, which nobody has: the average that would come out if all clients that
        have trained since the last aggregation were averaged now. Clients whose state is not visible do not count.
        """
        mean = mean_of_clients(
            task, tensors_of(state, "weights"), Placement.of(state), _deepest(state), clients,
            lambda client: _copy(state, client)[0], lambda client: client_weight(task, client, self.weighting),
        )  # fmt: skip
        return {None: mean}

    # --- the server's layers -----------------------------------------------------------------------------------

    def _above(self, task: Task, state: State, assignment: Assignment, came: Tensors) -> tuple[Tensors, State]:
        """Return weights and optimiser of a client's layers above its cut; tensors that are common are the same object."""
        own, own_optimizer = _copy(state, assignment.client)
        weights = task.part({**tensors_of(state, "weights"), **own, **came}, assignment.cut)
        return weights, leaves_in(overlay(_optimizer(state), own_optimizer), weights)

    def _common(
        self, task: Task, state: State, assigned: Mapping[int, Assignment], server: Server, deepest: int
    ) -> State:
        """Average the layers above the deepest cut."""
        if not server:
            return state
        shares = [client_weight(task, assigned[entry].client, self.weighting) for entry in server]
        weights = tensors_of(state, "weights")
        common = task.part(weights, deepest)
        mean = weighted_average([task.part(own, deepest) for own, _ in server.values()], shares)
        optimizer = average_states([leaves_in(own, common) for _, own in server.values()], shares)
        return {**state, "weights": {**weights, **mean}, "optimizer": overlay(_optimizer(state), optimizer)}

    def _averaged(
        self,
        task: Task,
        state: State,
        assigned: Mapping[int, Assignment],
        server: Server,
        placement: Placement,
        deepest: int,
        averaged: Averaged,
    ) -> State:
        """Return the state after an aggregation: nobody has layers of its own."""
        optimizer = _optimizer(state)
        for layer in range(deepest):
            names = task.part(averaged.weights, layer, layer + 1)
            at_server = [entry for entry in server if assigned[entry].cut <= layer]
            mean = self.optimizer.start(task.trained(names))
            if at_server:
                shares = [client_weight(task, assigned[entry].client, self.weighting) for entry in at_server]
                mean = average_states([leaves_in(server[entry][1], names) for entry in at_server], shares)
            optimizer = overlay(optimizer, mean)
        placement.averaged(averaged.holders)
        return {
            "weights": {**tensors_of(state, "weights"), **averaged.weights},
            "optimizer": optimizer,
            "placement": placement.to_state(),
            "deepest": torch.tensor(0),
            "copies": {},
        }


def _kept(
    task: Task, state: State, assigned: Mapping[int, Assignment], server: Server, placement: Placement, deepest: int
) -> State:
    """Return the state after a round without aggregation: the clients' own layers are kept."""
    copies = state["copies"]
    assert isinstance(copies, dict)
    copies = dict(copies)
    for entry, assignment in assigned.items():
        copies.pop(str(assignment.client), None)
        if entry not in server:
            placement.forget(assignment.client)
            continue
        placement.trained(assignment)
        weights, optimizer = server[entry]
        if own := task.part(weights, 0, deepest):
            copies[str(assignment.client)] = {"weights": dict(own), "optimizer": leaves_in(optimizer, own)}
    placement.server_trained(deepest)
    return {**state, "placement": placement.to_state(), "deepest": torch.tensor(deepest), "copies": copies}


def _deepest(state: State) -> int:
    found = state["deepest"]
    assert isinstance(found, torch.Tensor)
    return int(found)


def _optimizer(state: State) -> State:
    found = state["optimizer"]
    assert isinstance(found, dict)
    return found


def _copy(state: State, client: int) -> tuple[Tensors, State]:
    """Return what the server has of a client's own layers: weights and optimiser."""
    copies = state["copies"]
    assert isinstance(copies, dict)
    found = copies.get(str(client))
    return (tensors_of(found, "weights"), _optimizer(found)) if isinstance(found, dict) else ({}, {})
