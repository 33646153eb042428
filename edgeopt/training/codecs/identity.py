"""The codec that leaves everything as it is."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from edgeopt.training.codecs.codec import Form, Order
from edgeopt.training.costs.ledger import Direction
from edgeopt.training.messages import State, Tensors


@dataclass(frozen=True, slots=True)
class Identity:
    """What is sent is what there is; a budget does not count."""

    name: ClassVar[str] = "identity"

    def order(self, direction: Direction, form: Form, budget_bytes: float, memory: State) -> Order:
        """Fix nothing."""
        return {}

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
        """Return the tensor."""
        return {"values": x}, memory

    def decode(
        self, direction: Direction, tensors: Tensors, order: Order, memory: State, form: Form
    ) -> tuple[torch.Tensor, State]:
        """Return the tensor."""
        return tensors["values"], memory
