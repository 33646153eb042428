"""Small whole numbers packed into bytes, so that a tensor takes the bytes that are charged for it."""

import torch


def pack(levels: torch.Tensor, bits: int) -> torch.Tensor:
    """Return whole numbers below ``2 ** bits`` [..., n] in bytes, uint8 [..., ceil(n bits / 8)]; `bits` divides 8.

    Examples
    --------
    >>> pack(torch.tensor([1, 2, 15]), bits=4).tolist()
    [33, 15]
    """
    each = 8 // bits
    padded = torch.nn.functional.pad(levels.to(torch.int32), (0, -levels.shape[-1] % each))
    columns = padded.reshape(*padded.shape[:-1], -1, each)  # (..., bytes, each)
    shifts = torch.arange(0, 8, bits, dtype=torch.int32, device=levels.device)
    return (columns << shifts).sum(-1).to(torch.uint8)


def unpack(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Return what `pack` was given, int32 [..., count]."""
    shifts = torch.arange(0, 8, bits, dtype=torch.int32, device=packed.device)
    columns = (packed.to(torch.int32).unsqueeze(-1) >> shifts) & ((1 << bits) - 1)
    return columns.flatten(-2)[..., :count]


def to_bits(mask: torch.Tensor) -> torch.Tensor:
    """Return truth values [n] as bits, uint8 [ceil(n / 8)]."""
    return pack(mask, 1)


def from_bits(packed: torch.Tensor, count: int) -> torch.Tensor:
    """Return what `to_bits` was given, bool [count]."""
    return unpack(packed, 1, count).bool()
