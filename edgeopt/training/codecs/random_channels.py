"""Random channels: what a client sends is a share of the channels, drawn anew for each mini-batch."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from edgeopt.training.codecs.bits import from_bits, to_bits
from edgeopt.training.codecs.codec import Form, Order, check_share, count_within, memory_tensor
from edgeopt.training.costs.ledger import Direction
from edgeopt.training.keys import permutation
from edgeopt.training.messages import State, Tensors


@dataclass(frozen=True, slots=True)
class RandomChannels:
    """A random share of the channels, the same for all samples of a mini-batch; the others arrive as zeros.

    Those that are kept are multiplied by C / k, so that what arrives is right in the mean, as in dropout of channels. The
    gradient crosses for the channels that were kept, with the same factor: it is the gradient of the model with the others
    left out. Sent are k planes per sample and one bit per channel; on the way down the planes alone.

    Parameters
    ----------
    share : of the channels that is kept, at least one; fewer, down to none, where the budget carries no more.
    """

    name: ClassVar[str] = "random-channels"

    share: float = 0.25

    def __post_init__(self) -> None:
        check_share(self.share)

    def order(self, direction: Direction, form: Form, budget_bytes: float, memory: State) -> Order:
        """Fix how many channels are kept."""
        if direction == "down":
            return {}
        plane = form.nbytes // form.channels
        return {"kept": count_within(self.share, form.channels, plane, budget_bytes - -(-form.channels // 8))}

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
        """Return the planes of the kept channels; up with a bit for each channel, which the gradient needs again."""
        form = Form(tuple(x.shape), x.dtype)
        if direction == "down":
            chosen, memory = memory_tensor(memory, "kept"), {}
            return {"values": form.by_channel(x).index_select(1, chosen)}, memory
        chosen = permutation(key, form.channels)[: int(order["kept"])].sort().values
        mask = torch.zeros(form.channels, dtype=torch.bool, device=x.device)
        mask = mask.scatter(0, chosen, torch.ones_like(chosen, dtype=torch.bool))
        return {"values": form.by_channel(x).index_select(1, chosen), "channels": to_bits(mask)}, {"kept": chosen}

    def decode(
        self, direction: Direction, tensors: Tensors, order: Order, memory: State, form: Form
    ) -> tuple[torch.Tensor, State]:
        """Return the planes where they belong, times C / k."""
        values = tensors["values"]  # (B, k, values of a channel)
        kept = values.shape[1]
        if direction == "up":
            mask = from_bits(tensors["channels"], form.channels)
            chosen = torch.argsort(~mask, stable=True)[:kept]
        else:
            chosen = memory_tensor(memory, "kept")
        whole = values.new_zeros(form.samples, form.channels, values.shape[2])
        whole = whole.index_copy(1, chosen, values * (form.channels / max(1, kept)))
        return form.from_channels(whole), {"kept": chosen} if direction == "up" else {}
