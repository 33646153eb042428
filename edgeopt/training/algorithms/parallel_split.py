"""Parallel split learning: clients in parallel, one model at the server, and no averaging of clients.

J. Jeon, J. Kim, Privacy-Sensitive Parallel Split Learning, ICOIN 2020; the weighted mean of gradients as in Z. Lin et al.,
Efficient Parallel Split Learning over Resource-constrained Wireless Edge Networks, arXiv:2303.15991, without its
aggregation of activation gradients.
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from edgeopt.problems import CostFactors
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
from edgeopt.training.rules.optimizer_state import leaves_in, overlay
from edgeopt.training.split.exchange import (
    Answer,
    Assignment,
    Smashed,
    assign,
    check_cut_layer,
    play_steps,
    split_client,
)
from edgeopt.training.split.placement import Placement, move_layers
from edgeopt.training.split.server import ServerGradients, map_cuts, server_gradients
from edgeopt.training.task import Batch, Task


@dataclass(frozen=True, slots=True)
class ParallelSplit:
    """Parallel split learning: each client keeps its own first layers, all share one model at the server.

    In each local step the server takes one step with the weighted mean of the gradients of the clients that got through
    it. With different cuts, the gradient of a layer is the mean over the clients for which it is at the server. The
    plan's aggregation flag has no meaning here.

    Layers that a client lacks come from the server's model in a phase ``sync``, and their optimiser starts at zero; layers
    that a client gives up are dropped. A client that fails in a step is out for the rest of the round; its gradient of
    that step does not count, and it goes on with its own layers when it comes back. The training loss leaves out the
    balance loss of mixture-of-experts layers that are at clients.

    Parameters
    ----------
    optimizer : of clients and server.
    batch_size, cut_layer : where the plan leaves them open.
    weighting : whether a client counts by its ``samples`` or all ``uniform``.
    """

    name: ClassVar[str] = "psl"

    optimizer: Optimizer = field(default_factory=Sgd)
    batch_size: int = 16
    cut_layer: int = 1
    weighting: Weighting = "samples"

    def __post_init__(self) -> None:
        check_batch_size(self.batch_size)
        check_cut_layer(self.cut_layer)
        check_weighting(self.weighting)

    @property
    def cost_factors(self) -> CostFactors:
        """A round costs what one of SplitFed does, without aggregations."""
        return CostFactors(aggregation=0)

    def start(self, task: Task) -> State:
        """Return the initial weights."""
        weights = task.initial_weights()
        return {
            "weights": dict(weights),
            "optimizer": self.optimizer.start(task.trained(weights)),
            "placement": Placement.start(task).to_state(),
        }

    def round(self, task: Task, state: State, plan: RoundPlan, number: int) -> Generator[Phase, Replies, Outcome]:
        """Train for the planned steps."""
        assigned = assign(task, plan, number, self.cut_layer, self.batch_size, self.optimizer)
        if not assigned:
            return Outcome(state, {})
        placement, weights = Placement.of(state), tensors_of(state, "weights")
        ready = yield from move_layers(task, assigned, placement, lambda client: weights, fetch=False)
        for entry in ready:
            placement.trained(assigned[entry])
        found: dict[int, ServerGradients] = {}

        def work(smashed: Mapping[int, Smashed]) -> dict[int, Answer]:
            whole = tensors_of(state, "weights")
            above = {cut: task.part(whole, cut) for cut in {assigned[entry].cut for entry in smashed}}
            items = {entry: (above[assigned[entry].cut], sent) for entry, sent in smashed.items()}
            found.clear()
            found.update(map_cuts(task, assigned, items, lambda cut, item: server_gradients(task, cut, *item)))
            return {entry: Answer(upper.gradient, upper.loss) for entry, upper in found.items()}

        def settle(through: Mapping[int, torch.Tensor]) -> None:
            nonlocal state
            state = self._step(task, state, assigned, {entry: found[entry] for entry in through if entry in found})

        losses = yield from play_steps(task, {entry: assigned[entry] for entry in ready}, number, work, settle)
        placement.server_trained(min(assignment.cut for assignment in assigned.values()))
        return Outcome({**state, "placement": placement.to_state()}, losses)

    def client(self, task: Task, message: Message, state: State, batch: Batch | None) -> tuple[Message, State]:
        """Work with the layers up to the cut."""
        return split_client(task, self.optimizer, message, state, batch)

    def models(self, task: Task, state: State, clients: Mapping[int, State]) -> Models:
        """Return one model for each client that has trained: its own layers with the server's above them.

        Before anyone has trained, or where no client's state is visible, the server's model with the layers below as it
        has them.
        """
        weights = tensors_of(state, "weights")
        own: dict[int | str | None, Tensors] = {
            client: {**weights, **tensors_of(clients[client], "weights")}
            for client in sorted(clients)
            if clients[client]
        }
        return own or {None: weights}

    def _step(
        self, task: Task, state: State, assigned: Mapping[int, Assignment], found: Mapping[int, ServerGradients]
    ) -> State:
        """Step with the mean gradient of each layer over the clients for which it is at the server."""
        mean: Tensors = {}
        above = {entry: {**upper.gradients, **upper.buffers} for entry, upper in found.items()}
        for layer in range(task.num_layers):
            if entries := [entry for entry in found if assigned[entry].cut <= layer]:
                shares = [client_weight(task, assigned[entry].client, self.weighting) for entry in entries]
                mean |= weighted_average([task.part(above[entry], layer, layer + 1) for entry in entries], shares)
        weights, optimizer = tensors_of(state, "weights"), state["optimizer"]
        assert isinstance(optimizer, dict)
        trained = task.trained({name: weights[name] for name in mean})
        stepped, moments = self.optimizer.step(
            trained, {name: mean[name] for name in trained}, leaves_in(optimizer, trained)
        )
        return {
            **state,
            "weights": {**weights, **mean, **stepped},  # of the mean, buffers are left
            "optimizer": overlay(optimizer, moments),
        }
