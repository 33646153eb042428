"""Gradients from forward passes alone: a function is probed in random directions, and numbers travel in their place.

The estimate of a gradient is the mean over P directions u of (f(x + mu u) - f(x)) / mu times u. Whoever knows the seed of
the directions makes it of P numbers. Its squared norm is about 1 + (d + 1) / P times that of the gradient of d
parameters, for Gaussian directions; so much of it is noise, which steps average out.
"""

import functools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch.func import vmap

from edgeopt.errors import InvalidProblemError, SequentialWarning, quoted
from edgeopt.training.keys import fold_in, normal, rademacher
from edgeopt.training.messages import Tensors
from edgeopt.training.trouble import in_words, is_out_of_memory
from edgeopt.validate import integer, real

Distribution = Literal["gaussian", "rademacher"]


@dataclass(frozen=True, slots=True)
class Probes:
    """Random directions around some parameters, and what is made of the values there.

    Parameters
    ----------
    count : directions P.
    mu : how far a probe is from the parameters, in units of a direction. Where layers compute in half precision, a
        small distance is lost in rounding.
    distribution : of the entries of a direction: ``gaussian``, or ``rademacher``, which are -1 or 1.
    """

    count: int
    mu: float
    distribution: Distribution = "gaussian"

    def __post_init__(self) -> None:
        integer("probes", self.count, low=1)
        real("mu", self.mu, positive=True)
        if self.distribution not in get_args(Distribution):
            raise InvalidProblemError(
                f"distribution = {quoted(self.distribution)}: expected 'gaussian' or 'rademacher'"
            )

    def directions(self, seed: torch.Tensor, parameters: Tensors) -> Tensors:
        """Return directions [P, ...] for each of some parameters, made of a seed, an int64 scalar.

        Those of the first parameters do not depend on which others come after them.
        """
        draw = normal if self.distribution == "gaussian" else rademacher
        dtype = functools.reduce(torch.promote_types, (value.dtype for value in parameters.values()), torch.float32)
        sizes = [value.numel() for value in parameters.values()]
        keys = fold_in(seed, torch.arange(self.count, device=seed.device))  # (P,)
        drawn = vmap(lambda key: draw(key, (sum(sizes),), dtype))(keys)  # (P, d)
        parts = zip(parameters.items(), torch.split(drawn, sizes, dim=1), strict=True)
        return {name: part.reshape(self.count, *value.shape).to(value.dtype) for (name, value), part in parts}

    def around(
        self,
        function: Callable[..., torch.Tensor],
        parameters: Tensors,
        directions: Tensors,
        *each: torch.Tensor,
        batched: bool = True,
    ) -> torch.Tensor:
        """Return what a function of the parameters returns at each of the probes, [P, ...].

        Parameters
        ----------
        each : more arguments of the function, [P, ...], one for each probe.
        batched : compute all probes at once where the function allows it, else one after another.
        """

        def at(direction: Tensors, *more: torch.Tensor) -> torch.Tensor:
            return function({name: value + self.mu * direction[name] for name, value in parameters.items()}, *more)

        def one_by_one() -> torch.Tensor:
            rows = [{name: value[p] for name, value in directions.items()} for p in range(self.count)]
            return torch.stack([at(row, *(x[p] for x in each)) for p, row in enumerate(rows)])

        if not batched or not (directions or each):
            return one_by_one()
        try:
            found: torch.Tensor = vmap(at)(directions, *each)
        except Exception as error:  # what vmap refuses; an error of the function itself comes again
            if is_out_of_memory(error):
                raise
            found = one_by_one()
            warnings.warn(f"probes run one after another: {in_words(error)}", SequentialWarning, stacklevel=2)
        return found

    def estimate(self, directions: Tensors, values: Mapping[str, torch.Tensor]) -> Tensors:
        """Return the estimated gradient.

        It is added up in the order of the probes, so that everybody gets the same bits, whatever the device makes of a
        sum.

        Parameters
        ----------
        values : float32 [P] by parameter, by how much the function is larger at each probe.
        """
        gradients = {}
        for name, direction in directions.items():
            weights = (values[name] / (self.count * self.mu)).to(direction.dtype)
            terms = (weight * one for weight, one in zip(weights.unbind(), direction.unbind(), strict=True))
            gradients[name] = functools.reduce(torch.add, terms)
        return gradients

    def along(self, directions: Tensors, gradients: Tensors) -> torch.Tensor:
        """Return by how much functions of known gradients are larger at each probe, to first order: float32 [M, P].

        Parameters
        ----------
        gradients : [M, ...] of M functions, by parameter.
        """
        found = [
            gradient.reshape(len(gradient), -1) @ directions[name].to(gradient.dtype).reshape(self.count, -1).T
            for name, gradient in gradients.items()
        ]
        return self.mu * functools.reduce(torch.add, found).float()


def norm_of(gradients: Tensors) -> torch.Tensor:
    """Return the Euclidean norm of a gradient, a float32 scalar."""
    norm: torch.Tensor = torch.stack([value.float().norm() for value in gradients.values()]).norm()
    return norm
