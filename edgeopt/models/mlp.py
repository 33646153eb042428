"""Multilayer perceptrons: linear layers with ReLU between them."""

import math
from collections import OrderedDict
from collections.abc import Sequence

from torch import nn


def mlp(in_shape: int | Sequence[int], hidden: Sequence[int] = (64,), num_classes: int = 10) -> nn.Sequential:
    """Return a perceptron that may be cut after every linear layer; without hidden layers it is a linear classifier.

    Parameters
    ----------
    in_shape : features of a sample, or its shape, for example (1, 8, 8). Samples are flattened.
    hidden : widths of the hidden layers.
    num_classes : size of the output.

    Examples
    --------
    >>> [name for name, _ in mlp((1, 8, 8), (32, 16)).named_children()]
    ['hidden1', 'hidden2', 'head']
    """
    features = in_shape if isinstance(in_shape, int) else math.prod(in_shape)
    flatten: list[nn.Module] = [nn.Flatten()]  # (B, features), in the first block
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for index, width in enumerate(hidden):
        layers[f"hidden{index + 1}"] = nn.Sequential(*flatten, nn.Linear(features, width), nn.ReLU())  # (B, width)
        features, flatten = width, []
    layers["head"] = nn.Sequential(*flatten, nn.Linear(features, num_classes))  # (B, num_classes)
    return nn.Sequential(layers)
