"""Averages of weights, with the rule for buffers: plain, of parts that some have trained, and of updates."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from edgeopt.errors import InvalidProblemError
from edgeopt.training.messages import Tensors
from edgeopt.training.trouble import TrainingError

Shares = Sequence[float] | Mapping[str, Sequence[float]]
"""How much each of M models counts, >= 0 and not all zero; by name of the tensor where tensors differ in that."""


def weighted_average(models: Sequence[Tensors], weights: Shares, *, whose: Sequence[str] = ()) -> Tensors:
    """Return the average of models with equal names and shapes; the weights are normalised to sum to one.

    Floating-point buffers, such as the running means of batch normalisation, are averaged like parameters; of integer
    ones, such as their counters, the largest is taken.

    Parameters
    ----------
    whose : names of the models for messages, such as ``client 3``. Default: their numbers.

    Raises
    ------
    InvalidProblemError
        If there is no model, or the weights are negative or all zero.
    TrainingError
        If a model lacks a tensor, has another one, or one of another shape.
    """
    shares = _Shares(weights, len(models))
    _check_equal(models, whose)
    average: Tensors = {}
    for name, first in models[0].items():
        stacked = torch.stack([model[name] for model in models])  # (M, ...)
        if first.is_floating_point():
            wide = _wide(stacked)  # (M, ...)
            factor = torch.tensor(shares.of(name), dtype=wide.dtype, device=wide.device)  # (M,)
            average[name] = torch.tensordot(factor, wide, dims=1).to(first.dtype)  # (...)
        else:
            average[name] = stacked.amax(dim=0)
    return average


def average_of_parts(parts: Sequence[Tensors], weights: Sequence[float], *, whose: Sequence[str] = ()) -> Tensors:
    """Return the average of every tensor over those who have it: parts of one model, such as layers above cuts that differ.

    Examples
    --------
    >>> average_of_parts([{"a": torch.tensor(1.0), "b": torch.tensor(1.0)}, {"b": torch.tensor(4.0)}], [1, 2])
    {'a': tensor(1.), 'b': tensor(3.)}
    """
    names = whose or _numbered(parts)
    groups: dict[tuple[int, ...], list[str]] = {}  # those with equal owners are averaged together
    for name in dict.fromkeys(name for part in parts for name in part):
        groups.setdefault(tuple(index for index, part in enumerate(parts) if name in part), []).append(name)
    average: Tensors = {}
    for owners, of in groups.items():
        own = [{name: parts[index][name] for name in of} for index in owners]
        average |= weighted_average(own, [weights[i] for i in owners], whose=[names[i] for i in owners])
    return average


def masked_average(
    before: Tensors, models: Sequence[Tensors], weights: Shares, masks: Sequence[Tensors], *, whose: Sequence[str] = ()
) -> Tensors:
    """Return the average of what each model has trained, entry by entry; what none has trained stays as before.

    Parameters
    ----------
    before : of the names of the models.
    masks : of each model by name, bool, with the leading axes of the tensor or 1 in their place: one value per expert
        [E], per row [R], per column [1, C]. A tensor without a mask counts as a whole.

    Examples
    --------
    >>> before = {"up": torch.zeros(3, 1)}
    >>> models = [{"up": torch.full((3, 1), 2.0)}, {"up": torch.full((3, 1), 4.0)}]
    >>> masks = [{"up": torch.tensor([True, True, False])}, {"up": torch.tensor([False, True, False])}]
    >>> masked_average(before, models, [1, 1], masks)["up"].flatten()
    tensor([2., 3., 0.])
    """
    shares = _Shares(weights, len(models))
    _check_equal([before, *models], ("before", *(whose or _numbered(models))))
    average = weighted_average(models, weights, whose=whose)
    for name in {name for mask in masks for name in mask}:
        old = _wide(before[name])
        total, sum_of_shares = torch.zeros_like(old), torch.zeros_like(old)
        for model, mask, share in zip(models, masks, shares.of(name), strict=True):
            given = mask.get(name, torch.ones((), dtype=torch.bool, device=old.device))
            factor = share * spread(given, old).to(old.dtype)
            total, sum_of_shares = total + factor * model[name], sum_of_shares + factor
        trained = sum_of_shares > 0
        mean = torch.where(trained, total / torch.where(trained, sum_of_shares, 1), old)
        average[name] = mean.to(before[name].dtype)
    return average


def average_update(
    before: Tensors, models: Sequence[Tensors], weights: Shares, *, step: float = 1.0, whose: Sequence[str] = ()
) -> Tensors:
    """Return weights moved by `step` times the average of the models' differences from them; integers as in an average."""
    _check_equal([before, *models], ("before", *(whose or _numbered(models))))
    deltas = [
        {name: value - before[name] if value.is_floating_point() else value for name, value in model.items()}
        for model in models
    ]
    mean = weighted_average(deltas, weights, whose=whose)
    return {name: before[name] + step * value if value.is_floating_point() else value for name, value in mean.items()}


def spread(mask: torch.Tensor, over: torch.Tensor) -> torch.Tensor:
    """Return a mask of the leading axes of a tensor in the tensor's shape."""
    return mask.reshape(*mask.shape, *[1] * (over.ndim - mask.ndim)).expand(over.shape)


class _Shares:
    """Weights of M models, checked and normalised, as they are for each tensor."""

    def __init__(self, weights: Shares, count: int) -> None:
        by_name = weights if isinstance(weights, Mapping) else {"": weights}
        self.shares = {name: self._normalised(name, own, count) for name, own in by_name.items()}

    @staticmethod
    def _normalised(name: str, weights: Sequence[float], count: int) -> NDArray[np.float64]:
        share = np.asarray(weights, np.float64)  # (M,)
        total = float(share.sum())
        if count != share.size or not 0 < total < math.inf or (share < 0).any():
            where = f"weights[{name!r}]" if name else "weights"
            raise InvalidProblemError(
                f"{where} = {list(weights)}: expected a number >= 0 for each of {count} models, not all zero"
            )
        return share / total

    def of(self, name: str) -> NDArray[np.float64]:
        found = self.shares.get(name, self.shares.get(""))
        if found is None:
            raise InvalidProblemError(f"weights: {name}: expected how much each model counts, got nothing")
        return found


def _check_equal(models: Sequence[Tensors], whose: Sequence[str]) -> None:
    first = models[0]
    for index, model in enumerate(models):
        if model.keys() != first.keys():
            name = min(model.keys() ^ first.keys())
            has, lacks = (index, 0) if name in model else (0, index)
            names = whose or _numbered(models)
            raise TrainingError(f"{names[has]}: {name}: {names[lacks]} has none, expected equal names in an average")
        for name, value in model.items():
            if value.shape != first[name].shape:
                names = whose or _numbered(models)
                raise TrainingError(
                    f"{names[index]}: {name}: shape {list(value.shape)}, expected {list(first[name].shape)} as of {names[0]}"
                )


def _numbered(models: Sequence[Tensors]) -> list[str]:
    return [f"model {index}" for index in range(len(models))]


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    """Return floating-point numbers in single precision at least."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32)) if tensor.is_floating_point() else tensor
