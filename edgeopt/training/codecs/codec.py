"""What a codec is: how a tensor at a cut is written, in as many bytes as the server has ordered, and read again."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch

from edgeopt.errors import InvalidProblemError
from edgeopt.training.costs.ledger import Direction
from edgeopt.training.messages import State, Tensors, Value
from edgeopt.validate import float_array

Order = Mapping[str, Value]
"""What the server fixes before a tensor is coded, such as how many channels are kept: plain values, which travel in a
message's `values`, that is as a part of the plan."""


@dataclass(frozen=True, slots=True)
class Form:
    """What both sides know of a tensor before it is sent.

    Parameters
    ----------
    shape : [samples, ...]. Channels are the second axis of images [samples, C, H, W] and volumes, else the last one.
    dtype : of the tensor.

    Examples
    --------
    >>> form = Form((8, 16, 4, 4), torch.float32)
    >>> form.channels, form.size, form.nbytes
    (16, 256, 8192)
    """

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def samples(self) -> int:
        """Samples, B."""
        return self.shape[0]

    @property
    def size(self) -> int:
        """Values of a sample, D."""
        return math.prod(self.shape[1:])

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor as it is."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def channels(self) -> int:
        """Channels, C; 1 where a sample is a single number."""
        return self.shape[self._axis] if len(self.shape) > 1 else 1

    @property
    def _axis(self) -> int:
        return 1 if len(self.shape) > 3 else len(self.shape) - 1

    def by_channel(self, x: torch.Tensor) -> torch.Tensor:
        """Return a tensor of this shape as [samples, channels, values of a channel]."""
        return x.movedim(self._axis, -1).reshape(self.samples, -1, self.channels).transpose(1, 2)

    def from_channels(self, x: torch.Tensor) -> torch.Tensor:
        """Return what `by_channel` was given."""
        others = [n for axis, n in enumerate(self.shape) if axis != self._axis or len(self.shape) == 1]
        return x.transpose(1, 2).reshape(*others, self.channels).movedim(-1, self._axis).reshape(self.shape)


@runtime_checkable
class Codec(Protocol):
    """A codec: a frozen dataclass of its hyper-parameters with these methods.

    All are pure. Each side of each client has a memory of its own, which `encode` and `decode` return anew: it is where
    what a client remembers from one message to the next is kept, over rounds, failures and checkpoints. What one side
    needs to know of the other has to be sent.

    `encode` and `decode` run in `torch.func.vmap`, for many clients at once: shapes follow from form and order alone, and
    no decision may depend on the value of a tensor.
    """

    name: ClassVar[str]

    def order(self, direction: Direction, form: Form, budget_bytes: float, memory: State) -> Order | None:
        """Return what the server fixes for the next tensor.

        Parameters
        ----------
        direction : ``up`` for activations, ``down`` for their gradients.
        budget_bytes : what may be sent, inf for no limit. If nothing fits, the least that the codec can send; or None, up
            only: the client is not asked, and the algorithm goes on without it, as if it had failed.
        memory : of the server, for this client and, where a message has several tensors, the first of them.
        """
        ...

    def encode(
        self,
        direction: Direction,
        x: torch.Tensor,
        order: Order,
        memory: State,
        *,
        labels: torch.Tensor | None,
        key: torch.Tensor,
    ) -> tuple[Tensors, State]:
        """Return what is sent in place of a tensor, each with its bytes, and the new memory of the sender.

        Parameters
        ----------
        labels : targets of the samples, for activations.
        key : for random numbers, see `edgeopt.training.keys`.
        """
        ...

    def decode(
        self, direction: Direction, tensors: Tensors, order: Order, memory: State, form: Form
    ) -> tuple[torch.Tensor, State]:
        """Return a tensor of a form from what was sent, and the new memory of the receiver.

        With the memory that the sender had, it returns the same tensor: so the sender knows what arrives.
        """
        ...


@runtime_checkable
class CodecAtWork(Codec, Protocol):
    """A codec that is there when the model is used, too, as the layers above the cut know nothing but what it leaves."""

    def at_work(self, x: torch.Tensor, memories: Sequence[State]) -> torch.Tensor:
        """Return activations [samples, ...] as they arrive when the model is used.

        Parameters
        ----------
        memories : of the clients whose model it is, at least one; of a common model all that have one.
        """
        ...


@runtime_checkable
class ReportingCodec(Codec, Protocol):
    """A codec with numbers of its own for the rows of a run."""

    def measured(self, orders: Sequence[Order]) -> Mapping[str, float]:
        """Return numbers by name, nan where there is none; `orders` are those of the activations that came in a round."""
        ...


def check_share(share: float) -> None:
    """Refuse what is no share of values or channels."""
    if not 0 < float_array("share", share, ()) <= 1:
        raise InvalidProblemError(f"share = {share}: expected above 0, to 1")


def count_within(share: float, count: int, each_bytes: int, budget_bytes: float) -> int:
    """Return how many of `count` things are sent: a share of them, at least one, but none more than a budget carries."""
    wanted = max(1, round(share * count))
    return wanted if budget_bytes >= wanted * each_bytes else max(0, int(budget_bytes // each_bytes))


def place_type(size: int) -> torch.dtype:
    """Return the smallest type that holds the places of `size` things."""
    return torch.uint8 if size <= 1 << 8 else torch.int16 if size <= 1 << 15 else torch.int32


def memory_tensor(memory: State, name: str) -> torch.Tensor:
    """Return a tensor of a memory that the message before has left there."""
    found = memory.get(name)
    if not isinstance(found, torch.Tensor):
        raise InvalidProblemError(f"codec: gradients without activations before them, expected {name} in the memory")
    return found
