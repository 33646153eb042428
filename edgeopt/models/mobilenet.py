"""MobileNetV2 (Sandler et al., arXiv:1801.04381): inverted residual blocks with depthwise convolutions."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn

_STAGES = (  # expansion, channels, blocks, stride of the first block: Table 2 of the paper
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip


class InvertedResidual(nn.Module):
    """Expand by a 1 x 1 convolution, filter each channel, project; a shortcut where shapes agree."""

    def __init__(self, channels: int, out: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = channels * expansion
        expand = [] if expansion == 1 else [_conv(channels, inner, 1)]
        self.body = nn.Sequential(
            *expand,
            _conv(inner, inner, 3, stride=stride, groups=inner),
            nn.Conv2d(inner, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.has_shortcut = stride == 1 and channels == out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, out, H / stride, W / stride) of x (B, channels, H, W)."""
        y: torch.Tensor = self.body(x)  # (B, out, H / stride, W / stride)
        return x + y if self.has_shortcut else y


def mobilenetv2(
    *,
    stages: Sequence[tuple[int, int, int, int]] = _STAGES,
    stem_channels: int = 32,
    last_channels: int = 1280,
    num_classes: int = 1000,
    in_channels: int = 3,
    small_images: bool = False,
) -> nn.Sequential:
    """Return MobileNetV2, which may be cut after every block.

    Parameters
    ----------
    stages : expansion, channels, number of blocks and stride of each stage.
    stem_channels, last_channels : channels after the first and before the linear layer.
    num_classes, in_channels : sizes of output and input.
    small_images : for images of about 32 x 32: stem and second stage keep the resolution.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["stem"] = _conv(in_channels, stem_channels, 3, stride=1 if small_images else 2)
    channels = stem_channels
    for stage, (expansion, out, depth, first_stride) in enumerate(stages):
        for index in range(depth):
            stride = 1 if index > 0 or (small_images and stage == 1) else first_stride
            layers[f"stage{stage + 1}_block{index + 1}"] = InvertedResidual(channels, out, stride, expansion)
            channels = out
    layers["last"] = _conv(channels, last_channels, 1)
    layers["head"] = nn.Sequential(
        nn.AdaptiveAvgPool2d(1),  # (B, last_channels, 1, 1)
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(last_channels, num_classes),  # (B, num_classes)
    )
    model = nn.Sequential(layers)
    for part in model.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out")
        elif isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.01)
            nn.init.zeros_(part.bias)
    return model


def _conv(channels: int, out: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU6(),
    )
