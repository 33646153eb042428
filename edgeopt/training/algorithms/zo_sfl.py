"""Pure zeroth-order split federated learning, in which nobody runs backward: the baseline of HO-SFL (arXiv:2603.14773)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from edgeopt.problems import CostFactors
from edgeopt.training.algorithms.ho_sfl import (
    ProbedSplit,
    Step,
    check_numbers,
    loss_at_work,
    probed_loss,
)
from edgeopt.training.messages import Message, Phase, State, Tensors, reply
from edgeopt.training.optimizers import Optimizer, Sgd
from edgeopt.training.rules.average import weighted_average
from edgeopt.training.rules.common import Weighting
from edgeopt.training.rules.probes import Distribution
from edgeopt.training.split.exchange import Assignment
from edgeopt.training.split.replay import ReplayServer, caught_up, trained_in_order
from edgeopt.training.split.server import map_cuts
from edgeopt.training.task import Batch, Task

_Item = tuple[
    Tensors, torch.Tensor, torch.Tensor, torch.Tensor
]  # weights; activations [1 + P, samples, ...]; targets; seed


@dataclass(frozen=True, slots=True)
class ZoSfl(ProbedSplit):
    """ZO-SFL: client and server are probed together, and the whole model learns from P differences of the loss.

    In a local step each client sends what its layers return at its weights and at P probes of them; the server runs its
    own layers at the same probes, and has the differences of the loss. Their mean over the clients is the step. How steps
    are brought, and that layers behave as at work, is as in `HoSfl`. The loss leaves out the balance loss of
    mixture-of-experts layers that are at clients.

    Parameters
    ----------
    optimizer, batch_size, cut_layer, weighting, probes, mu, distribution, clip : as in `HoSfl`.
    """

    name: ClassVar[str] = "zo-sfl"

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
        """P more passes forward everywhere, what they return goes up; nothing goes back, and no weights travel."""
        passes = self.probes + 1
        return CostFactors(
            device_forward=passes, device_backward=0, server_forward=passes, server_backward=0, uplink=passes,
            downlink=0, aggregation=0, kept=0,
        )  # fmt: skip

    def step(
        self, task: Task, server: ReplayServer, assigned: Mapping[int, Assignment], number: int, step: int
    ) -> Step:
        """Get activations at all probes, and step with the differences of the loss."""
        passes, seed = self.probes + 1, server.seed(number, step)
        served = {entry: passes * task.flops(a.samples, a.cut, backward=False) for entry, a in assigned.items()}
        messages = server.messages("forward", assigned, number, step, passes=passes, seed=seed)
        sent = yield Phase("forward", messages, server_flops=served)
        server.heard(assigned, sent)
        if not sent:
            return {}
        alone = {entry: answer for entry, answer in sent.items() if "activations" not in answer}
        items = {
            entry: (
                server.weights,
                torch.stack(list(answer["activations"].values())),
                answer["labels"]["targets"],
                seed,
            )
            for entry, answer in sent.items()
            if entry not in alone
        }
        upper = map_cuts(task, assigned, items, lambda cut, item: self._differences(task, cut, item))
        numbers = {entry: answer["scalars"]["values"] for entry, answer in alone.items()}
        numbers |= {entry: found for entry, (found, _) in upper.items()}
        check_numbers(assigned, numbers)
        entries = list(sent)
        mean = weighted_average([{"values": numbers[e]} for e in entries], self.shares(task, assigned, entries))
        last = task.num_layers
        server.learn(seed, server.directions(seed, last), (last,), mean["values"][None], last, {})
        return {entry: upper[entry][1] if entry in upper else alone[entry]["scalars"]["loss"] for entry in sent}

    def _differences(self, task: Task, cut: int, item: _Item) -> tuple[torch.Tensor, torch.Tensor]:
        """Return by how much the loss of a client is larger at each probe, and the loss."""
        weights, activations, targets, seed = item
        with torch.no_grad():
            directions = self.probing.directions(seed, trained_in_order(task, weights))
            above = trained_in_order(task, task.part(weights, cut))
            loss = loss_at_work(task, weights, activations[0], targets, cut)
            there = self.probing.around(
                lambda probe, sent: loss_at_work(task, {**weights, **probe}, sent, targets, cut),
                above,
                {name: directions[name] for name in above},
                activations[1:],
            )
        return (there - loss).float(), loss

    def client(self, task: Task, message: Message, state: State, batch: Batch | None) -> tuple[Message, State]:
        """Take the steps that were missed, and run the layers at the weights and at the probes."""
        with torch.no_grad():
            weights, state = caught_up(task, self.optimizer, self.probing, message, state)
            if batch is None:
                return reply(), state
            inputs, targets, cut = batch.inputs[0], batch.targets[0], int(message.values["cut"])
            parameters = trained_in_order(task, weights)
            directions = self.probing.directions(message["scalars"]["seed"], parameters)
            if cut == task.num_layers:
                return probed_loss(task, self.probing, weights, parameters, directions, inputs, targets), state

            def outputs(probe: Tensors) -> torch.Tensor:
                return task.as_sent(task.forward({**weights, **probe}, inputs, 0, cut, training=False).outputs)

            there = self.probing.around(outputs, parameters, directions)
            activations = {"outputs": outputs(parameters)} | {f"probe {p}": z for p, z in enumerate(there.unbind())}
            return reply(activations=activations, labels={"targets": targets}), state
