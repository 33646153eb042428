"""Decoder language models of the GPT-2 and of the LLaMA class, without dropout.

GPT-2: learned positions, layer normalisation, GELU, biases, output weights tied to the token embedding (Radford et
al., 2019). LLaMA: rotary positions, root-mean-square normalisation, gated feed-forward blocks, grouped key and value
heads, no biases (arXiv:2302.13971, arXiv:2307.09288).
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from edgeopt.models.attention import SelfAttention, initialise


class Embedding(nn.Module):
    """Add embeddings of tokens and positions."""

    def __init__(self, vocabulary: int, context: int, width: int) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(context, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return (B, T, C) of token ids (B, T)."""
        y: torch.Tensor = self.token(tokens) + self.position.weight[: tokens.shape[1]]  # (B, T, C)
        return y


class Residual(nn.Module):
    """``x + body(norm(x))``."""

    def __init__(self, norm: nn.Module, body: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.body = body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, T, C) of x (B, T, C)."""
        y: torch.Tensor = x + self.body(self.norm(x))  # (B, T, C)
        return y


class GatedMlp(nn.Module):
    """``down(silu(gate(x)) * up(x))`` (SwiGLU, arXiv:2002.05202)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, T, C) of x (B, T, C)."""
        y: torch.Tensor = self.down(F.silu(self.gate(x)) * self.up(x))  # (B, T, C)
        return y


class Head(nn.Module):
    """Normalise and score every token of the vocabulary (V)."""

    def __init__(self, norm: nn.Module, width: int, vocabulary: int) -> None:
        super().__init__()
        self.norm = norm
        self.linear = nn.Linear(width, vocabulary, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, T, V) of x (B, T, C)."""
        y: torch.Tensor = self.linear(self.norm(x))  # (B, T, V)
        return y


def gpt2(
    *,
    vocabulary: int = 50_257,
    context: int = 1024,
    width: int = 768,
    depth: int = 12,
    heads: int = 12,
    tied: bool = True,
    fused: bool = True,
) -> nn.Sequential:
    """Return a GPT-2 decoder that may be cut after every attention and every feed-forward block; GPT-2 small by default.

    Parameters
    ----------
    vocabulary, context : token ids, longest sequence.
    width, depth, heads : channels of a token, blocks, heads. Feed-forward blocks are four times as wide inside.
    tied : the head scores tokens with their embedding, as published. A model that is cut for training needs weights of
        its own there: the two would be on different machines.
    fused : see `SelfAttention`.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    embedding = Embedding(vocabulary, context, width)
    layers["embedding"] = embedding
    for index in range(depth):
        attention = SelfAttention(width, heads, causal=True, fused=fused)
        layers[f"block{index + 1}_attention"] = Residual(nn.LayerNorm(width), attention)
        mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))
        layers[f"block{index + 1}_mlp"] = Residual(nn.LayerNorm(width), mlp)
    head = Head(nn.LayerNorm(width), width, vocabulary)
    if tied:
        head.linear.weight = embedding.token.weight
    layers["head"] = head
    model = nn.Sequential(layers)
    initialise(model)
    return model


def llama(
    *,
    vocabulary: int = 32_000,
    width: int = 2048,
    depth: int = 22,
    heads: int = 32,
    kv_heads: int = 4,
    hidden: int = 5632,
) -> nn.Sequential:
    """Return a LLaMA decoder that may be cut after every attention and every feed-forward block; TinyLlama 1.1B by default.

    Parameters
    ----------
    vocabulary : token ids.
    width, depth, heads, kv_heads : channels of a token, blocks, heads of queries, heads of keys and values.
    hidden : inner width of the feed-forward blocks.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["embedding"] = nn.Embedding(vocabulary, width)
    for index in range(depth):
        attention = SelfAttention(width, heads, kv_heads=kv_heads, causal=True, rotary=True, bias=False)
        layers[f"block{index + 1}_attention"] = Residual(nn.RMSNorm(width, eps=1e-5), attention)
        layers[f"block{index + 1}_mlp"] = Residual(nn.RMSNorm(width, eps=1e-5), GatedMlp(width, hidden))
    layers["head"] = Head(nn.RMSNorm(width, eps=1e-5), width, vocabulary)
    model = nn.Sequential(layers)
    initialise(model)
    return model
