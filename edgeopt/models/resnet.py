"""Residual networks (He et al., arXiv:1512.03385): a stem, residual blocks, a head."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut; `out` channels come out."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = width * self.expansion
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        self.shortcut = _shortcut(channels, out, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, out, H / stride, W / stride) of x (B, channels, H, W)."""
        y = F.relu(self.norm1(self.conv1(x)))  # (B, width, H / stride, W / stride)
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))  # (B, out, H / stride, W / stride)


class Bottleneck(nn.Module):
    """A 3 x 3 convolution between two of 1 x 1 beside a shortcut; the stride is in the 3 x 3 one."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = width * self.expansion
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(out)
        self.shortcut = _shortcut(channels, out, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, 4 width, H / stride, W / stride) of x (B, channels, H, W)."""
        y = F.relu(self.norm1(self.conv1(x)))  # (B, width, H, W)
        y = F.relu(self.norm2(self.conv2(y)))  # (B, width, H / stride, W / stride)
        return F.relu(self.norm3(self.conv3(y)) + self.shortcut(x))  # (B, 4 width, H / stride, W / stride)


def resnet(
    block: type[BasicBlock] | type[Bottleneck],
    depths: Sequence[int],
    *,
    width: int = 64,
    num_classes: int = 1000,
    in_channels: int = 3,
    small_images: bool = False,
) -> nn.Sequential:
    """Return a residual network that may be cut after the stem and after every block.

    Parameters
    ----------
    block : `BasicBlock` or `Bottleneck`.
    depths : blocks of each stage; the width doubles and the resolution halves from stage to stage.
    width : channels after the stem.
    num_classes, in_channels : sizes of output and input.
    small_images : for images of about 32 x 32: the stem keeps the resolution instead of quartering it.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    kernel, stride = (3, 1) if small_images else (7, 2)
    layers["stem"] = nn.Sequential(
        nn.Conv2d(in_channels, width, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Identity() if small_images else nn.MaxPool2d(3, 2, padding=1),
    )
    channels = width
    for stage, depth in enumerate(depths):
        for index in range(depth):
            stride = 2 if stage > 0 and index == 0 else 1
            layers[f"stage{stage + 1}_block{index + 1}"] = block(channels, width << stage, stride)
            channels = (width << stage) * block.expansion
    layers["head"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))
    model = nn.Sequential(layers)
    for part in model.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
    return model


def resnet18(*, num_classes: int = 1000, in_channels: int = 3, small_images: bool = False) -> nn.Sequential:
    """Return ResNet-18; see `resnet`."""
    return resnet(BasicBlock, (2, 2, 2, 2), num_classes=num_classes, in_channels=in_channels, small_images=small_images)


def resnet50(*, num_classes: int = 1000, in_channels: int = 3, small_images: bool = False) -> nn.Sequential:
    """Return ResNet-50; see `resnet`."""
    return resnet(Bottleneck, (3, 4, 6, 3), num_classes=num_classes, in_channels=in_channels, small_images=small_images)


def _shortcut(channels: int, out: int, stride: int) -> nn.Module:
    if stride == 1 and channels == out:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
