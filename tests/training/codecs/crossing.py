"""What the tests of codecs share: tensors, and ways across a cut."""

import math
from typing import NamedTuple

import torch

from edgeopt.training import Codec, Form, State, Tensors

SHAPES = [(6, 8), (4, 12, 2, 3), (3, 5, 9), (1, 7), (5,), (300, 2)]  # dense, images, tokens, one sample, one number
KEY = torch.tensor(11)


def tensor(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def form_of(x: torch.Tensor) -> Form:
    return Form(tuple(x.shape), x.dtype)


def labels_of(x: torch.Tensor) -> torch.Tensor:
    return torch.arange(x.shape[0]) % 3


def cross(
    codec: Codec, x: torch.Tensor, budget: float = math.inf, memory: State | None = None, key: torch.Tensor = KEY
) -> tuple[torch.Tensor, Tensors, State]:
    """Send a tensor up: return what arrives, what was sent, and the sender's memory."""
    order = codec.order("up", form_of(x), budget, {})
    assert order is not None
    sent, after = codec.encode("up", x, order, memory or {}, labels=labels_of(x), key=key)
    found, _ = codec.decode("up", sent, order, {}, form_of(x))
    return found, sent, after


class Exchange(NamedTuple):
    """A tensor up and one down again: what arrives, what was sent, and what both sides remember of it."""

    found: torch.Tensor
    sent: Tensors
    gradient: torch.Tensor
    back: Tensors
    client: State
    server: State


def exchange(
    codec: Codec,
    x: torch.Tensor,
    down: torch.Tensor | None = None,
    budget: float = math.inf,
    client: State | None = None,
    server: State | None = None,
    key: torch.Tensor = KEY,
    labels: torch.Tensor | None = None,
) -> Exchange:
    """Send a tensor up, and one of its form down; each side with its own memory."""
    form, client, server = form_of(x), client or {}, server or {}
    order = codec.order("up", form, budget, server)
    assert order is not None
    labels = labels_of(x) if labels is None else labels
    sent, client = codec.encode("up", x, order, client, labels=labels, key=key)
    found, server = codec.decode("up", sent, order, server, form)
    order = codec.order("down", form, math.inf, server)
    assert order is not None
    back, server = codec.encode("down", x if down is None else down, order, server, labels=None, key=key)
    gradient, client = codec.decode("down", back, order, client, form)
    return Exchange(found, sent, gradient, back, client, server)


def nbytes(sent: Tensors) -> int:
    return sum(part.nbytes for part in sent.values())
