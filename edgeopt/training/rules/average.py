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

_AT_ONCE = 1 << 22  # bytes of a tensor that are stacked for a sum


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
        share, total = shares.of(name), None
        at_once = max(1, _AT_ONCE // max(1, first.nbytes))  # one at a time is slow for small ones, all take memory
        for start in range(0, len(models), at_once):
            some = torch.stack([model[name] for model in models[start : start + at_once]])  # (S, ...)
            total = _added(total, some, share[start : start + at_once])
        assert total is not None
        average[name] = total.to(first.dtype)
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


class RunningAverage:
    """The weighted average of models as they arrive, as `weighted_average` has it: only their sum is kept.

    Who does not arrive makes no difference, not even in the last bit.

    Examples
    --------
    >>> average = RunningAverage()
    >>> average.add({"a": torch.tensor([[1.0], [2.0]])}, [1.0, 3.0])
    >>> average.mean()
    {'a': tensor([1.7500])}
    """

    def __init__(self) -> None:
        self._sum: Tensors = {}
        self._weight = 0.0
        self._first: tuple[str, Tensors] | None = None  # whose, and what it looks like

    def add(self, models: Tensors, weights: Sequence[float], *, whose: Sequence[str] = ()) -> None:
        """Add S models, tensors [S, ...] by name.

        Parameters
        ----------
        weights : of each, >= 0.
        whose : as in `weighted_average`. Default: the numbers of the models here.
        """
        likes = {name: value[0].to("meta") for name, value in models.items()}
        names = whose or _numbered(weights)
        if self._first is None:
            self._first = names[0], likes
        _check_equal([self._first[1], likes], [self._first[0], names[0]])
        self._weight += math.fsum(weights)
        for name, value in models.items():
            self._sum[name] = _added(self._sum.get(name), value, np.asarray(weights, np.float64))

    def mean(self) -> Tensors:
        """Return the average of what has arrived, at least one model that counts."""
        if self._first is None or not 0 < self._weight < math.inf:
            raise InvalidProblemError(f"weights: their sum is {self._weight}: expected a model with a weight > 0")
        return {
            name: (total / self._weight if total.is_floating_point() else total).to(self._first[1][name].dtype)
            for name, total in self._sum.items()
        }


def _added(total: torch.Tensor | None, values: torch.Tensor, shares: NDArray[np.float64]) -> torch.Tensor:
    """Return a sum, which may be overwritten, with some values [S, ...] times shares [S] added; of integers the maximum."""
    if not values.is_floating_point():
        most = values.amax(dim=0)
        return most if total is None else torch.maximum(total, most)
    wide = _wide(values)  # (S, ...)
    if len(shares) == 1:
        return wide[0] * float(shares[0]) if total is None else total.add_(wide[0], alpha=float(shares[0]))
    part = torch.tensordot(torch.tensor(shares, dtype=wide.dtype, device=wide.device), wide, dims=1)  # (...)
    return part if total is None else total.add_(part)


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


def _numbered(models: Sequence[object]) -> list[str]:
    return [f"model {index}" for index in range(len(models))]


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    """Return floating-point numbers in single precision at least."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32)) if tensor.is_floating_point() else tensor
