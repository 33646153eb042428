"""Local training of a model on a client's own mini-batches."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.func import grad_and_value

from edgeopt.training.messages import State, Tensors
from edgeopt.training.optimizers import Optimizer
from edgeopt.training.task import Batch, Task

LocalLoss = Callable[
    [Tensors, torch.Tensor, torch.Tensor],
    tuple[torch.Tensor, Tensors] | tuple[torch.Tensor, Tensors, torch.Tensor],
]
"""A loss of weights, inputs [samples, ...] and targets [samples, ...]: the scalar that is minimised, the buffers
afterwards, and, where it is not the same, the scalar that is reported. `Task.batch_loss` is one."""


class Trained(NamedTuple):
    """What local training leaves: weights, the optimiser's state, and the mean over the steps of what is reported."""

    weights: Tensors
    state: State
    loss: torch.Tensor


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
    state = optimizer.start(parameters) if state is None else state

    def objective(
        parameters: Tensors, inputs: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, Tensors]]:
        found = loss({**parameters, **buffers}, inputs, targets)
        reported = found[2] if len(found) == 3 else found[0]
        return found[0], (reported.detach(), found[1])

    losses = []
    for step in range(batch.inputs.shape[0]):
        gradients, (_, (reported, changed)) = grad_and_value(objective, has_aux=True)(
            parameters, batch.inputs[step], batch.targets[step]
        )
        parameters, state = optimizer.step(parameters, gradients, state)
        buffers = {**buffers, **changed}
        losses.append(reported)
    return Trained({**parameters, **buffers}, state, torch.stack(losses).mean())


def squared_distance(first: Tensors, second: Tensors) -> torch.Tensor:
    """Return the sum of the squared differences of tensors of the same names."""
    return functools.reduce(torch.add, (((value - second[name]) ** 2).sum() for name, value in first.items()))
