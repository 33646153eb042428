"""Parallel split learning: clients in parallel, one model at the server, and no averaging of clients.

J. Jeon, J. Kim, Privacy-Sensitive Parallel Split Learning, ICOIN 2020; the weighted mean of gradients as in Z. Lin et al.,
Efficient Parallel Split Learning over Resource-constrained Wireless Edge Networks, arXiv:2303.15991, without its
aggregation of activation gradients.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch

from edgeopt.display import one_line
from edgeopt.errors import InvalidProblemError, quoted
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

Judge = Literal["each", "averaged"]
"""Which models give the accuracy, see `ParallelModel.models`."""


@dataclass(frozen=True, slots=True, eq=False)
class Exchange:
    """What has come to the server in one step, and the gradients of each client's own loss.

    Parameters
    ----------
    number, step : of the round, and of the step in it.
    assigned : what each entry of the plan does.
    given : by entry, the server's weights above its cut and what the client has sent.
    found : by entry, what the server has computed with them.
    """

    number: int
    step: int
    assigned: Mapping[int, Assignment]
    given: Mapping[int, tuple[Tensors, Smashed]]
    found: Mapping[int, ServerGradients]

    __repr__ = one_line


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """What the server makes of an exchange.

    Parameters
    ----------
    learns : by entry, the gradients and buffers that the server takes a step with the mean of.
    answers : by entry, what each client gets; for all that have sent something.
    memory : of the server's state, what has changed by it.
    measured : numbers; their means over the steps of a round are reported.
    """

    learns: Mapping[int, ServerGradients]
    answers: Mapping[int, Answer]
    memory: State = field(default_factory=dict)
    measured: Mapping[str, float] = field(default_factory=dict)

    __repr__ = one_line


class ParallelModel:
    """What parallel split learning and its relatives do; by `choose` they say from whom server and clients learn.

    It has no fields, so that each of them orders its own: `optimizer`, `batch_size`, `cut_layer`, `weighting`, `judge`, and
    more.
    """

    __slots__ = ()

    optimizer: Optimizer
    batch_size: int
    cut_layer: int
    weighting: Weighting
    judge: Judge

    def __post_init__(self) -> None:
        check_batch_size(self.batch_size)
        check_cut_layer(self.cut_layer)
        check_weighting(self.weighting)
        if self.judge not in ("each", "averaged"):
            raise InvalidProblemError(f"judge = {quoted(self.judge)}: expected 'each' or 'averaged'")

    def choose(self, task: Task, state: State, exchange: Exchange) -> Choice:
        """Return what the server makes of an exchange: it learns from all, and all get the gradient of their own loss."""
        return Choice(exchange.found, {entry: Answer(own.gradient, own.loss) for entry, own in exchange.found.items()})

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
        choice = Choice({}, {})
        measured: list[Mapping[str, float]] = []

        def work(smashed: Mapping[int, Smashed]) -> Mapping[int, Answer]:
            nonlocal state, choice
            whole = tensors_of(state, "weights")
            above = {cut: task.part(whole, cut) for cut in {assigned[entry].cut for entry in smashed}}
            given = {entry: (above[assigned[entry].cut], sent) for entry, sent in smashed.items()}
            found = map_cuts(task, assigned, given, lambda cut, item: server_gradients(task, cut, *item))
            choice = self.choose(task, state, Exchange(number, len(measured), assigned, given, found))
            state = {**state, **choice.memory}
            measured.append(choice.measured)
            return choice.answers

        def settle(through: Mapping[int, torch.Tensor]) -> None:
            nonlocal state
            learns = {entry: choice.learns[entry] for entry in through if entry in choice.learns}
            state = self._step(task, state, assigned, learns)

        losses = yield from play_steps(task, {entry: assigned[entry] for entry in ready}, number, work, settle)
        placement.server_trained(min(assignment.cut for assignment in assigned.values()))
        return Outcome({**state, "placement": placement.to_state()}, losses, _means(measured))

    def client(self, task: Task, message: Message, state: State, batch: Batch | None) -> tuple[Message, State]:
        """Work with the layers up to the cut."""
        return split_client(task, self.optimizer, message, state, batch)

    def models(self, task: Task, state: State, clients: Mapping[int, State]) -> Models:
        """Return one model for each client that has layers of its own, with the server's above them.

        With the judge ``averaged``, the average of these models is the common one: a model that nobody has. Before anyone
        has trained, or where no client's state is visible, there is the server's model alone, with the layers below as it
        has them.
        """
        weights = tensors_of(state, "weights")
        parts = self.parts(task, state, clients)
        if not parts:
            return {None: weights}
        own: dict[int | str | None, Tensors] = {client: {**weights, **part} for client, part in parts.items()}
        if self.judge == "each":
            return own
        below = {name: weights[name] for part in parts.values() for name in part}
        shares = [client_weight(task, client, self.weighting) for client in parts]
        return {None: {**weights, **weighted_average([{**below, **part} for part in parts.values()], shares)}, **own}

    def parts(self, task: Task, state: State, clients: Mapping[int, State]) -> dict[int, Tensors]:
        """Return the layers that clients have of their own, by id: of those that have trained."""
        return {client: tensors_of(clients[client], "weights") for client in sorted(clients) if clients[client]}

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


def _means(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the means over the steps of what was measured in them."""
    return {name: sum(step[name] for step in steps) / len(steps) for name in (steps[0] if steps else ())}


@dataclass(frozen=True, slots=True)
class ParallelSplit(ParallelModel):
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
    judge : whose accuracy counts: the mean over the clients' own models, ``each``, or that of their average, ``averaged``.
        `personal_accuracy` is of the clients' own models either way.
    """

    name: ClassVar[str] = "psl"

    optimizer: Optimizer = field(default_factory=Sgd)
    batch_size: int = 16
    cut_layer: int = 1
    weighting: Weighting = "samples"
    judge: Judge = "each"
