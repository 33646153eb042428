"""FedProx: FedAvg whose clients are held near the server's model (Li et al., arXiv:1812.06127)."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from edgeopt.training.algorithms.fedavg import AveragedModel
from edgeopt.training.messages import Tensors
from edgeopt.training.optimizers import Optimizer, Sgd
from edgeopt.training.rules.common import Weighting
from edgeopt.training.rules.local import LocalLoss, squared_distance
from edgeopt.training.task import Task
from edgeopt.validate import float_array


@dataclass(frozen=True, slots=True)
class FedProx(AveragedModel):
    """FedAvg with ``mu / 2 ||w - received w||^2`` added to every client's loss; ``mu = 0`` is FedAvg.

    Parameters
    ----------
    mu : weight of the proximal term, >= 0.
    optimizer, batch_size, weighting : as in `edgeopt.training.FedAvg`.
    """

    name: ClassVar[str] = "fedprox"

    mu: float = 0.01
    optimizer: Optimizer = field(default_factory=Sgd)
    batch_size: int = 16
    weighting: Weighting = "samples"

    def __post_init__(self) -> None:
        float_array("mu", self.mu, (), nonnegative=True)
        AveragedModel.__post_init__(self)

    def local_loss(self, task: Task, received: Tensors) -> LocalLoss:
        """Return the task's loss, which is what is reported, with the proximal term, which is minimised with it."""
        if self.mu == 0:
            return task.batch_loss

        def held_near(
            weights: Tensors, inputs: torch.Tensor, targets: torch.Tensor
        ) -> tuple[torch.Tensor, Tensors, torch.Tensor]:
            loss, buffers = task.batch_loss(weights, inputs, targets)
            return loss + 0.5 * self.mu * squared_distance(task.trained(weights), received), buffers, loss

        return held_near
