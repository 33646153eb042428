"""HO-SFL: split federated learning whose clients never run backward, and whose weights never travel.

Q. Chen, X. Wu, Y. Wang, X. Chen, HO-SFL: Hybrid-Order Split Federated Learning with Backprop-Free Clients and
Dimension-Free Aggregation, arXiv:2603.14773, ICML 2026. Different cuts, the norm of the estimate, and how steps are
brought to clients are ours.
"""

import itertools
import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from edgeopt.problems import CostFactors
from edgeopt.schedule import RoundPlan
from edgeopt.training.algorithm import Models, Outcome
from edgeopt.training.messages import Message, Phase, Replies, State, Tensors, reply
from edgeopt.training.optimizers import Optimizer, Sgd
from edgeopt.training.rules.average import weighted_average
from edgeopt.training.rules.common import (
    Weighting,
    check_batch_size,
    check_weighting,
    client_weight,
    tensors_of,
)
from edgeopt.training.rules.probes import Distribution, Probes
from edgeopt.training.split.exchange import Assignment, Smashed, assign, check_cut_layer, each_step
from edgeopt.training.split.replay import ReplayServer, caught_up, trained_in_order
from edgeopt.training.split.server import ServerGradients, map_cuts, server_gradients
from edgeopt.training.task import Batch, Task, full_precision
from edgeopt.training.trouble import TrainingError
from edgeopt.validate import real

Step = Generator[Phase, Replies, dict[int, torch.Tensor]]
"""A local step of some clients; ends with the losses of those that got through."""


class ProbedSplit:
    """What HO-SFL and pure zeroth-order split learning share: clients that only run forward, and steps that are retraced.

    It has no fields, so that each of them orders its own.
    """

    __slots__ = ()

    optimizer: Optimizer
    batch_size: int
    cut_layer: int
    weighting: Weighting
    probes: int
    mu: float
    distribution: Distribution
    clip: float

    def __post_init__(self) -> None:
        _ = self.probing
        real("clip", self.clip, positive=True, finite=False)
        check_batch_size(self.batch_size)
        check_cut_layer(self.cut_layer)
        check_weighting(self.weighting)

    @property
    def probing(self) -> Probes:
        """How gradients are estimated."""
        return Probes(self.probes, self.mu, self.distribution)

    def start(self, task: Task) -> State:
        """Return the initial weights, which all clients have."""
        return ReplayServer.start(task, self.optimizer)

    def round(self, task: Task, state: State, plan: RoundPlan, number: int) -> Generator[Phase, Replies, Outcome]:
        """Bring clients to where the server is, and train for the planned steps."""
        assigned = assign(task, plan, number, self.cut_layer, self.batch_size, self.optimizer, probes=True)
        if not assigned:
            return Outcome(state, {})
        server = ReplayServer.of(task, self.optimizer, self.probing, self.clip, state)
        ready = yield from server.bring(assigned)

        def play(working: Mapping[int, Assignment], step: int) -> Step:
            return self.step(task, server, working, number, step)

        losses = yield from each_step({entry: assigned[entry] for entry in ready}, play)
        return Outcome(server.to_state(), losses, server.measured())

    def step(
        self, task: Task, server: ReplayServer, assigned: Mapping[int, Assignment], number: int, step: int
    ) -> Step:
        """Play one local step."""
        raise NotImplementedError

    def shares(self, task: Task, assigned: Mapping[int, Assignment], entries: list[int]) -> list[float]:
        """Return how much each of some entries counts."""
        return [client_weight(task, assigned[entry].client, self.weighting) for entry in entries]

    def models(self, task: Task, state: State, clients: Mapping[int, State]) -> Models:
        """Return the server's model: the one that every client has once it has taken all steps."""
        return {None: tensors_of(state, "weights")}


@dataclass(frozen=True, slots=True)
class HoSfl(ProbedSplit):
    """HO-SFL: exact gradients at the server, estimates from forward passes at the clients.

    In a local step each client sends what its layers return, and the server steps its layers with the mean gradient. It
    sends back lambda, the gradient of the client's own mean loss by what the client has sent, and a seed. The client runs
    its layers again at P probes around its weights, and sends the P numbers <lambda, z(probe) - z>. Their mean over the
    clients, P numbers again, goes to everybody with the next message: with the seed it is the step, which server and
    clients take alike. So all clients hold the same layers, no weights travel, and a client that was away catches up by
    the steps that it has missed, optimiser included. The plan's aggregation flag has no meaning here.

    Clients keep no graph and nothing for a backward pass. Their layers behave as at work: no dropout, and batch
    normalisation with the statistics that it came with. So do those layers where the server runs them.

    Ours: the deepest cut of a step decides which layers are trained by probes. For a client with a shallower cut, the
    server knows the gradient of the layers in between; it sends it through the same probes, so that it travels as P
    numbers, too, and every client counts in every layer. A client with all layers has no server: it probes its own loss.
    Layers that a client lacks after its cut has moved come from the server with their optimiser's state, in a phase
    ``sync``.

    A client that fails in a step is out for the rest of the round, and neither its numbers nor its gradient count.
    Reported in each round: ``estimate_norm``, the mean norm of the estimates before they are clipped, and ``clipped``,
    the share of them that was.

    Parameters
    ----------
    optimizer : of clients and server.
    batch_size, cut_layer : where the plan leaves them open.
    weighting : whether a client counts by its ``samples`` or all ``uniform``.
    probes : P, in each step.
    mu : distance of a probe.
    distribution : of the directions, ``gaussian`` or ``rademacher``.
    clip : largest norm of an estimate; the authors' code for language models has 1. The server's own gradients are not
        clipped. Default: any norm.
    """

    name: ClassVar[str] = "ho-sfl"

    optimizer: Optimizer = field(default_factory=Sgd)
    batch_size: int = 16
    cut_layer: int = 1
    weighting: Weighting = "samples"
    probes: int = 5
    mu: float = 1e-3
    distribution: Distribution = "gaussian"
    clip: float = math.inf

    @property
    def cost_factors(self) -> CostFactors:
        """P more passes forward at a device, none backward, nothing kept; no weights travel."""
        return CostFactors(device_backward=0, device_probes=self.probes, aggregation=0, kept=0)

    def step(
        self, task: Task, server: ReplayServer, assigned: Mapping[int, Assignment], number: int, step: int
    ) -> Step:
        """Exchange activations and lambda, then step with the numbers that come back."""
        served = {entry: task.flops(one.samples, one.cut) for entry, one in assigned.items()}
        sent = yield Phase("forward", server.messages("forward", assigned, number, step, passes=1), server_flops=served)
        server.heard(assigned, sent)
        still = max((assigned[entry].cut for entry in sent), default=0)
        items = {
            entry: (server.weights, (answer["activations"]["outputs"], answer["labels"]["targets"]))
            for entry, answer in sent.items()
            if "activations" in answer
        }

        def work(cut: int, item: tuple[Tensors, Smashed]) -> ServerGradients:
            return server_gradients(task, cut, task.part(item[0], cut), item[1], still=still)

        upper = map_cuts(task, assigned, items, work)
        probing = {entry: assigned[entry] for entry in sent if task.trains(0, assigned[entry].cut)}
        seed, gradients = server.seed(number, step), {entry: found.gradient for entry, found in upper.items()}
        messages = server.messages(
            "probe", probing, number, step, passes=self.probes, seed=seed, gradients=gradients
        )  # fmt: skip
        done = (yield Phase("probe", messages)) if messages else {}
        through = [entry for entry in sent if entry in done or entry not in probing]
        numbers = {entry: answer["scalars"]["values"] for entry, answer in done.items()}
        check_numbers(assigned, numbers)
        if through:
            cuts = {entry: assigned[entry].cut for entry in through}
            self._learn(task, server, seed, cuts, self.shares(task, assigned, through), numbers, upper)
        return {entry: upper[entry].loss if entry in upper else done[entry]["scalars"]["loss"] for entry in through}

    def _learn(
        self,
        task: Task,
        server: ReplayServer,
        seed: torch.Tensor,
        cuts: Mapping[int, int],
        shares: list[float],
        numbers: Mapping[int, torch.Tensor],
        upper: Mapping[int, ServerGradients],
    ) -> None:
        """Step with what came from some clients; `cuts` are theirs, by entry."""
        deepest = max(cuts.values())
        directions = server.directions(seed, deepest)
        ends, rows = [], []
        for first, end in itertools.pairwise([0, *sorted(set(cuts.values()))]):
            if not task.trains(first, end):
                continue
            known = {entry: numbers[entry] for entry, cut in cuts.items() if cut >= end}
            if others := [entry for entry in cuts if entry not in known]:  # whose gradients the server has
                own = [task.part(task.trained(upper[entry].gradients), first, end) for entry in others]
                stacked = {name: torch.stack([gradients[name] for gradients in own]) for name in own[0]}
                known |= zip(others, self.probing.along(directions, stacked).unbind(), strict=True)
            rows.append(weighted_average([{"values": known[entry]} for entry in cuts], shares)["values"])
            ends.append(end)
        values = torch.stack(rows) if rows else torch.empty(0)
        above: Tensors = {}
        if deepest < task.num_layers:
            parts = [task.part({**upper[entry].gradients, **upper[entry].buffers}, deepest) for entry in cuts]
            above = weighted_average(parts, shares)
        server.learn(seed, directions, tuple(ends), values, deepest, above)

    def client(self, task: Task, message: Message, state: State, batch: Batch | None) -> tuple[Message, State]:
        """Take the steps that were missed; run the layers, or run them at the probes. There is no backward pass."""
        with torch.no_grad():
            weights, state = caught_up(task, self.optimizer, self.probing, message, state)
            if batch is None:
                return reply(), state
            inputs, targets, cut = batch.inputs[0], batch.targets[0], int(message.values["cut"])
            if message.kind == "forward":
                if cut == task.num_layers:
                    return reply(), state
                outputs = task.as_sent(task.forward(weights, inputs, 0, cut, training=False).outputs)
                return reply(activations={"outputs": outputs}, labels={"targets": targets}), state
            return self._probe(task, message, weights, inputs, targets, cut), state

    def _probe(
        self, task: Task, message: Message, weights: Tensors, inputs: torch.Tensor, targets: torch.Tensor, cut: int
    ) -> Message:
        parameters = trained_in_order(task, weights)
        directions = self.probing.directions(message["scalars"]["seed"], parameters)
        if cut == task.num_layers:
            return probed_loss(task, self.probing, weights, parameters, directions, inputs, targets)
        gradient = full_precision(message["gradients"]["outputs"])
        here = task.forward(weights, inputs, 0, cut, training=False)

        def further(probe: Tensors) -> torch.Tensor:
            there = task.forward({**weights, **probe}, inputs, 0, cut, training=False)
            moved = (gradient * (full_precision(there.outputs) - full_precision(here.outputs))).sum()
            return moved + (there.penalty - here.penalty)

        values = self.probing.around(further, parameters, directions)
        return reply(scalars={"values": values.float()})


def loss_at_work(
    task: Task, weights: Tensors, activations: torch.Tensor, targets: torch.Tensor, first: int = 0
) -> torch.Tensor:
    """Return the loss of layers `first` (from 0) to the last, which behave as at work."""
    passed = task.forward(weights, activations, first, training=False)
    return task.pass_loss(passed, targets)


def probed_loss(
    task: Task,
    probes: Probes,
    weights: Tensors,
    parameters: Tensors,
    directions: Tensors,
    inputs: torch.Tensor,
    targets: torch.Tensor,
) -> Message:
    """Return the reply of a client that has all layers: by how much its loss is larger at the probes, and the loss."""
    loss = loss_at_work(task, weights, inputs, targets)
    there = probes.around(
        lambda probe: loss_at_work(task, {**weights, **probe}, inputs, targets), parameters, directions
    )
    return reply(scalars={"values": (there - loss).float(), "loss": loss})


def check_numbers(assigned: Mapping[int, Assignment], found: Mapping[int, torch.Tensor]) -> None:
    """Refuse numbers [P] of some entries that are not finite."""
    if not found or bool(torch.stack(list(found.values())).isfinite().all()):
        return
    entry = next(entry for entry, values in found.items() if not values.isfinite().all())
    raise TrainingError(
        f"client {assigned[entry].client}: what its probes have measured is not finite: expected finite activations and "
        "losses; a smaller step size or mu may help"
    )
