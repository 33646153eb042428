"""ACP: adaptive channel pruning by label-aware scores.

J. Tan et al., Exploiting Label-Aware Channel Scoring for Adaptive Channel Pruning in Split Learning, arXiv:2603.09792.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.training.codecs.bits import from_bits, to_bits
from edgeopt.training.codecs.channel_scores import by_label, label_aware, magnitude, planes, separability
from edgeopt.training.codecs.codec import Form, Order, count_within, memory_tensor
from edgeopt.training.costs.ledger import Direction
from edgeopt.training.keys import uniform
from edgeopt.training.messages import State, Tensors
from edgeopt.validate import float_array, int_array

Score = Literal["label-aware", "separability", "l1", "random"]
Level = Literal["magnitude", "kept"]

_SCORES = ("label-aware", "separability", "l1", "random")
_LEVELS = ("magnitude", "kept")
_LEVEL_BYTES = 4


@dataclass(frozen=True, slots=True)
class AcpCodec:
    r"""The channels with the highest scores, as many as an adaptive ratio and the budget allow; the others arrive as zeros.

    In its t-th message a client scores the channels of its activations, :math:`S_t`, and keeps those that are best by
    :math:`a_t S_t + (1 - a_t) \bar S_t`, where :math:`\bar S_t` is the mean of its scores so far and
    :math:`a_t = 1 - t / T` (eqs. 7-9). Gradients cross for the same channels. The share that is pruned is
    :math:`P = \min(P_{max}, \max(P_{min}, W P_{base}))` with :math:`W = \bar D / D` of the message before, D a level of the
    combined scores, :math:`\bar D` its mean so far (eqs. 10-13).

    Ours: D is the mean of the scores in the paper, which is zero, as both parts of its score sum to one, so that W is 0 / 0;
    see `level`. The server fixes the ratio, and learns D from the message before; the paper takes D of the same one.
    When the model is used, the channels are those of the best mean scores, of all clients that share the model, and as
    many as they kept on the average.

    Sent are the kept planes, one bit per channel, and D in 4 bytes where the ratio is adaptive; on the way down the
    planes alone. A client whose budget carries no channel is left out.

    Parameters
    ----------
    score : ``label-aware``, the paper's, `edgeopt.training.codecs.channel_scores.label_aware`; ``separability``, ours,
        in the same file; ``l1``, mean magnitudes; ``random``, anew for each message.
    pruned_base, pruned_least, pruned_most : of the channels; equal for a ratio that is fixed.
    horizon : T, messages of a client; from then on its mean scores decide alone.
    level : what D is: mean ``magnitude`` of the combined scores, or their mean over the channels that are ``kept``.
    """

    name: ClassVar[str] = "acp"

    score: Score = "label-aware"
    pruned_base: float = 0.7
    pruned_least: float = 0.6
    pruned_most: float = 0.8
    horizon: int = 1000
    level: Level = "magnitude"

    def __post_init__(self) -> None:
        for name, known in (("score", _SCORES), ("level", _LEVELS)):
            if (given := getattr(self, name)) not in known:
                raise InvalidProblemError(f"{name} = {quoted(given)}: expected one of {', '.join(known)}")
        for name in ("pruned_least", "pruned_base", "pruned_most"):
            if not 0 <= float_array(name, given := getattr(self, name), ()) < 1:
                raise InvalidProblemError(f"{name} = {given}: expected 0 to below 1")
        if not self.pruned_least <= self.pruned_base <= self.pruned_most:
            raise InvalidProblemError(
                f"pruned_base = {self.pruned_base}: expected pruned_least to pruned_most, "
                f"{self.pruned_least} to {self.pruned_most}"
            )
        int_array("horizon", self.horizon, (), low=1)

    @property
    def is_adaptive(self) -> bool:
        """Whether the share that is pruned may change."""
        return self.pruned_least < self.pruned_most

    def order(self, direction: Direction, form: Form, budget_bytes: float, memory: State) -> Order | None:
        """Fix how many channels are kept; without room for one there is no order."""
        if direction == "down":
            return {"kept": int(memory_tensor(memory, "mask").sum())}
        pruned, own = self.pruned_base, _of(memory, form.channels)
        if self.is_adaptive and "level" in own:
            level, mean = (float(memory_tensor(own, name)) for name in ("level", "mean_level"))
            ratio = mean / level if level else 1.0
            pruned = max(self.pruned_least, min(ratio * self.pruned_base, self.pruned_most))
        beside = -(-form.channels // 8) + _LEVEL_BYTES * self.is_adaptive
        kept = count_within(1 - pruned, form.channels, form.nbytes // form.channels, budget_bytes - beside)
        return {"kept": kept} if kept else None

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
        """Return the planes of the kept channels; up with which they are, and the level of their scores."""
        form, kept = Form(tuple(x.shape), x.dtype), int(order["kept"])
        if direction == "down":
            return {"values": form.by_channel(x).index_select(1, _chosen(memory, kept))}, memory
        spoilt = ~form.by_channel(x).isfinite().all(2).all(0)  # has to arrive, as the loss tells of it
        now = torch.where(spoilt, math.inf, self._scores(x, labels, key))  # (C,)
        mean, count = _running_mean(_of(memory, form.channels), "mean_scores", now)
        fresh = torch.ones_like(now) if self.score == "random" else (1 - count / self.horizon).clamp_min(0)
        combined = fresh * now + (1 - fresh) * mean
        best = combined.argsort(stable=True, descending=True)[:kept]
        mask = torch.zeros_like(now, dtype=torch.bool).scatter(0, best, torch.ones_like(best, dtype=torch.bool))
        tensors = {"values": form.by_channel(x).index_select(1, best.sort().values), "channels": to_bits(mask)}
        if self.is_adaptive:
            tensors["level"] = (combined.abs() if self.level == "magnitude" else combined[best]).mean().float()
        return tensors, {"mean_scores": mean, "count": count, "mask": mask}

    def decode(
        self, direction: Direction, tensors: Tensors, order: Order, memory: State, form: Form
    ) -> tuple[torch.Tensor, State]:
        """Return the planes where they belong, zeros elsewhere."""
        if direction == "up":
            own, mask = _of(memory, form.channels), from_bits(tensors["channels"], form.channels)
            if self.is_adaptive:
                mean, count = _running_mean(own, "mean_level", tensors["level"])
                own = {"level": tensors["level"], "mean_level": mean, "count": count}
            memory = {**own, "mask": mask}
        values = tensors["values"]  # (B, k, P)
        chosen = _chosen(memory, values.shape[1])
        whole = values.new_zeros(form.samples, form.channels, values.shape[2]).index_copy(1, chosen, values)
        return form.from_channels(whole), memory

    def at_work(self, x: torch.Tensor, memories: Sequence[State]) -> torch.Tensor:
        """Return activations with all but the channels of the best mean scores set to zero."""
        form = Form(tuple(x.shape), x.dtype)
        kept = round(torch.stack([memory_tensor(own, "mask") for own in memories]).sum(1).double().mean().item())
        scores = torch.stack([memory_tensor(own, "mean_scores") for own in memories]).mean(0)  # (C,)
        lost = scores.argsort(stable=True, descending=True)[kept:]
        return form.from_channels(form.by_channel(x).index_fill(1, lost, 0))

    def measured(self, orders: Sequence[Order]) -> dict[str, float]:
        """Return the mean number of channels that were kept."""
        kept = [int(order["kept"]) for order in orders]
        return {"channels_kept": sum(kept) / len(kept) if kept else math.nan}

    def _scores(self, x: torch.Tensor, labels: torch.Tensor | None, key: torch.Tensor) -> torch.Tensor:
        form = Form(tuple(x.shape), x.dtype)
        if self.score == "random":
            return uniform(key, (form.channels,))
        if self.score == "l1":
            return magnitude(planes(x))
        if labels is None:
            raise InvalidProblemError(f"acp: no labels: expected those of the samples, for the score {self.score}")
        scored = label_aware if self.score == "label-aware" else separability
        return scored(*by_label(x, labels))


def _of(memory: State, channels: int) -> State:
    """Return a memory; an empty one if it is of other channels, as after a cut has moved."""
    mask = memory.get("mask")
    return memory if isinstance(mask, torch.Tensor) and mask.shape == (channels,) else {}


def _running_mean(memory: State, name: str, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean of a value and those before, and how many they are."""
    if name not in memory:
        return value, torch.ones((), dtype=torch.int64, device=value.device)
    mean, count = memory_tensor(memory, name), memory_tensor(memory, "count") + 1
    return mean + (value - mean) / count, count


def _chosen(memory: State, kept: int) -> torch.Tensor:
    """Return which channels a mask keeps, ascending, int64 [kept]."""
    return torch.argsort(~memory_tensor(memory, "mask"), stable=True)[:kept]
