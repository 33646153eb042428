"""Low rank: the best approximation of a mini-batch by a matrix of fixed rank, as its two factors."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from edgeopt.training.codecs.codec import Form, Order
from edgeopt.training.codecs.factors import leading
from edgeopt.training.costs.ledger import Direction
from edgeopt.training.messages import State, Tensors
from edgeopt.validate import int_array


@dataclass(frozen=True, slots=True)
class LowRank:
    """The matrix [samples, values of a sample] cut to its r largest singular values (Eckart and Young).

    The factors come from the eigenvectors of the smaller of the two Gram matrices, which is that of the samples for most
    models: a decomposition of a B x B matrix in place of a B x D one. Activations and gradients are cut each by itself,
    and the server's gradient is used as if nothing had been cut (straight through). Sent are r (B + D) values.

    Parameters
    ----------
    rank : r, at most B and D; less, down to 0 (all zeros), where the budget carries no more.
    """

    name: ClassVar[str] = "low-rank"

    rank: int = 4

    def __post_init__(self) -> None:
        int_array("rank", self.rank, (), low=1)

    def order(self, direction: Direction, form: Form, budget_bytes: float, memory: State) -> Order:
        """Fix the rank."""
        rank, each = min(self.rank, form.samples, form.size), form.dtype.itemsize * (form.samples + form.size)
        return {"rank": rank if rank * each <= budget_bytes else int(budget_bytes // each)}

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
        """Return the factors [samples, r] and [r, values]."""
        rank = int(order["rank"])
        matrix = x.reshape(x.shape[0], -1).to(torch.promote_types(x.dtype, torch.float32))  # (B, D)
        if matrix.shape[0] <= matrix.shape[1]:
            left = leading(matrix @ matrix.T, rank)  # (B, r)
            right = left.T @ matrix  # (r, D)
        else:
            right = leading(matrix.T @ matrix, rank).T
            left = matrix @ right.T
        return {"left": left.to(x.dtype), "right": right.to(x.dtype)}, memory

    def decode(
        self, direction: Direction, tensors: Tensors, order: Order, memory: State, form: Form
    ) -> tuple[torch.Tensor, State]:
        """Return the product of the factors."""
        return (tensors["left"] @ tensors["right"]).reshape(form.shape), memory
