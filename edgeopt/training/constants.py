"""Measuring the constants of the convergence bound while a model trains, for planners that plan anew."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch.func import grad

from edgeopt.convergence import ConvergenceEstimate, GradientMoments, Secant, smoothness
from edgeopt.errors import InvalidProblemError
from edgeopt.rng import stream
from edgeopt.storage import Arrays
from edgeopt.training.messages import Tensors, kept_tensor
from edgeopt.training.runners.local import seeded_layers
from edgeopt.training.task import Task
from edgeopt.validate import int_array

_BLOCK = 4  # mini-batches of one client: what varies within a block is the draw of samples alone


class Estimator(Protocol):
    """Measures the constants of a convergence bound while a model trains."""

    def measure(self, task: Task, models: Sequence[Tensors], round: int) -> ConvergenceEstimate | None:
        """Return what the gradients say after a round; None where it is not looked at."""
        ...

    def state(self) -> Arrays:
        """Return what later estimates depend on."""
        ...

    def restore(self, state: Arrays) -> None:
        """Continue from what `state` returned."""
        ...


@dataclass(slots=True)
class GradientEstimator:
    """Measure gradient variance, second moment and smoothness every few rounds, on fresh draws of the clients' samples.

    Every client that is looked at draws four mini-batches, with replacement. The variance is that within a client,
    averaged over clients, as bounds of federated learning define it. The smoothness is the slope of the gradient between
    this model and the one of the measurement before (the first time: the initial weights), on the same mini-batches.

    It looks at the model from outside: it costs neither virtual time nor bytes.

    Parameters
    ----------
    every : rounds between two measurements; the first is after round 0.
    batch_size : samples of a mini-batch.
    num_clients : clients that are looked at, >= 2; all if there are fewer.
    confidence : of the intervals.
    """

    every: int = 10
    batch_size: int = 16
    num_clients: int = 8
    confidence: float = 0.95
    _before: Tensors = field(init=False, default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for name, low in (("every", 1), ("batch_size", 1), ("num_clients", 2)):
            int_array(name, getattr(self, name), (), low=low)

    def measure(self, task: Task, models: Sequence[Tensors], round: int) -> ConvergenceEstimate | None:
        """Return the constants at the first of the models, in rounds 0, `every`, 2 `every`, ..., else None."""
        if round % self.every or not models:
            return None
        estimate = self.at(task, models[0], round, self._before or task.initial_weights())
        self._before = {name: kept_tensor(value) for name, value in models[0].items()}  # as `restore` would give them
        return estimate

    def at(self, task: Task, weights: Tensors, round: int, before: Tensors) -> ConvergenceEstimate:
        """Return the constants at some weights, with the smoothness between `before` and there.

        Raises
        ------
        InvalidProblemError
            If fewer than two clients have samples.
        """
        rng = stream(task.seed, "constants", round)
        clients = rng.permutation(np.flatnonzero(task.partition.sizes))[: self.num_clients]
        if clients.size < 2:
            raise InvalidProblemError(f"partition: {clients.size} clients with samples, expected at least two")
        before = {name: value.to(weights[name]) for name, value in before.items()}  # those of a file are on the CPU
        moments = GradientMoments(task.num_layers, block=_BLOCK)
        here, there = _by_layer(task, task.trained(weights)), _by_layer(task, task.trained(before))
        moved = any(not torch.equal(a, b) for x, y in zip(here, there, strict=True) for a, b in zip(x, y, strict=True))
        secant = Secant(there, here, block=_BLOCK) if moved else None
        for client in clients:
            own = task.partition.indices[client]
            for index, rows in enumerate(rng.choice(own, (_BLOCK, self.batch_size))):
                gradient = _gradient(task, weights, rows, round, int(client), index)
                moments.add(gradient, self.batch_size)
                if secant is not None:
                    secant.add(_gradient(task, before, rows, round, int(client), index), gradient)
        found = moments.estimate(self.confidence)
        return ConvergenceEstimate(
            gradient_variance=found.gradient_variance,
            gradient_second_moment=found.gradient_second_moment,
            smoothness=None if secant is None else smoothness([secant], self.confidence),
            confidence=self.confidence,
        )

    def state(self) -> Arrays:
        """Return the weights of the last measurement, those in bfloat16, which NumPy lacks, as float32."""
        wide = {name: v.float() if v.dtype == torch.bfloat16 else v for name, v in self._before.items()}
        return {name: value.detach().cpu().numpy() for name, value in wide.items()}

    def restore(self, state: Arrays) -> None:
        """Continue from what `state` returned."""
        self._before = {name: torch.tensor(value) for name, value in state.items()}


def _gradient(task: Task, weights: Tensors, rows: np.typing.NDArray[np.int64], *keys: int) -> list[list[torch.Tensor]]:
    """Return the gradient of the mean loss of some samples, layer by layer; `keys` decide what layers draw."""
    at = torch.from_numpy(rows).to(task.device)
    fixed = {name: value for name, value in weights.items() if name not in task.parameters}

    def loss(parameters: Tensors) -> torch.Tensor:
        return task.batch_loss({**parameters, **fixed}, task.train.inputs[at], task.train.targets[at])[0]

    with seeded_layers(task, "constants", *keys):
        gradient: Tensors = grad(loss)(task.trained(weights))
    return _by_layer(task, gradient)


def _by_layer(task: Task, tensors: Tensors) -> list[list[torch.Tensor]]:
    layers: list[list[torch.Tensor]] = [[] for _ in range(task.num_layers)]
    for name, layer in task.layer_of.items():  # in the model's order, whatever that of the tensors is
        if name in tensors:
            layers[layer].append(tensors[name])
    return layers
