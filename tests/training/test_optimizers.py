"""Optimisers compute what torch.optim computes."""

from typing import Any

import pytest
import torch

from edgeopt.errors import InvalidProblemError
from edgeopt.training import Adam, Sgd
from edgeopt.training.messages import State, Tensors
from edgeopt.training.optimizers import Optimizer

SHAPES = {"weight": (3, 4), "bias": (3,), "scale": ()}


def tensors(seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def ours(optimizer: Optimizer, steps: int) -> tuple[Tensors, State]:
    parameters = tensors(0)
    state = optimizer.start(parameters)
    for step in range(steps):
        parameters, state = optimizer.step(parameters, tensors(step + 1), state)
    return parameters, state


def torchs(make: Any, steps: int) -> Tensors:
    parameters = {name: torch.nn.Parameter(value) for name, value in tensors(0).items()}
    optimizer = make(list(parameters.values()))
    for step in range(steps):
        for name, gradient in tensors(step + 1).items():
            parameters[name].grad = gradient
        optimizer.step()
    return {name: value.detach() for name, value in parameters.items()}


@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_sgd_is_torchs(steps: int, momentum: float, weight_decay: float):
    """Sgd equals torch.optim.SGD after one step and after several."""
    options = {"lr": 0.3, "momentum": momentum, "weight_decay": weight_decay}
    expected = torchs(lambda p: torch.optim.SGD(p, **options), steps)
    found, _ = ours(Sgd(**options), steps)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 9])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.5), (0.8, 0.0)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_adam_is_torchs(steps: int, betas: tuple[float, float], weight_decay: float):
    """Adam equals torch.optim.AdamW from the first step on, where the corrections of the means are largest."""
    expected = torchs(lambda p: torch.optim.AdamW(p, lr=0.1, betas=betas, weight_decay=weight_decay), steps)
    found, _ = ours(Adam(lr=0.1, beta1=betas[0], beta2=betas[1], weight_decay=weight_decay), steps)
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("optimizer", [Sgd(0.1, momentum=0.5, weight_decay=0.1), Adam(0.1, weight_decay=0.1)])
def test_a_step_changes_nothing_in_place(optimizer: Optimizer):
    """Parameters, gradients and state that are given stay as they are; the state has the parameters' names."""
    parameters, gradients = tensors(0), tensors(1)
    _, state = ours(optimizer, 2)
    before = [tree.copy() for tree in (parameters, gradients)]
    kept = {part: {name: value.clone() for name, value in tree.items()} for part, tree in state.items()}
    optimizer.step(parameters, gradients, state)
    for tree, seed in zip(before, (0, 1), strict=True):
        torch.testing.assert_close(tree, tensors(seed), rtol=0, atol=0)
    torch.testing.assert_close(state, kept, rtol=0, atol=0)
    assert all(set(tree) == set(SHAPES) for tree in state.values())


def test_plain_sgd_has_no_state():
    """Without momentum there is nothing to remember or to send."""
    assert ours(Sgd(0.1), 3)[1] == {}


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (Sgd, {"lr": 0.0}, "lr"),
        (Sgd, {"lr": float("nan")}, "lr"),
        (Sgd, {"momentum": 1.0}, "momentum = 1.0: expected a number from 0 to below 1"),
        (Sgd, {"weight_decay": -1.0}, "weight_decay"),
        (Adam, {"lr": -1.0}, "lr"),
        (Adam, {"beta1": 1.0}, "beta1 = 1.0"),
        (Adam, {"beta2": -0.1}, "beta2 = -0.1"),
        (Adam, {"eps": 0.0}, "eps"),
        (Adam, {"weight_decay": -1.0}, "weight_decay"),
    ],
)
def test_bad_hyper_parameters_are_refused(make: Any, options: dict[str, float], message: str):
    """The message names the parameter."""
    with pytest.raises(InvalidProblemError, match=message):
        make(**options)
