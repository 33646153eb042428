"""The weighted average of models, and the rule for buffers."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.errors import InvalidProblemError
from edgeopt.training.rules.average import weighted_average


@given(st.lists(st.floats(0.01, 1e6), min_size=1, max_size=6), st.integers(0, 1000))
def test_parameters_are_numpys_average(weights: list[float], seed: int):
    """The average equals numpy.average in float64, whatever the scale of the weights."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(len(weights), 2, 3))
    models = [{"w": torch.tensor(value, dtype=torch.float32)} for value in values]
    found = weighted_average(models, weights)["w"]
    np.testing.assert_allclose(found, np.average(values.astype(np.float32), axis=0, weights=weights), atol=1e-6)


def test_weights_of_zero_and_arrays():
    """A weight of zero leaves a model out; an array of weights stays as it is."""
    weights = np.array([3.0, 0.0])
    models = [{"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([100.0, 100.0])}]
    assert weighted_average(models, weights)["w"].tolist() == [1.0, 2.0]
    assert weights.tolist() == [3.0, 0.0]


def test_rule_for_buffers():
    """Running means are averaged; of counters the largest is taken, with its type."""
    norm = [torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)]
    for layer, batches in zip(norm, (1, 3), strict=True):
        for step in range(batches):
            layer(torch.arange(6.0).reshape(3, 2) * (step + 1))
    found = weighted_average([layer.state_dict() for layer in norm], [1, 3])
    assert found["num_batches_tracked"].dtype == torch.int64
    assert int(found["num_batches_tracked"]) == 3
    for name in ("running_mean", "running_var", "weight", "bias"):
        expected = np.average([layer.state_dict()[name].numpy() for layer in norm], axis=0, weights=[1, 3])
        np.testing.assert_allclose(found[name], expected, rtol=1e-6)


def test_half_precision_is_averaged_in_single():
    """Many bfloat16 models average to the rounded mean, not to a sum of rounded terms."""
    values = torch.linspace(0.9, 1.1, 501).bfloat16()
    found = weighted_average([{"w": value} for value in values], [1.0] * 501)["w"]
    assert found.dtype == torch.bfloat16
    assert found == values.double().mean().bfloat16()


@pytest.mark.parametrize(
    ("count", "weights"),
    [(0, []), (2, [1.0]), (2, [1.0, -1.0]), (2, [2.0, -1.0]), (2, [0.0, 0.0]), (1, [np.nan]), (1, [np.inf])],
)
def test_bad_weights_are_refused(count: int, weights: list[float]):
    """There must be one non-negative finite weight per model, and not all zero."""
    with pytest.raises(InvalidProblemError, match="weights"):
        weighted_average([{"w": torch.ones(1)}] * count, weights)
