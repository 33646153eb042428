"""Perceptrons of many agents: by torch's own layers, one agent at a time, by `torch.func.vmap`, and their gradients."""

import torch
from torch.func import grad, vmap

from edgeopt.rl import Mlp


def plain(network: Mlp, weights: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """Return outputs [B, O] of one agent, layer by layer."""
    first = 0
    for layer, (fan_in, fan_out) in enumerate(zip(network.sizes, network.sizes[1:], strict=False)):
        matrix = weights[first : first + fan_in * fan_out].view(fan_in, fan_out)
        bias = weights[first + fan_in * fan_out : first + (fan_in + 1) * fan_out]
        inputs = torch.nn.functional.linear(inputs, matrix.T, bias)
        inputs = torch.relu(inputs) if layer < len(network.sizes) - 2 else inputs
        first += (fan_in + 1) * fan_out
    return inputs


def test_a_batch_of_agents_is_each_agent():
    """Outputs, and gradients of a sum of losses, are those of `vmap` over one agent's function."""
    network, generator = Mlp((3, 5, 4, 2)), torch.Generator().manual_seed(0)
    weights, inputs = network.start([1, 2, 3], "test").double(), torch.randn(3, 6, 3, generator=generator).double()
    torch.testing.assert_close(network(weights, inputs), vmap(lambda w, x: plain(network, w, x))(weights, inputs))
    own = vmap(grad(lambda w, x: plain(network, w, x).square().mean()))(weights, inputs)
    batched = grad(lambda w: network(w, inputs).square().mean(dim=(1, 2)).sum())(weights)
    torch.testing.assert_close(batched, own)
    stacked = network(torch.stack([weights, weights + 1]), torch.stack([inputs, inputs]))
    torch.testing.assert_close(stacked[1], network(weights + 1, inputs))


def test_initial_weights():
    """An agent's depend on its seed alone and lie within 1 / sqrt(inputs)."""
    network = Mlp((4, 8, 2))
    weights = network.start([7, 8], "test")
    torch.testing.assert_close(weights[1:], network.start([8], "test"), rtol=0, atol=0)
    assert not torch.equal(weights[1:], network.start([8], "other"))
    assert network.size == 4 * 8 + 8 + 8 * 2 + 2
    assert 0.45 < float(weights[:, :40].abs().max()) <= 0.5
    assert 0.25 < float(weights[:, 40:].abs().max()) <= 8**-0.5
