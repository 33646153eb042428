"""Multi-head attention as the transformers here use it."""

import torch
import torch.nn.functional as F
from torch import nn


class SelfAttention(nn.Module):
    """Self-attention of H heads; with fewer key and value heads, groups of heads share one (arXiv:2305.13245).

    Parameters
    ----------
    width : channels C of input and output, a multiple of `heads`.
    heads, kv_heads : heads H of queries, heads G of keys and values. Default: as many.
    causal : a token sees only itself and earlier ones.
    rotary : rotate queries and keys by their position (arXiv:2104.09864).
    bias : whether the projections have biases.
    fused : use torch's fused kernel. Without it, attention is plain matrix products that `torch.func.vmap` can batch;
        they keep all T x T weights for the backward pass.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        causal: bool = False,
        rotary: bool = False,
        bias: bool = True,
        fused: bool = True,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.kv_heads = heads if kv_heads is None else kv_heads
        self.causal, self.rotary, self.fused = causal, rotary, fused
        size = width // heads
        self.query_key_value = nn.Linear(width, (heads + 2 * self.kv_heads) * size, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, T, C) of x (B, T, C)."""
        batch, time, width = x.shape
        size = width // self.heads  # D
        joint = self.query_key_value(x).view(batch, time, -1, size).transpose(1, 2)  # (B, H + 2 G, T, D)
        query, key, value = joint.split((self.heads, self.kv_heads, self.kv_heads), dim=1)  # (B, H or G, T, D)
        if self.rotary:
            query, key = rotate(query), rotate(key)  # (B, H, T, D), (B, G, T, D)
        if self.kv_heads < self.heads:
            key = key.repeat_interleave(self.heads // self.kv_heads, dim=1)  # (B, H, T, D)
            value = value.repeat_interleave(self.heads // self.kv_heads, dim=1)  # (B, H, T, D)
        if self.fused:
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)  # (B, H, T, D)
        else:
            mixed = _attend(query, key, value, self.causal)  # (B, H, T, D)
        y: torch.Tensor = self.out(mixed.transpose(1, 2).reshape(batch, time, width))  # (B, T, C)
        return y


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool) -> torch.Tensor:
    """Return what `scaled_dot_product_attention` returns for (B, H, T, D), from operations that vmap can batch."""
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5  # (B, H, T, T)
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).triu(1)  # (T, T)
        scores = scores.masked_fill(later, float("-inf"))  # (B, H, T, T)
    mixed: torch.Tensor = scores.softmax(dim=-1) @ value  # (B, H, T, D)
    return mixed


def rotate(x: torch.Tensor, base: float = 10_000.0) -> torch.Tensor:
    """Rotate the pairs (x[i], x[i + D / 2]) of x (B, H, T, D) by position times ``base ** (-2 i / D)``."""
    half = x.shape[-1] // 2
    frequency = base ** (-torch.arange(half, device=x.device) / half)  # (D / 2,)
    angle = torch.outer(torch.arange(x.shape[-2], device=x.device), frequency)  # (T, D / 2)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)  # (T, D / 2)
    left, right = x[..., :half], x[..., half:]  # (B, H, T, D / 2)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)  # (B, H, T, D)


def initialise(model: nn.Module) -> None:
    """Draw the weights of linear layers and embeddings from N(0, 0.02), set biases to zero, as GPT-2 and BERT do."""
    for part in model.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=0.02)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
