"""What the tests of codecs share: tensors, and a way across a cut."""

import math

import torch

from edgeopt.training import Codec, Form, State, Tensors

SHAPES = [(6, 8), (4, 12, 2, 3), (3, 5, 9), (1, 7), (5,), (300, 2)]  # dense, images, tokens, one sample, one number
KEY = torch.tensor(11)


def tensor(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def form_of(x: torch.Tensor) -> Form:
    return Form(tuple(x.shape), x.dtype)


def cross(
    codec: Codec, x: torch.Tensor, budget: float = math.inf, memory: State | None = None, key: torch.Tensor = KEY
) -> tuple[torch.Tensor, Tensors, State]:
    """Send a tensor up: return what arrives, what was sent, and the sender's memory."""
    order = codec.order("up", form_of(x), budget, {})
    sent, after = codec.encode("up", x, order, memory or {}, labels=None, key=key)
    found, _ = codec.decode("up", sent, order, {}, form_of(x))
    return found, sent, after


def nbytes(sent: Tensors) -> int:
    return sum(part.nbytes for part in sent.values())
