"""Multilayer perceptrons: linear layers with ReLU between them."""

import math
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from torch import nn

from edgeopt.validate import integer, listed


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
    features = math.prod(
        integer("in_shape", size, low=1) for size in listed("in_shape", in_shape, single=(int, np.integer))
    )
    num_classes = integer("num_classes", num_classes, low=1)
    flatten: list[nn.Module] = [nn.Flatten()]  # (B, features), in the first block
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for index, given in enumerate(listed("hidden", hidden, single=(int, np.integer))):
        width = integer(f"hidden[{index}]", given, low=1)
        layers[f"hidden{index + 1}"] = nn.Sequential(*flatten, nn.Linear(features, width), nn.ReLU())  # (B, width)
        features, flatten = width, []
    layers["head"] = nn.Sequential(*flatten, nn.Linear(features, num_classes))  # (B, num_classes)
    return nn.Sequential(layers)
