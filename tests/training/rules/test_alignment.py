"""How copies of layers are held together: strengths by hand, gradients against autograd, distances against torch and numpy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.training.rules.alignment import divergence, layer_strengths, probabilities, pull, relative_spread
from tests.training.split_tasks import task


def test_strengths_by_hand():
    """As the formula says: mu (1 - (l - c) / (L - c))^q of the layers above the cut; all alike for q = 0, none in the last one else."""
    own = task()
    names = ["hidden2.0.weight", "hidden3.0.weight", "head.0.weight"]  # layers 2, 3, 4

    def found(cut: int, mu: float, q: float) -> list[float]:
        strengths = layer_strengths(own, cut, mu, q)
        assert set(strengths) == set(own.part(own.initial_weights(), cut))
        return [strengths[name] for name in names[cut - 1 :]]

    assert found(1, 0.3, 0.0) == [0.3, 0.3, 0.3]
    assert found(1, 0.9, 1.0) == pytest.approx([0.6, 0.3, 0.0])
    assert found(2, 1.0, 2.0) == pytest.approx([0.25, 0.0])
    assert found(3, 1.0, 2.0) == [0.0]
    assert layer_strengths(own, 4, 1.0, 1.0) == {}


def test_pull_is_the_gradient_of_the_penalty():
    """By autograd, of the sum of the squares with the strength of each layer."""
    own = task()
    strengths = layer_strengths(own, 1, 0.7, 1.5)
    anchor = own.part(own.initial_weights(), 1)
    parameters = {name: (value + torch.randn_like(value)).requires_grad_() for name, value in anchor.items()}
    penalty = sum(strengths[n] / 2 * (value - anchor[n]).square().sum() for n, value in parameters.items())
    expected = torch.autograd.grad(penalty, list(parameters.values()))
    found = pull({name: value.detach() for name, value in parameters.items()}, anchor, strengths)
    for value, gradient in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(value, gradient, rtol=1e-12, atol=1e-12)


@given(st.integers(0, 1000), st.integers(1, 5), st.floats(0.1, 20.0))
def test_divergence_is_torchs(seed: int, samples: int, scale: float):
    """It is `torch.nn.functional.kl_div` from p to the mean, with its gradient; not negative, and 0 at the mean."""
    generator = torch.Generator().manual_seed(seed)
    outputs = scale * torch.randn(samples, 2, 4, generator=generator, dtype=torch.float64)
    mean = probabilities(torch.randn(samples, 2, 4, generator=generator, dtype=torch.float64))
    ours, theirs = (outputs.clone().requires_grad_() for _ in range(2))
    found = divergence(ours, mean)
    log_p = F.log_softmax(theirs, dim=-1).flatten(0, 1)
    expected = F.kl_div(mean.flatten(0, 1).log(), log_p, log_target=True, reduction="batchmean")
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, ours), torch.autograd.grad(expected, theirs))
    assert found >= -1e-12
    assert divergence(outputs, probabilities(outputs)) == pytest.approx(0.0, abs=1e-12)


def test_divergence_where_numbers_are_too_small():
    """A mean that is zero by underflow gives a large number, not infinity; half precision is computed in single."""
    outputs, mean = torch.tensor([[0.0, -5.0]]), torch.tensor([[1.0, 0.0]])
    assert 0 < divergence(outputs, mean) < np.inf
    assert divergence(outputs.bfloat16(), mean).dtype == probabilities(outputs.bfloat16()).dtype == torch.float32


def test_relative_spread_by_numpy():
    """The root of the weighted squares of what is apart over those of the mean, of parts that differ in their layers."""
    rng = np.random.default_rng(0)
    parts = [{"a": rng.normal(size=3), "b": rng.normal(size=2)}, {"b": rng.normal(size=2)}, {}]
    mean, shares = {"a": parts[0]["a"], "b": rng.normal(size=2)}, [2.0, 3.0, 9.0]
    squares = [[w * sum((of(n, v) ** 2).sum() for n, v in part.items()) for part, w in zip(parts, shares, strict=True)]
               for of in (lambda n, v: v - mean[n], lambda n, v: mean[n])]  # fmt: skip
    found = relative_spread([{n: torch.tensor(v) for n, v in part.items()} for part in parts],
                            {n: torch.tensor(v) for n, v in mean.items()}, shares)  # fmt: skip
    assert float(found) == pytest.approx(np.sqrt(np.sum(squares[0]) / np.sum(squares[1])))
    assert relative_spread([{}], {}, [1.0]).isnan()
