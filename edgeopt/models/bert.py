"""BERT encoders (Devlin et al., arXiv:1810.04805), without dropout and for sequences without padding."""

from collections import OrderedDict

import torch
from torch import nn

from edgeopt.models.attention import SelfAttention, initialise


class Embedding(nn.Module):
    """Add embeddings of tokens, positions and the first segment, then normalise."""

    def __init__(self, vocabulary: int, context: int, segments: int, width: int) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(context, width)
        self.segment = nn.Embedding(segments, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return (B, T, C) of token ids (B, T)."""
        positions = self.position.weight[: tokens.shape[1]]  # (T, C)
        y: torch.Tensor = self.norm(self.token(tokens) + positions + self.segment.weight[0])  # (B, T, C)
        return y


class Residual(nn.Module):
    """``norm(x + body(x))``: BERT normalises after the sum."""

    def __init__(self, width: int, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, T, C) of x (B, T, C)."""
        y: torch.Tensor = self.norm(x + self.body(x))  # (B, T, C)
        return y


class Pooler(nn.Module):
    """The first token through a linear layer and a tanh."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, C) of x (B, T, C)."""
        return torch.tanh(self.linear(x[:, 0]))  # (B, C)


def bert(
    *,
    vocabulary: int = 30_522,
    context: int = 512,
    segments: int = 2,
    width: int = 768,
    depth: int = 12,
    heads: int = 12,
    hidden: int = 3072,
) -> nn.Sequential:
    """Return a BERT encoder that may be cut after every attention and every feed-forward block; BERT-base by default.

    Parameters
    ----------
    vocabulary, context, segments : rows of the three embeddings.
    width, depth, heads, hidden : channels of a token, blocks, heads, inner width of the feed-forward blocks.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["embedding"] = Embedding(vocabulary, context, segments, width)
    for index in range(depth):
        layers[f"block{index + 1}_attention"] = Residual(width, SelfAttention(width, heads))
        mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        layers[f"block{index + 1}_mlp"] = Residual(width, mlp)
    layers["pooler"] = Pooler(width)
    model = nn.Sequential(layers)
    initialise(model)
    return model
