"""Local training of a model on a client's own mini-batches."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch

from edgeopt.training.messages import State, Tensors, copied
from edgeopt.training.optimizers import Optimizer, Step, overwriting_step
from edgeopt.training.rules.gradients import gradients
from edgeopt.training.task import Batch, Task
from edgeopt.training.transforms import in_transform

LocalLoss = Callable[
    [Tensors, torch.Tensor, torch.Tensor],
    tuple[torch.Tensor, Tensors]
    | tuple[torch.Tensor, Tensors, torch.Tensor]
    | tuple[torch.Tensor, Tensors, torch.Tensor, Tensors],
]
"""A loss of weights, inputs [samples, ...] and targets [samples, ...]: the scalar that is minimised, the buffers
afterwards, and, where it is not the same, the scalar that is reported; after that, what else is to be known of the step,
by name. `Task.batch_loss` is one."""


class Trained(NamedTuple):
    """What local training leaves: weights, the optimiser's state, and the means over the steps of what is reported."""

    weights: Tensors
    state: State
    loss: torch.Tensor
    known: Tensors


def minimise(
    task: Task, loss: LocalLoss, weights: Tensors, batch: Batch, optimizer: Optimizer, state: State | None = None
) -> Trained:
    """Take one step of the optimiser on a loss for each mini-batch.

    Parameters
    ----------
    loss : what is minimised, see `LocalLoss`; gradients are taken by the parameters among the weights that it is called
        with.
    weights : where training starts.
    state : of the optimiser. Default: as before its first step.

    Returns
    -------
    Trained
        ``weights``, buffers included; the optimiser's ``state``; ``loss``, the mean over the steps of what is reported.
    """
    buffers = {name: value for name, value in weights.items() if name not in task.parameters}
    parameters = task.trained(weights)
    step: Step = optimizer.step
    state = optimizer.start(parameters) if state is None else state
    if not in_transform():  # nobody else sees the copies, so that they may be overwritten
        parameters, state, step = copied(parameters), copied(state), overwriting_step(optimizer)

    losses, steps = [], []
    for inputs, targets in batch.steps():

        def objective(
            parameters: Tensors,
            inputs: torch.Tensor = inputs,
            targets: torch.Tensor = targets,
            buffers: Tensors = buffers,
        ) -> tuple[torch.Tensor, tuple[torch.Tensor, Tensors, Tensors]]:
            found = loss({**parameters, **buffers}, inputs, targets)
            reported = found[2] if len(found) > 2 else found[0]
            return found[0], (reported, found[1], found[3] if len(found) > 3 else {})

        slopes, (reported, changed, known) = gradients(objective, parameters)
        parameters, state = step(parameters, slopes, state)
        buffers = {**buffers, **changed}
        losses.append(reported.detach())
        steps.append({name: value.detach() for name, value in known.items()})
    means = {name: torch.stack([known[name] for known in steps]).mean(dim=0) for name in steps[0]}
    return Trained({**parameters, **buffers}, state, torch.stack(losses).mean(), means)


def squared_distance(first: Tensors, second: Tensors) -> torch.Tensor:
    """Return the sum of the squared differences of tensors of the same names."""
    return functools.reduce(torch.add, (((value - second[name]) ** 2).sum() for name, value in first.items()))
