"""What crosses between a server and its clients: messages of named tensors, and phases in which they are exchanged."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from edgeopt.display import one_line
from edgeopt.errors import quoted
from edgeopt.training.trouble import TrainingError, described

Tensors = dict[str, torch.Tensor]
"""Tensors by name: the weights of a model, or a part of them."""

State = dict[str, "torch.Tensor | State"]
"""What a client or a server remembers between rounds: tensors by name, nested."""

Category = Literal["weights", "activations", "gradients", "labels", "scalars", "statistics"]
CATEGORIES: tuple[Category, ...] = ("weights", "activations", "gradients", "labels", "scalars", "statistics")
"""What a tensor that is sent may be; bytes are counted for each of them."""

Value = int | float | str | bool
"""A plain value in a message."""

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
    whole : whether samples that do not fill a mini-batch at the end of a pass over the client's data are left out. If
        not, they are a smaller one, as in plans of `local_epochs`.
    """

    round: int
    first: int
    count: int
    size: int
    whole: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Message:
    """From a server to a client, or back.

    Parameters
    ----------
    kind : what the client is to do, or ``reply``.
    tensors : content by category; each tensor counts with its bytes.
    values : plain values that control the work. They are part of the plan and count no bytes.
    batches : the client's own data that is needed.
    flops : work that the message causes at the client; it does not see the number. In a reply, what it really was, where it
        says so: not 0.
    peak_bytes : memory that the client needs at the peak of it, see `edgeopt.training.client_peak_bytes`.
    held : names of weights that the message is about and does not bring, as the client has them already.
    rows : of tensors that do not count in full, by name: which rows do, bool [R], or [1, C] for columns; see `nbytes`.
    key : for random numbers at the client, an int64 scalar, see `edgeopt.training.keys`. It is given to every message on
        its way, another one for each client, round and phase, and counts no bytes.
    """

    kind: str
    tensors: Mapping[Category, Tensors] = field(default_factory=dict)
    values: Mapping[str, Value] = field(default_factory=dict)
    batches: Batches | None = None
    flops: float | torch.Tensor = 0.0
    peak_bytes: float = 0.0
    held: frozenset[str] = frozenset()
    rows: Mapping[str, torch.Tensor] = field(default_factory=dict)
    key: torch.Tensor | None = None

    __repr__ = one_line

    def __getitem__(self, category: Category) -> Tensors:
        _check_category(self.kind, category)
        return self.tensors.get(category, {})

    def __iter__(self) -> Iterator[Category]:
        return iter(self.tensors)

    def nbytes(self, category: Category) -> int:
        """Return what the tensors of a category take; of those with `rows`, the rows that count alone."""
        return sum(
            tensor.nbytes if name not in self.rows else _count(self.rows[name], tensor) * tensor.element_size()
            for name, tensor in self[category].items()
        )


def _count(rows: torch.Tensor, of: torch.Tensor) -> int:
    """Return how many entries of a tensor count."""
    each = math.prod(of.shape[rows.ndim :])
    return int(rows.expand(of.shape[: rows.ndim]).sum()) * each


def reply(
    *, rows: Mapping[str, torch.Tensor] | None = None, flops: float | torch.Tensor = 0.0, **tensors: Tensors
) -> Message:
    """Return a client's answer; the keywords are categories.

    Parameters
    ----------
    rows : of tensors with rows that are padding, or experts that have not learnt, which rows are charged: see `Message`.
    flops : the work that was really done, a scalar: it takes the place of what the message was charged with.

    Examples
    --------
    >>> reply(scalars={"loss": torch.tensor(0.5)}).kind
    'reply'
    >>> padded = reply(weights={"a": torch.zeros(4, 3)}, rows={"a": torch.tensor([True, True, False, False])})
    >>> padded.nbytes("weights")
    24
    """
    content: Any = tensors
    message = Message("reply", content, flops=flops, rows=rows or {})
    check_message(message)
    return message


def received(message: Message, own: Tensors) -> Tensors:
    """Return the weights that a message is about: what it brings, and what it names as held, from the client's own.

    Raises
    ------
    TrainingError
        If the client has not got what it is said to have.
    """
    if missing := message.held - own.keys():
        raise TrainingError(f"held: {min(missing)}: expected weights that the client has")
    return {**{name: value for name, value in own.items() if name in message.held}, **message["weights"]}


def check_message(message: Message) -> None:
    """Refuse what cannot be sent, or would be sent uncounted.

    Raises
    ------
    TrainingError
        Naming category, entry, what was given and what was expected.
    """
    for category, tensors in message.tensors.items():
        _check_category(message.kind, category)
        if not isinstance(tensors, Mapping):
            raise TrainingError(f"{message.kind}: {category} is {described(tensors)}: expected tensors by name")
        for name, tensor in tensors.items():
            if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
                raise TrainingError(
                    f"{message.kind}: {category}[{quoted(name)}] is {described(tensor)}: expected a tensor under a name"
                )
    for name, value in message.values.items():
        if not isinstance(name, str) or not isinstance(value, Value):
            raise TrainingError(
                f"{message.kind}: values[{quoted(name)}] is {described(value)}: expected a number, a text or a truth value"
            )
    _check_rows(message)


def _check_category(kind: str, category: str) -> None:
    if category not in CATEGORIES:
        raise TrainingError(f"{kind}: category {quoted(category)}: expected one of {', '.join(CATEGORIES)}")


def _check_rows(message: Message) -> None:
    tensors = {name: tensor for category in message for name, tensor in message[category].items()}
    for name, rows in message.rows.items():
        if name not in tensors:
            raise TrainingError(f"{message.kind}: rows[{quoted(name)}]: expected the name of a tensor in the message")
        if not isinstance(rows, torch.Tensor) or rows.dtype != torch.bool:
            raise TrainingError(f"{message.kind}: rows[{quoted(name)}] is {described(rows)}: expected booleans")
        shape = tensors[name].shape
        fits = rows.ndim <= len(shape) and all(n in (1, m) for n, m in zip(rows.shape, shape, strict=False))
        if rows.ndim == 0 or not fits:
            raise TrainingError(
                f"{message.kind}: rows[{name!r}] has shape {list(rows.shape)}: expected the first axes of {list(shape)}, or 1"
            )


Take = Callable[[Sequence[int], Tensors], None]
"""Takes the tensors [S, ...] of a category in the replies of S entries, see `Phase`."""


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
    take : what is made of a category of the replies as they arrive, for example a sum: called with S entries and their
        tensors [S, ...] by name, which it must not change or keep. The replies then have tensors of the meta device in
        their place, so that the memory of a phase does not grow with its clients.
    """

    name: str
    messages: Mapping[int, Message]
    link: Link = "edge"
    server_flops: Mapping[int, float] = field(default_factory=dict)
    server_up_bytes: float = 0.0
    server_down_bytes: float = 0.0
    take: Mapping[Category, Take] = field(default_factory=dict)

    __repr__ = one_line


Replies = dict[int, Message]
"""Answers by entry of the plan; of clients that failed there is none."""


def taken(replies: Replies, take: Mapping[Category, Take]) -> Replies:
    """Return replies of which a phase has taken what it takes, see `Phase`."""
    for entry, answer in replies.items() if take else ():
        content: dict[Category, Tensors] = dict(answer.tensors)
        for category in content.keys() & take.keys():
            take[category]([entry], {name: tensor[None] for name, tensor in content[category].items()})
            content[category] = {name: tensor.to("meta") for name, tensor in content[category].items()}
        replies[entry] = replace(answer, tensors=content)
    return replies


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


def copied(state: Any) -> Any:
    """Return a state, or tensors by name, whose tensors nobody else has."""
    return {name: v.clone() if isinstance(v, torch.Tensor) else copied(v) for name, v in state.items()}


def to_device(message: Message, device: torch.device) -> Message:
    """Return the message with its tensors on a device."""
    moved: dict[Category, Tensors] = {
        category: {name: tensor.to(device) for name, tensor in tensors.items()}
        for category, tensors in message.tensors.items()
    }
    rows = {name: rows.to(device) for name, rows in message.rows.items()}
    return replace(message, tensors=moved, rows=rows, key=None if message.key is None else message.key.to(device))
