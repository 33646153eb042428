"""Gradients by ordinary autograd are those of `torch.func`, and steps that overwrite are those that do not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import grad_and_value, vmap

from edgeopt.training import Adam, Batches, FedProx, Sgd, Task
from edgeopt.training.messages import Tensors, copied
from edgeopt.training.optimizers import Optimizer, overwriting_step
from edgeopt.training.rules.gradients import gradients
from edgeopt.training.rules.local import minimise
from edgeopt.training.transforms import in_transform
from tests.training.small_tasks import assert_near, assert_same, noisy_model, small_task


def tensors(seed: int, dtype: torch.dtype = torch.float32) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (3, 5), "b": (7,), "c": ()}
    found = {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in shapes.items()}
    return {**found, "turned": torch.randn(4, 3, generator=generator, dtype=dtype).T}


def test_gradients_are_those_of_torch_func():
    """Of what is used, of what is not, of nested arguments; what comes beside the scalar has no graph."""

    def objective(at: tuple[Tensors, torch.Tensor]) -> tuple[torch.Tensor, Any]:
        weights, x = at
        value = (weights["a"].sin() * x).sum() + weights["turned"].square().sum()
        return value, {"value": value, "plain": torch.ones(2)}

    at = tensors(0, torch.float64), torch.arange(5, dtype=torch.float64)
    found, rest = gradients(objective, at)
    expected, (_, other) = grad_and_value(objective, has_aux=True)(at)
    assert_near(found[0], expected[0], 1e-12)
    torch.testing.assert_close(found[1], expected[1])
    assert float(found[0]["b"].abs().sum()) == 0
    assert rest["value"] == other["value"]
    assert not rest["value"].requires_grad
    assert not at[0]["a"].requires_grad


@pytest.mark.parametrize("at", [{}, {"a": torch.ones(2)}])
def test_a_constant_has_no_slope(at: Tensors):
    """Nothing to differentiate by, or nothing that depends on it: zeros."""
    found, rest = gradients(lambda _: (torch.tensor(3.0), torch.tensor(4.0)), at)
    assert_same(found, {name: torch.zeros_like(value) for name, value in at.items()})
    assert rest == 4


def test_inside_a_transform_it_is_noticed():
    """Within vmap the gradients are those of torch.func, of each item."""
    assert not in_transform()

    def work(x: torch.Tensor) -> torch.Tensor:
        assert in_transform()
        return gradients(lambda at: (at.square().sum(), ()), x)[0]

    x = torch.arange(6.0).reshape(2, 3)
    assert torch.equal(vmap(work)(x), 2 * x)


OPTIMIZERS = st.one_of(
    st.builds(
        Sgd,
        st.sampled_from([0.1, 0.3]),
        momentum=st.sampled_from([0.0, 0.9]),
        weight_decay=st.sampled_from([0.0, 0.01]),
    ),
    st.builds(Adam, st.just(0.02), beta1=st.sampled_from([0.0, 0.9]), weight_decay=st.sampled_from([0.0, 0.01])),
)


@given(optimizer=OPTIMIZERS, seed=st.integers(0, 99), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_overwriting_is_stepping(optimizer: Optimizer, seed: int, dtype: torch.dtype):
    """Bit for bit, over several steps, and nothing else is written to."""
    first = tensors(seed, dtype)
    parameters, state = first, optimizer.start(first)
    mine, own = copied(first), copied(state)
    step = overwriting_step(optimizer)
    for number in range(3):
        slopes = tensors(1000 + seed + number, dtype)
        before = copied(slopes)
        parameters, state = optimizer.step(parameters, slopes, state)
        mine, own = step(mine, slopes, own)
        assert_same(slopes, before)
        assert_same(mine, parameters)
        for name, value in state.items():
            assert_same(own[name], value)  # type: ignore[arg-type]
    assert_same(first, tensors(seed, dtype))


def test_a_step_of_ones_own_counts():
    """A class that changes `step` alone is not passed over."""

    class Standing(Sgd):
        def step(self, parameters: Any, gradients: Any, state: Any) -> Any:
            return parameters, state

    given_ = tensors(1)
    assert_same(overwriting_step(Standing(0.1))(copied(given_), tensors(2), {})[0], given_)
    assert overwriting_step(Sgd(0.1))(own := copied(given_), tensors(2), {})[0] is own


def frozen_model() -> nn.Sequential:
    model = noisy_model()
    model[0].requires_grad_(False)
    del model[3]  # dropout would draw other numbers each time
    return model


@pytest.mark.parametrize(
    "loss", [lambda task: task.batch_loss, lambda task: FedProx(0.7).local_loss(task, task.initial_weights())]
)
@pytest.mark.parametrize("optimizer", [Sgd(0.2, momentum=0.5), Adam(0.02)])
def test_local_training_changes_nothing_that_it_was_given(loss: Callable[[Task], Any], optimizer: Optimizer):
    """With buffers, frozen weights and a proximal term: weights and state stay, and training is that of plain steps."""
    task = small_task((8, 8), frozen_model())
    weights, batch = task.initial_weights(), task.batch(0, Batches(0, 0, 3, 4))
    state = optimizer.start(task.trained(weights))
    before, at_first = copied(weights), copied(state)
    trained = minimise(task, loss(task), weights, batch, optimizer, state)
    assert_same(weights, before)
    for name, value in at_first.items():
        assert_same(state[name], value)  # type: ignore[arg-type]
    parameters, buffers = task.trained(weights), {n: v for n, v in weights.items() if n not in task.parameters}

    for inputs, targets in batch.steps():

        def objective(parameters: Tensors, given: Any = (buffers, inputs, targets)) -> Any:
            found = loss(task)({**parameters, **given[0]}, *given[1:])
            return found[0], found[1]

        slopes, (_, changed) = grad_and_value(objective, has_aux=True)(parameters)
        parameters, state = optimizer.step(parameters, slopes, state)
        buffers = {**buffers, **changed}
    assert_near(trained.weights, {**parameters, **buffers}, 1e-5)
