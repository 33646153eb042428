"""Small convolutional networks for images of 8 x 8 to 32 x 32, without dropout and without normalisation."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from edgeopt.errors import InvalidProblemError


def small_cnn(
    *, in_channels: int = 1, image_size: int = 8, channels: Sequence[int] = (16, 32), num_classes: int = 10
) -> nn.Sequential:
    """Return a network that may be cut after every convolution: 3 x 3, ReLU, 2 x 2 pooling; then a linear head.

    Parameters
    ----------
    in_channels, image_size : channels of the images, their height and width in pixels.
    channels : output channels of the convolutions.
    num_classes : size of the output.

    Raises
    ------
    InvalidProblemError
        If nothing is left of an image after all poolings.

    Examples
    --------
    >>> [name for name, _ in small_cnn().named_children()]
    ['conv1', 'conv2', 'head']
    """
    side = image_size >> len(channels)  # every pooling halves and rounds down
    if side < 1:
        raise InvalidProblemError(
            f"image_size = {image_size}: expected at least {1 << len(channels)} pixels for {len(channels)} poolings"
        )
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    before = in_channels
    for index, width in enumerate(channels):
        convolution = nn.Conv2d(before, width, 3, padding=1)  # (B, width, H, W)
        layers[f"conv{index + 1}"] = nn.Sequential(convolution, nn.ReLU(), nn.MaxPool2d(2))  # (B, width, H / 2, W / 2)
        before = width
    layers["head"] = nn.Sequential(nn.Flatten(), nn.Linear(before * side * side, num_classes))  # (B, num_classes)
    return nn.Sequential(layers)
