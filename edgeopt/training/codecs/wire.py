"""What both ends of a coded exchange do: orders in a message's values, tensors under their names as coded parts."""

from collections.abc import Mapping

import torch

from edgeopt.training.codecs.codec import Codec, Form, Order
from edgeopt.training.costs.ledger import Direction
from edgeopt.training.keys import fold_in
from edgeopt.training.messages import Message, State, Tensors, Value
from edgeopt.training.task import Task

_PREFIX = "codec "


def branch(state: State, name: str) -> State:
    """Return a part of a state that is one itself, empty where nothing is remembered yet."""
    found = state.get(name, {})
    assert isinstance(found, dict)
    return found


def first(memory: State) -> State:
    """Return what is remembered of the first tensor of a message."""
    return next((branch(memory, name) for name in memory), {})


def form_of(task: Task, message: Message, samples: int) -> Form | None:
    """Return the form of what crosses the cut that a message is about; None if it is about none."""
    cut = message.values.get("cut")
    if message.batches is None or not isinstance(cut, int) or cut >= task.num_layers:
        return None
    return Form((samples, *task.shape_at(cut)), task.dtype_at(cut))


# --- orders --------------------------------------------------------------------------------------------------------


def values_of(direction: Direction, order: Order) -> dict[str, Value]:
    """Return an order as values of a message."""
    return {f"{_PREFIX}{direction} {name}": value for name, value in order.items()}


def order_in(message: Message, direction: Direction) -> dict[str, Value]:
    """Return the order in a message's values."""
    prefix = f"{_PREFIX}{direction} "
    return {name.removeprefix(prefix): v for name, v in message.values.items() if name.startswith(prefix)}


def without_orders(values: Mapping[str, Value]) -> dict[str, Value]:
    """Return a message's values as they were before orders came to them."""
    return {name: value for name, value in values.items() if not name.startswith(_PREFIX)}


# --- tensors -------------------------------------------------------------------------------------------------------


def encode(
    codec: Codec,
    direction: Direction,
    tensors: Tensors,
    order: Order,
    memory: State,
    *,
    labels: torch.Tensor | None,
    key: torch.Tensor,
) -> tuple[Tensors, State]:
    """Return coded tensors, each named by its tensor and part, and the memory by tensor."""
    coded: Tensors = {}
    for position, (name, tensor) in enumerate(tensors.items()):
        before, own_key = branch(memory, name), fold_in(key, position)
        parts, after = codec.encode(direction, tensor, order, before, labels=labels, key=own_key)
        coded |= {f"{name}.{part}": value for part, value in parts.items()}
        memory = _remembering(memory, name, after)
    return coded, memory


def decode(
    codec: Codec, direction: Direction, coded: Tensors, order: Order, memory: State, form: Form
) -> tuple[Tensors, State]:
    """Return what `encode` was given, as far as it crossed, and the memory by tensor."""
    names: dict[str, Tensors] = {}
    for path, value in coded.items():
        name, _, part = path.rpartition(".")
        names.setdefault(name, {})[part] = value
    tensors: Tensors = {}
    for name, parts in names.items():
        tensors[name], after = codec.decode(direction, parts, order, branch(memory, name), form)
        memory = _remembering(memory, name, after)
    return tensors, memory


def relative_error(
    codec: Codec, direction: Direction, tensors: Tensors, coded: Tensors, order: Order, memory: State, form: Form
) -> torch.Tensor:
    """Return |decoded - true| / |true|, a float32 scalar; `memory` is what the sender had before."""
    found, _ = decode(codec, direction, coded, order, memory, form)
    true = torch.cat([tensor.float().flatten() for tensor in tensors.values()])
    seen = torch.cat([found[name].float().flatten() for name in tensors])
    error: torch.Tensor = (seen - true).norm() / true.norm().clamp_min(torch.finfo(torch.float32).tiny)
    return error


def _remembering(memory: State, name: str, own: State) -> State:
    others = {key: value for key, value in memory.items() if key != name}
    return {**others, name: own} if own else others
