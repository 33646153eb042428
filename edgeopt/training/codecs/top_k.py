"""Top-k: the largest values of each sample, with their places."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from edgeopt.errors import InvalidProblemError
from edgeopt.training.codecs.codec import Form, Order, check_share, count_within, memory_tensor, place_type
from edgeopt.training.costs.ledger import Direction
from edgeopt.training.messages import State, Tensors
from edgeopt.validate import float_array


@dataclass(frozen=True, slots=True)
class TopK:
    """The k values of each sample that are largest in magnitude; the others arrive as zeros. Ties go to the first.

    The gradient crosses at the kept places alone, where the client knows them to be: it is the gradient of the model with
    the other activations left out. Sent are k values per sample, and up their places in 1, 2 or 4 bytes each.

    Parameters
    ----------
    share : of the values that is kept, at least one; fewer, down to none, where the budget carries no more.
    feedback : share of what the last message has left out that is added to the next one, from 0 to 1. The next
        mini-batch has other samples, so this is no help in general.
    """

    name: ClassVar[str] = "top-k"

    share: float = 0.1
    feedback: float = 0.0

    def __post_init__(self) -> None:
        check_share(self.share)
        if not 0 <= float_array("feedback", self.feedback, ()) <= 1:
            raise InvalidProblemError(f"feedback = {self.feedback}: expected 0 to 1")

    def order(self, direction: Direction, form: Form, budget_bytes: float, memory: State) -> Order:
        """Fix how many values of a sample are kept."""
        if direction == "down":
            return {}
        each = form.samples * (form.dtype.itemsize + place_type(form.size).itemsize)
        return {"kept": count_within(self.share, form.size, each, budget_bytes)}

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
        """Return values, and up their places, which the gradient needs again."""
        flat = x.flatten(1) if x.ndim > 1 else x.unsqueeze(1)  # (B, D)
        if direction == "down":
            places = memory_tensor(memory, "places")
            return {"values": flat.gather(1, places.long())}, _without(memory, "places")
        left = memory.get("left")
        if isinstance(left, torch.Tensor) and left.shape == flat.shape:
            flat = flat + self.feedback * left
        places = (
            flat.abs().argsort(stable=True, dim=1, descending=True)[:, : int(order["kept"])].sort(1).values
        )  # (B, k)
        tensors = {"values": flat.gather(1, places), "places": places.to(place_type(flat.shape[1]))}
        new: State = {"places": tensors["places"]}
        if self.feedback:
            new["left"] = flat.scatter(1, places, torch.zeros_like(tensors["values"]))
        return tensors, new

    def decode(
        self, direction: Direction, tensors: Tensors, order: Order, memory: State, form: Form
    ) -> tuple[torch.Tensor, State]:
        """Return the values where they belong."""
        places = tensors["places"] if direction == "up" else memory_tensor(memory, "places")
        whole = tensors["values"].new_zeros(form.samples, form.size).scatter(1, places.long(), tensors["values"])
        memory = {**memory, "places": places} if direction == "up" else _without(memory, "places")
        return whole.reshape(form.shape), memory


def _without(memory: State, name: str) -> State:
    return {key: value for key, value in memory.items() if key != name}
