"""Local training of a whole model on a client's own mini-batches."""

import torch
from torch.func import grad_and_value

from edgeopt.training.messages import State, Tensors
from edgeopt.training.optimizers import Optimizer
from edgeopt.training.task import Batch, Task


def train_locally(
    task: Task, weights: Tensors, batch: Batch, optimizer: Optimizer, state: State, *, proximal: float = 0.0
) -> tuple[Tensors, State, torch.Tensor]:
    """Take one optimiser step per mini-batch; return weights, the optimiser's state, and the mean loss.

    Parameters
    ----------
    proximal : mu of the term mu / 2 ||w - weights||^2 that is added to the loss.
    """
    buffers = {name: value for name, value in weights.items() if name not in task.parameters}
    start = parameters = task.trained(weights)

    def loss_of(
        parameters: Tensors, inputs: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, Tensors]]:
        loss, changed = task.batch_loss({**parameters, **buffers}, inputs, targets)
        penalised = loss
        if proximal:
            distance = sum(((value - start[name]) ** 2).sum() for name, value in parameters.items())
            penalised = loss + 0.5 * proximal * distance
        return penalised, (loss.detach(), changed)

    losses = []
    for step in range(batch.inputs.shape[0]):
        gradients, (_, (loss, buffers)) = grad_and_value(loss_of, has_aux=True)(
            parameters, batch.inputs[step], batch.targets[step]
        )
        parameters, state = optimizer.step(parameters, gradients, state)
        losses.append(loss)
    return {**parameters, **buffers}, state, torch.stack(losses).mean()
