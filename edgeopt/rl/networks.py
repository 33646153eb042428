"""`Mlp`: perceptrons of many agents, run as one batch; the weights of an agent are one vector. Torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edgeopt.rng import stream


@dataclass(frozen=True, slots=True)
class Mlp:
    """A perceptron with rectified hidden layers, as a function of its weights [..., P]; no weight is shared.

    One vector for each agent makes a step of an optimiser, a moving average or a copy one operation, whatever the number
    of layers. Leading axes, such as the agent and the critic, are run as one batch of matrix products: on small networks
    some times as fast as `torch.func.vmap` of one agent's network, whose result it has.

    Parameters
    ----------
    sizes : of input, hidden layers and output.

    Examples
    --------
    >>> network = Mlp((4, 8, 2))
    >>> weights = network.start([7, 8], "critic")
    >>> weights.shape, network(weights, torch.zeros(2, 5, 4)).shape
    (torch.Size([2, 58]), torch.Size([2, 5, 2]))
    """

    sizes: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of weights, P."""
        return sum((fan_in + 1) * fan_out for fan_in, fan_out in zip(self.sizes, self.sizes[1:], strict=False))

    def start(self, seeds: Sequence[int], name: str) -> Tensor:
        """Return initial weights float32 [G, P]: an agent's depend on its seed and on `name` alone.

        As `torch.nn.Linear`: weights and biases are uniform within 1 / sqrt(inputs).
        """
        drawn = np.stack([stream(seed, name, "weights").uniform(-1.0, 1.0, self.size) for seed in seeds])
        bound = np.concatenate(
            [
                np.full((fan_in + 1) * fan_out, 1 / math.sqrt(fan_in))
                for fan_in, fan_out in zip(self.sizes, self.sizes[1:], strict=False)
            ]
        )
        return torch.from_numpy((drawn * bound).astype(np.float32))

    def __call__(self, weights: Tensor, inputs: Tensor) -> Tensor:
        """Return outputs [..., B, O] for inputs [..., B, I] and weights [..., P] with equal leading axes."""
        leading = weights.shape[:-1]
        weights = weights.reshape(-1, weights.shape[-1])
        hidden = inputs.reshape(len(weights), *inputs.shape[-2:])  # (A, B, I)
        first, last = 0, len(self.sizes) - 2
        for layer, (fan_in, fan_out) in enumerate(zip(self.sizes, self.sizes[1:], strict=False)):
            middle, end = first + fan_in * fan_out, first + (fan_in + 1) * fan_out
            matrix = weights[:, first:middle].view(-1, fan_in, fan_out)
            hidden = torch.baddbmm(weights[:, None, middle:end], hidden, matrix)  # (A, B, fan_out)
            if layer < last:
                hidden = torch.relu(hidden)
            first = end
        return hidden.reshape(*leading, *hidden.shape[-2:])
