"""Chance in layers: dropout whose masks are functions of a key, so that it runs for one client and in a batch alike."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from edgeopt.training.keys import fold_in, uniform

_KINDS: Any = {
    nn.Dropout: (F.dropout, None), nn.Dropout1d: (F.dropout1d, 2), nn.Dropout2d: (F.dropout2d, 3),
    nn.Dropout3d: (F.dropout3d, 4),
}  # fmt: skip
"""How torch does it, and the axes of one sample, its channels among them; None where each number goes by itself."""


class _Draws:
    """A key, and how often layers have drawn from it."""

    def __init__(self, key: torch.Tensor) -> None:
        self.key, self.count = key, 0

    def next(self) -> torch.Tensor:
        self.count += 1
        return fold_in(self.key, self.count)


_DRAWS: ContextVar[_Draws | None] = ContextVar("edgeopt_draws", default=None)


@contextmanager
def drawing(key: torch.Tensor) -> Iterator[None]:
    """Let dropout inside depend on a key, an int64 scalar, and on how often layers have drawn before."""
    token = _DRAWS.set(_Draws(key))
    try:
        yield
    finally:
        _DRAWS.reset(token)


def next_key() -> torch.Tensor | None:
    """Return a key that nothing else inside `drawing` has; None outside."""
    draws = _DRAWS.get()
    return None if draws is None else draws.next()


class KeyedDropout(nn.Module):
    """One of torch's layers of dropout, which inside `drawing` takes its mask from the key."""

    def __init__(self, plain: nn.Module) -> None:
        super().__init__()
        self.p = float(plain.p)  # type: ignore[arg-type]
        self.plain, self.axes = _KINDS[type(plain)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x, what is left of it made larger so that its mean stays."""
        if not self.training or (key := next_key()) is None:
            found: torch.Tensor = self.plain(x, self.p, self.training)
            return found
        if self.p == 1:
            return x * 0
        shape = x.shape
        if self.axes is not None:  # whole channels
            kept = x.ndim - self.axes + 1
            shape = torch.Size((*shape[:kept], *[1] * (x.ndim - kept)))
        return x * ((uniform(key, tuple(shape)) >= self.p).to(x.dtype) / (1 - self.p))


def keyed(model: nn.Module) -> nn.Module:
    """Put `KeyedDropout` in the places of a model's layers of dropout, in place; those of other kinds stay."""
    for parent in list(model.modules()):
        for name, layer in parent._modules.items():
            if isinstance(layer, nn.Module) and type(layer) in _KINDS and float(layer.p) > 0:  # type: ignore[arg-type]
                parent._modules[name] = KeyedDropout(layer)
    return model


def draws(model: nn.Module) -> bool:
    """Return whether a model has a layer that takes its mask from a key."""
    return any(isinstance(layer, KeyedDropout) for layer in model.modules())
