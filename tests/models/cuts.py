"""A model that is cut, against the whole."""

import torch
from torch import nn


def assert_cuts_change_nothing(model: nn.Sequential, sample: torch.Tensor) -> None:
    """At every boundary, two halves that exchange one activation and its gradient compute what the whole model computes."""
    whole = model(sample)
    whole.square().sum().backward()
    gradients = {key: parameter.grad.clone() for key, parameter in model.named_parameters()}
    for cut in range(1, len(model)):
        model.zero_grad()
        sent = model[:cut](sample)
        received = sent.detach().clone().requires_grad_()
        output = model[cut:](received)
        assert torch.equal(output, whole), cut
        output.square().sum().backward()
        sent.backward(received.grad)
        for key, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, gradients[key], msg=f"{key} cut at {cut}")
