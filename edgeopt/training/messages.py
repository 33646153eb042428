"""What crosses between a server and its clients: messages of named tensors, and phases in which they are exchanged."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

from edgeopt.display import one_line

Tensors = dict[str, torch.Tensor]
"""Tensors by name: the weights of a model, or a part of them."""

State = dict[str, "torch.Tensor | State"]
"""What a client or a server remembers between rounds: tensors by name, nested."""

Category = Literal["weights", "activations", "gradients", "labels", "scalars"]
CATEGORIES: tuple[Category, ...] = ("weights", "activations", "gradients", "labels", "scalars")
"""What a tensor that is sent may be; bytes are counted for each of them."""

Link = Literal["edge", "fed"]
"""Between client and edge server, or between client and fed server (which only averages)."""


@dataclass(frozen=True, slots=True)
class Batches:
    """Which mini-batches of its own data a client works with; see `edgeopt.training.task.Task.batch`.

    Parameters
    ----------
    round : number of the round.
    first, count : steps of the round, from 0.
    size : samples of each; more than the client has means all that it has.
    """

    round: int
    first: int
    count: int
    size: int


@dataclass(frozen=True, slots=True, eq=False)
class Message:
    """From a server to a client, or back.

    Parameters
    ----------
    kind : what the client is to do, or ``reply``.
    tensors : content by category; each tensor counts with its bytes.
    values : plain values that control the work. They are part of the plan and count no bytes.
    batches : the client's own data that is needed.
    flops : work that the message causes at the client.
    """

    kind: str
    tensors: Mapping[Category, Tensors] = field(default_factory=dict)
    values: Mapping[str, int | float | str | bool] = field(default_factory=dict)
    batches: Batches | None = None
    flops: float = 0.0

    __repr__ = one_line

    def __getitem__(self, category: Category) -> Tensors:
        return self.tensors.get(category, {})

    def __iter__(self) -> Iterator[Category]:
        return iter(self.tensors)


def reply(**tensors: Tensors) -> Message:
    """Return a client's answer; the keywords are categories.

    Examples
    --------
    >>> reply(scalars={"loss": torch.tensor(0.5)}).kind
    'reply'
    """
    content: dict[Category, Tensors] = {name: tensors[name] for name in CATEGORIES if name in tensors}
    if len(content) < len(tensors):
        raise TypeError(f"reply: expected categories {', '.join(CATEGORIES)}, got {', '.join(tensors)}")
    return Message("reply", content)


@dataclass(frozen=True, slots=True, eq=False)
class Phase:
    """One exchange between a server and some clients of a plan; it ends when the last reply is there.

    Parameters
    ----------
    name : for reports, for example ``train`` or ``forward``.
    messages : by entry of the plan.
    link : which server the clients talk to.
    server_flops : work of the server after the replies, by entry; it works on one client after another.
    server_up_bytes, server_down_bytes : what the edge server exchanges with the fed server meanwhile.
    """

    name: str
    messages: Mapping[int, Message]
    link: Link = "edge"
    server_flops: Mapping[int, float] = field(default_factory=dict)
    server_up_bytes: float = 0.0
    server_down_bytes: float = 0.0

    __repr__ = one_line


Replies = dict[int, Message]
"""Answers by entry of the plan; of clients that failed there is none."""


def kept(state: State) -> State:
    """Return a state as a checkpoint would give it back, see `kept_tensor`."""
    return {name: kept_tensor(v) if isinstance(v, torch.Tensor) else kept(v) for name, v in state.items()}


def kept_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor that lies in memory of its own in the usual order; a copy only if it does not yet.

    In their last bits, results depend on where and in which order a tensor lies in memory, so what is remembered lies
    there as if it came from a file. And one client's share of a batch would keep the whole of it.
    """
    ordered = tensor.reshape(-1).view(tensor.shape)
    alone = ordered.untyped_storage().nbytes() == ordered.nbytes
    return ordered if alone else ordered.clone(memory_format=torch.contiguous_format)


def to_device(message: Message, device: torch.device) -> Message:
    """Return the message with its tensors on a device."""
    moved: dict[Category, Tensors] = {
        category: {name: tensor.to(device) for name, tensor in tensors.items()}
        for category, tensors in message.tensors.items()
    }
    return Message(message.kind, moved, message.values, message.batches, message.flops)
