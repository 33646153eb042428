"""Vision transformers (Dosovitskiy et al., arXiv:2010.11929)."""

from collections import OrderedDict

import torch
from torch import nn

from edgeopt.models.attention import SelfAttention, initialise


class PatchEmbedding(nn.Module):
    """Cut an image into patches, project each to a token, put the class token in front, add positions."""

    def __init__(self, image_size: int, patch_size: int, in_channels: int, width: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(in_channels, width, patch_size, patch_size)
        tokens = (image_size // patch_size) ** 2 + 1
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.empty(1, tokens, width).normal_(std=0.02))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return tokens (B, T, C) of images (B, channels, size, size)."""
        tokens = self.project(images).flatten(2).transpose(1, 2)  # (B, T - 1, C)
        first = self.class_token.expand(len(images), -1, -1)  # (B, 1, C)
        return torch.cat((first, tokens), dim=1) + self.position  # (B, T, C)


class Residual(nn.Module):
    """``x + body(norm(x))``."""

    def __init__(self, width: int, body: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.body = body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, T, C) of x (B, T, C)."""
        y: torch.Tensor = x + self.body(self.norm(x))  # (B, T, C)
        return y


class Head(nn.Module):
    """Classify by the class token."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.linear = nn.Linear(width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, num_classes) of x (B, T, C)."""
        y: torch.Tensor = self.linear(self.norm(x)[:, 0])  # (B, num_classes)
        return y


def vision_transformer(
    *,
    image_size: int = 224,
    patch_size: int = 16,
    in_channels: int = 3,
    width: int = 768,
    depth: int = 12,
    heads: int = 12,
    hidden: int = 3072,
    num_classes: int = 1000,
) -> nn.Sequential:
    """Return a vision transformer that may be cut after every attention and every feed-forward block; ViT-B/16 by default.

    Parameters
    ----------
    image_size, patch_size, in_channels : height and width of images and patches in pixels, channels of the images.
    width, depth, heads, hidden : channels of a token, blocks, heads, inner width of the feed-forward blocks.
    num_classes : size of the output.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["embedding"] = PatchEmbedding(image_size, patch_size, in_channels, width)
    for index in range(depth):
        layers[f"block{index + 1}_attention"] = Residual(width, SelfAttention(width, heads))
        mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        layers[f"block{index + 1}_mlp"] = Residual(width, mlp)
    layers["head"] = Head(width, num_classes)
    model = nn.Sequential(layers)
    initialise(model)
    return model
