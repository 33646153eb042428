"""Haar sub-bands of pictures, orthonormal: squares of 2 x 2 numbers become their sum and three differences, halved."""

import torch
from torch import Tensor


def haar(x: Tensor) -> Tensor:
    """Return the sub-bands of pictures.

    Of a square ``a b / c d``: (a + b + c + d) / 2, (a - b + c - d) / 2, (a + b - c - d) / 2 and (a - b - c + d) / 2.

    Parameters
    ----------
    x : [..., C, H, W], H and W even.

    Returns
    -------
    [..., 4, C, H / 2, W / 2]; the sum of squares is that of `x`.

    Examples
    --------
    >>> haar(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])).flatten().tolist()
    [5.0, -1.0, -2.0, 0.0]
    """
    a, b, c, d = x[..., ::2, ::2], x[..., ::2, 1::2], x[..., 1::2, ::2], x[..., 1::2, 1::2]  # (..., C, H / 2, W / 2)
    return torch.stack([a + b + c + d, a - b + c - d, a + b - c - d, a - b - c + d], -4) / 2


def unhaar(bands: Tensor) -> Tensor:
    """Return the pictures [..., C, H, W] of their sub-bands [..., 4, C, H / 2, W / 2]."""
    s, x, y, z = bands.unbind(-4)
    top = torch.stack([s + x + y + z, s - x + y - z], -1).flatten(-2)  # (..., C, H / 2, W)
    bottom = torch.stack([s + x - y - z, s - x - y + z], -1).flatten(-2)
    return torch.stack([top, bottom], -2).flatten(-3, -2) / 2
