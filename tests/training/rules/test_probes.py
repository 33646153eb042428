"""Gradients from probes: what is drawn, what is estimated against loops and closed forms, batched and one after another."""

import functools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import grad, vmap

from edgeopt.data import digits
from edgeopt.errors import InvalidProblemError, SequentialWarning
from edgeopt.models import mlp
from edgeopt.training.keys import fold_in, normal, rademacher
from edgeopt.training.rules.probes import Probes, norm_of

DRAWS = {"gaussian": normal, "rademacher": rademacher}
both = pytest.mark.parametrize("distribution", DRAWS)


def parameters(dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"weight": (3, 4), "bias": (3,), "scale": ()}
    return {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in shapes.items()}


def curved(at: dict[str, torch.Tensor]) -> torch.Tensor:
    return (at["weight"].sin().sum(1) * at["bias"]).sum() * at["scale"].exp()


# --- directions ----------------------------------------------------------------------------------------------------


@both
def test_directions_are_hashes_of_seed_and_number(distribution: Any):
    """Probe p has what the key (seed, p) gives at each place of the parameters in a row: no other order, no state."""
    known, seed = parameters(), torch.tensor(3)
    found = Probes(4, 0.1, distribution).directions(seed, known)
    for p in range(4):
        row = DRAWS[distribution](fold_in(seed, p), (3 * 4 + 3 + 1,), torch.float64)
        expected = {"weight": row[:12].reshape(3, 4), "bias": row[12:15], "scale": row[15]}
        assert all(torch.equal(found[name][p], value) for name, value in expected.items())


@both
@settings(max_examples=20)
@given(st.integers(0, 2**62), st.integers(1, 6), st.integers(1, 3))
def test_the_first_parameters_do_not_see_the_others(distribution: Any, seed: int, count: int, first: int):
    """Whoever holds fewer layers draws the same for them; of half precision, what the same numbers are rounded to."""
    known = parameters(torch.float32) | {"half": torch.zeros(5, dtype=torch.bfloat16)}
    probes, key = Probes(count, 1.0, distribution), torch.tensor(seed)
    whole, part = probes.directions(key, known), probes.directions(key, dict(list(known.items())[:first]))
    assert all(torch.equal(whole[name], value) for name, value in part.items())
    assert whole["half"].dtype == torch.bfloat16


@both
def test_entries_have_mean_zero_and_variance_one(distribution: Any):
    """And those of different probes and places are not correlated, within four standard errors."""
    found = Probes(400, 1.0, distribution).directions(torch.tensor(1), {"x": torch.zeros(50)})["x"]
    assert abs(found.mean()) < 4 / (400 * 50) ** 0.5
    assert abs((found**2).mean() - 1) < 4 * (2 / (400 * 50)) ** 0.5
    for product in (found[1:] * found[:-1], found[:, 1:] * found[:, :-1]):
        assert abs(product.mean()) < 4 / product.numel() ** 0.5
    assert set(found.unique().tolist()) == {-1.0, 1.0} or distribution == "gaussian"


# --- probes --------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("batched", [True, False])
def test_values_and_estimate_are_those_of_a_loop(distribution: Any, batched: bool):
    """Each probe by itself, by the definition; the estimate added up term by term."""
    known, probes = parameters(), Probes(5, 0.3, distribution)
    directions = probes.directions(torch.tensor(7), known)
    values = probes.around(curved, known, directions, batched=batched) - curved(known)
    expected = {name: torch.zeros_like(value) for name, value in known.items()}
    for p in range(5):
        moved = {name: value + 0.3 * directions[name][p] for name, value in known.items()}
        change = curved(moved) - curved(known)
        assert values[p] == pytest.approx(float(change), rel=1e-12)
        for name in known:
            expected[name] += change * directions[name][p] / (5 * 0.3)
    found = probes.estimate(directions, dict.fromkeys(known, values))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12)


def test_more_arguments_come_one_for_each_probe():
    """As a server needs it that is sent something else from each probe of a client."""
    known, probes, each = parameters(), Probes(3, 0.1), torch.arange(6.0).reshape(3, 2)
    directions = probes.directions(torch.tensor(0), known)
    found = [
        probes.around(lambda at, x: curved(at) * x, known, directions, each, batched=batched)
        for batched in (True, False)
    ]
    torch.testing.assert_close(*found, rtol=1e-12, atol=0.0)
    assert found[0].shape == (3, 2)
    nothing = [probes.around(lambda at, x: x.sum(), {}, {}, each), probes.around(lambda at: torch.ones(2), {}, {})]
    assert nothing[0].tolist() == [1.0, 5.0, 9.0]
    assert nothing[1].tolist() == [[1.0, 1.0]] * 3


def test_a_function_that_looks_at_values_is_probed_one_after_another():
    """With a warning that says why; the numbers are the same. An error of its own is raised as it is."""
    known, probes = parameters(), Probes(3, 0.1)
    directions = probes.directions(torch.tensor(0), known)

    def looking(at: dict[str, torch.Tensor]) -> torch.Tensor:
        return curved(at) if float(at["scale"]) > -100 else at["scale"]

    with pytest.warns(SequentialWarning, match="probes run one after another: RuntimeError"):
        found = probes.around(looking, known, directions)
    torch.testing.assert_close(found, probes.around(curved, known, directions), rtol=1e-12, atol=0.0)

    def failing(at: dict[str, torch.Tensor]) -> torch.Tensor:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        probes.around(failing, known, directions)


def test_the_parameters_are_untouched():
    """Nothing is added and taken away again, so that nothing of it is left."""
    known = parameters(torch.float32)
    before = {name: value.clone() for name, value in known.items()}
    probes = Probes(50, 1e-3)
    probes.around(curved, known, probes.directions(torch.tensor(1), known))
    assert all(torch.equal(known[name], value) for name, value in before.items())


@both
def test_known_gradients_go_through_the_same_probes(distribution: Any):
    """`along` is what probes of linear functions with those gradients measure."""
    known, probes = parameters(), Probes(6, 0.2, distribution)
    directions = probes.directions(torch.tensor(5), known)
    gradients = {name: torch.stack([value, 2 * value.cos()]) for name, value in known.items()}  # of two functions
    found = probes.along(directions, gradients)
    for m in range(2):

        def linear(at: dict[str, torch.Tensor], m: int = m) -> torch.Tensor:
            return functools.reduce(torch.add, [(gradients[name][m] * value).sum() for name, value in at.items()])

        values = probes.around(linear, known, directions) - linear(known)
        torch.testing.assert_close(found[m], values.float(), rtol=1e-6, atol=1e-6)


@both
def test_the_estimate_is_unbiased(distribution: Any):
    """For a linear function, the mean over many estimates is the gradient, within five standard errors everywhere."""
    gradient, repeats = torch.randn(20, generator=torch.Generator().manual_seed(0), dtype=torch.float64), 4000
    probes = Probes(2, 1.0, distribution)

    def one(seed: torch.Tensor) -> torch.Tensor:
        directions = probes.directions(seed, {"x": gradient})
        values = probes.around(lambda at: (at["x"] * gradient).sum(), {"x": gradient}, directions)
        return probes.estimate(directions, {"x": values - (gradient**2).sum()})["x"]

    found = vmap(one)(torch.arange(repeats))  # (repeats, d)
    error = found.std(0) / repeats**0.5
    assert ((found.mean(0) - gradient).abs() < 5 * error).all()
    fourth = (
        2 if distribution == "gaussian" else 0
    )  # E u^4 - 1 over the variance: Isserlis for one, exactly 1 for the other
    expected = 1 + (20 - 1 + fourth) / 2
    assert float((found**2).sum(1).mean() / (gradient**2).sum()) == pytest.approx(expected, rel=0.05)


@functools.cache
def stem_of_digits() -> tuple[Any, dict[str, torch.Tensor], torch.Tensor]:
    """Return a stem 64 -> 24 with 1560 parameters as a function, its parameters, and the gradient of a loss above it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = mlp((1, 8, 8), (24, 64))
    batch = digits().train.take(np.arange(64))
    known = {name: value.detach() for name, value in net[0].named_parameters()}
    z = net[0](batch.inputs).detach().requires_grad_()
    loss = torch.nn.functional.cross_entropy(net[1:](z), batch.targets)
    (cut_gradient,) = torch.autograd.grad(loss, z)

    def surrogate(at: dict[str, torch.Tensor]) -> torch.Tensor:
        return (cut_gradient * (torch.func.functional_call(net[0], at, (batch.inputs,)) - z.detach())).sum()

    return surrogate, known, cut_gradient


def assert_cosine_law(distribution: Any, count: int, repeats: int) -> None:
    surrogate, known, _ = stem_of_digits()
    exact = grad(surrogate)(known)
    probes, cosines = Probes(count, 1e-3, distribution), []
    for seed in range(repeats):
        directions = probes.directions(torch.tensor(seed), known)
        found = probes.estimate(directions, dict.fromkeys(known, probes.around(surrogate, known, directions)))
        inner = sum((found[name] * exact[name]).sum() for name in known)
        cosines.append(float(inner / (norm_of(found) * norm_of(exact))))
    size = sum(value.numel() for value in known.values())
    assert size == 1560
    assert np.mean(cosines) == pytest.approx((1 + (size + 1) / count) ** -0.5, abs=0.03)


@both
def test_cosine_with_the_exact_gradient(distribution: Any):
    """1 / sqrt(1 + (d + 1) / P), within 0.03 for 256 probes of 1560 parameters of a real stem."""
    assert_cosine_law(distribution, 256, 4)


@pytest.mark.slow
@both
def test_cosine_with_many_probes(distribution: Any):
    """The same for 4096 probes."""
    assert_cosine_law(distribution, 4096, 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((0, 1e-3), "probes = 0: expected an integer >= 1"),
        ((2.5, 1e-3), "probes = 2.5: expected an integer >= 1"),
        ((5, 0.0), "mu = 0.0: expected a positive number"),
        ((5, -1e-3), "mu = -0.001: expected a positive number"),
        ((5, float("nan")), "mu = nan: expected a positive number"),
        ((5, 1e-3, "uniform"), "distribution = 'uniform': expected 'gaussian' or 'rademacher'"),
    ],
)
def test_bad_probes(given: Any, message: str):
    """No probes, a distance of nothing, a distribution that there is not."""
    with pytest.raises(InvalidProblemError, match=message):
        Probes(*given)
