"""The weighted average of models, and the rule for buffers."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.errors import InvalidProblemError
from edgeopt.training.messages import Tensors
from edgeopt.training.rules.average import average_of_parts, average_update, masked_average, weighted_average
from edgeopt.training.trouble import TrainingError


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


def random_models(count: int, seed: int = 0) -> list[Tensors]:
    rng = np.random.default_rng(seed)
    return [
        {"w": torch.tensor(rng.normal(size=(4, 3))), "b": torch.tensor(rng.normal(size=2)), "n": torch.tensor(i)}
        for i in range(count)
    ]


def test_shares_by_tensor():
    """Where weights have a name, each tensor is averaged with its own; one without is refused by name."""
    models = random_models(3)
    found = weighted_average(models, {"w": [1, 2, 0], "b": [0, 0, 5], "n": [1, 1, 1]})
    np.testing.assert_allclose(found["w"], np.average([m["w"] for m in models], axis=0, weights=[1, 2, 0]))
    np.testing.assert_allclose(found["b"], models[2]["b"])
    assert found["n"] == 2
    with pytest.raises(InvalidProblemError, match="weights: b: expected how much each model counts"):
        weighted_average(models, {"w": [1, 1, 1]})
    with pytest.raises(InvalidProblemError, match=r"weights\['w'\] = \[0, 0, 0\]"):
        weighted_average(models, {"w": [0, 0, 0]})


@pytest.mark.parametrize("axis", [0, 1])
def test_an_average_of_what_was_trained(axis: int):
    """Each row, or column, is the average over those who trained it; one that nobody trained stays; others in full."""
    rng = np.random.default_rng(3)
    before, models, shares = random_models(1, seed=9)[0], random_models(5), rng.uniform(0.5, 2, 5)
    trained = rng.random((5, (4, 3)[axis])) < 0.5
    trained[:, 1] = False
    masks: list[Tensors] = [{"w": torch.tensor(own if axis == 0 else own[None])} for own in trained]
    found = masked_average(before, models, shares.tolist(), [*masks[:4], {}])
    trained[4] = True  # no mask
    for index in range(trained.shape[1]):
        own = found["w"].select(axis, index)
        who = np.flatnonzero(trained[:, index])
        parts = [models[i]["w"].select(axis, index) for i in who]
        np.testing.assert_allclose(own, np.average(parts, axis=0, weights=shares[who]))
    np.testing.assert_allclose(found["b"], np.average([m["b"] for m in models], axis=0, weights=shares))
    none = [{"w": torch.zeros(4, dtype=torch.bool)}] * 5
    assert torch.equal(masked_average(before, models, [1] * 5, none)["w"], before["w"])
    whole = [{"w": torch.ones(4, dtype=torch.bool)}] * 5
    torch.testing.assert_close(masked_average(before, models, [1] * 5, whole), weighted_average(models, [1] * 5))


@pytest.mark.parametrize("step", [1.0, 0.3])
def test_an_average_of_updates(step: float):
    """The weights move by the average difference; with a full step they become the average."""
    before, models = random_models(1, seed=9)[0], random_models(3)
    found, mean = average_update(before, models, [1, 2, 3], step=step), weighted_average(models, [1, 2, 3])
    for name in ("w", "b"):
        torch.testing.assert_close(found[name], before[name] + step * (mean[name] - before[name]))
    assert found["n"] == 2


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"w": torch.ones(3)}, r"^client 7: w: shape \[3\], expected \[2\] as of client 5$"),
        ({"w": torch.ones(2), "x": torch.ones(1)}, "^client 7: x: client 5 has none, expected equal names"),
        ({}, "^client 5: w: client 7 has none, expected equal names"),
    ],
)
def test_models_that_do_not_fit_each_other(second: Tensors, message: str):
    """The message names the model, the tensor, and what was expected."""
    with pytest.raises(TrainingError, match=message):
        weighted_average([{"w": torch.ones(2)}, second], [1, 1], whose=["client 5", "client 7"])
    with pytest.raises(TrainingError, match="before"):
        average_update(second, [{"w": torch.ones(2)}], [1])


@pytest.mark.parametrize(
    ("count", "weights"),
    [(0, []), (2, [1.0]), (2, [1.0, -1.0]), (2, [2.0, -1.0]), (2, [0.0, 0.0]), (1, [np.nan]), (1, [np.inf])],
)
def test_bad_weights_are_refused(count: int, weights: list[float]):
    """There must be one non-negative finite weight per model, and not all zero."""
    with pytest.raises(InvalidProblemError, match="weights"):
        weighted_average([{"w": torch.ones(1)}] * count, weights)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=5), st.integers(0, 1000))
def test_parts_are_averaged_over_those_who_have_them(cuts: list[int], seed: int):
    """Of every tensor, numpy.average over the parts with it; nothing of what nobody has."""
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.1, 5.0, len(cuts)).tolist()
    parts = [{f"{n}.{k}": torch.tensor(rng.normal(size=3)) for n in range(cut, 3) for k in "wb"} for cut in cuts]
    found = average_of_parts(parts, weights)
    assert found.keys() == {name for part in parts for name in part}
    for name, value in found.items():
        own = [(part[name].numpy(), weight) for part, weight in zip(parts, weights, strict=True) if name in part]
        np.testing.assert_allclose(value, np.average([v for v, _ in own], axis=0, weights=[w for _, w in own]))


def test_parts_that_do_not_agree_are_named():
    """As in an average of whole models, by whose they are."""
    parts = [{"a": torch.zeros(2)}, {"b": torch.zeros(1)}, {"a": torch.zeros(3)}]
    with pytest.raises(TrainingError, match=r"client 2: a: shape \[3\], expected \[2\] as of client 0"):
        average_of_parts(parts, [1, 1, 1], whose=["client 0", "client 1", "client 2"])
