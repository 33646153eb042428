"""What algorithms that train low-rank adapters share: whose rows count, what they take, and what each layer is worth.

The adapters are the `edgeopt.models.LoraLinear` of the model. A client of a lower rank has the first rows of A and columns
of B, zeros in place of the others: it computes what its rank does, and clients of unequal rank run as one batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from edgeopt.errors import InvalidProblemError
from edgeopt.models.lora import lora_layers
from edgeopt.profile import ModelProfile
from edgeopt.training.costs.memory import client_peak_bytes
from edgeopt.training.keys import normal
from edgeopt.training.messages import State, Tensors
from edgeopt.training.optimizers import Optimizer
from edgeopt.training.task import Task
from edgeopt.validate import float_array, int_array, integer


@dataclass(frozen=True, slots=True)
class Adapter:
    """A layer with an adapter, as its task has it.

    Parameters
    ----------
    name : in ``model.named_modules()``.
    layer : of the task, from 0, that it is in.
    inputs, outputs, rank : sizes of A [rank, inputs] and B [outputs, rank].
    scale : s of W x + s B A x.
    transposed : whether W is [inputs, outputs].
    """

    name: str
    layer: int
    inputs: int
    outputs: int
    rank: int
    scale: float
    transposed: bool

    @property
    def a(self) -> str:
        """Name of A among the weights."""
        return f"{self.name}.lora_a"

    @property
    def b(self) -> str:
        """Name of B among the weights."""
        return f"{self.name}.lora_b"

    @property
    def weight(self) -> str:
        """Name of W among the frozen weights."""
        return f"{self.name}.weight"

    @property
    def cost(self) -> int:
        """Parameters per unit of rank, c."""
        return self.inputs + self.outputs

    def product(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Return B A in the shape of W."""
        return (b @ a).T if self.transposed else b @ a


def adapters_of(task: Task) -> tuple[Adapter, ...]:
    """Return the adapters of a task that are trained, in the order of the model.

    Raises
    ------
    InvalidProblemError
        If the weight beside one is trained, too: what is learnt at both places could not be told apart.
    """
    found = [
        Adapter(
            name, task.layer_of[f"{name}.weight"], part.in_features, part.out_features, part.rank, part.scale, part.transposed
        )
        for name, part in lora_layers(task.model).items()
        if f"{name}.lora_a" in task.parameters and f"{name}.lora_b" in task.parameters
    ]  # fmt: skip
    if free := next((adapter.weight for adapter in found if adapter.weight not in task.frozen), None):
        raise InvalidProblemError(f"model: {free} requires gradients: expected it frozen, with an adapter beside it")
    return tuple(found)


# --- clients of unequal rank ---------------------------------------------------------------------------------------


def uniform_ranks(adapters: Sequence[Adapter], rank: int) -> NDArray[np.int64]:
    """Return the same rank for all adapters [K], as far as each goes; 0 is as far as they go."""
    most = np.array([adapter.rank for adapter in adapters], np.int64)
    return np.minimum(most, rank) if rank else most


def row_masks(adapters: Sequence[Adapter], ranks: NDArray[np.int64] | torch.Tensor) -> Tensors:
    """Return which rows of A, bool [rank], and which columns of B, bool [1, rank], count at some ranks [K]."""
    masks: Tensors = {}
    for adapter, rank in zip(adapters, torch.as_tensor(ranks), strict=True):
        counts = torch.arange(adapter.rank, device=rank.device) < rank  # (R,)
        masks |= {adapter.a: counts, adapter.b: counts[None]}
    return masks


def truncated(weights: Tensors, masks: Tensors) -> Tensors:
    """Return weights whose adapters are zero where `row_masks` says that nothing counts."""
    found = dict(weights)
    for name, mask in masks.items():
        rows = mask.to(weights[name].device)
        found[name] = weights[name] * (rows if mask.ndim == 2 else rows[:, None])
    return found


def lower_peak_bytes(
    task: Task,
    samples: int,
    optimizer: Optimizer | None,
    adapters: Sequence[Adapter],
    ranks: ArrayLike,
    cut: int | None = None,
) -> float:
    """Return `client_peak_bytes` of a client whose adapters have some ranks [K] instead of the largest.

    Rows that are padding are neither held nor have a gradient and a state of the optimiser. What layers of a lower rank keep
    for the backward pass is counted as that of the largest.
    """
    last = task.num_layers if cut is None else cut
    padding: Tensors = {}
    for adapter, rank in zip(adapters, np.asarray(ranks).tolist(), strict=True):
        if adapter.layer < last and rank < adapter.rank:
            like = task.frozen[adapter.weight]
            padding[adapter.a] = torch.empty(adapter.rank - rank, adapter.inputs, dtype=like.dtype, device="meta")
            padding[adapter.b] = torch.empty(adapter.outputs, adapter.rank - rank, dtype=like.dtype, device="meta")
    state: State = {} if optimizer is None else optimizer.start(padding)
    moments = [value for part in state.values() if isinstance(part, dict) for value in part.values()]
    spared = [*padding.values(), *padding.values(), *(v for v in moments if isinstance(v, torch.Tensor) and v.ndim)]
    return client_peak_bytes(task, samples, optimizer, cut=cut) - sum(value.nbytes for value in spared)


class Work(NamedTuple):
    """FLOPs of a sample, of a forward and of a backward pass."""

    forward: float
    backward: float


_UNITS: WeakKeyDictionary[Task, tuple[NDArray[np.float64], NDArray[np.float64]]] = WeakKeyDictionary()


def spared_work(
    task: Task, adapters: Sequence[Adapter], ranks: ArrayLike, first: int = 0, last: int | None = None
) -> Work:
    """Return what adapters of some ranks [K] in layers `first` to before `last` spare against those of the largest."""
    end = task.num_layers if last is None else last
    spared = [
        adapter.rank - rank if first <= adapter.layer < end else 0
        for adapter, rank in zip(adapters, np.asarray(ranks).tolist(), strict=True)
    ]
    if not any(spared):
        return Work(0.0, 0.0)
    if task not in _UNITS:
        _UNITS[task] = _unit_work(task, adapters)
    forward, backward = (float(unit @ spared) for unit in _UNITS[task])
    return Work(forward, backward)


def _unit_work(task: Task, adapters: Sequence[Adapter]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the FLOPs of a sample for a unit of rank of each adapter [K], forward and backward, as the profile has them.

    A unit takes an inner product of the inputs with a row of A, and a column of B times that; backward, each has two
    gradients, but that by the inputs is left out where nothing before the layer is trained. Where the profile is that of
    another model, adapters have the share of a layer that they have in this one.
    """
    tokens: dict[str, NDArray[np.int64]] = {adapter.name: np.zeros(2, np.int64) for adapter in adapters}

    def look(name: str, x: torch.Tensor) -> None:
        count = x.numel() // x.shape[-1]
        tokens[name] += (count, count * x.requires_grad)  # all, and those by which a gradient is wanted

    model, data = task.layers(training=False), task.train if len(task.train) else task.test
    hooks = [
        layer.register_forward_pre_hook(lambda _, given, name=name: look(name, given[0]))
        for name, layer in lora_layers(model).items()
        if name in tokens
    ]
    try:
        with torch.inference_mode(False), torch.enable_grad():
            model(data.inputs[:1])
    finally:
        for hook in hooks:
            hook.remove()
    try:
        own = ModelProfile.from_module(task.model, data.inputs[:1].repeat_interleave(2, dim=0))
    except InvalidProblemError:  # the task has come with a profile
        own = task.profile
    units = np.zeros((2, len(adapters)))
    for index, adapter in enumerate(adapters):
        count, wanted = tokens[adapter.name].tolist()
        work = 2 * count * adapter.cost, 2 * count * (adapter.cost + adapter.outputs) + 2 * wanted * adapter.inputs
        for row, name in enumerate(("forward_flops", "backward_flops")):
            charged, measured = (float(getattr(profile, name)[adapter.layer]) for profile in (task.profile, own))
            units[row, index] = work[row] * charged / measured
    forward, backward = units
    return forward, backward


def fresh_adapter(adapter: Adapter, key: torch.Tensor, like: torch.Tensor, mask: torch.Tensor | None) -> Tensors:
    """Return a new adapter: A drawn where the mask [rank] is set, zero without one, and B zero."""
    first = like.new_zeros(adapter.rank, adapter.inputs)
    if mask is not None:
        drawn = normal(key, (adapter.rank, adapter.inputs), like.dtype) / math.sqrt(adapter.inputs)  # (r, in)
        first = drawn * mask.to(like.device)[:, None]
    return {adapter.a: first, adapter.b: like.new_zeros(adapter.outputs, adapter.rank)}


# --- stacking ------------------------------------------------------------------------------------------------------


def stacked(
    factors: Sequence[tuple[torch.Tensor, torch.Tensor]], weights: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Return A [R, in] and B [out, R] with :math:`B A = \sum_i w_i B_i A_i`, R the sum of the ranks: nothing is lost.

    Noise-free aggregation of adapters of unequal rank as HSplitLoRA has it, after FLoRA (Z. Wang et al., arXiv:2409.05976).

    Parameters
    ----------
    factors : A_i [r_i, in] and B_i [out, r_i].
    weights : w_i.

    Examples
    --------
    >>> first = (torch.ones(1, 3), torch.ones(2, 1))
    >>> second = (torch.ones(2, 3), torch.ones(2, 2))
    >>> a, b = stacked([first, second], [0.5, 0.5])
    >>> (b @ a)[0]
    tensor([1.5000, 1.5000, 1.5000])
    """
    a = torch.cat([a for a, _ in factors])  # (R, in)
    return a, torch.cat([w * b for w, (_, b) in zip(weights, factors, strict=True)], dim=1)  # (out, R)


def fold_error(
    adapter: Adapter,
    old: torch.Tensor,
    new: torch.Tensor,
    factors: Sequence[tuple[torch.Tensor, torch.Tensor]],
    shares: Sequence[float],
) -> float:
    """Return |new - (old + sum of the products)| / |old + sum of the products|, the sum in double precision."""
    exact = old.double() + sum(
        share * adapter.product(a.double(), b.double()) for share, (a, b) in zip(shares, factors, strict=True)
    )
    return float((new - exact).norm() / exact.norm().clamp_min(torch.finfo(torch.float64).tiny))


# --- what a layer is worth -----------------------------------------------------------------------------------------


def weight_gradient_products(adapters: Sequence[Adapter], weights: Tensors, gradients: Tensors) -> torch.Tensor:
    """Return the sum over each layer of |weight x gradient|, [K]."""
    return torch.stack([(weights[a.weight] * gradients[a.weight]).abs().sum() for a in adapters])


def smoothed_importance(
    old: NDArray[np.float64], new: NDArray[np.float64], progress: float, *, first: float = 0.9, last: float = 0.3
) -> NDArray[np.float64]:
    r"""Return the weighted mean of current and past importance of the layers, [K]; our formula for the paper's words.

    .. math:: I^t = \rho s + (1 - \rho) I^{t-1}, \quad \rho = (\rho_{max} - (\rho_{max} - \rho_{min}) t / T)
        \min(1, |s - I^{t-1}| / I^{t-1})

    The current one counts less as training goes on, and where it hardly differs from the past.

    Parameters
    ----------
    progress : t / T, from 0 to 1.
    first, last : rho_max and rho_min.
    """
    moved = np.minimum(1.0, np.abs(new - old) / np.maximum(old, np.finfo(np.float64).tiny))
    mix = (first - (first - last) * progress) * moved
    return mix * new + (1 - mix) * old


def importance_moved(now: NDArray[np.float64], then: NDArray[np.float64]) -> float:
    """Return how much importance has moved, the sum of its changes over what it was."""
    return float(np.abs(now - then).sum() / max(np.abs(then).sum(), np.finfo(np.float64).tiny))


def greedy_ranks(importance: ArrayLike, cost: ArrayLike, most: ArrayLike, budget: float) -> NDArray[np.int64]:
    """Return ranks [K] within a budget: one unit after another where importance / (rank + 1) is largest; ours.

    Among equals the first layer counts; units that do not fit are left out, smaller ones may still fit.

    Parameters
    ----------
    importance : I of the layers, float64 [K], >= 0.
    cost : parameters of a unit of rank, int64 [K].
    most : largest ranks, int64 [K].
    budget : parameters in all.

    Raises
    ------
    InvalidProblemError
        If the budget is below one unit of the cheapest layer.

    Examples
    --------
    >>> greedy_ranks([3.0, 1.0], [10, 10], [4, 4], budget=40)
    array([3, 1])
    """
    worth = float_array("importance", importance, (None,), nonnegative=True)
    costs, limits = int_array("cost", cost, worth.shape, low=1), int_array("most", most, worth.shape, low=0)
    ranks = np.zeros(worth.size, np.int64)
    if worth.size and budget < costs.min():
        raise InvalidProblemError(
            f"budget = {budget:g}: expected at least {costs.min()}, the parameters of one adapter of rank 1"
        )
    while (fits := (ranks < limits) & (costs <= budget)).any():
        best = int(np.argmax(np.where(fits, worth / (ranks + 1), -math.inf)))
        ranks[best] += 1
        budget -= costs[best]
    return ranks


def budget_of(adapters: Sequence[Adapter], rank: int) -> int:
    """Return the parameters that a rank stands for: those of equal ranks in all layers, as far as each goes."""
    ranks = uniform_ranks(adapters, integer("rank", rank, low=0))
    return int(sum(r * adapter.cost for r, adapter in zip(ranks.tolist(), adapters, strict=True)))
