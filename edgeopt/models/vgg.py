"""VGG networks (Simonyan and Zisserman, arXiv:1409.1556): convolutions of 3 x 3, then three linear layers."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn


def vgg(
    stages: Sequence[Sequence[int]],
    *,
    hidden: int = 4096,
    num_classes: int = 1000,
    in_channels: int = 3,
    small_images: bool = False,
    batch_norm: bool = False,
) -> nn.Sequential:
    """Return a VGG network that may be cut after every convolution and every linear layer.

    Parameters
    ----------
    stages : output channels of the convolutions of each stage; every stage ends with a 2 x 2 pooling.
    hidden : width of the two hidden linear layers.
    num_classes, in_channels : sizes of output and input.
    small_images : for images of about 32 x 32: the linear layers see the mean over the image instead of 7 x 7 of them.
    batch_norm : normalise after every convolution, which trains without a warm-up.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = in_channels
    for stage, widths in enumerate(stages):
        for index, width in enumerate(widths):
            parts: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1)]  # (B, width, H, W)
            parts += [nn.BatchNorm2d(width)] if batch_norm else []
            parts += [nn.ReLU()]
            parts += [nn.MaxPool2d(2)] if index == len(widths) - 1 else []  # (B, width, H / 2, W / 2)
            layers[f"conv{stage + 1}_{index + 1}"] = nn.Sequential(*parts)
            channels = width
    side = 1 if small_images else 7
    layers["linear1"] = nn.Sequential(
        nn.AdaptiveAvgPool2d(side),  # (B, channels, side, side)
        nn.Flatten(),
        nn.Linear(channels * side * side, hidden),  # (B, hidden)
        nn.ReLU(),
        nn.Dropout(0.5),
    )
    layers["linear2"] = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(0.5))
    layers["linear3"] = nn.Linear(hidden, num_classes)
    model = nn.Sequential(layers)
    for part in model.modules():
        if isinstance(part, nn.Conv2d) and part.bias is not None:
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(part.bias)
    return model


def vgg16(
    *,
    hidden: int = 4096,
    num_classes: int = 1000,
    in_channels: int = 3,
    small_images: bool = False,
    batch_norm: bool = False,
) -> nn.Sequential:
    """Return VGG-16; see `vgg`."""
    return vgg(
        ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)),
        hidden=hidden,
        num_classes=num_classes,
        in_channels=in_channels,
        small_images=small_images,
        batch_norm=batch_norm,
    )
