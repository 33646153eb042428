"""Random numbers as functions of a key: the same for one client and for many in a batch, inside `torch.func.vmap` too.

A key is an int64 scalar; clients find one in ``message.key``. Numbers are a hash of key and position (SplitMix64,
G. Steele et al., OOPSLA 2014), so nothing is drawn from a generator, and nothing has to be remembered. They are equal to
the bit in a batch and one after another, but not between devices of different kinds.
"""

import math

import torch

_STEP, _FIRST, _SECOND = (value - (1 << 64) for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def fold_in(key: torch.Tensor, *numbers: int | torch.Tensor) -> torch.Tensor:
    """Return the key for a purpose, a step, a layer: another one for other numbers, which may be tensors [...] of them.

    Examples
    --------
    >>> key = torch.tensor(7)
    >>> bool(fold_in(key, 0, 1) == fold_in(key, 1, 0))
    False
    """
    for number in numbers:
        own = number.long() if isinstance(number, torch.Tensor) else torch.tensor(number, device=key.device)
        key = _mixed(_mixed(key) + own * _STEP)
    return key


def uniform(key: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return numbers of the given shape from 0 to below 1, in float32 on a grid of 2^-24, else of 2^-53."""
    bits = 24 if dtype == torch.float32 else 53
    return _top(key, shape, bits).to(dtype) * 2.0**-bits


def normal(key: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return numbers of the given shape from the standard normal distribution, none further out than 8.3."""
    wide = torch.float32 if key.device.type == "mps" else torch.float64  # there are no others there
    bits = 23 if wide == torch.float32 else 52
    middle = (_top(key, shape, bits).to(wide) + 0.5) * 2.0**-bits  # above 0 and below 1
    found: torch.Tensor = torch.special.ndtri(middle)
    return found.to(dtype)


def rademacher(key: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return -1 or 1, with equal chances, in the given shape."""
    return (2 * _top(key, shape, 1) - 1).to(dtype)


def permutation(key: torch.Tensor, count: int) -> torch.Tensor:
    """Return the numbers from 0 to before `count` in random order, int64 [count]."""
    return torch.argsort(_hashed(key, count), stable=True)


def _top(key: torch.Tensor, shape: tuple[int, ...], bits: int) -> torch.Tensor:
    """Return whole numbers below ``2 ** bits`` of the given shape."""
    hashed = _hashed(key, math.prod(shape))
    return ((hashed >> (64 - bits)) & ((1 << bits) - 1)).reshape(shape)


def _hashed(key: torch.Tensor, count: int) -> torch.Tensor:
    """Return int64 [count], every bit of which is a fair coin."""
    return _mixed(_mixed(key) + torch.arange(1, count + 1, device=key.device) * _STEP)


def _mixed(x: torch.Tensor) -> torch.Tensor:
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def _shifted(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Return the 64 bits moved to the right, zeros coming after them."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
