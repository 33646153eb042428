"""The weighted average of weights, with the rule for buffers."""

import math
from collections.abc import Sequence

import numpy as np
import torch

from edgeopt.errors import InvalidProblemError
from edgeopt.training.messages import Tensors


def weighted_average(models: Sequence[Tensors], weights: Sequence[float]) -> Tensors:
    """Return the average of models with equal names and shapes; the weights are normalised to sum to one.

    Floating-point buffers, such as the running means of batch normalisation, are averaged like parameters; of integer
    ones, such as their counters, the largest is taken.

    Raises
    ------
    InvalidProblemError
        If there is no model, or the weights are negative or all zero.
    """
    share = np.asarray(weights, np.float64)  # (M,)
    total = float(share.sum())
    if len(models) != share.size or not 0 < total < math.inf or (share < 0).any():
        raise InvalidProblemError(
            f"weights = {list(weights)}: expected a number >= 0 for each of {len(models)} models, not all zero"
        )
    share = share / total
    average: Tensors = {}
    for name, first in models[0].items():
        stacked = torch.stack([model[name] for model in models])  # (M, ...)
        if first.is_floating_point():
            wide = stacked.to(torch.promote_types(first.dtype, torch.float32))  # (M, ...)
            factor = torch.tensor(share, dtype=wide.dtype, device=wide.device)  # (M,)
            average[name] = torch.tensordot(factor, wide, dims=1).to(first.dtype)  # (...)
        else:
            average[name] = stacked.amax(dim=0)
    return average
