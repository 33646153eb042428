"""Layers for M modalities side by side, encoders of a step, and causal attention with a bias and a memory."""

from typing import NamedTuple

import torch
from torch import nn

from edgeopt.fusion.recordings import Modality

_CONVOLVED = 8
"""Samples per step from which on an encoder convolves over them."""


class PerModality(nn.Module):
    """A linear layer of its own for each modality: [B, M, T, in] -> [B, M, T, out]."""

    def __init__(self, modalities: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = inputs**-0.5
        self.weight = nn.Parameter(torch.empty(modalities, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(modalities, 1, outputs).uniform_(-bound, bound))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, M, T, out) of x (B, M, T, in)."""
        batch, m, steps, inputs = x.shape
        rows = x.transpose(0, 1).reshape(m, batch * steps, inputs)  # (M, B T, in): one product for each modality
        return torch.baddbmm(self.bias, rows, self.weight).view(m, batch, steps, -1).transpose(0, 1)  # (B, M, T, out)


class StepEncoder(nn.Module):
    """One modality's values of a step to a token: convolutions over many samples, a perceptron over few."""

    def __init__(self, modality: Modality, width: int) -> None:
        super().__init__()
        self.samples, self.channels = modality.samples, modality.channels
        self.convolves = self.samples >= _CONVOLVED
        if self.convolves:
            self.first: nn.Module = nn.Conv1d(self.channels, width // 2, 5, stride=2, padding=2)
            self.second = nn.Conv1d(width // 2, width, 5, stride=2, padding=2)
            self.out = nn.Linear(2 * width, width)
        else:
            self.first = nn.Linear(modality.values, 2 * width)
            self.out = nn.Linear(2 * width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, T, d) of x (B, T, samples * channels)."""
        gelu = nn.functional.gelu
        if self.convolves:
            batch, steps, _ = x.shape
            rows = x.reshape(batch * steps, self.samples, self.channels).transpose(1, 2)  # (B T, C, samples)
            maps = gelu(self.second(gelu(self.first(rows))))  # (B T, d, samples / 4)
            pooled = torch.cat([maps.mean(-1), maps.amax(-1)], -1)  # (B T, 2 d): how often, and whether at all
            x = pooled.view(batch, steps, -1)  # (B, T, 2 d)
        else:
            x = gelu(self.first(x))  # (B, T, 2 d)
        y: torch.Tensor = self.norm(self.out(x))  # (B, T, d)
        return y


class Encode(nn.Module):
    """Packed windows to tokens; the last channel of a token says whether its modality is there, and the rest is 0 if not."""

    def __init__(self, modalities: tuple[Modality, ...], width: int) -> None:
        super().__init__()
        self.sizes = [modality.values for modality in modalities]
        self.encoders = nn.ModuleList([StepEncoder(modality, width) for modality in modalities])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, M, T, d + 1) of x (B, T, F + M)."""
        *parts, there = torch.split(x, [*self.sizes, len(self.sizes)], -1)  # (B, T, values) each, and (B, T, M)
        present = there.transpose(1, 2)[..., None]  # (B, M, T, 1)
        tokens = torch.stack([encoder(part) for encoder, part in zip(self.encoders, parts, strict=True)], 1)
        return torch.cat([tokens * present, present], -1)  # (B, M, T, d + 1)


class Memory(NamedTuple):
    """What a layer of attention keeps of earlier steps.

    Parameters
    ----------
    key, value : [B, H, P, M, D], of the last P steps, fewer than the context.
    bias : [B, P, M], of their keys.
    """

    key: torch.Tensor
    value: torch.Tensor
    bias: torch.Tensor


class BiasedAttention(nn.Module):
    """A transformer layer over tokens of M modalities and T steps: a token sees those of its own and of the last steps.

    What is added to the score of a key is a learned number for its distance in time, and the bias that comes with it.

    Parameters
    ----------
    width, heads : d, a multiple of H.
    context : steps that a token sees, its own included.
    """

    def __init__(self, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.heads, self.context = heads, context
        self.before = nn.LayerNorm(width)
        self.joint = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.between = nn.LayerNorm(width)
        self.wide = nn.Linear(width, 2 * width)
        self.narrow = nn.Linear(2 * width, width)
        self.distance = nn.Parameter(torch.zeros(heads, context))

    def forward(
        self, x: torch.Tensor, bias: torch.Tensor, memory: Memory | None = None, *, apart: bool = False
    ) -> tuple[torch.Tensor, Memory]:
        """Return the tokens after this layer, and what to remember.

        Parameters
        ----------
        x : [B, M, T, d].
        bias : [B, M, T], added to the scores of the keys.
        memory : of the steps before; None at the start.
        apart : a token sees its own modality alone.
        """
        batch, m, steps, _ = x.shape
        tokens = x.transpose(1, 2)  # (B, T, M, d)
        joint = self.joint(self.before(tokens)).view(batch, steps, m, self.heads, -1)  # (B, T, M, H, 3 D)
        query, key, value = joint.permute(0, 3, 1, 2, 4).chunk(3, -1)  # (B, H, T, M, D)
        weight = bias.transpose(1, 2)  # (B, T, M)
        if memory is not None:
            key, value = torch.cat([memory.key, key], 2), torch.cat([memory.value, value], 2)  # (B, H, P + T, M, D)
            weight = torch.cat([memory.bias, weight], 1)  # (B, P + T, M)
        past = key.shape[2]
        scores = query.flatten(2, 3) @ key.flatten(2, 3).transpose(-2, -1) / query.shape[-1] ** 0.5
        scores = scores.view(batch, self.heads, steps, m, past, m)  # (B, H, T, M, P + T, M)
        lag = torch.arange(past - steps, past, device=x.device)[:, None] - torch.arange(past, device=x.device)
        seen = (lag >= 0) & (lag < self.context)  # (T, P + T)
        near = self.distance[:, lag.clamp(0, self.context - 1)]  # (H, T, P + T)
        scores = scores + near[:, :, None, :, None] + weight[:, None, None, None]
        hidden = ~seen[:, None, :, None]  # (T, 1, P + T, 1)
        if apart:
            hidden = hidden | ~torch.eye(m, dtype=torch.bool, device=x.device)[:, None]  # (T, M, P + T, M)
        scores = scores.masked_fill(hidden, float("-inf"))
        share = scores.flatten(-2).softmax(-1).flatten(2, 3)  # (B, H, T M, (P + T) M)
        mixed = (share @ value.flatten(2, 3)).view(batch, self.heads, steps, m, -1)  # (B, H, T, M, D)
        tokens = tokens + self.out(mixed.permute(0, 2, 3, 1, 4).flatten(-2))  # (B, T, M, d)
        tokens = tokens + self.narrow(nn.functional.gelu(self.wide(self.between(tokens))))  # (B, T, M, d)
        kept = slice(max(0, past - self.context + 1), past)
        return tokens.transpose(1, 2), Memory(key[:, :, kept], value[:, :, kept], weight[:, kept])
