"""MNIST-1D against the recipe, one sample after another."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from edgeopt.data import mnist_1d
from edgeopt.data.mnist1d import _LINES, _signals
from edgeopt.errors import InvalidProblemError


def test_signals_follow_the_recipe():
    """Each sample is its line padded, stretched to 72 points, scaled, moved, set into noise, sheared and thinned to 40."""
    labels = np.arange(50) % 10
    found = _signals(labels, np.random.default_rng(3))
    rng = np.random.default_rng(3)
    padding = rng.integers(36, 61, 50)
    scale, moves = rng.random(50), rng.integers(0, 48, 50)
    smooth, fine = rng.standard_normal((50, 72)), rng.standard_normal((50, 72))
    shear = rng.random(50)
    for i, label in enumerate(labels):
        line = (_LINES[label] - _LINES[label].mean()) / _LINES[label].std()
        line = (line - line[0]) / 6 + 1e-8  # the recipe tells the line from what is around it by not being zero
        long = np.concatenate([line, np.zeros(padding[i])])
        signal = np.interp(np.linspace(0, 1, 72), np.linspace(0, 1, len(long)), long)
        signal = np.roll(signal * (1 + 0.4 * (scale[i] - 0.5)), moves[i])
        signal = np.where(signal != 0, signal, gaussian_filter(0.25 * smooth[i], 2)) + 0.02 * fine[i]
        signal = signal - 0.75 * (shear[i] - 0.5) * np.linspace(-0.5, 0.5, 72)
        expected = np.interp(np.linspace(0, 1, 40), np.linspace(0, 1, 72), signal)
        np.testing.assert_allclose(found[i], expected, atol=1e-7)


def test_samples():
    """As many as asked, standardised over the training samples, classes alike, the same for the same seed."""
    data = mnist_1d(1, 1003, 100)
    assert data.train.inputs.shape == (1003, 40)
    assert data.test.inputs.dtype == torch.float32
    assert sorted(np.bincount(data.train.labels)) == [100] * 7 + [101] * 3
    assert abs(float(data.train.inputs.mean())) < 1e-6
    assert float(data.train.inputs.std(correction=0)) == pytest.approx(1)
    again, other = mnist_1d(1, 1003, 100), mnist_1d(2, 1003, 100)
    assert torch.equal(data.test.inputs, again.test.inputs)
    assert not torch.equal(data.test.inputs, other.test.inputs)
    assert not torch.equal(data.train.inputs[:100], data.test.inputs)


@pytest.mark.parametrize("name", ["num_train", "num_test"])
def test_bad_counts(name: str):
    """A count that is none is named."""
    with pytest.raises(InvalidProblemError, match=name):
        mnist_1d(**{name: 0})
