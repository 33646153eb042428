"""Gradients, the cheapest way that is there: ordinary autograd, and that of `torch.func` within its transforms."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.func import grad_and_value
from torch.utils import _pytree as pytree

from edgeopt.training.transforms import in_transform

At = TypeVar("At")


def gradients(objective: Callable[[At], tuple[torch.Tensor, Any]], at: At) -> tuple[At, Any]:
    """Return the gradients of a scalar, and what else the function of it returns.

    Parameters
    ----------
    objective : returns the scalar, and nested dictionaries and tuples of tensors.
    at : where: nested dictionaries and tuples of tensors. The gradient of what the scalar does not depend on is zero.
    """
    if in_transform():
        found, (_, rest) = grad_and_value(objective, has_aux=True)(at)
        return found, rest
    given, structure = pytree.tree_flatten(at)
    leaves = [tensor.detach().requires_grad_() for tensor in given]
    with torch.enable_grad():
        value, rest = objective(pytree.tree_unflatten(leaves, structure))
    rest = pytree.tree_map(torch.Tensor.detach, rest)
    if not leaves or not value.requires_grad:
        return pytree.tree_unflatten([torch.zeros_like(tensor) for tensor in given], structure), rest
    slopes = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
    return pytree.tree_unflatten(list(slopes), structure), rest
