"""Many clients as one batch: the same pure function of tensors for all of them through `torch.func.vmap`.

Convolutions by columns and matrix products, by shifted views and by kernels of our own were tried in place of the
grouped convolution that ``vmap`` makes of a layer with weights per client; none of them was faster.
"""

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import nn
from torch.func import vmap
from torch.utils import _pytree as pytree

from edgeopt.errors import SequentialWarning
from edgeopt.training.chance import drawing, next_key
from edgeopt.training.keys import fold_in
from edgeopt.training.trouble import in_words, is_out_of_memory

Item = TypeVar("Item")
Result = TypeVar("Result")

_BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)
_DROPOUTS = (nn.modules.dropout._DropoutNd,)
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


def map_batched(function: Callable[[Item], Result], items: Sequence[Item], *, chunk: int | None = None) -> list[Result]:
    """Return ``[function(item) for item in items]``, computed for many items at once.

    Items of equal structure, shapes, types and devices go through one `torch.func.vmap`, others on their own. The
    results equal those of one after another up to rounding. Tensors of the results are views into those of a batch.

    Parameters
    ----------
    function : pure; it takes and returns nested dictionaries, tuples and lists of tensors. It must not draw random
        numbers, and no decision in it may depend on the value of a tensor: see `can_batch`. Gradients in it
        are those of `torch.func`.
    items : arguments. A tensor that has the same bits in all items of a batch is used as it is, not copied. Whether it
        is one object or several does not matter: after a checkpoint was loaded it is several.
    chunk : at most so many items in one batch, which bounds the memory. Default: all of them.

    Examples
    --------
    >>> items = [{"x": torch.tensor([1.0, 2.0])}, {"x": torch.tensor([3.0, 4.0])}]
    >>> map_batched(lambda item: item["x"].sum(), items)
    [tensor(3.), tensor(7.)]
    """
    groups: dict[Any, list[int]] = {}
    flat = [pytree.tree_flatten(item) for item in items]
    for index, (leaves, structure) in enumerate(flat):
        key = (tuple((leaf.shape, leaf.dtype, leaf.device) for leaf in leaves), str(structure))
        groups.setdefault(key, []).append(index)
    results: dict[int, Result] = {}
    for members in groups.values():
        size = len(members) if chunk is None else chunk
        for start in range(0, len(members), size):
            part = members[start : start + size]
            if len(part) == 1:
                results[part[0]] = function(items[part[0]])
            else:
                results |= zip(part, _together(function, [flat[i][0] for i in part], flat[part[0]][1]), strict=True)
    return [results[index] for index in range(len(items))]


def stacked(trees: Sequence[Any]) -> tuple[Any, Any]:
    """Return nested dictionaries of equal structure with the tensors of all [G, ...] at the leaves, and where they are such.

    What is the same for all is left as it is; the second value then has None, else 0, as `torch.func.vmap` takes it.
    """
    first = trees[0]
    if all(tree is first for tree in trees):
        return first, None
    if isinstance(first, torch.Tensor):
        return (first, None) if all(_same_bits(tree, first) for tree in trees) else (torch.stack(list(trees)), 0)
    columns = {name: stacked([tree[name] for tree in trees]) for name in first}
    return {name: column for name, (column, _) in columns.items()}, {name: axis for name, (_, axis) in columns.items()}


def apart(tree: Any, count: int) -> list[Any]:
    """Return nested dictionaries of tensors [G, ...] as one for each of G clients."""
    if isinstance(tree, torch.Tensor):
        return list(tree.unbind(0))
    columns = {name: apart(column, count) for name, column in tree.items()}
    return [{name: column[index] for name, column in columns.items()} for index in range(count)]


def map_clients(
    model: nn.Module,
    function: Callable[[Item], Result],
    items: Sequence[Item],
    alone: Callable[[int], AbstractContextManager[object]],
    *,
    chunk: int | None = None,
) -> list[Result]:
    """Return ``[function(item) for item in items]``, as one batch if model and function allow it.

    If not, they run one after another, each in the context that `alone` gives for its position, and a warning says why.
    """
    if (key := next_key()) is not None:  # what layers draw is each item's own
        keys = fold_in(key, torch.arange(len(items), device=key.device)).unbind()

        def keyed(item: tuple[Item, torch.Tensor]) -> Result:
            with drawing(item[1]):
                return function(item[0])

        return _map_clients(model, keyed, list(zip(items, keys, strict=True)), alone, chunk)
    return _map_clients(model, function, items, alone, chunk)


def _map_clients(
    model: nn.Module,
    function: Callable[[Item], Result],
    items: Sequence[Item],
    alone: Callable[[int], AbstractContextManager[object]],
    chunk: int | None,
) -> list[Result]:
    found = try_batched(model, function, items, chunk=chunk)
    if not isinstance(found, str):
        return found
    results = []
    for index, item in enumerate(items):
        with alone(index):
            results.append(function(item))
    if found:
        warnings.warn(f"clients run one after another, not as one batch: {found}", SequentialWarning, stacklevel=2)
    return results


def try_batched(
    model: nn.Module, function: Callable[[Item], Result], items: Sequence[Item], *, chunk: int | None = None
) -> list[Result] | str:
    """Return what `map_batched` returns, or why not: nothing if there are less than two items.

    An error of the function itself is such a reason: it comes again when the items run one after another, and can then be
    told of one of them.
    """
    if len(items) < 2:
        return ""
    if (reason := can_batch(model)) is not None:
        return reason
    try:
        return map_batched(function, items, chunk=chunk)
    except Exception as error:  # what vmap refuses, for example a loss that looks at the value of a tensor
        if is_out_of_memory(error):  # one after another they would need less, but take the time that nobody asked for
            raise
        return in_words(error)


def _together(function: Callable[[Any], Any], leaves: Sequence[list[torch.Tensor]], structure: Any) -> list[Any]:
    """Run a function for items of equal structure, given their leaves."""
    columns = list(zip(*leaves, strict=True))
    shared = [all(tensor is column[0] or _same_bits(tensor, column[0]) for tensor in column[1:]) for column in columns]
    stacked = [column[0] if same else torch.stack(column) for column, same in zip(columns, shared, strict=True)]
    if not columns or all(shared):  # nothing differs
        result = function(pytree.tree_unflatten(stacked, structure))
        return [result] * len(leaves)
    returned: Any = None

    def flat(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        nonlocal returned
        outputs, returned = pytree.tree_flatten(function(pytree.tree_unflatten(list(tensors), structure)))
        return tuple(outputs)

    outputs = vmap(flat, in_dims=tuple(None if same else 0 for same in shared))(*stacked)
    if not outputs:  # nothing to take apart
        return [pytree.tree_unflatten([], returned)] * len(leaves)
    return [pytree.tree_unflatten(list(row), returned) for row in zip(*(x.unbind(0) for x in outputs), strict=True)]


def _same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Compare tensors of equal shape and type; cheap, because it ends at the first difference."""
    return torch.equal(_bits(first), _bits(second))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bits as integers: nan equals itself, and zero is not minus zero."""
    real = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    return real.view(_INTEGERS[real.element_size()])


def can_batch(model: nn.Module) -> str | None:
    """Return why a model in training cannot run in `map_batched`, None if it can.

    A layer or a loss that decides by the value of a tensor is not noticed here, but by `try_batched`.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, _DROPOUTS) and layer.p > 0:
            return f"{name}: {type(layer).__name__} draws random numbers, which vmap refuses"
        if isinstance(layer, _BATCH_NORMS) and layer.num_batches_tracked is not None:
            return f"{name}: {type(layer).__name__} changes its running means in place, which vmap refuses"
    return None
