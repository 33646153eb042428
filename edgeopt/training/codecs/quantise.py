"""Quantisation: each value as a level between the least and the largest of its sample, rounded up or down by chance."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.training.codecs.bits import pack, unpack
from edgeopt.training.codecs.codec import Form, Order
from edgeopt.training.costs.ledger import Direction
from edgeopt.training.keys import uniform
from edgeopt.training.messages import State, Tensors

_BITS = (8, 4)


@dataclass(frozen=True, slots=True)
class Quantise:
    """Values in 8 or 4 bits each, with stochastic rounding: what arrives is right in the mean.

    A value x of a sample with least value m and largest M becomes a whole number of steps s = (M - m) / (2^bits - 1) above
    m: the one below with the chance that makes the mean x, else the one above; it is never off by more than s. Activations
    and gradients are quantised each by itself, and the server's gradient is used as if nothing had been rounded
    (straight through). Sent are the levels, packed, and m and s per sample.

    Parameters
    ----------
    bits : 8 or 4 per value; 4 where a budget does not carry 8. Fewer there are not.
    """

    name: ClassVar[str] = "quantise"

    bits: int = 8

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or self.bits not in _BITS:
            raise InvalidProblemError(f"bits = {quoted(self.bits)}: expected 8 or 4")

    def order(self, direction: Direction, form: Form, budget_bytes: float, memory: State) -> Order:
        """Fix the bits of a value."""
        scale = 2 * _real(form.dtype).itemsize
        fits = [
            bits
            for bits in _BITS
            if bits <= self.bits and form.samples * (-(-form.size * bits // 8) + scale) <= budget_bytes
        ]
        return {"bits": fits[0] if fits else _BITS[-1]}

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
        """Return levels, least values and steps."""
        bits = int(order["bits"])
        top = 2**bits - 1
        flat = x.reshape(x.shape[0], -1).to(_real(x.dtype))  # (B, D)
        low = flat.amin(1, keepdim=True)
        step = (flat.amax(1, keepdim=True) - low) / top  # (B, 1)
        above = (flat - low) / torch.where(step > 0, step, 1)
        chance = uniform(key, tuple(flat.shape), flat.dtype)
        levels = (above + chance).floor().clamp(0, top)
        return {"levels": pack(levels, bits), "low": low, "step": step}, memory

    def decode(
        self, direction: Direction, tensors: Tensors, order: Order, memory: State, form: Form
    ) -> tuple[torch.Tensor, State]:
        """Return the values of the levels."""
        levels = unpack(tensors["levels"], int(order["bits"]), form.size)
        flat = tensors["low"] + levels.to(tensors["step"].dtype) * tensors["step"]
        return flat.reshape(form.shape).to(form.dtype), memory


def _real(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which levels are computed, and least value and step sent: not below float32."""
    return torch.promote_types(dtype, torch.float32)
