"""The server's side of split learning: the layers above a cut, for one client after another or many at once."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch

from edgeopt.display import one_line
from edgeopt.training.messages import State, Tensors
from edgeopt.training.optimizers import Optimizer
from edgeopt.training.rules.gradients import gradients
from edgeopt.training.rules.optimizer_state import leaves_in, overlay
from edgeopt.training.runners.batched import map_clients
from edgeopt.training.split.exchange import Answer, Assignment, Smashed
from edgeopt.training.task import Task, full_precision
from edgeopt.training.trouble import blaming

Item = TypeVar("Item")
Result = TypeVar("Result")


class ServerGradients(NamedTuple):
    """What the server computes for one mini-batch: gradients and buffers of its layers, and its answer.

    In the U shape the loss is that part of it which the server's layers add; the rest only the client knows.
    """

    gradients: Tensors
    buffers: Tensors
    gradient: torch.Tensor
    loss: torch.Tensor


ServerLoss = Callable[[tuple[Tensors, torch.Tensor]], tuple[torch.Tensor, tuple[torch.Tensor, Tensors]]]
"""A function of the parameters above a cut and of the activations of a mini-batch, together: what its gradient is taken
of; the loss that is reported; buffers afterwards."""


def server_loss(
    task: Task, cut: int, weights: Tensors, targets: torch.Tensor, *, head: int = 0, still: int = 0
) -> ServerLoss:
    """Return what the layers above a cut, with the buffers among some weights, make of activations.

    Parameters
    ----------
    targets : of the mini-batch; where the client has a head, the gradient by what goes to it.
    head : so many of the last layers are at the client.
    still : layers up to it behave as at work, without chance, and keep their buffers.
    """
    buffers = {name: value for name, value in weights.items() if name not in task.parameters}

    def loss_of(at: tuple[Tensors, torch.Tensor]) -> tuple[torch.Tensor, tuple[torch.Tensor, Tensors]]:
        own, activations = {**at[0], **buffers}, at[1]
        below = task.forward(own, activations, cut, still, training=False)
        passed = task.forward(own, below.outputs, max(cut, still), task.num_layers - head)
        outputs, penalty = full_precision(passed.outputs), below.penalty + passed.penalty
        changed = {**below.buffers, **passed.buffers}
        if head:  # by the chain rule, the gradient is that of the client's loss, which the client reports
            return (outputs * targets).sum() + penalty, (penalty, changed)
        loss = task.loss(outputs, targets) + penalty
        return loss, (loss, changed)

    return loss_of


def server_gradients(
    task: Task, cut: int, weights: Tensors, smashed: Smashed, *, head: int = 0, still: int = 0
) -> ServerGradients:
    """Run the layers above a cut forward and backward; `head` and `still` are those of `server_loss`."""
    activations, targets = smashed
    loss_of = server_loss(task, cut, weights, targets, head=head, still=still)
    (slopes, gradient), (loss, changed) = gradients(loss_of, (task.trained(weights), activations))
    return ServerGradients(slopes, changed, gradient, loss.detach())


def server_step(
    task: Task, optimizer: Optimizer, cut: int, weights: Tensors, state: State, smashed: Smashed
) -> tuple[Tensors, State, Answer]:
    """Take one step with the layers above a cut; return their weights, the optimiser's state, and the answer."""
    found = server_gradients(task, cut, weights, smashed)
    parameters, state = optimizer.step(task.trained(weights), found.gradients, state)
    return {**weights, **parameters, **found.buffers}, state, Answer(found.gradient, found.loss)


def _above(assignment: Assignment) -> str:
    """Return whose layers the server is at work on, for messages."""
    return f"client {assignment.client}, layers above cut {assignment.cut} at the server"


def map_cuts(
    task: Task, assigned: Mapping[int, Assignment], items: Mapping[int, Item], function: Callable[[int, Item], Result]
) -> dict[int, Result]:
    """Return ``function(cut, item)`` for each entry; those of equal cuts and shapes as one batch where possible."""
    groups: dict[int, list[int]] = {}
    for entry in items:
        groups.setdefault(assigned[entry].cut, []).append(entry)
    results: dict[int, Result] = {}
    for cut, entries in groups.items():

        def work(item: Item, cut: int = cut) -> Result:
            return function(cut, item)

        def alone(index: int, entries: list[int] = entries) -> AbstractContextManager[None]:
            return blaming(_above(assigned[entries[index]]))

        found = map_clients(task.layers(training=True), work, [items[entry] for entry in entries], alone)
        results |= zip(entries, found, strict=True)
    return {entry: results[entry] for entry in items}


@dataclass(slots=True)
class SharedModel:
    """One model at the server that steps through activations one after another.

    Parameters
    ----------
    weights : of all layers.
    state : of the optimiser, for all parameters.
    """

    task: Task
    optimizer: Optimizer
    assigned: Mapping[int, Assignment]
    weights: Tensors
    state: State

    __repr__ = one_line

    def work(self, smashed: Mapping[int, Smashed]) -> dict[int, Answer]:
        """Step with each client's activations, in the order of the plan."""
        answers = {}
        for entry, sent in smashed.items():
            cut = self.assigned[entry].cut
            own = self.task.part(self.weights, cut)
            with blaming(_above(self.assigned[entry])):
                weights, state, answers[entry] = server_step(
                    self.task, self.optimizer, cut, own, leaves_in(self.state, own), sent
                )
            self.weights, self.state = {**self.weights, **weights}, overlay(self.state, state)
        return answers
