"""The server's side of split learning: the layers above a cut, for one client after another or many at once."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch.func import grad_and_value

from edgeopt.display import one_line
from edgeopt.training.messages import State, Tensors
from edgeopt.training.optimizers import Optimizer
from edgeopt.training.rules.optimizer_state import leaves_in, overlay
from edgeopt.training.runners.batched import map_clients
from edgeopt.training.split.exchange import Answer, Assignment, Smashed
from edgeopt.training.task import Task, full_precision
from edgeopt.training.trouble import blaming

Item = TypeVar("Item")
Result = TypeVar("Result")


class ServerGradients(NamedTuple):
    """What the server computes for one mini-batch: gradients and buffers of its layers, and its answer."""

    gradients: Tensors
    buffers: Tensors
    gradient: torch.Tensor
    loss: torch.Tensor


ServerLoss = Callable[[Tensors, torch.Tensor], tuple[torch.Tensor, Tensors]]
"""The loss of one mini-batch as a function of the parameters above a cut and of the activations, with buffers afterwards."""


def server_loss(task: Task, cut: int, weights: Tensors, targets: torch.Tensor, *, still: int = 0) -> ServerLoss:
    """Return what the layers above a cut, with the buffers among some weights, make of activations.

    Parameters
    ----------
    still : layers up to it behave as at work, without chance, and keep their buffers.
    """
    buffers = {name: value for name, value in weights.items() if name not in task.parameters}

    def loss_of(parameters: Tensors, activations: torch.Tensor) -> tuple[torch.Tensor, Tensors]:
        below = task.forward({**parameters, **buffers}, activations, cut, still, training=False)
        passed = task.forward({**parameters, **buffers}, below.outputs, max(cut, still))
        loss = task.loss(full_precision(passed.outputs), targets) + below.penalty + passed.penalty
        return loss, {**below.buffers, **passed.buffers}

    return loss_of


def server_gradients(task: Task, cut: int, weights: Tensors, smashed: Smashed, *, still: int = 0) -> ServerGradients:
    """Run the layers above a cut forward and backward; `still` is that of `server_loss`."""
    activations, targets = smashed
    loss_of = server_loss(task, cut, weights, targets, still=still)
    backward = grad_and_value(loss_of, argnums=(0, 1), has_aux=True)
    (gradients, gradient), (loss, changed) = backward(task.trained(weights), activations)
    return ServerGradients(gradients, changed, gradient, loss.detach())


def server_step(
    task: Task, optimizer: Optimizer, cut: int, weights: Tensors, state: State, smashed: Smashed
) -> tuple[Tensors, State, Answer]:
    """Take one step with the layers above a cut; return their weights, the optimiser's state, and the answer."""
    found = server_gradients(task, cut, weights, smashed)
    parameters, state = optimizer.step(task.trained(weights), found.gradients, state)
    stepped = {**parameters, **found.buffers}
    return {name: stepped[name] for name in weights}, state, Answer(found.gradient, found.loss)


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

        own = [items[entry] for entry in entries]
        found = map_clients(task.model, work, own, lambda i, who=entries: blaming(_above(assigned[who[i]])))  # type: ignore[misc]
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
