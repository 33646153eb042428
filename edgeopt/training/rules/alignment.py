"""Holding copies of layers together: how strongly each layer, and by which gradients."""

from collections.abc import Sequence

import torch

from edgeopt.training.messages import Tensors
from edgeopt.training.rules.local import squared_distance
from edgeopt.training.task import Task


def layer_strengths(task: Task, cut: int, mu: float, q: float) -> dict[str, float]:
    r"""Return how strongly each parameter above a cut is held: :math:`\mu (1 - (l - c) / (L - c))^q` in layer l, from 1.

    With q = 0 all alike; else most in the lowest of these layers, and not at all in the last. Our formulation.

    Parameters
    ----------
    cut : c, below the last layer.
    mu, q : >= 0.
    """
    above = task.num_layers - cut
    return {
        name: mu * (1 - (layer + 1 - cut) / above) ** q
        for name, layer in task.layer_of.items()
        if layer >= cut and name in task.parameters
    }


def pull(parameters: Tensors, anchor: Tensors, strengths: dict[str, float]) -> Tensors:
    r"""Return the gradient of :math:`\sum_n \frac{\mu_n}{2} |\theta_n - a_n|^2` by the parameters."""
    return {name: strengths[name] * (value - anchor[name]) for name, value in parameters.items()}


def relative_spread(parts: Sequence[Tensors], mean: Tensors, shares: Sequence[float]) -> torch.Tensor:
    """Return how far parts of models are from their mean, relative to it: the root of a ratio of weighted squares.

    It is nan where there are no parts.
    """
    zero = {name: torch.zeros_like(value) for name, value in mean.items()}
    squares = [
        (share * squared_distance(part, mean), share * squared_distance({name: mean[name] for name in part}, zero))
        for part, share in zip(parts, shares, strict=True)
        if part
    ]
    if not squares:
        return torch.tensor(torch.nan)
    apart, size = (torch.stack(column).sum() for column in zip(*squares, strict=True))
    return torch.sqrt(apart / size)


def probabilities(outputs: torch.Tensor) -> torch.Tensor:
    """Return the softmax over the last axis, in single precision at least."""
    return torch.softmax(_wide(outputs), dim=-1)


def divergence(outputs: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    r"""Return the mean over the samples, and positions if there are any, of :math:`KL(p \| \bar p)`.

    Parameters
    ----------
    outputs : [samples, ..., K]; p are their `probabilities`.
    mean : probabilities of the same shape, a constant. Where they are zero by underflow, the least number counts.
    """
    log_p = torch.log_softmax(_wide(outputs), dim=-1)  # (samples, ..., K)
    log_mean = mean.clamp_min(torch.finfo(mean.dtype).tiny).log()
    return (log_p.exp() * (log_p - log_mean)).sum(dim=-1).mean()


def _wide(outputs: torch.Tensor) -> torch.Tensor:
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))
