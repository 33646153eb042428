"""Optimisers as pure functions of parameters, gradients and state, so that they run for one client or a batch of them.

They compute what those of `torch.optim` compute.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.training.messages import State, Tensors
from edgeopt.validate import float_array, real


class Optimizer(Protocol):
    """What an algorithm needs of an optimiser. Its state has the names of the parameters at the leaves."""

    def start(self, parameters: Mapping[str, torch.Tensor]) -> State:
        """Return the state before the first step."""
        ...

    def step(self, parameters: Tensors, gradients: Tensors, state: State) -> tuple[Tensors, State]:
        """Return new parameters and the new state; nothing is changed in place."""
        ...


@runtime_checkable
class OverwritingOptimizer(Optimizer, Protocol):
    """An optimiser that can do without new tensors; one that cannot is as good, and slower on large models."""

    def overwrite(self, parameters: Tensors, gradients: Tensors, state: State) -> None:
        """Write into parameters and state what `step` returns, bit for bit."""
        ...


Step = Callable[[Tensors, Tensors, State], tuple[Tensors, State]]
"""Gives parameters and state after a step, from parameters, gradients and state."""


def overwriting_step(optimizer: Optimizer) -> Step:
    """Return an optimiser's `step` for parameters and a state that nobody else has: they may be overwritten."""
    owner = next((kind for kind in type(optimizer).__mro__ if {"step", "overwrite"} & vars(kind).keys()), object)
    if not isinstance(optimizer, OverwritingOptimizer) or "overwrite" not in vars(owner):  # a `step` of its own counts
        return optimizer.step

    def step(parameters: Tensors, gradients: Tensors, state: State) -> tuple[Tensors, State]:
        with torch.no_grad():
            optimizer.overwrite(parameters, gradients, state)
        return parameters, state

    return step


@dataclass(frozen=True, slots=True)
class Sgd:
    """Stochastic gradient descent.

    Parameters
    ----------
    lr : step size, > 0.
    momentum : factor on the running sum of gradients, in [0, 1).
    weight_decay : factor on the parameters that is added to the gradient.
    """

    lr: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check_common(self.lr, self.weight_decay)
        if not 0 <= real("momentum", self.momentum) < 1:
            raise InvalidProblemError(f"momentum = {quoted(self.momentum)}: expected a number from 0 to below 1")

    def start(self, parameters: Mapping[str, torch.Tensor]) -> State:
        """Return the state before the first step: velocities of zero, or nothing without momentum."""
        if self.momentum == 0:
            return {}
        return {"momentum": {name: torch.zeros_like(value) for name, value in parameters.items()}}

    def step(self, parameters: Tensors, gradients: Tensors, state: State) -> tuple[Tensors, State]:
        """Return new parameters and velocities."""
        if self.weight_decay:
            gradients = {name: g + self.weight_decay * parameters[name] for name, g in gradients.items()}
        if self.momentum:
            velocity = _part(state, "momentum")
            gradients = {name: self.momentum * velocity[name] + g for name, g in gradients.items()}
            state = {"momentum": dict(gradients)}
        return {name: torch.sub(parameters[name], g, alpha=self.lr) for name, g in gradients.items()}, state

    def overwrite(self, parameters: Tensors, gradients: Tensors, state: State) -> None:
        """Write new parameters and velocities over the old ones."""
        stepped, moved = [parameters[name] for name in gradients], list(gradients.values())
        if not stepped:
            return
        if self.weight_decay:
            moved = list(torch._foreach_add(moved, torch._foreach_mul(stepped, self.weight_decay)))
        if self.momentum:
            velocity = [_part(state, "momentum")[name] for name in gradients]
            torch._foreach_mul_(velocity, self.momentum)
            torch._foreach_add_(velocity, moved)
            moved = velocity
        torch._foreach_sub_(stepped, moved, alpha=self.lr)


@dataclass(frozen=True, slots=True)
class Adam:
    """Adam with decoupled weight decay (arXiv:1412.6980, arXiv:1711.05101), as ``torch.optim.AdamW``.

    Parameters
    ----------
    lr : step size, > 0.
    beta1, beta2 : decay of the running means of the gradient and of its square, in [0, 1).
    eps : added to the denominator, > 0.
    weight_decay : share of the parameters, times `lr`, that is taken off in each step.
    """

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check_common(self.lr, self.weight_decay)
        float_array("eps", self.eps, (), positive=True)
        for name in ("beta1", "beta2"):
            if not 0 <= real(name, getattr(self, name)) < 1:
                raise InvalidProblemError(
                    f"{name} = {quoted(getattr(self, name))}: expected a number from 0 to below 1"
                )

    def start(self, parameters: Mapping[str, torch.Tensor]) -> State:
        """Return the state before the first step: both means zero, and no steps taken, counted for each parameter."""
        return {
            "mean": {name: torch.zeros_like(value) for name, value in parameters.items()},
            "square": {name: torch.zeros_like(value) for name, value in parameters.items()},
            "steps": {name: torch.zeros((), device=value.device) for name, value in parameters.items()},
        }

    def step(self, parameters: Tensors, gradients: Tensors, state: State) -> tuple[Tensors, State]:
        """Return new parameters and means."""
        old_mean, old_square, steps = (_part(state, name) for name in ("mean", "square", "steps"))
        stepped: Tensors = {}
        mean: Tensors = {}
        square: Tensors = {}
        count: Tensors = {}
        for name, g in gradients.items():
            mean[name] = m = self.beta1 * old_mean[name] + (1 - self.beta1) * g
            square[name] = v = self.beta2 * old_square[name] + (1 - self.beta2) * g * g
            count[name] = t = steps[name] + 1
            scale = torch.sqrt(v / _weight_so_far(self.beta2, t)) + self.eps
            decayed = parameters[name] * (1 - self.lr * self.weight_decay)
            stepped[name] = decayed - self.lr * (m / _weight_so_far(self.beta1, t)) / scale
        return stepped, {"mean": dict(mean), "square": dict(square), "steps": dict(count)}

    def overwrite(self, parameters: Tensors, gradients: Tensors, state: State) -> None:
        """Write new parameters and means over the old ones."""
        mean, square, steps = (_part(state, name) for name in ("mean", "square", "steps"))
        for name, g in gradients.items():
            m = mean[name].mul_(self.beta1).add_((1 - self.beta1) * g)
            v = square[name].mul_(self.beta2).add_(((1 - self.beta2) * g).mul_(g))
            t = steps[name].add_(1)
            scale = (v / _weight_so_far(self.beta2, t)).sqrt_().add_(self.eps)
            moved = (m / _weight_so_far(self.beta1, t)).mul_(self.lr).div_(scale)
            parameters[name].mul_(1 - self.lr * self.weight_decay).sub_(moved)


def _weight_so_far(beta: float, steps: torch.Tensor) -> torch.Tensor:
    """Return ``1 - beta ** steps``, to full precision in float32 also where beta is near one."""
    return -torch.expm1(steps * math.log(beta)) if beta else torch.ones_like(steps)


def _part(state: State, name: str) -> Tensors:
    found = state[name]
    assert isinstance(found, dict)
    return found  # type: ignore[return-value]


def _check_common(lr: float, weight_decay: float) -> None:
    float_array("lr", lr, (), positive=True)
    float_array("weight_decay", weight_decay, (), nonnegative=True)
